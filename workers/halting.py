"""Queues of halting vehicles, counted every second on SUMO's own lanes.

libsumo's getter takes 5 % of the simulation's time to look up lanes, and Python as much again. Here one compiled loop asks
each lane for its vehicles and each vehicle for its speed, and no more vehicles than it has to: a lane with three vehicles on
it does not lengthen a queue of three.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import partial

import numba
import numpy as np
from numpy.typing import NDArray

from . import libsumo_binding as sumo
from . import native
from .native import double_of, pointer_at, pointer_of

HALTING = 0.1  # m/s, SUMO_const_haltingSpeed


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
        functions = native.functions(native.VEHICLES, native.SPEED)
        # Partial functions: a step leaves the caches to SUMO, and each frame of Python's would have to be fetched anew.
        self._lengthen: Callable[[NDArray[np.int32]], None]
        if functions is None:
            self._lengthen = partial(_lengthen_portably, names, first, road)
        else:
            of_lane, speed = functions
            groups = np.column_stack((first, first + together, road))
            self._lengthen = partial(_lengthen, of_lane, speed, native.lanes(names), groups)
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


@numba.njit(cache=True)
def _lengthen(of_lane, speed, lanes, groups, queue):  # type: ignore[no-untyped-def]
    """The same; `groups` are the lanes counted together: first, end, road."""
    for i in range(len(groups)):
        first, end, road = groups[i, 0], groups[i, 1], groups[i, 2]
        most = queue[road]
        halting = unseen = 0
        for lane in range(first, end):
            vector = pointer_of(of_lane, lanes[lane])
            unseen += (pointer_at(vector + 8) - pointer_at(vector)) // 8
        if unseen <= most:
            continue
        for lane in range(first, end):
            vector = pointer_of(of_lane, lanes[lane])
            at, last = pointer_at(vector), pointer_at(vector + 8)
            while at < last and halting + unseen > most:
                halting += double_of(speed, pointer_at(at)) < HALTING
                unseen -= 1
                at += 8
        queue[road] = max(most, halting)
