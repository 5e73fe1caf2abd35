"""Simulations that are never lost: each result is journaled under its key as it arrives, and never repeated.

One that failed is not journaled: a run that goes on tries it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..scenarios.macro import Macro
from ..workers.fleet import Failure
from ..workers.pool import Pool
from ..workers.simulator import Job
from ..workers.sumo import Rollout
from .progress import Progress
from .store import Arrays, RunStore
from .telemetry import Telemetry

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the platform keeps of a simulation; `error` is set if it failed."""

    macro: Macro | None
    minutes: int
    teleports: int
    arrived: int
    running: int
    waiting: int
    sumo_seconds: float
    error: str = ""
    travel_time: Array | None = None  # [vehicles] seconds, NaN: not arrived; where the scenario observes trips

    def complete(self, minutes: int) -> bool:
        return self.macro is not None and self.minutes == minutes


class Simulations:
    """A pool with a journal and a progress display."""

    def __init__(
        self, pool: Pool, store: RunStore | None, progress: Progress, telemetry: Telemetry | None = None
    ) -> None:
        self.pool = pool
        self.telemetry = telemetry or Telemetry("")
        self._store = store
        self._progress = progress

    def run(self, jobs: Iterable[Job]) -> dict[str, Outcome]:
        """Simulates all jobs, those of the journal excepted; results by key."""
        return dict(self.stream(jobs))

    def stream(self, jobs: Iterable[Job]) -> Iterator[tuple[str, Outcome]]:
        fresh: dict[str, Job] = {}
        for job in jobs:
            recorded = None if self._store is None else self._store.journal_get(job.key)
            if recorded is None:
                fresh[job.key] = job
            else:
                yield job.key, _from_arrays(recorded)
        for key, result in self.pool.simulate(fresh.values()):
            outcome = _outcome(result)
            self.telemetry.simulated(fresh[key], outcome.sumo_seconds, outcome.error)
            if self._store is not None and outcome.macro is not None:
                self._store.journal_put(key, _to_arrays(outcome))
            self._progress.simulated()
            yield key, outcome


def _outcome(result: Rollout | Failure) -> Outcome:
    if isinstance(result, Failure):
        return Outcome(None, 0, 0, 0, 0, 0, 0.0, result.error)
    return Outcome(
        result.macro,
        result.minutes,
        result.teleports,
        result.arrived,
        result.running,
        result.waiting,
        result.sumo_seconds,
        travel_time=result.travel_time,
    )


def _to_arrays(outcome: Outcome) -> Arrays:
    assert outcome.macro is not None
    counts = [outcome.minutes, outcome.teleports, outcome.arrived, outcome.running, outcome.waiting]
    arrays: Arrays = {"counts": np.array(counts, np.int64), "sumo_seconds": np.array(outcome.sumo_seconds)}
    for name in ("queue", "speed", "count"):
        value = getattr(outcome.macro, name)
        if value is not None:
            arrays[name] = value
    if outcome.travel_time is not None:
        arrays["travel_time"] = outcome.travel_time
    return arrays


def _from_arrays(arrays: Arrays) -> Outcome:
    macro = Macro(arrays["queue"], arrays.get("speed"), arrays.get("count"))
    minutes, teleports, arrived, running, waiting = (int(value) for value in arrays["counts"])
    seconds = float(arrays["sumo_seconds"])
    travel_time = arrays.get("travel_time")
    return Outcome(macro, minutes, teleports, arrived, running, waiting, seconds, travel_time=travel_time)
