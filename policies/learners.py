"""Offline learners behind one interface: rewards of all vehicles in, Q of all vehicles out.

The offline data set of one vehicle is the E transitions of the road graph at its departure minute (MASDiff, A.1): every
action of every state, once. No action is unknown, so `vi`, `dqn` and `iql` have one and the same fixed point, and they
differ in what it costs to come near it:

| kind | what | policy |
|---|---|---|
| `vi` (default) | value iteration, exact | greedy |
| `soft_vi` | value iteration with log-sum-exp in place of the maximum, exact | softmax at `temperature` |
| `dqn` | a network per vehicle, target network, Adam (the paper's) | greedy |
| `iql` | networks for Q and V per vehicle, expectile regression | greedy |

The queue is part of the state through the queue feature of the reward: one transition per connection shows one queue per
road, so nothing more could be learnt of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..scenarios.network import RoadNetwork
from .value_iteration import soft_value_iteration, state_values, value_iteration

Array = NDArray[np.float32]
LearnerKind = Literal["vi", "soft_vi", "dqn", "iql"]
TOLERANCE = 1e-3  # of exact Q, in s.d. of reward: below a metre of detour


@dataclass(frozen=True)
class LearnerSettings:
    """Which offline learner, and how it learns. The paper gives none of these values."""

    kind: LearnerKind = "vi"
    discount: float = 0.8  # gamma
    temperature: float = 0.2  # soft_vi: in units of reward, whose s.d. is about 1
    hidden: int = 16  # dqn, iql: units of each vehicle's network
    updates: int = 600  # dqn, iql: gradient steps
    learning_rate: float = 0.02  # dqn, iql: at the first step; it falls linearly to zero
    expectile: float = 0.995  # iql: towards 1, V becomes the maximum
    device: str = "cpu"  # dqn, iql: cpu, cuda or cuda:N
    seed: int = 0  # dqn, iql: of the initial network, which all vehicles share

    def exact(self) -> LearnerSettings:
        """The exact learner of the same fixed point."""
        return replace(self, kind="vi") if self.kind in ("dqn", "iql") else self


EXACT = LearnerSettings()


class OfflineLearner(Protocol):
    """Learns the policies of any number of vehicles on one network; a pure function of the rewards."""

    @property
    def temperature(self) -> float:
        """Of the policy, in units of Q: `pi(a | s)` is `softmax(Q / temperature)`, at 0 greedy."""

    def q(self, rewards: Array) -> Array:
        """Q of rewards `[vehicles, connections]`, of the same shape and in the same units.

        A masked connection is never chosen; its own Q is still given.

        Raises:
            ValueError: a reward is not finite.
        """

    def values(self, q: Array) -> Array:
        """V of the policy that follows `q [vehicles, connections]`, `[vehicles, roads]`; 0 where no action is allowed."""


def make_learner(settings: LearnerSettings, network: RoadNetwork) -> OfflineLearner:
    """The learner of that kind on `network`.

    Raises:
        InputError: the device is not here.
        ValueError: an unknown kind, or a value out of its range.
    """
    if settings.kind in ("vi", "soft_vi"):
        return ExactLearner(settings, network)
    # Here, so that actors which train no network do not load torch: they start in half the time, and weigh less.
    from .stacked import StackedDqn, StackedIql

    common = (network, settings.discount, settings.hidden, settings.updates, settings.learning_rate)
    if settings.kind == "dqn":
        return StackedDqn(*common, settings.device, settings.seed)
    if settings.kind == "iql":
        return StackedIql(*common, settings.device, settings.seed, settings.expectile)
    raise ValueError(f"unknown learner {settings.kind!r}; choose vi, soft_vi, dqn or iql")


class ExactLearner:
    """`vi` and `soft_vi`: compiled value iteration to within `TOLERANCE`."""

    def __init__(self, settings: LearnerSettings, network: RoadNetwork) -> None:
        self.temperature = settings.temperature if settings.kind == "soft_vi" else 0.0
        self._discount = settings.discount
        self._network = network

    def q(self, rewards: Array) -> Array:
        graph = self._network.first, self._network.to, self._network.allowed
        if self.temperature:
            return soft_value_iteration(rewards, *graph, self._discount, self.temperature, TOLERANCE)
        return value_iteration(rewards, *graph, self._discount, TOLERANCE)

    def values(self, q: Array) -> Array:
        return state_values(q, self._network.first, self._network.allowed, self.temperature)
