"""Measuring on a machine that is not quiet: everything is a ratio of things measured in one run.

Costs are taken in turns (A B A B …), and a ratio is the median of the rounds' ratios, so that neither a slow
minute nor a single disturbance decides. What one process does is judged by its CPU time; what several processes
do together has to be judged by the clock, and needs a quiet machine.

CPU time is not safe from other tenants either: they take caches and memory bandwidth, for seconds at a time, and
turns then differ by half. Where one rollout is compared with one plain sumo, both therefore run at the same time
on the same processor, which deals out its milliseconds: every pair sees one and the same machine.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import sumo
from throng.workers.pool import ALLOCATOR

SUMO = Path(sumo.SUMO_HOME) / "bin" / "sumo"


@dataclass(frozen=True)
class Result:
    """One line of the table: a measured ratio (or amount) and what it has to reach."""

    name: str
    value: float
    bar: float
    better: Literal["lower", "higher"]
    detail: str

    @property
    def ok(self) -> bool:
        return self.value <= self.bar if self.better == "lower" else self.value >= self.bar

    def row(self) -> dict[str, Any]:
        """As written to results.json."""
        return {
            "name": self.name,
            "value": round(self.value, 4),
            "bar": self.bar,
            "better": self.better,
            "ok": self.ok,
            "detail": self.detail,
        }


@dataclass(frozen=True)
class Cost:
    wall: float  # s
    cpu: float  # s, of the process that did it


def here(call: Callable[[], object]) -> Cost:
    """What a call costs in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def plain_sumo(options: Sequence[str]) -> Cost:
    """What the plain sumo binary costs with these options, from start to exit.

    Raises:
        RuntimeError: it failed; the message carries the options.
    """
    began = time.perf_counter()
    process = _start(options)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"sumo ended with {process.returncode}: {' '.join(options)}")
    return Cost(time.perf_counter() - began, usage.ru_utime + usage.ru_stime)


def _start(options: Sequence[str]) -> subprocess.Popen[bytes]:
    """The plain binary as anybody starts it, without what is set for our workers."""
    environment = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    return subprocess.Popen([str(SUMO), *options], stdout=subprocess.DEVNULL, env=environment)


def in_turns(rounds: int, calls: Mapping[str, Callable[[], Cost]]) -> dict[str, list[Cost]]:
    """Every call once per round, round after round; an extra round before them is not counted."""
    for call in calls.values():
        call()
    costs: dict[str, list[Cost]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            costs[name].append(call())
    return costs


def side_by_side(
    rounds: int, call: Callable[[], object], options: Sequence[str], warm: int = 1
) -> tuple[list[Cost], list[Cost]]:
    """A call in this process and the plain sumo binary at the same time on one processor, pair after pair.

    Returns both costs, of which only the CPU time says anything. What outlasts the binary is kept company by
    another one, so that neither ever has the processor to itself. The first `warm` pairs are not counted.
    """
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    ours, theirs = [], []
    try:
        for _ in range(rounds + warm):
            done = threading.Event()
            with ThreadPoolExecutor(1) as thread:
                beside = thread.submit(_company, options, done)
                try:
                    ours.append(here(call))
                finally:
                    done.set()
                theirs.append(beside.result())
    finally:
        os.sched_setaffinity(0, allowed)
    return ours[warm:], theirs[warm:]


def _company(options: Sequence[str], done: threading.Event) -> Cost:
    """The cost of the first of as many plain sumo as it takes until `done`."""
    first = plain_sumo(options)
    while not done.is_set():
        with _start(options) as another:
            while another.poll() is None and not done.wait(0.05):
                pass
            another.kill()
    return first


def ratio(ours: Sequence[Cost], theirs: Sequence[Cost], clock: Literal["cpu", "wall"] = "cpu") -> float:
    """Median over the rounds of ours / theirs."""
    return median(getattr(a, clock) / getattr(b, clock) for a, b in zip(ours, theirs, strict=True))


def compared(ours: Sequence[Cost], theirs: Sequence[Cost]) -> str:
    """The other ways to look at a ratio, for `detail`."""
    best = min(c.cpu for c in ours) / min(c.cpu for c in theirs)
    return f"{spread(ours, theirs)}; minimum over minimum {best:.3f}; wall {ratio(ours, theirs, 'wall'):.3f}"


def spread(ours: Sequence[Cost], theirs: Sequence[Cost]) -> str:
    """How far the rounds agree, for `detail`."""
    lowest, highest = (pick(a.cpu / b.cpu for a, b in zip(ours, theirs, strict=True)) for pick in (min, max))
    return f"median of {len(ours)} paired CPU ratios ({lowest:.3f} to {highest:.3f})"


class Pressure:
    """The share of the clock in which some task waited for a processor: how far a wall time can be trusted.

    Own surplus processes count too. "unknown" where the kernel does not tell.
    """

    def __init__(self) -> None:
        self._began, self._waited = time.perf_counter(), self._total()

    @staticmethod
    def _total() -> float | None:
        try:
            some = Path("/proc/pressure/cpu").read_text().splitlines()[0]
        except OSError:
            return None
        return int(some.rpartition("total=")[2]) / 1e6

    def __str__(self) -> str:
        now = self._total()
        if now is None or self._waited is None:
            return "processor pressure unknown"
        return f"processor pressure {(now - self._waited) / (time.perf_counter() - self._began):.0%}"
