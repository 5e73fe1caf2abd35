"""The one place that touches libsumo.

The compiled functions under libsumo's Python wrapper save about a third of each getter; they are not public, so each is
looked up here with the public function as fallback. Halting numbers, of which every second needs hundreds, are read from
the C++ library itself in one loop, without Python between them: a third of the getters' time.
"""

from __future__ import annotations

import contextlib
import ctypes
import shlex
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import libsumo
import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

try:
    from libsumo import _libsumo as _compiled
except ImportError:  # another build of libsumo
    _compiled = None

_process = threading.Lock()  # held while a simulation of ours runs
_log = ""  # error log of the simulation started last: how we know our own from one that others started since


class RolloutError(RuntimeError):
    """SUMO refused or broke off a simulation; the message carries SUMO's own."""


def _function(domain: str, name: str) -> Callable[..., Any]:
    function = getattr(_compiled, f"{domain}_{name}", None)
    return function if function is not None else getattr(getattr(libsumo, domain), name)


step: Callable[[], object] = _function("simulation", "step")
edge_number: Callable[[str], int] = _function("edge", "getLastStepVehicleNumber")
edge_speed: Callable[[str], float] = _function("edge", "getLastStepMeanSpeed")
edge_vehicles: Callable[[str], Sequence[str]] = _function("edge", "getLastStepVehicleIDs")
teleports: Callable[[], int] = _function("simulation", "getStartingTeleportNumber")
arrived: Callable[[], int] = _function("simulation", "getArrivedNumber")
running: Callable[[], int] = _function("vehicle", "getIDCount")
set_route: Callable[[str, Sequence[str]], None] = libsumo.vehicle.setRoute
close: Callable[[], None] = libsumo.close  # completes SUMO's output files; the next simulation starts afresh
TraCIException: type[Exception] = libsumo.TraCIException


class HaltingNumbers:
    """Vehicles slower than 0.1 m/s on each of many lanes or edges, `[ids] int32`.

    Without the C++ symbol (another build of libsumo), `now` is as `checked`.
    """

    def __init__(self, domain: Literal["lane", "edge"], ids: Sequence[str]) -> None:
        self._ids = ids
        self._getter = _function(domain, "getLastStepHaltingNumber")
        # The mangled name says that the argument is libstdc++'s string, of which the ABI fixes the layout:
        # address, length, and 16 bytes that hold short texts or a capacity.
        symbol = f"_ZN7libsumo4{domain.capitalize()}24getLastStepHaltingNumberE{_STRING_REFERENCE}"
        function = getattr(_library, symbol, None)
        self._address = ctypes.cast(function, ctypes.c_void_p).value if function is not None else None
        texts = [name.encode() for name in ids]
        self._text = np.frombuffer(b"\0".join([*texts, b""]), np.uint8)  # kept, as `_strings` points into it
        lengths = np.array([len(text) for text in texts], np.intp)
        self._strings = np.zeros((len(texts), 4), np.intp)
        self._strings[:, 0] = self._text.ctypes.data + np.cumsum(lengths + 1) - (lengths + 1)
        self._strings[:, 1] = lengths

    @property
    def direct(self) -> bool:
        """Whether the C++ symbol was found."""
        return self._address is not None

    def checked(self) -> NDArray[np.int32]:
        """Asks one by one.

        Raises:
            TraCIException: the simulation lacks one of the ids.
        """
        return np.array(array("i", map(self._getter, self._ids)))

    def now(self) -> NDArray[np.int32]:
        """Asks for all at once; the ids must have been checked in this simulation, an unknown one ends the process."""
        if self._address is None:
            return self.checked()
        numbers = np.empty(len(self._ids), np.int32)
        _ask_all(self._address, self._strings.ctypes.data, numbers)
        return numbers


_STRING_REFERENCE = "RKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"  # std::string const&, mangled
_library = ctypes.CDLL(_compiled.__file__) if _compiled is not None else None


@intrinsic
def _ask(_context, function, text):  # type: ignore[no-untyped-def]
    """Calls the C++ function at one address, `int f(std::string const&)`, with the string at another."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        kind = ir.FunctionType(ir.IntType(32), [ir.IntType(64)])
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [arguments[1]])

    return numba.int32(numba.intp, numba.intp), generate


@numba.njit(cache=True)
def _ask_all(function, strings, numbers):  # type: ignore[no-untyped-def]
    for i in range(numbers.size):
        numbers[i] = _ask(function, strings + 32 * i)  # type: ignore[call-arg]


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
