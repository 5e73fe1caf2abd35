"""The same drivers before and after an edit: simulated on the network as it was and as it would be.

Drivers are those of an accepted explanation (recovered reward models) or the hidden ones of a synthetic study; a study of
how well effects are predicted (MASDiff, RQ2) compares the two. Under the edit everybody learns again: at the traffic they
expected before, changed by what the edit changed in it. So an edit of nothing changes nothing, exactly.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..policies.reward_model import RewardModels, TransferProblem
from ..scenarios.demand import Routes
from ..scenarios.edited import Edited
from ..scenarios.errors import InputError
from ..scenarios.net_patch import read_text
from ..scenarios.scenario import Scenario
from ..workers.simulator import Job
from .experiment import Solution
from .progress import Progress
from .simulations import Outcome
from .workbench import HABITS, Workbench

Array = NDArray[np.float32]
LEARN_SEEDS = 2  # simulations whose mean is the traffic that drivers learn again from


@dataclass(frozen=True, eq=False)
class Drivers:
    """Somebody whose behaviour under an edit is known."""

    name: str
    state: Array  # [roads, minutes] the queues they expect before the edit
    plan: Callable[[Edited | None, Array], dict[str, Any]]  # (edit or None, queues expected) -> what a Job is given
    seeds: str = "whatif"  # names the simulation seeds: two of one behaviour under two names tell what noise does


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """Traffic of the same drivers on both networks: one outcome per seed, seeds in the same order."""

    name: str
    before: list[Outcome]
    after: list[Outcome]

    @property
    def queues(self) -> tuple[Array, Array]:
        """[seeds, roads, minutes] before, on the rows of the network as it was, and after, on those of the edited one."""
        before, after = (
            np.stack([one.macro.queue for one in side if one.macro is not None]) for side in (self.before, self.after)
        )
        return before, after


def ensemble(models: RewardModels, solution: Solution, count: int) -> list[Drivers]:
    """The drivers of the first `count` accepted explanations."""

    first = enumerate(models.members[:count])
    return [by_weights(f"explanation {i}", one.weights, solution.tau[i]) for i, one in first]


def by_weights(name: str, weights: Array, state: Array) -> Drivers:
    """Drivers of known reward models, the weights `[vehicles, features]`, who expect `state [roads, minutes]`."""

    def plan(edited: Edited | None, state: Array) -> dict[str, Any]:
        return {"z": weights if edited is None else weights[edited.source], "queue": state}

    return Drivers(name, state, plan)


def hidden(bench: Workbench, seeds: str = "whatif", individuals: int = 0) -> Drivers:
    """The hidden drivers of a synthetic study; another `individuals` puts other people into the same population.

    Raises InputError where the case has none: an observed series, or published routes, which do not adapt.
    """
    truth = bench.truth
    if truth is None:
        raise InputError(
            f"{bench.case.config.name}: no hidden preferences here (target.truth: structured or iid without "
            "target.observed has them), so nobody knows what the true drivers would do under an edit"
        )

    def plan(edited: Edited | None, state: Array) -> dict[str, Any]:
        there = truth if edited is None else truth.under(edited)
        return {"routes": there.routes(state, individuals)}

    return Drivers("truth", bench.habit, plan, seeds)


def simulate(
    bench: Workbench,
    edited: Edited,
    drivers: Sequence[Drivers],
    seeds: int,
    bias_scale: float,
    progress: Progress | None = None,
) -> list[Counterfactual]:
    """Simulates all drivers before and after an edit, with the same seeds.

    Args:
        bench: of the run; its workers and its journal are used, so that nothing finished is repeated.
        edited: of the bench's own scenario.
        bias_scale: that of the reward models (`RewardModels.bias_scale`); the hidden drivers have their own.

    Raises:
        InputError: SUMO refused a simulation.
    """
    problem = bench.case.problem
    worlds: dict[str, str] = {}
    for name, scenario in (("before", problem.scenario), ("after", edited.scenario)):
        there = replace(scenario, observe_trips=True)
        worlds[name] = f"{name}-{_digest(there)}"
        bench.simulations.pool.add(
            worlds[name],
            TransferProblem(
                there, problem.scaler, problem.latent, problem.navigation, problem.learner, bias_scale=bias_scale
            ),
        )
    learn = min(LEARN_SEEDS, seeds)
    count = [0, len(drivers) * (2 * seeds + HABITS * learn)]

    def run(world: str, given: list[dict[str, Any]], times: int) -> list[list[Outcome]]:
        names = [one.seeds for one in drivers]
        keys = [f"{name}-{worlds[world]}-{_content(one)}" for name, one in zip(names, given, strict=True)]
        jobs = {
            f"{key}-{i}": Job(f"{key}-{i}", bench.seed(name, i), world=worlds[world], **one)
            for key, name, one in zip(keys, names, given, strict=True)
            for i in range(times)
        }  # by key: two explanations may be one
        outcomes: dict[str, Outcome] = {}
        for key, outcome in bench.simulations.stream(jobs.values()):
            if outcome.macro is None:
                raise InputError(f"a simulation {world} the edit failed: {outcome.error}")
            outcomes[key] = outcome
            if progress is not None:
                progress.advance((count[0] + len(outcomes)) / count[1], f"{world} the edit")
        count[0] += len(given) * times
        return [[outcomes[f"{key}-{i}"] for i in range(times)] for key in keys]

    before = run("before", [one.plan(None, one.state) for one in drivers], seeds)
    usual = [_onto(edited, one.state) for one in drivers]
    learnt_at = [_mean_queue(outcomes[:learn]) for outcomes in before]
    states, changes = usual, [[] for _ in drivers]  # type: ignore[var-annotated]
    for _ in range(HABITS):
        given = [one.plan(edited, state) for one, state in zip(drivers, states, strict=True)]
        for i, outcomes in enumerate(run("after", given, learn)):
            changes[i].append(_mean_queue(outcomes) - _onto(edited, learnt_at[i]))
        # The mean over the rounds: drivers who all follow yesterday's queues would swing from road to road.
        states = [np.maximum(u + np.mean(c, axis=0), 0).astype(np.float32) for u, c in zip(usual, changes, strict=True)]
    after = run("after", [one.plan(edited, state) for one, state in zip(drivers, states, strict=True)], seeds)
    return [Counterfactual(*one) for one in zip([d.name for d in drivers], before, after, strict=True)]


def _mean_queue(outcomes: list[Outcome]) -> Array:
    return np.mean([one.macro.queue for one in outcomes if one.macro is not None], axis=0)


def _onto(edited: Edited, queue: Array) -> Array:
    """[roads, minutes] on the rows of the edited network; new roads have no queue."""
    return np.where(edited.kept[:, None] >= 0, queue[edited.kept], 0).astype(np.float32)


def _digest(scenario: Scenario) -> str:
    """Names all that a simulation depends on but routes and seed."""
    demand = scenario.demand
    parts = [
        read_text(scenario.network.path), scenario.network.hash, *demand.ids, *demand.attributes, demand.types,
        demand.background, scenario.infrastructure,
        repr((scenario.begin, scenario.minutes, scenario.step_length, scenario.options, scenario.lanes)),
        repr((scenario.observe_speed, scenario.observe_trips)),
    ]  # fmt: skip
    digest = hashlib.sha256("\0".join(parts).encode())
    for array in (demand.origin, demand.destination, demand.depart):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]


def _content(given: dict[str, Any]) -> str:
    """Names what a job is given: preferences and traffic state, or routes."""
    routes = given.get("routes")
    arrays = [given["z"], given["queue"]] if routes is None else [routes.roads, routes.offsets]
    assert routes is None or isinstance(routes, Routes)
    digest = 0
    for array in arrays:
        digest = zlib.crc32(np.ascontiguousarray(array).tobytes(), digest)
    return f"{digest:08x}"
