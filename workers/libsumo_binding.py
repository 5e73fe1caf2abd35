"""The one place that touches libsumo.

The compiled functions under libsumo's Python wrapper save about a third of each getter; they are not public, so each is
looked up here with the public function as fallback.
"""

from __future__ import annotations

import contextlib
import ctypes
import shlex
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import libsumo

try:
    from libsumo import _libsumo as _compiled
except ImportError:  # another build of libsumo
    _compiled = None

_library = ctypes.CDLL(_compiled.__file__) if _compiled is not None else None
_process = threading.Lock()  # held while a simulation of ours runs
_log = ""  # error log of the simulation started last: how we know our own from one that others started since


class RolloutError(RuntimeError):
    """SUMO refused or broke off a simulation; the message carries SUMO's own."""


def _function(domain: str, name: str) -> Callable[..., Any]:
    function = getattr(_compiled, f"{domain}_{name}", None)
    return function if function is not None else getattr(getattr(libsumo, domain), name)


step: Callable[[], object] = _function("simulation", "step")
lane_halting: Callable[[str], int] = _function("lane", "getLastStepHaltingNumber")
edge_number: Callable[[str], int] = _function("edge", "getLastStepVehicleNumber")
edge_speed: Callable[[str], float] = _function("edge", "getLastStepMeanSpeed")
lane_number: Callable[[str], int] = _function("edge", "getLaneNumber")
edge_vehicles: Callable[[str], Sequence[str]] = _function("edge", "getLastStepVehicleIDs")
running: Callable[[], int] = _function("vehicle", "getIDCount")
set_route: Callable[[str, Sequence[str]], None] = libsumo.vehicle.setRoute
connection: Any = libsumo  # all of its calls, for those who take a TraCI connection as well
close: Callable[[], None] = libsumo.close  # completes SUMO's output files; the next simulation starts afresh
TraCIException: type[Exception] = libsumo.TraCIException


def address(symbol: str) -> int | None:
    """Where a C++ function of SUMO's library lies in memory, by its mangled name; None if it exports no such."""
    function = getattr(_library, symbol, None)
    return ctypes.cast(function, ctypes.c_void_p).value if function is not None else None


def statistic(name: str) -> int:
    """One of SUMO's counts since the simulation began: "vehicles.inserted", "teleports.total", …

    Ask once a minute, not once a step: a step leaves the caches to SUMO, and then any call from Python is dear.
    """
    return int(libsumo.simulation.getParameter("", f"stats.{name}"))


def waiting() -> int:
    """Vehicles whose departure is due and that have not been inserted."""
    return len(libsumo.simulation.getPendingVehicles())


@contextlib.contextmanager
def simulation(options: list[str], log: Path) -> Iterator[None]:
    """Loads a simulation for the duration of the block; `log` receives SUMO's errors.

    Raises:
        RolloutError: SUMO refused the inputs or stopped (with its message), or the process already runs a simulation:
            a second start would silently destroy the first.
    """
    global _log
    if not _process.acquire(blocking=False):
        raise RolloutError("this process is running a simulation already; libsumo holds one per process")
    try:
        loaded = libsumo.isLoaded()
        if loaded and libsumo.simulation.getOption("error-log") != _log:
            raise RolloutError("libsumo already holds a simulation that Throng did not start; close it first")
        log.unlink(missing_ok=True)
        arguments = [*options, "--error-log", str(log)]
        _log = str(log)
        try:
            if loaded:
                libsumo.load(arguments)
            else:
                libsumo.start(["sumo", *arguments])
            yield
        except (libsumo.TraCIException, libsumo.FatalTraCIError, RuntimeError) as error:
            if isinstance(error, RolloutError):
                raise
            with contextlib.suppress(libsumo.TraCIException, libsumo.FatalTraCIError, RuntimeError):
                libsumo.close()  # SUMO fills its log on closing, and starts afresh after an error
            said = log.read_text().strip() if log.exists() else ""
            raise RolloutError(f"SUMO stopped: {said or f'{error} Its options: {shlex.join(options)}'}") from error
    finally:
        _process.release()
