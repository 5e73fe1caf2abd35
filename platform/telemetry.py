"""What a run tells while it works: metrics for Prometheus, through Ray, and lines of JSON in its folder.

Ray serves the metrics on every node's metrics port, their names after `ray_`, with the label `run`:

    throng_simulations_total      simulations done, by fidelity and by whether they failed
    throng_calls                  calls that actors are working on or have queued, by fleet
    throng_actors                 actors by fleet and state (healthy, restoring, suspect, retired)
    throng_actors_lost_total      actors that were lost, by fleet
    throng_error                  estimated error of the best candidate, and the generation's median
    throng_budget_used            micro-equivalent simulations used so far
    throng_generation             generations committed

cluster/launch/grafana.json draws them, beside Ray's own gauges of the object store.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

from ..workers.fleet import Fleet
from ..workers.simulator import Job
from .progress import Progress
from .store import RunStore

log = logging.getLogger("throng.run")
KEY = re.compile(r"g(\d+)-.*-i(\d+)$")  # of a candidate's simulation: generation and individual


class Metrics:
    """The metrics of one run; counted only where Ray is at work."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._lost: dict[str, int] = {}
        self._made: dict[str, Counter | Gauge] = {}

    def simulated(self, fidelity: str, failed: bool) -> None:
        self._count("throng_simulations", "simulations done", 1, fidelity=fidelity, failed=str(failed).lower())

    def fleet(self, fleet: Fleet) -> None:
        """The state of a fleet, as often as it looks after its members."""
        name = fleet.name
        self._set("throng_calls", "calls under way or queued", fleet.pending, fleet=name)
        for state, count in fleet.states().items():
            self._set("throng_actors", "actors", count, fleet=name, state=state.value)
        lost = fleet.restarts - self._lost.get(name, 0)
        self._lost[name] = fleet.restarts
        if lost:
            self._count("throng_actors_lost", "actors that were lost", lost, fleet=name)

    def generation(self, row: dict[str, float]) -> None:
        """A row of the search's history."""
        self._set("throng_error", "error", row["best"], of="best")
        self._set("throng_error", "error", row["median"], of="median")
        self._set("throng_budget_used", "micro-equivalent simulations used", row["simulations"])
        self._set("throng_generation", "generations committed", row["generation"] + 1)

    def _count(self, name: str, about: str, by: int, **tags: str) -> None:
        if metric := self._metric(Counter, name, about, tags):
            metric.inc(by, tags={"run": self._run, **tags})

    def _set(self, name: str, about: str, value: float, **tags: str) -> None:
        if metric := self._metric(Gauge, name, about, tags):
            metric.set(value, tags={"run": self._run, **tags})

    def _metric(self, kind: type[Any], name: str, about: str, tags: dict[str, str]) -> Any:
        if not ray.is_initialized():
            return None
        if name not in self._made:
            self._made[name] = kind(name, description=about, tag_keys=("run", *tags))
        return self._made[name]


class Telemetry:
    """Everything that a run tells: to Prometheus, and to its log."""

    def __init__(self, run: str) -> None:
        self.metrics = Metrics(run)

    def simulated(self, job: Job, seconds: float, error: str) -> None:
        """A simulation has ended; `error` says why it failed."""
        self.metrics.simulated(job.fidelity, bool(error))
        found = KEY.match(job.key)
        where = {"generation": int(found[1]), "individual": int(found[2])} if found else {}
        facts = {"event": "simulation", "key": job.key, **where, "fidelity": job.fidelity, "seed": job.seed}
        outcome: dict[str, Any] = {"error": error} if error else {"seconds": round(seconds, 3)}
        log.info("%s", job.key, extra={"facts": facts | outcome})

    def generation(self, row: dict[str, float]) -> None:
        """A generation was committed."""
        self.metrics.generation(row)
        log.info("generation %d", row["generation"], extra={"facts": {"event": "generation", **row}})


class _Lines(logging.Handler):
    """Writes records as JSON, a line each: `time`, `level`, `run`, `attempt`, and the facts of the record."""

    def __init__(self, store: RunStore) -> None:
        super().__init__(logging.INFO)
        self._path = store.directory / "log.jsonl"
        self._always = {"run": str(store.directory), "attempt": store.attempt}

    def emit(self, record: logging.LogRecord) -> None:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        facts = getattr(record, "facts", {"event": "message", "text": record.getMessage()})
        line = json.dumps({"time": moment, "level": record.levelname.lower(), **self._always, **facts})
        with contextlib.suppress(OSError), self._path.open("a") as stream:  # no run is given up for its log
            stream.write(line + "\n")


class _Notes(logging.Handler):
    """Shows warnings above the progress bar."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.note(record.getMessage())


@contextlib.contextmanager
def recorded(store: RunStore, progress: Progress) -> Iterator[None]:
    """What Throng's modules log goes to log.jsonl in the run's folder, and warnings to the terminal."""
    ours = logging.getLogger("throng")
    before = ours.level, ours.propagate
    handlers = [_Lines(store), _Notes(progress)]
    ours.setLevel(logging.INFO)
    ours.propagate = False
    for handler in handlers:
        ours.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            ours.removeHandler(handler)
        ours.setLevel(before[0])
        ours.propagate = before[1]
