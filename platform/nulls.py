"""Drivers that a prediction of an edit's effect has to beat (MASDiff, RQ2): who has learnt nothing, adapts to nothing, or
carries a literal table of rewards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..policies.navigation import fastest_routes, route_vehicles
from ..policies.policy import Navigator
from ..policies.preferences import PreferenceModel, Rewards
from ..policies.reward_model import recover
from ..scenarios.demand import Routes
from ..scenarios.edited import Edited
from ..scenarios.scenario import Scenario
from .case import Case
from .counterfactual import Drivers, by_weights
from .experiment import Solution
from .workbench import Workbench

Array = NDArray[np.float32]


def shortest(bench: Workbench) -> Drivers:
    """Everybody on the shortest path."""
    return _routed("shortest path", bench, lambda there: route_vehicles(there.network, *_ends(there), None))


def fastest(bench: Workbench) -> Drivers:
    """Everybody on the path that is fastest when the roads are empty."""
    return _routed("fastest path", bench, lambda there: fastest_routes(there.network, *_ends(there)))


def _ends(scenario: Scenario) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    return scenario.demand.origin, scenario.demand.destination


def _routed(name: str, bench: Workbench, routes: Callable[[Scenario], Routes]) -> Drivers:
    def plan(edited: Edited | None, state: Array) -> dict[str, Any]:
        return {"routes": routes(bench.case.scenario if edited is None else edited.scenario)}

    return Drivers(name, bench.reference, plan)


def static(bench: Workbench) -> Drivers:
    """The true routes before the edit, which nobody leaves who is not forced to; the others take the shortest path."""
    routes = bench.truth_routes
    assert isinstance(routes, Routes)

    def plan(edited: Edited | None, state: Array) -> dict[str, Any]:
        return {"routes": routes if edited is None else kept_routes(routes, edited)}

    return Drivers("static routes", bench.reference, plan)


def kept_routes(routes: Routes, edited: Edited) -> Routes:
    """The routes of before as far as the edit lets them be; who cannot drive there any more takes the shortest path."""
    network, (origin, destination) = edited.scenario.network, _ends(edited.scenario)
    detour = route_vehicles(network, origin, destination, None)
    there = np.full(int(routes.roads.max()) + 1, -1, np.int32)  # rows of roads: of before -> on the edited network
    old = edited.kept[edited.kept >= 0]
    fits = old < there.size
    there[old[fits]] = np.flatnonzero(edited.kept >= 0)[fits]
    chosen = []
    for i, source in enumerate(edited.source.tolist()):
        way = there[routes.route(source)]
        possible = (
            (way >= 0).all()
            and way[0] == origin[i]
            and way[-1] == destination[i]
            and (network.find_connections(way[:-1], way[1:]) >= 0).all()
        )
        chosen.append(way if possible else detour.route(i))
    return Routes.from_lists(chosen)


def prior(bench: Workbench, model: PreferenceModel, phi: Array, count: int) -> list[Drivers]:
    """Drivers drawn from the prior: nothing has been learnt."""
    rng = np.random.default_rng(bench.seed("prior what-if"))
    draws = [rng.standard_normal(model.shape, dtype=np.float32) for _ in range(count)]
    return [by_weights(f"prior draw {i}", recover(model, z, phi).weights, bench.reference) for i, z in enumerate(draws)]


def literal(case: Case, solution: Solution) -> Drivers:
    """The best literal table of rewards, an entry for each vehicle and connection, of which the edit leaves some.

    New connections, for which nothing was learnt, are worth nothing.
    """
    problem = case.problem
    model = problem.preference_model()
    rewards = model.decode(solution.z[0])
    navigator = problem.navigator(model)

    def plan(edited: Edited | None, state: Array) -> dict[str, Any]:
        if edited is None:
            return {"routes": navigator.routes(rewards, state)}
        scenario = edited.scenario
        start, end = edited.kept[scenario.network.connections].T
        row = np.where((start >= 0) & (end >= 0), case.scenario.network.find_connections(start, end), -1)
        table = np.where(row >= 0, rewards.static[:, row], 0)[edited.source].astype(np.float32)
        there = Navigator(
            scenario.network, scenario.demand, scenario.begin, problem.navigation, problem.learner, navigator.bias_scale
        )
        return {"routes": there.routes(Rewards(table, rewards.queue_weight[edited.source]), state)}

    return Drivers("literal table", solution.tau[0], plan)
