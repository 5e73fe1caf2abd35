"""Small random networks, and the town with a few hundred vehicles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from throng.scenarios.demand import Demand, load_demand
from throng.scenarios.network import RoadNetwork, load_network
from throng.scenarios.scenario import Scenario
from throng.scenarios.town import write_town


@pytest.fixture(scope="session")
def random_network(hand_made: Callable[..., RoadNetwork]) -> Callable[..., RoadNetwork]:
    """(generator, roads, connections, masked share) -> a random network; some roads may be dead ends."""

    def make(rng: np.random.Generator, roads: int, connections: int, masked: float = 0.0) -> RoadNetwork:
        every = [(a, b) for a in range(roads) for b in range(roads) if a != b]
        pairs = [every[i] for i in rng.choice(len(every), min(connections, len(every)), replace=False)]
        return hand_made(
            roads,
            pairs,
            length=rng.uniform(20, 400, roads),
            speed=rng.uniform(5, 20, roads),
            end_xy=rng.uniform(-500, 500, (roads, 2)),
            allowed=rng.random(len(pairs)) >= masked,
        )

    return make


@pytest.fixture(scope="session")
def make_demand() -> Callable[..., Demand]:
    """(origins, destinations, departures in seconds) -> a demand of nothing else."""

    def make(origin: Sequence[int], destination: Sequence[int], depart: Any = 0.0) -> Demand:
        n = len(origin)
        return Demand(
            ids=tuple(f"v{i}" for i in range(n)),
            origin=np.array(origin, np.int32),
            destination=np.array(destination, np.int32),
            depart=np.array(np.broadcast_to(depart, (n,)), np.float64),
            attributes=("",) * n,
            types="",
            background="",
            background_count=0,
            notes={},
        )

    return make


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """The town, 300 vehicles in five minutes."""
    files = write_town(tmp_path_factory.mktemp("town"), vehicles=300, minutes=5)
    loaded = load_demand([files.trips], load_network(files.net), 0, 300)
    return Scenario("town", loaded.network, loaded.demand, minutes=5)
