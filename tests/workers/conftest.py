"""The town with few vehicles, the learner's problem on it, and one Ray for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from throng.policies.features import fit_scaler
from throng.policies.navigation import route_vehicles
from throng.policies.policy import Navigation
from throng.policies.problem import LatentSettings, Problem
from throng.scenarios.demand import Routes, load_demand
from throng.scenarios.network import load_network
from throng.scenarios.scenario import Scenario
from throng.scenarios.town import write_town

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  Ray spells it so


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """200 vehicles in five minutes."""
    files = write_town(tmp_path_factory.mktemp("town"), vehicles=200, minutes=5)
    loaded = load_demand([files.trips], load_network(files.net), 0, 300)
    return Scenario("town", loaded.network, loaded.demand, minutes=5)


@pytest.fixture(scope="session")
def shortest(town: Scenario) -> Routes:
    return route_vehicles(town.network, town.demand.origin, town.demand.destination, None)


@pytest.fixture(scope="session")
def make_problem() -> Callable[..., Problem]:
    """(scenario, navigation) -> what learners need."""

    def make(scenario: Scenario, navigation: Navigation | None = None) -> Problem:
        scaler = fit_scaler(scenario.network)
        return Problem(scenario, scaler, LatentSettings(groups=4), navigation or Navigation())

    return make


@pytest.fixture(scope="session")
def make_few() -> Callable[[Scenario, int, int], Scenario]:
    """(scenario, vehicles, minutes) -> the scenario with every so many-th vehicle only."""

    def make(scenario: Scenario, vehicles: int, minutes: int) -> Scenario:
        demand = scenario.demand
        rows = [i * len(demand) // vehicles for i in range(vehicles)]
        few = replace(
            demand,
            ids=tuple(demand.ids[i] for i in rows),
            attributes=tuple(demand.attributes[i] for i in rows),
            origin=demand.origin[rows],
            destination=demand.destination[rows],
            depart=demand.depart[rows],
        )
        return replace(scenario, demand=few, minutes=minutes)

    return make


@pytest.fixture(scope="module")
def a_ray(request: pytest.FixtureRequest) -> Iterator[None]:
    """A Ray of our own with three logical CPUs, or the file's `CPUS`; of one file, as the next one may need another."""
    import gc

    import ray

    ray.init(
        address="local",
        num_cpus=getattr(request.module, "CPUS", 3),
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    gc.collect()  # a handle that outlives its Ray ends the actor of the same number in the next
    ray.shutdown()


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """A folder in which actors leave marks that outlive them."""
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder
