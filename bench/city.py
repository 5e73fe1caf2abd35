"""A city of 6,024 roads: what one rollout takes, of time and memory, against the plain sumo binary."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray
from measure import SUMO, Result, here, ratio, side_by_side
from throng.cluster.session import session
from throng.platform.case import load_case
from throng.platform.config import load_config
from throng.scenarios.errors import InputError
from throng.workers.fleet import Rules
from throng.workers.learner import Learner
from throng.workers.pool import RayPool
from throng.workers.simulator import Job
from throng.workers.sumo import SumoRollout
from throng.workers.sumo_files import SumoFiles
from town import SEED, scratch

CASE = Path(__file__).parents[1] / "examples" / "nanchang.yaml"
MIB = 2**20


def city(quick: bool) -> list[Result]:
    """Nanchang, whose data is not part of this repository: nothing is measured where it is not found."""
    try:
        config = load_config(CASE, ["scenario.minutes=1"] if quick else [])
        case = load_case(config, scratch() / "city")
    except InputError as error:
        print(f"city: not measured: {error}")
        return []
    scenario = case.scenario
    learner = Learner(case.problem)
    queue = np.zeros((scenario.network.road_count, scenario.minutes), np.float32)
    z = np.random.default_rng(0).standard_normal(learner.model.shape, dtype=np.float32)
    learner.routes(z, queue)  # compiles
    routes: list[Any] = []
    learning = here(lambda: routes.append(learner.routes(z, queue)))
    directory = scratch() / "city-plain"
    directory.mkdir()
    files = SumoFiles(scenario, directory)
    files.write_routes(routes[0])
    arguments = files.options(SEED, "micro", False, scenario.observe_speed)
    with SumoRollout(scenario) as rollout:
        ours, plain = side_by_side(1, lambda: rollout.run(routes[0], SEED), arguments, warm=0)
    alone = _plain_memory(arguments)
    peaks, result = _through_ray(case.problem, z, queue)
    detail = (
        f"{scenario.network.road_count} roads, {len(scenario.demand)} vehicles, {scenario.minutes} minutes, "
        f"{result.running} driving at the end; a rollout {ours[0].cpu:.0f} CPU s, learning and routing {learning.cpu:.1f} s; "
        f"rollout worker at most {peaks['rollout worker'] / MIB:.0f} MiB, learner {peaks['learner'] / MIB:.0f} MiB; "
        f"in the object store: the case {len(pickle.dumps(case.problem, 5)) / MIB:.1f} MiB, routes of a candidate "
        f"{len(pickle.dumps(routes[0], 5)) / MIB:.1f} MiB"
    )
    return [
        Result("city: rollout / plain sumo", ratio(ours, plain), 1.15, "lower", detail),
        Result("city: memory, worker / plain sumo", peaks["rollout worker"] / alone, 1.5, "lower",
               f"plain sumo at most {alone / MIB:.0f} MiB"),
    ]  # fmt: skip


def _plain_memory(arguments: list[str]) -> int:
    """The most memory that the plain binary has resident, bytes.

    Asked of a small process between: what a process hands on to its child counts for the child's largest, too.
    """
    between = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", between, str(SUMO), *arguments], capture_output=True, text=True, check=True
    )
    return int(done.stdout) << 10


def _through_ray(problem: Any, z: Any, queue: Any) -> tuple[dict[str, int], Any]:
    """The most memory that a rollout worker and a learner had resident, bytes, and the result of a simulation."""
    with session("local", 2):
        pool = RayPool(problem, "pretrip", Rules(3600.0), lambda: 1)
        ((_, result),) = pool.simulate([Job("one", SEED, z=z, queue=queue)])
        peaks = {}
        for fleet in (pool.rollouts, pool.learners):
            process = ray.get(fleet._members[0].actor.process.remote())
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
            peaks[fleet.name] = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
        pool.close()
    return peaks, result
