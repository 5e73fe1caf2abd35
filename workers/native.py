"""SUMO's own C++ objects, read from compiled code by member functions that its library exports.

libsumo's getters look each lane up by its name on every call, and build strings and tuples of what they find. What has to be
asked every second is instead looked up once per simulation, here, and read in compiled loops (`halting`, `delayed`,
`entering`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

from . import libsumo_binding as sumo

# The mangled name of the first says that strings are libstdc++'s: that fixes how they lie in memory.
LANE = "_ZN6MSLane10dictionaryERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"  # MSLane* dictionary(name)
EDGE = "_ZN6MSEdge10dictionaryERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"  # MSEdge* dictionary(name)
VEHICLES = "_ZNK6MSLane17getVehiclesSecureEv"  # const std::vector<MSVehicle*>& MSLane::getVehiclesSecure() const
SPEED = "_ZNK9MSVehicle8getSpeedEv"  # double MSVehicle::getSpeed() const
NUMBER = "_ZNK13MSBaseVehicle14getNumericalIDEv"  # long MSBaseVehicle::getNumericalID() const
ON_EDGE = "_ZNK6MSEdge16getVehicleNumberEv"  # int MSEdge::getVehicleNumber() const
MEAN_SPEED = "_ZNK6MSEdge12getMeanSpeedEv"  # double MSEdge::getMeanSpeed() const
Addresses = NDArray[np.intp]


def functions(*symbols: str) -> tuple[int, ...] | None:
    """Where these lie in memory; None if the library lacks one of them, or the means to find lanes and roads."""
    found = [sumo.address(symbol) for symbol in (LANE, EDGE, *symbols)]
    return None if None in found else tuple(address for address in found[2:] if address is not None)


def lanes(names: Sequence[str]) -> Addresses:
    """Where the lanes of the simulation that is loaded now lie in memory, `[lanes]`; it must not be outlived.

    Raises:
        RolloutError: the simulation has no such lane.
    """
    return _found(LANE, "lane", names)


def roads(names: Sequence[str]) -> Addresses:
    """The same of its roads, `[roads]`."""
    return _found(EDGE, "road", names)


def _found(dictionary: str, what: str, names: Sequence[str]) -> Addresses:
    found = np.empty(len(names), np.intp)
    strings, _text = _strings(names)
    _find(sumo.address(dictionary), strings.ctypes.data, found)
    if not found.all():
        raise sumo.RolloutError(
            f"SUMO's network has no {what} {names[int(np.argmin(found != 0))]!r}: its file changed since it was read; "
            "start again"
        )
    return found


def _strings(texts: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
    """As libstdc++ lays out std::string: address, length, and 16 bytes more; and the bytes they point into."""
    encoded = [text.encode() for text in texts]
    lengths = np.array([len(text) for text in encoded], np.intp)
    text = np.frombuffer(b"\0".join([*encoded, b""]), np.uint8)
    strings = np.zeros((len(texts), 4), np.intp)
    strings[:, 0] = text.ctypes.data + np.cumsum(lengths + 1) - (lengths + 1)
    strings[:, 1] = lengths
    return strings, text


def _caller(result: numba.types.Type, returned: ir.Type) -> Any:
    """Makes `call(function, argument)` for compiled code: a C++ function of one pointer, both given by address."""

    def call(_context, function, argument):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            prototype = ir.FunctionType(returned, [ir.IntType(64)])
            return builder.call(builder.inttoptr(arguments[0], prototype.as_pointer()), [arguments[1]])

        return result(numba.intp, numba.intp), generate

    return intrinsic(call)


def _loader() -> Any:
    """Makes `load(address)` for compiled code: the pointer that lies there."""

    def load(_context, address):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))

        return numba.intp(numba.intp), generate

    return intrinsic(load)


pointer_of = _caller(numba.intp, ir.IntType(64))
int_of = _caller(numba.int32, ir.IntType(32))
double_of = _caller(numba.float64, ir.DoubleType())
pointer_at = _loader()


@numba.njit(cache=True)
def _find(dictionary, strings, found):  # type: ignore[no-untyped-def]
    for i in range(found.size):
        found[i] = pointer_of(dictionary, strings + 32 * i)
