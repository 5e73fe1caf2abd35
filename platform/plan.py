"""What a run needs, on paper: simulations, core-hours, memory, object store and nodes, from rates measured here.

One candidate of the case is learnt and simulated at each fidelity, and the reward service trained once; the rest is counting,
phase by phase, what the run will do if nothing ends it before its budget is spent.
"""

from __future__ import annotations

import math
import os
import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..cluster.session import cpus
from ..scenarios.errors import InputError
from ..workers.pool import LocalPool
from ..workers.reward import RewardService
from ..workers.simulator import Job
from ..workers.sumo import Rollout
from .case import Case, load_case
from .config import Config, read_yaml
from .experiment import diffusion_settings
from .ladder import COST
from .progress import Progress
from .references import PRIOR_DRAWS
from .workbench import HABITS

T = TypeVar("T")
REPEATS = 2  # of each simulation, of which the faster counts: others may be at work here, too
LONG = 20.0  # seconds of a simulation that is not repeated
IN_FLIGHT = 2  # results and routes per worker that the object store may hold at once


@dataclass(frozen=True)
class Rates:
    """Seconds and bytes on this machine, one thread each."""

    micro: float  # a full simulation
    meso: float
    learning: float  # the policies and routes of all vehicles for one candidate
    drawing: float  # one call of the reward service
    training: float
    memory: int  # resident in a process that simulates
    message: int  # a candidate's routes and result
    problem: int  # the case, held once on every node


@dataclass(frozen=True)
class Nodes:
    """Nodes for rollouts: how many there may be, and what one has."""

    most: int
    cpus: int
    memory: int | None = None  # bytes

    @property
    def workers(self) -> int:
        return self.most * self.cpus


@dataclass(frozen=True)
class Phase:
    """A part of the run whose simulations may go on at once."""

    name: str
    simulations: int
    core_seconds: float
    workers: int  # busy at once, at most
    seconds: float  # wall time with them


def nodes_of(path: Path | None, config: Config) -> Nodes:
    """The nodes of a launch file that are for rollouts; without one, this machine.

    Raises:
        InputError: not a file of Ray's cluster launcher or of KubeRay, or one without nodes for rollouts.
    """
    if path is None:
        return Nodes(1, config.workers.rollouts or cpus())
    data = read_yaml(path)
    spec = data.get("spec", {}) if "apiVersion" in data else None
    found: list[Nodes] = []
    if spec is not None:
        for group in spec.get("rayClusterSpec", spec).get("workerGroupSpecs", []):
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            if "nvidia.com/gpu" not in limits:
                memory = _bytes(str(limits["memory"])) if "memory" in limits else None
                found.append(Nodes(group["maxReplicas"], int(limits["cpu"]), memory))
    else:
        for kind in data.get("available_node_types", {}).values():
            resources = kind.get("resources", {})
            if resources.get("CPU") and not resources.get("GPU") and kind.get("max_workers", 0):
                found.append(Nodes(kind["max_workers"], resources["CPU"], resources.get("memory")))
    if not found:
        raise InputError(
            f"{path}: no nodes for rollouts there (with CPUs, without GPU, and a largest number); "
            "expected a file of Ray's cluster launcher or a RayCluster or RayJob of KubeRay"
        )
    return max(found, key=lambda one: one.workers)


def _bytes(text: str) -> int:
    """An amount of memory as Kubernetes writes it."""
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    unit = next((unit for unit in units if text.endswith(unit)), "")
    try:
        return int(float(text.removesuffix(unit)) * units.get(unit, 1))
    except ValueError as error:
        raise InputError(f"memory {text!r}: expected an amount such as 32Gi") from error


def measure(config: Config, progress: Progress) -> Rates:
    """Learns and simulates one candidate of the case, in this process."""
    with tempfile.TemporaryDirectory(prefix="throng-") as scratch:
        progress.phase("reading")
        case = load_case(config, Path(scratch))
        return _measure(case, progress)


def _measure(case: Case, progress: Progress) -> Rates:
    config, model = case.config, case.problem.preference_model()
    roads, minutes = case.scenario.network.road_count, case.scenario.minutes
    queue = np.zeros((roads, minutes), np.float32)
    size = config.search.population
    latents = np.random.default_rng(0).standard_normal((size, *model.shape), dtype=np.float32)
    pool = LocalPool(case.problem, config.navigation.replan, config.workers.deadline)
    try:
        progress.phase("learning one candidate")
        pool.flows([(latents[0], queue)])  # compiles
        learning, _ = _timed(lambda: pool.flows([(latents[0], queue)]))
        runs: dict[str, Rollout] = {}
        jobs = [Job(kind, 0, kind, z=latents[0], queue=queue) for kind in ("meso", "micro")]
        progress.phase("simulating it")
        quick = (job for job in jobs * REPEATS if job.key not in runs or runs[job.key].seconds < LONG)
        for key, result in pool.simulate(quick):
            if not isinstance(result, Rollout):
                raise InputError(f"the simulation of a first candidate failed: {result.error}")
            if key not in runs or result.seconds < runs[key].seconds:
                runs[key] = result
    finally:
        pool.close()
    drawing = training = 0.0
    if config.search.proposals == "evolution" and config.search.learning:
        progress.phase("training the reward service")
        trips = case.problem.trips() if len(model.shape) == 2 else None
        service = RewardService(model.shape, trips, diffusion_settings(config), 0)
        taus = np.repeat(queue[None], size, axis=0)
        drawing, _ = _timed(lambda: service.sample(taus, 0))
        training, _ = _timed(lambda: service.train(latents, taus, np.ones(size), 0))
    message = sum(len(pickle.dumps(one, protocol=5)) for one in (queue, runs["micro"].macro))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Rates(
        runs["micro"].seconds, runs["meso"].seconds, learning, drawing, training,
        memory=pages * os.sysconf("SC_PAGE_SIZE"), message=message,
        problem=len(pickle.dumps(case.problem, protocol=5)),
    )  # fmt: skip


def _timed(do: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    result = do()
    return time.perf_counter() - began, result


def phases(config: Config, rates: Rates, workers: int) -> list[Phase]:
    """What the run does, in order; a generation of the search stands for all of them."""
    full = rates.micro + rates.learning
    synthetic = config.target.observed is None
    hidden = synthetic and config.target.truth != "published"
    nulls = (2 + synthetic + hidden) * config.report.reference_seeds + PRIOR_DRAWS
    return [
        _parallel("observing", 1 + (HABITS if hidden else synthetic), full, 1),
        _parallel("floors and nulls", nulls, full, workers),
        _search(config, rates, workers),
        _parallel("evaluating", config.report.seeds, full, workers),
    ]


def _parallel(name: str, count: int, seconds: float, workers: int) -> Phase:
    busy = min(count, workers)
    return Phase(name, count, count * seconds, busy, math.ceil(count / max(1, busy)) * seconds)


def _search(config: Config, rates: Rates, workers: int) -> Phase:
    """All generations: batches climb the ladder one after the other, elites are simulated while the model trains."""
    search = config.search
    evolves = search.proposals == "evolution" and search.mutation
    drawn = search.population if search.handover == "resample" or not evolves else search.population // 2
    batches = [drawn, search.population] if evolves else [search.population]
    seconds = {"meso": rates.meso, "quiet": rates.micro, "micro": rates.micro}
    spent = core = wall = 0.0
    simulations = widest = 0
    for size in batches:
        screened = size * (search.screen if search.screen > 1 else 1)
        core += screened * rates.learning
        wall += math.ceil(screened / workers) * rates.learning + rates.drawing + rates.training
        count = size
        for rung in search.ladder:
            each = seconds[rung] + rates.learning
            simulations, spent, core = simulations + count, spent + COST[rung] * count, core + count * each
            wall += math.ceil(count / workers) * each
            widest = max(widest, min(count, workers))
            count = max(1, math.ceil(search.promote * count))
    core += search.elites * (rates.micro + rates.learning) + len(batches) * (rates.drawing + rates.training)
    simulations, spent = simulations + search.elites, spent + search.elites
    again = search.population * (rates.micro + rates.learning) if not search.reuse else 0.0
    if again:
        simulations, spent, core = simulations + search.population, spent + search.population, core + again
        wall += again / min(search.population, workers)
    wall += max(0.0, math.ceil(search.elites / workers) * (rates.micro + rates.learning) - rates.training)
    generations = min(search.generations, max(1, int(search.budget / spent)))
    name = f"searching: {generations} generations"
    return Phase(name, generations * simulations, generations * core, widest, generations * wall)


def table(config: Config, rates: Rates, nodes: Nodes) -> tuple[list[list[str]], list[tuple[str, str]]]:
    """Rows of the phases, under HEADINGS, and the sums with what a node needs."""
    workers = min(config.workers.rollouts or nodes.workers, nodes.workers)
    parts = phases(config, rates, workers)
    began, rows = 0.0, []
    for part in parts:
        row = [part.name, f"{part.simulations}", f"{part.core_seconds / 3600:.2f}", f"{part.workers}"]
        rows.append([*row, f"{math.ceil(part.workers / nodes.cpus)}", _clock(began), _clock(began + part.seconds)])
        began += part.seconds
    busy = min(nodes.cpus, workers)
    need = busy * rates.memory
    fits = "" if nodes.memory is None else " (it has that)" if need <= nodes.memory else " (MORE THAN IT HAS)"
    core = sum(part.core_seconds for part in parts)
    use = core / (began * workers)
    store = rates.problem + busy * IN_FLIGHT * rates.message
    return rows, [
        ("simulations", f"{sum(part.simulations for part in parts)} of all fidelities"),
        ("core-hours", f"{core / 3600:.2f} of this machine's cores"),
        ("wall time", f"{_clock(began)} with {workers} workers, {100 * use:.0f} % of them at work on average"),
        ("memory of a node", f"{need / 2**30:.1f} GiB for {busy} workers{fits}"),
        ("object store of a node", f"{store / 2**20:.0f} MiB"),
        ("measured here", f"full simulation {rates.micro:.2f} s, mesoscopic {rates.meso:.2f} s, learning "
         f"{rates.learning:.2f} s, training {rates.training:.2f} s"),
    ]  # fmt: skip


HEADINGS = ("phase", "simulations", "core-hours", "workers busy", "nodes", "from", "to")


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


def plan(config: Config, cluster: Path | None, progress: Progress) -> tuple[list[list[str]], list[tuple[str, str]]]:
    """Table and sums for a run of this configuration on the cluster of a launch file."""
    nodes = nodes_of(cluster, config)
    return table(config, measure(config, progress), nodes)
