"""Navigation in SUMO as an RLlib environment (`MultiAgentEnv`, new API stack): who enters a road chooses a way on.

One policy for all vehicles is the natural mapping: what a vehicle sees says where it wants to go, and its choices are in an
order of their own. RLlib's PPO trains on it as it comes, without a module or a connector of one's own, and without a mask:

    config.environment(NavigationEnv, env_config={"scenario": ray.put(scenario)})
    config.env_runners(num_env_runners=4, num_envs_per_env_runner=1)  # libsumo holds one simulation per process
    config.multi_agent(policies={"driver"}, policy_mapping_fn=lambda *_, **__: "driver")
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import ray
from gymnasium.spaces import Box, Discrete, Space
from numpy.typing import NDArray
from ray.rllib.env.multi_agent_env import MultiAgentEnv

from ..policies.navigation import distances_ahead, route_vehicles
from ..scenarios.errors import InputError
from ..scenarios.scenario import Scenario
from . import libsumo_binding as sumo
from .halting import Halting
from .junction import Watch
from .sumo import SumoRollout

Array = NDArray[np.float32]
OWN, EACH = 5, 4  # numbers of an observation: of the vehicle, and of each way on


class NavigationEnv(MultiAgentEnv):  # type: ignore[misc]  # RLlib's types are left out
    """The vehicles of a demand set out for their destinations; each chooses at the roads on which it has a choice.

    A vehicle that has entered a road is asked once, at most three seconds later, if two or more ways on lead to where it
    wants to go. The ways are in the order of the metres that are left on them: action 0 is the shortest, and so is an action
    for which there is no way. From there it means to take the shortest way, until it is asked again. A vehicle that is on the
    junction already, or that nobody answers for, keeps to its way.

    Observations, `[OWN + EACH * ways] float32`, with `ways` the most ways on of any road:

    - of the vehicle: kilometres left by the shortest way; kilometres east and north from the road's end to the destination's;
      tens of minutes since it wanted to depart; share of the scenario's time that has passed;
    - of each way: 1 (0 where there is none, and then all else is 0), kilometres longer than the shortest, minutes to drive
      along its first road freely, tens of vehicles in the queue there.

    Rewards: minus the minutes since its last decision, at every decision but the first, and at the end: who arrives is
    terminated, who is still driving when the scenario's time is over is truncated, and both see again what they saw last.
    `infos` tell the second, whether the last decision came too late (`kept`), and the road where there is one to make. An
    episode is one simulation.

    Args:
        config: RLlib's `env_config`: `scenario`, a `Scenario` or a reference to one in Ray's object store.

    Raises:
        RolloutError: SUMO's own message; or this process runs a simulation already.
    """

    metadata = {"name": "throng_navigation_v0", "render_modes": []}  # noqa: RUF012  (Gymnasium's way)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        given = config["scenario"]
        self._scenario: Scenario = ray.get(given) if isinstance(given, ray.ObjectRef) else given
        network, demand = self._scenario.network, self._scenario.demand
        self._index = {name: i for i, name in enumerate(demand.ids)}
        self._ahead = distances_ahead(network, demand.destination)
        self._shortest = route_vehicles(network, demand.origin, demand.destination, None)
        self._watch = Watch(network, demand.ids)
        self._rollout = SumoRollout(self._scenario)
        self._simulation = contextlib.ExitStack()
        self.ways = int(np.bincount(network.connections[network.allowed, 0]).max())
        self.possible_agents = list(demand.ids)
        self.agents: list[str] = []
        seen = Box(-np.inf, np.inf, (OWN + EACH * self.ways,), np.float32)
        self.observation_spaces = dict.fromkeys(self.possible_agents, seen)
        choices: Space[Any] = Discrete(self.ways)
        self.action_spaces = dict.fromkeys(self.possible_agents, choices)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, dict[str, Any]]]:
        """The first decisions of a new simulation; the same traffic for the same seed and the same choices.

        Raises:
            InputError: nobody ever has a choice.
        """
        super().reset(seed=seed)
        self._simulation.close()
        files = self._rollout.files
        files.write_routes(self._shortest)
        arguments = files.options(int(self.np_random.integers(2**31)), "micro", False, False)
        self._simulation.enter_context(sumo.simulation(arguments, files.directory / "sumo.log"))
        with self._sumo_speaks():
            self._queues = Halting(self._scenario.network.lane_ids, longest=self._scenario.lanes == "max")
            self._watch.start("micro")
            self._steps = 0
            self._plan = {i: self._shortest.route(i).tolist() for i in range(len(self._index))}
            self._left = set(self._index)  # who has not arrived
            self._since: dict[str, float] = {}  # seconds of the last decisions of who is under way
            self._asked: dict[str, tuple[int, list[int]]] = {}  # road and roads ahead of who has been asked
            self._last: dict[str, Array] = {}
            self._kept: set[str] = set()
            seen, _, _, _, infos = self._drive()
        if not seen:
            raise InputError(f"scenario {self._scenario.name!r}: nobody comes to a road with a choice")
        return seen, infos

    def step(self, action_dict: Mapping[str, Any]) -> tuple[Any, Any, Any, Any, Any]:
        """To the next second in which somebody is asked, or to the end."""
        with self._sumo_speaks():
            self._decide({name: int(action) for name, action in action_dict.items() if name in self._asked})
            return self._drive()

    def close(self) -> None:
        """Ends the simulation and removes its files."""
        self._simulation.close()
        self._rollout.close()

    def _decide(self, actions: Mapping[str, int]) -> None:
        """Tells SUMO of those whose choice is not what they meant to do anyway."""
        self._kept |= set(self._asked) - set(actions)
        if not actions:
            self._asked = {}
            return
        vehicles = [self._index[name] for name in actions]
        roads, ahead = [], []
        for name, action in actions.items():
            road, ways = self._asked[name]
            roads.append(road)
            ahead.append(ways[action if action < len(ways) else 0])
        demand, network = self._scenario.demand, self._scenario.network
        routes = route_vehicles(network, np.array(ahead, np.int32), demand.destination[vehicles], None)
        for i, (name, vehicle) in enumerate(zip(actions, vehicles, strict=True)):
            way = [roads[i], *routes.route(i).tolist()]
            if self._plan[vehicle] == way:
                continue
            try:
                sumo.set_route(name, [network.road_ids[one] for one in way])
            except sumo.TraCIException:
                self._kept.add(name)  # already on the junction
            else:
                self._plan[vehicle] = way
        self._asked = {}

    def _drive(self) -> tuple[Any, Any, Any, Any, Any]:
        seen: dict[str, Array] = {}
        rewards: dict[str, float] = {}
        over: dict[str, dict[str, bool]] = {"terminated": {}, "truncated": {}}
        infos: dict[str, dict[str, Any]] = {}
        per_second = round(1.0 / self._scenario.step_length)
        steps = round(60.0 * self._scenario.minutes / self._scenario.step_length)

        def ends(name: str, how: str) -> None:
            seen[name], over[how][name], infos[name] = self._last[name], True, self._told(name)
            rewards[name] = rewards.get(name, 0.0) + (self._since.pop(name) - self._now()) / 60.0

        while self._left and self._steps < steps and not self._asked:
            sumo.step()
            self._steps += 1
            for name in sumo.connection.simulation.getArrivedIDList():
                self._left.discard(name)
                if name in self._since:
                    ends(name, "terminated")
            if self._steps % per_second == 0 and (entered := self._watch.look()) is not None:
                self._ask(*entered)
        for name, (road, _) in self._asked.items():
            seen[name] = self._last[name]
            infos[name] = self._told(name) | {"road": self._scenario.network.road_ids[road]}
            if name in self._since:
                rewards[name] = (self._since[name] - self._now()) / 60.0
            self._since[name] = self._now()
        late = self._steps == steps and bool(self._left)
        if late:
            for name in list(self._since):
                ends(name, "truncated")
        if late or not self._left:
            if self._scenario.observe_trips:
                sumo.close()  # completes SUMO's files
            self._simulation.close()
        self.agents = list(seen)
        over["terminated"]["__all__"], over["truncated"]["__all__"] = not self._left, late
        return seen, rewards, over["terminated"], over["truncated"], infos

    def _ask(self, vehicles: NDArray[np.int32], roads: NDArray[np.int32]) -> None:
        """Of those who have entered roads, the ones with a choice are asked, and shown what they choose from."""
        scenario, network, demand = self._scenario, self._scenario.network, self._scenario.demand
        queue = None
        for vehicle, road in zip(vehicles.tolist(), roads.tolist(), strict=True):
            goal = demand.destination[vehicle]
            ahead = network.successors(road)
            metres = network.length[ahead] + self._ahead.metres[self._ahead.row[goal], ahead]
            order = np.argsort(metres, kind="stable")[: int(np.isfinite(metres).sum())]
            if road == goal or len(order) < 2:
                continue
            queue = self._queues.now() if queue is None else queue
            ahead, metres = ahead[order], metres[order]
            told = np.zeros(OWN + EACH * self.ways, np.float32)
            waited = scenario.begin + self._now() - demand.depart[vehicle]
            off = network.end_xy[goal] - network.end_xy[road]
            told[:OWN] = metres[0] / 1000, *(off / 1000), waited / 600, self._now() / (60 * scenario.minutes)
            each = told[OWN:].reshape(self.ways, EACH)[: len(order)]
            each[:, 0] = 1.0
            each[:, 1] = (metres - metres[0]) / 1000
            each[:, 2] = network.length[ahead] / network.speed[ahead] / 60
            each[:, 3] = queue[ahead] / 10
            name = demand.ids[vehicle]
            self._asked[name], self._last[name] = (road, ahead.tolist()), told
            # A way may come by a road twice: it is looked for behind the road of the last decision.
            plan, behind = self._plan[vehicle], int(name in self._since)
            self._plan[vehicle] = plan[plan.index(road, behind) :] if road in plan[behind:] else []

    def _told(self, name: str) -> dict[str, Any]:
        kept = name in self._kept
        self._kept.discard(name)
        return {"second": self._now(), "kept": kept}

    def _now(self) -> float:
        """Seconds since the scenario's beginning."""
        return self._steps * self._scenario.step_length

    @contextlib.contextmanager
    def _sumo_speaks(self) -> Iterator[None]:
        """Where SUMO stops, its own message is raised, and the process may run another simulation."""
        try:
            yield
        except Exception:
            with self._simulation.pop_all():
                raise
