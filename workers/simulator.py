"""What one process that simulates does: routes are learnt where they are not given, and SUMO drives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..policies.problem import Problem
from ..policies.screening import road_flows
from ..scenarios.demand import Routes
from .junction import JunctionControl
from .learner import Learner
from .sumo import GiveUp, Rollout, SumoRollout
from .sumo_files import Fidelity

Array = NDArray[np.float32]
Replan = Literal["pretrip", "junction"]


@dataclass(frozen=True, eq=False)
class Job:
    """One simulation: of a latent learnt at a traffic state, or of given routes."""

    key: str
    seed: int
    fidelity: Fidelity = "micro"
    quiet: bool = False
    z: Array | None = None
    queue: Array | None = None  # [roads, minutes] the traffic state z is learnt at
    routes: Routes | tuple[str, ...] | None = None
    give_up: GiveUp | None = None
    world: str = ""  # the problem to simulate in, as added to the pool; "": the pool's own

    @property
    def learns(self) -> bool:
        """Whether its routes have to be learnt."""
        return self.z is not None and self.queue is not None


class Simulator:
    """Simulates jobs in one process: SUMO, and junction policies where routes are decided live."""

    def __init__(self, problem: Problem, replan: Replan, deadline: float) -> None:
        self._problem = problem
        self._replan = replan
        self._deadline = deadline
        self._rollout = SumoRollout(problem.scenario)
        self._learner: Learner | None = None

    def learner(self) -> Learner:
        if self._learner is None:
            self._learner = Learner(self._problem)
        return self._learner

    def simulate(self, job: Job, routes: Routes | tuple[str, ...] | None) -> Rollout:
        """Runs one job with the routes learnt for it (or the job's own)."""
        chosen = job.routes if routes is None else routes
        control = None
        if self._replan == "junction" and job.z is not None and isinstance(chosen, Routes):
            assert job.queue is not None
            policy = self.learner().junction_policy(job.z, job.queue)
            control = JunctionControl(self._problem.scenario, policy, chosen)
        assert chosen is not None
        return self._rollout.run(chosen, job.seed, job.fidelity, job.quiet, job.give_up, self._deadline, control)

    def flows(self, candidates: list[tuple[Array, Array]]) -> list[Array]:
        """Flows of the vehicles that have learnt from `z` at traffic state `queue`, without a simulation."""
        scenario, learner = self._problem.scenario, self.learner()
        return [road_flows(scenario, learner.routes(z, queue), queue) for z, queue in candidates]

    def close(self) -> None:
        self._rollout.close()
