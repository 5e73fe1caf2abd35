"""A learner shard: policies of a share of the vehicles, learnt offline from rewards and a traffic state."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..policies.policy import JunctionPolicy
from ..policies.problem import Problem
from ..scenarios.demand import Routes

Array = NDArray[np.float32]


class Learner:
    """Learns and routes all vehicles of a problem; a plain class, made a Ray actor by the platform.

    A call is a pure function of `(z, queue)`, so a lost shard is simply replaced.
    """

    def __init__(self, problem: Problem) -> None:
        self.model = problem.preference_model()
        self.navigator = problem.navigator(self.model)

    def routes(self, z: Array, queue: Array) -> Routes:
        """Routes of all vehicles for latent `z`, learnt at traffic state `queue [roads, minutes]` (vehicles)."""
        return self.navigator.routes(self.model.decode(z), queue)

    def junction_policy(self, z: Array, queue: Array) -> JunctionPolicy:
        """The same policies, to be asked at junctions."""
        return JunctionPolicy(self.navigator, self.model.decode(z), queue)
