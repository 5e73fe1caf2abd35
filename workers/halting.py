"""Queues of halting vehicles, counted on SUMO's own C++ objects.

Every second of a microscopic simulation asks for hundreds of lanes. libsumo's getter looks each of them up by its name,
which takes 5 % of the simulation's time, and Python as much again. Here lanes are looked up once per simulation; then one
compiled loop asks each for its vehicles and each vehicle for its speed, by member functions that the library exports. It
asks no more vehicles than it has to: a lane with three vehicles on it does not lengthen a queue of three.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import partial
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


class Halting:
    """Vehicles slower than 0.1 m/s of each road's longest lane, or of all its lanes, in the simulation that is loaded now.

    It must not outlive that simulation. Where the library lacks a symbol (another build of SUMO), it uses the getter.

    Args:
        lanes: SUMO's ids of each road's lanes; no road without one.
        longest: the longest lane's, not all lanes'.

    Raises:
        RolloutError: the simulation has no such lane (without the symbols, `look` raises TraCIException).
    """

    def __init__(self, lanes: Sequence[Sequence[str]], longest: bool) -> None:
        self._peak = np.zeros(len(lanes), np.int32)
        names = [lane for road in lanes for lane in road]
        size = np.array([len(road) for road in lanes])
        together = np.ones(len(names), np.intp) if longest else size  # lanes whose vehicles are counted together
        first = np.cumsum(together) - together
        road = np.repeat(np.arange(len(lanes)), size)[first]
        functions = [sumo.address(symbol) for symbol in SYMBOLS]
        # Partial functions: a step leaves the caches to SUMO, and each frame of Python's would have to be fetched anew.
        self._lengthen: Callable[[NDArray[np.int32]], None]
        if None in functions:
            self._lengthen = partial(_lengthen_portably, names, first, road)
        else:
            dictionary, vehicles, speed = functions
            found = np.empty(len(names), np.intp)
            strings, _text = _strings(names)
            _find(dictionary, strings.ctypes.data, found)
            if not found.all():
                raise sumo.RolloutError(
                    f"SUMO's network has no lane {names[int(np.argmin(found != 0))]!r}: its file changed since it was "
                    "read; start again"
                )
            self._lengthen = partial(
                _lengthen, vehicles, speed, found, np.column_stack((first, first + together, road))
            )
        self.look: Callable[[], None] = partial(self._lengthen, self._peak)
        """Sees the queues of this moment."""

    def forget(self) -> None:
        """What was seen so far no longer counts."""
        self._peak[:] = 0

    def now(self) -> NDArray[np.float32]:
        """[roads] the queues of this moment."""
        queue = np.zeros_like(self._peak)
        self._lengthen(queue)
        return queue.astype(np.float32)

    def peak(self) -> NDArray[np.float32]:
        """[roads] the longest queues seen."""
        return self._peak.astype(np.float32)


def _lengthen_portably(
    names: list[str], first: NDArray[np.intp], road: NDArray[np.intp], queue: NDArray[np.int32]
) -> None:
    """Raises `queue` `[roads]` to the queues of this moment, with libsumo's getter."""
    counts = np.array(array("i", map(sumo.lane_halting, names)))
    np.maximum.at(queue, road, np.add.reduceat(counts, first))


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
def _lengthen(vehicles, speed, lanes, groups, queue):  # type: ignore[no-untyped-def]
    """The same; `groups` are the lanes counted together: first, end, road."""
    for i in range(len(groups)):
        first, end, road = groups[i, 0], groups[i, 1], groups[i, 2]
        most = queue[road]
        halting = unseen = 0
        for lane in range(first, end):
            vector = _pointer_of(vehicles, lanes[lane])
            unseen += (_pointer_at(vector + 8) - _pointer_at(vector)) // 8
        if unseen <= most:
            continue
        for lane in range(first, end):
            vector = _pointer_of(vehicles, lanes[lane])
            at, last = _pointer_at(vector), _pointer_at(vector + 8)
            while at < last and halting + unseen > most:
                halting += _double_of(speed, _pointer_at(at)) < HALTING
                unseen -= 1
                at += 8
        queue[road] = max(most, halting)
