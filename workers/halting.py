"""Halting vehicles of every lane, counted on SUMO's own C++ objects.

Every second of a microscopic simulation asks for hundreds of lanes. libsumo's getter looks each of them up by its name,
which takes 5 % of the simulation's time, and Python as much again. Here lanes are looked up once per simulation; then one
compiled loop asks each for its vehicles and each vehicle for its speed, by member functions that the library exports.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

from . import libsumo_binding as sumo

HALTING = 0.1  # m/s, SUMO_const_haltingSpeed
# The mangled name of the first says that strings are libstdc++'s: that fixes how they lie in memory.
SYMBOLS = (
    "_ZN6MSLane10dictionaryERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE",  # MSLane* MSLane::dictionary(name)
    "_ZNK6MSLane17getVehiclesSecureEv",  # const std::vector<MSVehicle*>& MSLane::getVehiclesSecure() const
    "_ZNK9MSVehicle8getSpeedEv",  # double MSVehicle::getSpeed() const
)


def halting_numbers(lanes: Sequence[str]) -> Callable[[], NDArray[np.int32]]:
    """A function that counts the vehicles slower than 0.1 m/s, `[lanes]`, in the simulation that is loaded now.

    It must not outlive that simulation. Where the library lacks a symbol (another build of SUMO), it uses the getter.

    Raises:
        RolloutError: the simulation has no such lane (without the symbols, the first count raises TraCIException).
    """
    functions = [sumo.address(symbol) for symbol in SYMBOLS]
    if None in functions:
        return lambda: np.array(array("i", map(sumo.lane_halting, lanes)))
    dictionary, vehicles, speed = functions
    found = np.empty(len(lanes), np.intp)
    strings, _text = _strings(lanes)
    _find(dictionary, strings.ctypes.data, found)
    if not found.all():
        raise sumo.RolloutError(
            f"SUMO's network has no lane {lanes[int(np.argmin(found != 0))]!r}: its file changed since it was read; "
            "start again"
        )
    return lambda: _count(vehicles, speed, found)


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


_pointer_of = _caller(numba.intp, ir.IntType(64))
_double_of = _caller(numba.float64, ir.DoubleType())
_pointer_at = _loader()


@numba.njit(cache=True)
def _find(dictionary, strings, found):  # type: ignore[no-untyped-def]
    for i in range(found.size):
        found[i] = _pointer_of(dictionary, strings + 32 * i)


@numba.njit(cache=True)
def _count(vehicles, speed, lanes):  # type: ignore[no-untyped-def]
    halting = np.zeros(lanes.size, np.int32)
    for i in range(lanes.size):
        vector = _pointer_of(vehicles, lanes[i])
        at, end = _pointer_at(vector), _pointer_at(vector + 8)
        while at < end:
            if _double_of(speed, _pointer_at(at)) < HALTING:
                halting[i] += 1
            at += 8
    return halting
