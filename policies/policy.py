"""From rewards to routes: the offline learner and the navigation policy of all vehicles, composed.

Vehicles are taken in chunks, so that a city of 100,000 vehicles needs memory for one chunk of rewards and Q only: of a table
(`token` and `hier` decode to factors; the literal `table` is as large as it is).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..scenarios.demand import Demand, Routes
from ..scenarios.network import RoadNetwork
from .features import queue_feature
from .learners import EXACT, LearnerSettings, make_learner
from .navigation import Bonus, RouterName, distances_ahead, route_vehicles
from .preferences import PreferenceModel, Rewards

Array = NDArray[np.float32]
CHUNK = 4096  # vehicles decoded, learnt and routed at a time, at most
CHUNK_BYTES = 64 * 2**20  # of one table `[vehicles, connections]`; a few are held at once
CALIBRATION_DRAWS, CALIBRATION_VEHICLES = 8, 256


@dataclass(frozen=True)
class Navigation:
    """How rewards become routes (MASDiff, A.1 and Eq. 12; values the paper omits are ours)."""

    router: RouterName = "regret"  # the paper's is astar_q
    heuristic: Literal["q", "advantage"] = "q"  # astar_q: the bias of A* is Q(s, a), or Q(s, a) - V(s)
    lambda_metres: float = 400.0  # metres of detour worth one s.d. of what the router adds


class Navigator:
    """Learns the policies of all vehicles from rewards and a traffic state, and routes them.

    Q is divided by one constant, its s.d. over connections for a driver drawn from the prior, so that lambda is in metres
    and a driver with weak preferences stays close to the shortest path. (Dividing by each vehicle's own s.d. instead
    would make the strength of a preference unlearnable.) That constant is taken from the exact learner of the same fixed
    point, so that lambda means the same to `vi`, `dqn` and `iql`.
    """

    def __init__(
        self,
        network: RoadNetwork,
        demand: Demand,
        begin: float,
        navigation: Navigation,
        learner: LearnerSettings = EXACT,
        bias_scale: float = 1.0,
    ) -> None:
        self.network = network
        self.demand = demand
        self.navigation = navigation
        self.settings = learner
        self.learner = make_learner(learner, network)
        self._exact = make_learner(learner.exact(), network)
        self.minute = np.maximum(((demand.depart - begin) // 60).astype(np.int64), 0)
        self.bias_scale = bias_scale
        self.ahead = distances_ahead(network, demand.destination) if navigation.router == "regret" else None

    def calibrate(self, model: PreferenceModel, seed: int = 0) -> None:
        """Sets the constant that turns Q into units of its prior standard deviation."""
        rng = np.random.default_rng(seed)
        rows = np.linspace(0, len(self.demand.ids) - 1, min(CALIBRATION_VEHICLES, len(self.demand.ids)), dtype=np.int64)
        spread = []
        for _ in range(CALIBRATION_DRAWS):
            bias = model.decode(rng.standard_normal(model.shape, dtype=np.float32)).take(rows).static
            if self.navigation.router != "consistent":
                bias = self._exact.q(bias)
            if self.advantage:
                bias = bias - self._exact.values(bias)[:, self.network.connections[:, 0]]
            spread.append(bias[:, self.network.allowed].std(axis=1).mean())
        self.bias_scale = max(float(np.mean(spread)), 1e-9)

    @property
    def gain(self) -> float:
        """Metres per unit of Q, of regret, or of reward, as the router uses it."""
        return self.navigation.lambda_metres / self.bias_scale

    def q_values(self, rewards: Rewards, queue: Array, minute: NDArray[np.int64]) -> Array:
        """Q of vehicles departing in `minute` when roads queue as `queue [roads, minutes]`; `[vehicles, connections]`."""
        return self.learner.q(self.reward_table(rewards, queue, minute))

    def reward_table(self, rewards: Rewards, queue: Array, minute: NDArray[np.int64]) -> Array:
        """R(s, a) at each vehicle's departure minute, `[vehicles, connections]`."""
        static = rewards.static
        if not (rewards.queue_weight.any() and queue.any()):
            return static
        ahead = np.ascontiguousarray(queue_feature(queue)[self.network.to].T)  # [minutes, connections]
        table = ahead[np.minimum(minute, queue.shape[1] - 1)]
        table *= rewards.queue_weight[:, None]
        table += static
        return table

    @property
    def advantage(self) -> bool:
        """Whether the router goes by Q - V instead of Q."""
        router = self.navigation.router
        return router == "regret" or (router == "astar_q" and self.navigation.heuristic == "advantage")

    def _base(self, rewards: Rewards, queue: Array, minute: NDArray[np.int64]) -> Array:
        """What the router goes by, before it is scaled to metres: rewards or Q, `[vehicles, connections]`."""
        if self.navigation.router == "consistent":
            return self.reward_table(rewards, queue, minute)
        return self.q_values(rewards, queue, minute)

    def routes(self, rewards: Rewards, queue: Array) -> Routes:
        """Routes of all vehicles, learnt at the traffic state `queue [roads, minutes]` of their departure minute."""
        parts = []
        for rows in chunks(len(self.demand.ids), self.network.connection_count):
            base = self._base(rewards.take(rows), queue, self.minute[rows])
            bonus = Bonus(base, self.gain, self.advantage, temperature=self.learner.temperature)
            origin, destination = self.demand.origin[rows], self.demand.destination[rows]
            router = self.navigation.router
            parts.append(route_vehicles(self.network, origin, destination, bonus, router, self.ahead))
        return concatenate(parts)


def chunks(vehicles: int, connections: int) -> Iterator[slice]:
    """Vehicles in such numbers that a table of them and the connections is small."""
    chunk = min(CHUNK, max(1, CHUNK_BYTES // (4 * max(1, connections))))
    for start in range(0, vehicles, chunk):
        yield slice(start, min(start + chunk, vehicles))


def concatenate(parts: list[Routes]) -> Routes:
    """Routes of several chunks of vehicles as one."""
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Routes(np.concatenate([part.roads for part in parts]), offsets)


class JunctionPolicy:
    """Decides for vehicles on the road: what was learnt at departure, with the queues of now in the state.

    `Q(s, a) = r(s, a; queues now) + gamma V(s')` with V learnt at the vehicle's departure.
    """

    def __init__(self, navigator: Navigator, rewards: Rewards, queue: Array) -> None:
        self._navigator = navigator
        self._weight = rewards.queue_weight
        static = self._base = rewards.static
        if navigator.navigation.router != "consistent":
            values = navigator.learner.values(navigator.q_values(rewards, queue, navigator.minute))
            self._base = static + np.float32(navigator.settings.discount) * values[:, navigator.network.to]

    def routes(self, vehicles: NDArray[np.int32], roads: NDArray[np.int32], queue: Array) -> Routes:
        """Ways on from `roads [k]` to the destinations of `vehicles [k]` when roads queue as `queue [roads]` now."""
        navigator = self._navigator
        temperature = navigator.learner.temperature
        bonus = Bonus(self._base, navigator.gain, navigator.advantage, self._weight, queue, temperature)
        destination = navigator.demand.destination[vehicles]
        router = navigator.navigation.router
        return route_vehicles(navigator.network, roads, destination, bonus, router, navigator.ahead, vehicles)
