"""What tests of several packages share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from throng.scenarios.network import RoadNetwork


@pytest.fixture(scope="session")
def hand_made() -> Callable[..., RoadNetwork]:
    """(roads, pairs of roads, **arrays) -> a network without any file."""

    def make(roads: int, pairs: Sequence[tuple[int, int]], **given: Any) -> RoadNetwork:
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
            closed_ids=frozenset({"footpath"}),
            junction_count=0,
            signal_count=0,
        )

    return make


@pytest.fixture
def throng_here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """(words of a `throng` command) -> its exit code; in this process, where all that it imports is there."""

    def run(*words: str) -> int:
        from throng.tune import cli

        monkeypatch.setattr(sys, "argv", ["throng", *words])
        before = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            signal.signal(signal.SIGINT, before)
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run
