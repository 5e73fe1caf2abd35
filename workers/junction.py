"""Junction routing: on entering a road, a vehicle chooses its way on with the queues it would meet now.

Q is learnt offline at the vehicle's departure; what changes live is the state of the next roads: the queue part of the
reward is taken from the current queues, `Q(s, a) = r(s, a; queues now) + gamma V(s')`.

Only roads with a choice are watched, every third second (every second where they are short). Those who entered are decided in
one call for all, and SUMO is told only where the choice differs from the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numba
import numpy as np
from numpy.typing import NDArray

from ..policies.policy import JunctionPolicy
from ..scenarios.demand import Routes
from ..scenarios.network import RoadNetwork
from ..scenarios.scenario import Scenario
from . import libsumo_binding as sumo
from .entering import entering
from .sumo_files import Fidelity

PERIOD = 3  # seconds between looks at a road, unless it can be crossed in less than two such periods


class Watch:
    """Looks for vehicles that enter a road with a choice."""

    def __init__(self, network: RoadNetwork, vehicles: Sequence[str]) -> None:
        self._vehicle = {name: i for i, name in enumerate(vehicles)}
        self._roads = network.road_ids
        watched = np.flatnonzero(network.choice_roads())
        short = (network.length / network.speed)[watched] < 2 * PERIOD
        self._short = int(short.sum())
        self._watched = watched[np.argsort(~short, kind="stable")].astype(np.int32)  # the short ones first

    def start(self, fidelity: Fidelity) -> None:
        """Forgets the last run, for the simulation that is loaded now."""
        self._entering = entering([self._roads[road] for road in self._watched], self._vehicle, fidelity)
        self.second = 0  # looks since then

    def look(self) -> tuple[NDArray[np.int32], NDArray[np.int32]] | None:
        """Vehicles and roads of those that are first seen on a watched road this second; None: there are none."""
        self.second += 1
        count = self._short if self.second % PERIOD else len(self._watched)
        entered = self._entering.look(count)
        return None if entered is None else (entered[0], self._watched[entered[1]])


class JunctionControl:
    """Decides for every learnt vehicle at every road with a choice, from the routes it departs with."""

    def __init__(self, scenario: Scenario, policy: JunctionPolicy, routes: Routes) -> None:
        self._scenario = scenario
        self._policy = policy
        self._roads = scenario.network.road_ids
        self._watch = Watch(scenario.network, scenario.demand.ids)
        lengths = np.diff(routes.offsets)
        driven = np.arange(lengths.max(initial=1)) < lengths[:, None]
        self._routes = np.full(driven.shape, -1, np.int32)  # [vehicles, longest] roads of each route, then -1
        self._routes[driven] = routes.roads

    def start(self, fidelity: Fidelity) -> None:
        """Forgets the last run, for the simulation that is loaded now."""
        self._plan: NDArray[np.int32] = self._routes.copy()
        self._at = np.zeros(len(self._plan), np.int32)  # column of the plan at which a vehicle was last seen
        self._watch.start(fidelity)
        self._log: list[tuple[int, NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]] = []

    def decide(self, queue: Callable[[], NDArray[np.float32]]) -> None:
        """Decides for everybody who was first seen on a watched road this second; `queue()` is that of now, `[roads]`."""
        entered = self._watch.look()
        if entered is None:
            return
        vehicles, roads = entered
        chosen = self._policy.routes(vehicles, roads, queue())
        flat, offsets = chosen.roads, chosen.offsets
        changed, next_road = _compare(self._plan, self._at, vehicles, roads, flat, offsets)
        for i in np.flatnonzero(changed).tolist():
            way = flat[offsets[i] : offsets[i + 1]]
            try:
                sumo.set_route(self._scenario.demand.ids[vehicles[i]], [self._roads[r] for r in way.tolist()])
            except sumo.TraCIException:
                next_road[i] = -1  # already on the junction: it keeps its plan
            else:
                self._replace_plan(vehicles[i], way)
        self._log.append((self._watch.second, vehicles, roads, next_road))

    def _replace_plan(self, vehicle: int, way: NDArray[np.int32]) -> None:
        missing = way.size - self._plan.shape[1]
        if missing > 0:
            self._plan = np.pad(self._plan, ((0, 0), (0, missing)), constant_values=-1)
        self._plan[vehicle] = -1
        self._plan[vehicle, : way.size] = way
        self._at[vehicle] = 0

    @property
    def decisions(self) -> NDArray[np.int32]:
        """The last run's decisions, `[decisions, 4] int32`: second, vehicle, road, next road (-1: kept its plan)."""
        if not self._log:
            return np.zeros((0, 4), np.int32)
        parts = [np.column_stack([np.full(v.size, t), v, roads, chosen]) for t, v, roads, chosen in self._log]
        return np.concatenate(parts).astype(np.int32)


@numba.njit(cache=True, nogil=True)
def _compare(plan, at, vehicles, roads, flat, offsets):  # type: ignore[no-untyped-def]
    """Which of the chosen ways differ from the plan, and the next road of each; moves `at` to where vehicles are."""
    changed = np.zeros(vehicles.size, np.bool_)
    following = np.full(vehicles.size, -1, np.int32)
    width = plan.shape[1]
    for i in range(vehicles.size):
        v = vehicles[i]
        k = at[v]
        while k < width and plan[v, k] >= 0 and plan[v, k] != roads[i]:
            k += 1
        if k < width and plan[v, k] == roads[i]:  # the first occurrence from where the vehicle was last seen
            at[v] = k
        k = at[v]
        n = offsets[i + 1] - offsets[i]
        if n > 1:
            following[i] = flat[offsets[i] + 1]
        for j in range(n):
            if k + j >= width or plan[v, k + j] != flat[offsets[i] + j]:
                changed[i] = True
                break
        if k + n < width and plan[v, k + n] >= 0:
            changed[i] = True
    return changed, following
