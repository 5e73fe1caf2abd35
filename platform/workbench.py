"""A run's workshop: its case, its workers and its target, opened the same way by every command."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from ..cluster.session import JOB, cpus, session
from ..policies.navigation import route_vehicles
from ..scenarios.demand import Routes
from ..scenarios.errors import InputError
from ..scenarios.macro import Macro, critical_threshold, reference_speed
from ..workers.fleet import Fleet, Rules
from ..workers.placement import cpus_for, rollouts_on
from ..workers.pool import LocalPool, Pool, RayPool
from ..workers.simulator import Job
from .case import Case, Truth, load_case
from .config import Config
from .progress import Progress
from .seeds import child_seed
from .simulations import Outcome, Simulations
from .store import RunStore
from .target import Target
from .telemetry import Telemetry, recorded

Array = NDArray[np.float32]
HABITS = 2  # rounds in which the hidden drivers learn what traffic to expect


@dataclass(frozen=True, eq=False)
class Workbench:
    """Everything a command needs to simulate the case and judge the result."""

    case: Case
    simulations: Simulations
    target: Target
    reference: Array  # [roads, minutes] queues with everybody on the shortest path: the state before anything is known
    truth: Truth | None  # synthetic studies with hidden preferences
    truth_routes: Routes | tuple[str, ...] | None  # what the observed drivers drove, if the case knows
    habit: Array  # [roads, minutes] queues the hidden drivers expect

    def seed(self, *names: str | int) -> int:
        return child_seed(self.case.config.seed, *names)

    def must(self, jobs: list[Job]) -> list[Outcome]:
        """Simulates jobs that have to succeed, in order.

        Raises:
            InputError: SUMO refused one: the inputs are at fault.
        """
        outcomes = self.simulations.run(jobs)
        return [_must(job.key, outcomes[job.key]) for job in jobs]


def _must(key: str, outcome: Outcome) -> Outcome:
    if outcome.macro is None:
        raise InputError(f"the simulation {key} failed: {outcome.error}")
    return outcome


@contextlib.contextmanager
def workbench(
    config: Config, store: RunStore | None, progress: Progress, case: Case | None = None
) -> Iterator[Workbench]:
    """Opens the case, starts the workers and prepares the target; `case` is given when it has been loaded already."""
    with contextlib.ExitStack() as stack:
        if case is None:
            case = load_case(config, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="throng-"))))
        telemetry = Telemetry("" if store is None else str(store.directory))
        if store is not None:
            stack.enter_context(recorded(store, progress))
        pool = stack.enter_context(_workers(config, case, progress, telemetry))
        simulations = Simulations(pool, store, progress, telemetry)
        progress.phase("observing")
        yield _prepare(case, simulations)


@contextlib.contextmanager
def _workers(config: Config, case: Case, progress: Progress, telemetry: Telemetry) -> Iterator[Pool]:
    given = config.workers
    replan = config.navigation.replan
    pool: Pool
    if given.rollouts == 0:
        _require_gpu(config, torch.cuda.is_available())
        pool = LocalPool(case.problem, replan, given.deadline)
        try:
            yield pool
        finally:
            pool.close()
        return
    growth = None if given.recycle_growth is None else given.recycle_growth << 20
    rules = Rules(given.deadline, restarts=given.restarts, answers=given.recycle_after, growth=growth)

    def pulse(fleet: Fleet) -> None:
        progress.waits(fleet.name, *fleet.waiting())
        telemetry.metrics.fleet(fleet)

    local = cpus_for(given.rollouts or cpus(), given.learners)
    with session(given.address, local) as there:

        def room() -> int:
            return given.rollouts or rollouts_on(there(), given.learners)

        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        alone = given.address == "local" and JOB not in os.environ  # a cluster may bring a GPU
        _require_gpu(config, not alone or resources.get("GPU", 0.0) > 0.0)
        pool = RayPool(case.problem, replan, rules, room, given.learners, config.diffusion.device, given.memory, pulse)
        try:
            yield pool
        finally:
            if ray.is_initialized():
                pool.close()


def _require_gpu(config: Config, there: bool) -> None:
    """Refuses devices that are not there.

    Raises:
        InputError: naming the key.
    """
    for key in ("learner", "diffusion"):
        if getattr(config, key).device == "cuda" and not there:
            raise InputError(f"{key}.device: 'cuda' cannot be used here: no GPU is found on this machine; choose cpu")


def observation_seed(config: Config) -> int:
    """The seed of the simulation that stands for the observation where nothing was observed."""
    return child_seed(config.target.truth_seed, "observed")


def _prepare(case: Case, simulations: Simulations) -> Workbench:
    """Simulates the reference traffic and, where nothing was observed, what the hidden drivers do."""
    config, scenario = case.config, case.scenario
    seed = observation_seed(config)

    def simulate(key: str, routes: Routes | tuple[str, ...]) -> Outcome:
        return _must(key, simulations.run([Job(key, seed, routes=routes)])[key])

    shortest = route_vehicles(scenario.network, scenario.demand.origin, scenario.demand.destination, None)
    reference = simulate("prepare-reference", shortest)
    assert reference.macro is not None
    truth: Truth | None = None
    routes: Routes | tuple[str, ...] | None = None
    habit = reference.macro.queue
    if case.observed is not None:
        values, kind, macro = case.observed.values, case.observed.kind, None
    else:
        kind = config.target.kind
        if config.target.truth == "published":
            assert case.published is not None
            routes = case.published.edges
            macro = simulate("prepare-published", routes).macro
        else:
            truth = Truth(case)
            for round_ in range(HABITS):
                routes = truth.routes(habit)
                macro = simulate(f"prepare-truth{round_}", routes).macro
                assert macro is not None
                if round_ + 1 < HABITS:
                    habit = macro.queue
        assert macro is not None
        values = macro.queue
    target = _target(case, kind, values, macro, reference.macro)
    return Workbench(case, simulations, target, reference.macro.queue, truth, routes, habit)


def _target(case: Case, kind: str, values: Array, observed: Macro | None, reference: Macro) -> Target:
    network, given = case.scenario.network, case.config.target
    if kind != "lcc":
        return Target(kind, values, network)  # type: ignore[arg-type]
    # v_max of Zeng et al.: pooled over what was observed and the reference, frozen before the search.
    speeds = [macro.speed for macro in (observed, reference) if macro is not None and macro.speed is not None]
    free = reference_speed(speeds, network.speed)
    if given.functional_speed == "critical":
        threshold = critical_threshold(speeds[0], free, network)
    else:
        threshold = given.functional_speed
    target = Target("lcc", np.zeros(0, np.float32), network, free, threshold, given.connectivity)
    series = values if observed is None else target.quantity(observed)
    return Target("lcc", series, network, free, threshold, given.connectivity)
