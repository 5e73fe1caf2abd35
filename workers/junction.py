"""Junction routing: on entering a road, a vehicle chooses its way on with the queues it would meet now.

Q is learnt offline at the vehicle's departure; what changes live is the state of the next roads: the queue part of the
reward is taken from the current queues, `Q(s, a) = r(s, a; queues now) + gamma V(s')`.

Only roads with a choice are watched. Each second their vehicle tuples are compared with the last second's (in C); those
who entered are decided in one call for all, and SUMO is told only where the choice differs from the plan.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..policies.policy import JunctionPolicy
from ..scenarios.demand import Routes
from ..scenarios.scenario import Scenario
from . import libsumo_binding as sumo


class JunctionControl:
    """Decides for every learnt vehicle at every road with a choice, from the routes it departs with."""

    def __init__(self, scenario: Scenario, policy: JunctionPolicy, routes: Routes) -> None:
        self._scenario = scenario
        self._policy = policy
        network = scenario.network
        self._vehicle = {name: i for i, name in enumerate(scenario.demand.ids)}
        self._roads = network.road_ids
        self._watched = np.flatnonzero(network.choice_roads()).tolist()
        self._watched_ids = [network.road_ids[road] for road in self._watched]
        self._plan = [routes.route(i).tolist() for i in range(len(routes))]  # roads still to drive, current one first

    def start(self) -> None:
        """Forgets the last run."""
        self._seen: list[Sequence[str]] = [()] * len(self._watched)
        self._log: list[NDArray[np.int32]] = []
        self._second = 0

    def decide(self, queue: NDArray[np.float32]) -> None:
        """One decision for everybody who entered a watched road in the last second; `queue [roads]` is that of now."""
        self._second += 1
        now = list(map(sumo.edge_vehicles, self._watched_ids))
        if now == self._seen:
            return
        vehicles: list[int] = []
        roads: list[int] = []
        for road, ids, before in zip(self._watched, now, self._seen, strict=True):
            if ids == before:
                continue
            rows = [self._vehicle[name] for name in set(ids).difference(before) if name in self._vehicle]
            rows.sort()  # the order of a set depends on the hash seed
            vehicles += rows
            roads += [road] * len(rows)
        self._seen = now
        if not vehicles:
            return
        rows_array, roads_array = np.asarray(vehicles, np.int32), np.asarray(roads, np.int32)
        chosen = self._policy.routes(rows_array, roads_array, queue)
        flat, offsets = chosen.roads.tolist(), chosen.offsets.tolist()
        next_road = np.empty(len(vehicles), np.int32)
        for i, (vehicle, road) in enumerate(zip(vehicles, roads, strict=True)):
            way = flat[offsets[i] : offsets[i + 1]]
            next_road[i] = way[1] if len(way) > 1 else -1
            plan = self._plan[vehicle]
            if road in plan:  # the first occurrence from where the vehicle was last seen
                plan = plan[plan.index(road) :]
            if way != plan:
                try:
                    sumo.set_route(self._scenario.demand.ids[vehicle], [self._roads[r] for r in way])
                    plan = way
                except sumo.TraCIException:
                    next_road[i] = -1  # already on the junction: it keeps its plan
            self._plan[vehicle] = plan
        self._log.append(np.column_stack([np.full(len(vehicles), self._second), rows_array, roads_array, next_road]))

    @property
    def decisions(self) -> NDArray[np.int32]:
        """The last run's decisions, `[decisions, 4] int32`: second, vehicle, road, next road (-1: kept its plan)."""
        return np.concatenate(self._log).astype(np.int32) if self._log else np.zeros((0, 4), np.int32)
