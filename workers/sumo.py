"""One SUMO simulation, in process: routes in, queues per road and minute out.

libsumo holds one simulation per process and a second start silently destroys the first, so a rollout claims the process
while it runs and refuses to share it. Queues are read every second and reduced to the minute's maxima on
the spot; what leaves is columnar.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..scenarios.demand import Routes
from ..scenarios.macro import Macro, read_edge_data
from ..scenarios.scenario import Scenario
from ..scenarios.sumo_xml import elements
from . import libsumo_binding as sumo
from .delayed import Delayed
from .halting import Halting
from .junction import JunctionControl
from .libsumo_binding import RolloutError
from .sumo_files import Fidelity, SumoFiles

Array = NDArray[np.float32]
READ_EVERY = {"micro": 1.0, "meso": 5.0}  # seconds between readings of the queues
_PREFIX = "throng-rollout-"


class RolloutTimeout(RolloutError):
    """A simulation took longer than its deadline."""


@dataclass(frozen=True, eq=False)
class GiveUp:
    """Break a simulation off once it can no longer be of use.

    `squared` is the allowed sum of squared errors against `target [roads, minutes]` (NaN: not observed): as errors only
    add up, a run past it is certain to end past it. `teleports` is the number that marks gridlock.
    """

    target: Array
    squared: float
    teleports: int


@dataclass(frozen=True, eq=False)
class Rollout:
    """What one simulation leaves behind."""

    macro: Macro
    seed: int
    fidelity: Fidelity
    quiet: bool
    arrived: int  # vehicles, background included
    running: int  # still driving at the end
    waiting: int  # not inserted at the end
    teleports: int
    minutes: int  # simulated; fewer than asked for when given up
    sumo_seconds: float  # wall time of loading, stepping and reading SUMO (with junction routing, of deciding too)
    seconds: float  # wall time of the whole call
    travel_time: Array | None = None  # [vehicles] seconds from departure as planned to arrival; NaN: not arrived


class SumoRollout:
    """Runs a scenario with given routes.

    Args:
        scenario: the fixed inputs.
        directory: where input files go; by default a fresh directory in memory (or the temporary folder), removed by
            `close`, at garbage collection, or by the next worker after a crash.
    """

    def __init__(self, scenario: Scenario, directory: Path | None = None) -> None:
        self.scenario = scenario
        if directory is None:
            directory = _fresh_directory()
            self._finalizer: Callable[[], object] = weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        else:
            self._finalizer = lambda: None
        self.files = SumoFiles(scenario, directory)

    def close(self) -> None:
        """Removes the input files."""
        self._finalizer()

    def __enter__(self) -> SumoRollout:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        routes: Routes | tuple[str, ...],
        seed: int,
        fidelity: Fidelity = "micro",
        quiet: bool = False,
        give_up: GiveUp | None = None,
        deadline: float | None = None,
        control: JunctionControl | None = None,
    ) -> Rollout:
        """Simulates all vehicles and returns the macro series.

        Args:
            routes: of the learnt vehicles, as rows of the network or as strings of SUMO edge ids (published routes).
            seed: of SUMO's driver noise; the same seed gives the same traffic, bit for bit.
            quiet: no driver noise (sigma and speed deviation zero): for ranking, never for reporting.
            give_up: break off early when hopeless; the result then covers fewer minutes (the rest is NaN).
            deadline: seconds of wall time after which the run is broken off with an error.
            control: decides routes live at junctions (junction routing); None drives the routes as they are.

        Raises:
            RolloutError: SUMO's own message; RolloutTimeout past the deadline.
        """
        began = time.perf_counter()
        self.files.write_routes(routes)
        arguments = self.files.options(seed, fidelity, quiet, self.scenario.observe_speed)
        loading = time.perf_counter()
        with sumo.simulation(arguments, self.files.directory / "sumo.log"):
            queue, counts, minutes = self._simulate(fidelity, began, give_up, deadline, control)
            if self.scenario.observe_speed or self.scenario.observe_trips:
                sumo.close()
        sumo_seconds = time.perf_counter() - loading
        speed = count = None
        if self.scenario.observe_speed:
            measured = read_edge_data(
                self.files.edge_data, self.scenario.network, self.scenario.begin, self.scenario.minutes
            )
            speed, count = measured.speed, measured.count
            count[:, minutes:] = np.nan
        return Rollout(
            Macro(queue, speed, count),
            seed,
            fidelity,
            quiet,
            *counts,
            minutes=minutes,
            sumo_seconds=sumo_seconds,
            seconds=time.perf_counter() - began,
            travel_time=travel_times(self.files.trip_data, self.scenario) if self.scenario.observe_trips else None,
        )

    def _simulate(
        self,
        fidelity: Fidelity,
        began: float,
        give_up: GiveUp | None,
        deadline: float | None,
        control: JunctionControl | None,
    ) -> tuple[Array, tuple[int, int, int, int], int]:
        scenario = self.scenario
        minutes, step = scenario.minutes, sumo.step
        queues: _Queues = Delayed(scenario.network, longest=scenario.lanes == "max")
        if fidelity == "micro":
            queues = Halting(scenario.network.lane_ids, longest=scenario.lanes == "max")
        queue = np.full((scenario.network.road_count, minutes), np.nan, np.float32)
        steps = round(60.0 / scenario.step_length)
        period = READ_EVERY[fidelity] if control is None else 1.0
        per_read = max(1, round(period / scenario.step_length))
        reads = [index % per_read == 0 for index in range(1, steps + 1)]
        squared, done = 0.0, 0
        if control is not None:
            control.start(fidelity)
        for minute in range(minutes):
            queues.forget()
            for read in reads:
                step()
                if read:
                    queues.look()
                    if control is not None:
                        control.decide(queues.now)
            peak = queues.peak()
            queue[:, minute] = peak
            done = minute + 1
            if give_up is not None:
                squared += float(np.nansum(np.square(peak - give_up.target[:, minute])))
                if squared > give_up.squared or sumo.statistic("teleports.total") > give_up.teleports:
                    break
            if deadline is not None and time.perf_counter() - began > deadline:
                raise RolloutTimeout(
                    f"minute {done} of {minutes} after {deadline:.0f} s of wall time: the traffic is likely gridlocked "
                    "(see `throng scenario check`), or the limit workers.deadline is too low"
                )
        arrived = sumo.statistic("vehicles.inserted") - sumo.statistic("vehicles.running")
        return queue, (arrived, sumo.running(), sumo.waiting(), sumo.statistic("teleports.total")), done


class _Queues(Protocol):
    """Reads queues as often as it is asked to look."""

    def forget(self) -> None:
        """What was seen so far no longer counts."""

    def look(self) -> None: ...

    def now(self) -> Array:
        """[roads] the queues of this moment; after `look`."""

    def peak(self) -> Array:
        """[roads] the longest queues seen."""


def travel_times(path: Path, scenario: Scenario) -> Array:
    """Travel times of the learnt vehicles from SUMO's tripinfo file, `[vehicles]` seconds; NaN: did not arrive.

    They count from the planned departure: waiting to be let onto the road is travel time too.
    """
    demand = scenario.demand
    row = {name: i for i, name in enumerate(demand.ids)}
    arrival = np.full(len(demand), np.nan)
    for trip in elements(path, "SUMO's tripinfo output"):
        vehicle = row.get(trip.get("id", ""))
        if trip.tag == "tripinfo" and vehicle is not None and not trip.get("vaporized"):
            arrival[vehicle] = float(trip.get("arrival", "nan"))
    return (arrival - demand.depart).astype(np.float32)


def _fresh_directory() -> Path:
    """A directory for one process's input files, in memory where there is room; those of dead processes are removed."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**28 else None
    root = parent or Path(tempfile.gettempdir())
    for old in root.glob(f"{_PREFIX}*"):
        pid = old.name.removeprefix(_PREFIX).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc").exists():
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=root))
