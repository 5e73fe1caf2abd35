"""A node that runs out of memory: Ray's monitor ends a worker before the kernel does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import ray
from throng.workers.fleet import Fleet, Rules

pytestmark = pytest.mark.long  # takes two gigabytes, and the machine's memory in use decides whom Ray ends
GREED = 2 << 30  # bytes


def _in_use() -> tuple[int, int]:
    """Bytes in use and there."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return (kib["MemTotal"] - kib["MemAvailable"]) << 10, kib["MemTotal"] << 10


def test_who_takes_too_much_memory_is_replaced(tmp_path: Path) -> None:
    """The calls of a worker that Ray's monitor ends are done by another, once each."""

    class Greedy:
        def __init__(self, folder: Path) -> None:
            self.folder = folder
            self.hoard: list[bytearray] = []

        def square(self, value: int) -> int:
            mark = self.folder / "greedy"
            if value == 5 and not mark.exists():
                mark.touch()
                for _ in range(64):
                    self.hoard.append(bytearray(b"x") * (GREED // 64))
                    time.sleep(0.05)
                time.sleep(600)
            time.sleep(0.1)
            return value * value

    used, total = _in_use()
    limits = {"memory_usage_threshold": (used + GREED // 2) / total, "memory_monitor_refresh_ms": 100}
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, _system_config=limits)
    try:
        actor = ray.remote(Greedy)

        def create() -> Any:
            return actor.options(num_cpus=1, max_task_retries=0).remote(tmp_path)

        fleet = Fleet("worker", create, 2, Rules(300.0), lambda: ("square", (1,)))
        found = list(fleet.run("square", ((value, (value,)) for value in range(20))))
        assert sorted(found) == [(value, value * value) for value in range(20)]
        assert (tmp_path / "greedy").exists()
        assert fleet.restarts >= 1  # it may end others, too, until the memory is free
        assert any("memory" in error for error in fleet._errors), fleet._errors
        fleet.close()
    finally:
        ray.shutdown()
