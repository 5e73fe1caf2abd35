"""What every benchmark drives: the built-in town and one population of drivers drawn from the prior."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from throng.platform.case import Case, load_case
from throng.platform.config import Config, load_config
from throng.policies.navigation import route_vehicles
from throng.scenarios.demand import Routes
from throng.workers.learner import Learner
from throng.workers.sumo import SumoRollout

Array = NDArray[np.float32]
SEED = 7  # of SUMO's driver noise, wherever one seed will do


@cache
def scratch() -> Path:
    """A folder for this process's files, removed when it ends."""
    path = Path(tempfile.mkdtemp(prefix="throng-bench-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def configuration(vehicles: int, **search: object) -> Config:
    """The default configuration with so many vehicles; `search` overrides settings of the search."""
    changes = [f"search.{key}={value}" for key, value in search.items()]
    return load_config(None, [f"scenario.town.vehicles={vehicles}", *changes])


@dataclass(frozen=True, eq=False)
class Town:
    """The town, its learner, and what its drivers would do."""

    case: Case
    learner: Learner
    rollout: SumoRollout
    shortest: Routes  # everybody on the shortest path
    queue: Array  # [roads, minutes] with everybody on the shortest path: what policies are learnt at
    z: Array  # a latent drawn from the prior
    routes: Routes  # of z, learnt at `queue`


@cache
def town(vehicles: int) -> Town:
    """The town with so many vehicles."""
    case = load_case(configuration(vehicles), scratch() / f"town-{vehicles}")
    scenario = case.scenario
    learner = Learner(case.problem)
    rollout = SumoRollout(scenario)
    demand = scenario.demand
    shortest = route_vehicles(scenario.network, demand.origin, demand.destination, None)
    queue = rollout.run(shortest, SEED).macro.queue
    z = np.random.default_rng(0).standard_normal(learner.model.shape, dtype=np.float32)
    return Town(case, learner, rollout, shortest, queue, z, learner.routes(z, queue))
