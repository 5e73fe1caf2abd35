"""Floors and nulls: what the error of a good and of a useless answer looks like on this very case."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..policies.navigation import fastest_routes, route_vehicles
from ..policies.preferences import PreferenceModel
from ..scenarios.truths import STRUCTURED
from ..workers.simulator import Job
from .simulations import Outcome
from .store import RunStore
from .workbench import Workbench

SEED_FLOOR, IDENTIFIABILITY, PRIOR = "seed floor", "identifiability floor", "prior mean"
SHORTEST, FASTEST = "shortest path", "fastest path"
PRIOR_DRAWS = 8


@dataclass(frozen=True)
class Reference:
    """One floor or null over several seeds."""

    name: str
    scores: list[dict[str, float]]  # one per seed
    traffic: list[dict[str, float]] = field(default_factory=list)  # one per seed: teleports, unfinished vehicles
    quantity_mean: Any = None  # mean of the observed quantity, for the report

    @property
    def errors(self) -> list[float]:
        return [score["rmse"] for score in self.scores]

    @property
    def mean(self) -> float:
        return float(np.mean(self.errors))

    @property
    def sd(self) -> float:
        return float(np.std(self.errors, ddof=1)) if len(self.errors) > 1 else float("nan")


def measure(bench: Workbench, model: PreferenceModel, seeds: int) -> dict[str, Reference]:
    """Simulates every reference that the case allows, `seeds` times each with fresh seeds.

    seed floor: the observed drivers themselves, other seeds (synthetic targets only). identifiability floor: the true
    population with other individuals. prior mean: draws from the prior, nothing learnt. shortest and fastest path.
    """
    case = bench.case
    network, demand = case.scenario.network, case.scenario.demand
    rng = np.random.default_rng(bench.seed("prior draws"))
    draws = [rng.standard_normal(model.shape, dtype=np.float32) for _ in range(PRIOR_DRAWS)]
    routes = {
        SHORTEST: [route_vehicles(network, demand.origin, demand.destination, None)] * seeds,
        FASTEST: [fastest_routes(network, demand.origin, demand.destination)] * seeds,
    }
    if bench.truth_routes is not None:
        routes[SEED_FLOOR] = [bench.truth_routes] * seeds  # type: ignore[list-item]
    if bench.truth is not None and case.config.target.truth in STRUCTURED:
        routes[IDENTIFIABILITY] = [bench.truth.routes(bench.habit, i + 1) for i in range(seeds)]
    jobs = {
        name: [
            Job(f"reference-{name.replace(' ', '-')}-{i}", bench.seed("reference", name, i), routes=one)
            for i, one in enumerate(several)
        ]
        for name, several in routes.items()
    }
    jobs[PRIOR] = [
        Job(f"reference-prior-{i}", bench.seed("reference", PRIOR, i), z=z, queue=bench.reference)
        for i, z in enumerate(draws)
    ]
    outcomes = bench.simulations.run(job for several in jobs.values() for job in several)
    return {name: _reference(bench, name, [outcomes[job.key] for job in several]) for name, several in jobs.items()}


def take_over(store: RunStore, sibling: Path) -> None:
    """Copies a run's simulations that do not depend on the method: observed drivers, floors, shortest and fastest path,
    and, if both decode, learn and route alike, the draws from the prior."""
    names = [name.replace(" ", "-") for name in (SEED_FLOOR, IDENTIFIABILITY, SHORTEST, FASTEST)]
    own, other = store.config(), RunStore.open(sibling).config()
    if all(getattr(own, part) == getattr(other, part) for part in ("latent", "learner", "navigation")):
        names.append("prior")
    for pattern in ("prepare-*", *(f"reference-{name}-*" for name in names)):
        store.journal_copy(sibling, f"{pattern}.npz")


def _reference(bench: Workbench, name: str, outcomes: list[Outcome]) -> Reference:
    quantities = [bench.target.quantity(one.macro) for one in outcomes if one.macro is not None]
    if not quantities:
        return Reference(name, [{"rmse": float("nan")}])
    traffic = [{"teleports": float(one.teleports), "unfinished": float(one.running + one.waiting)} for one in outcomes]
    return Reference(name, [bench.target.scores(one) for one in quantities], traffic, np.mean(quantities, axis=0))
