"""Queues of the mesoscopic model, read off the number and the mean speed of the vehicles on each road.

libsumo's getters look every road up by its name; one compiled loop asks SUMO's own roads instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numba
import numpy as np
from numpy.typing import NDArray

from ..scenarios.network import RoadNetwork
from . import libsumo_binding as sumo
from . import native
from .native import double_of, int_of

Array = NDArray[np.float32]


class Delayed:
    """`n (1 - v / limit)`: the vehicles that would have to stand for the road's mean speed to be what it is.

    The mesoscopic model has no lanes and hardly a vehicle that stands; of its observables this one ranks candidates most
    nearly as microscopic queues do. Divided by the lanes where a queue is that of the longest lane.

    It must not outlive the simulation that is loaded now. Where the library lacks a symbol (another build of SUMO), it uses
    the getters.

    Raises:
        RolloutError: the simulation lacks a road (without the symbols, `look` raises TraCIException).
    """

    def __init__(self, network: RoadNetwork, longest: bool) -> None:
        ids = network.road_ids
        share = 1.0 / network.lanes if longest else np.ones(len(ids))
        self._slow = (-share / network.speed).astype(np.float32)
        self._share = share.astype(np.float32)
        self._count, self._speed = np.zeros((2, len(ids)), np.float32)
        functions = native.functions(native.ON_EDGE, native.MEAN_SPEED)
        self._read: Callable[[Array, Array], None]
        if functions is None:
            self._read = partial(_read_portably, ids)
        else:
            on_edge, mean_speed = functions
            self._read = partial(_read, on_edge, mean_speed, native.roads(ids))
        self.forget()

    def forget(self) -> None:
        """What was seen so far no longer counts."""
        self._now = self._peak = np.zeros_like(self._share)

    def look(self) -> None:
        """Sees the queues of this moment."""
        self._read(self._count, self._speed)
        self._now = np.maximum(self._count * (self._share + self._slow * self._speed), 0.0)
        self._peak = np.maximum(self._peak, self._now)

    def now(self) -> Array:
        """[roads] the queues of this moment."""
        return self._now

    def peak(self) -> Array:
        """[roads] the longest queues seen."""
        return self._peak


def _read_portably(roads: Sequence[str], count: Array, speed: Array) -> None:
    """Writes vehicles on each road and their mean speed (metres per second), with libsumo's getters."""
    count[:] = np.fromiter(map(sumo.edge_number, roads), np.float32, len(roads))
    speed[:] = np.fromiter(map(sumo.edge_speed, roads), np.float32, len(roads))


@numba.njit(cache=True)
def _read(on_edge, mean_speed, roads, count, speed):  # type: ignore[no-untyped-def]
    """The same; of empty roads the speed does not matter."""
    for i in range(roads.size):
        count[i] = int_of(on_edge, roads[i])
        if count[i] > 0:
            speed[i] = double_of(mean_speed, roads[i])
