"""Small networks made by hand, and the town with a few hundred vehicles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from throng.scenarios.demand import Demand, load_demand
from throng.scenarios.network import RoadNetwork, load_network
from throng.scenarios.scenario import Scenario
from throng.scenarios.town import write_town

Pairs = Sequence[tuple[int, int]]


def _network(roads: int, pairs: Pairs, **given: Any) -> RoadNetwork:
    """Roads of 100 m, 10 m/s and one lane, straight connections, unless `given` says otherwise (per sorted pair)."""
    connections = np.array(sorted(pairs), np.int32).reshape(-1, 2)
    count = len(connections)

    def of(name: str, size: int, default: float, dtype: type) -> np.ndarray:
        return np.array(np.broadcast_to(given.get(name, default), (size,)), dtype)

    end_xy = np.asarray(given.get("end_xy", np.zeros((roads, 2))), np.float32)
    start_xy = np.asarray(given.get("start_xy", end_xy), np.float32)
    return RoadNetwork(
        path=Path("hand-made"),
        vclass="passenger",
        road_ids=tuple(f"r{road:03d}" for road in range(roads)),
        connections=connections,
        first=np.searchsorted(connections[:, 0], np.arange(roads + 1)).astype(np.int32),
        turn=of("turn", count, 0, np.int8),
        allowed=of("allowed", count, True, np.bool_),
        length=of("length", roads, 100, np.float32),
        speed=of("speed", roads, 10, np.float32),
        lanes=of("lanes", roads, 1, np.int16),
        start_xy=start_xy,
        end_xy=end_xy,
        signal=of("signal", roads, False, np.bool_),
        priority=np.zeros(roads, np.int16),
        shapes=tuple(np.stack([a, b]) for a, b in zip(start_xy, end_xy, strict=True)),
        lane_ids=tuple((f"r{road:03d}_0",) for road in range(roads)),
        closed_ids=frozenset(),
        junction_count=0,
        signal_count=0,
    )


@pytest.fixture(scope="session")
def hand_made() -> Callable[..., RoadNetwork]:
    """(roads, pairs of roads, **arrays) -> a network without any file."""
    return _network


@pytest.fixture(scope="session")
def random_network() -> Callable[..., RoadNetwork]:
    """(generator, roads, connections, masked share) -> a random network; some roads may be dead ends."""

    def make(rng: np.random.Generator, roads: int, connections: int, masked: float = 0.0) -> RoadNetwork:
        every = [(a, b) for a in range(roads) for b in range(roads) if a != b]
        pairs = [every[i] for i in rng.choice(len(every), min(connections, len(every)), replace=False)]
        return _network(
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
