"""Vehicles that enter roads: those on a road now that were not there when it was looked at last."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

from . import libsumo_binding as sumo
from . import native
from .native import pointer_at, pointer_of
from .sumo_files import Fidelity

Entered = tuple[NDArray[np.int32], NDArray[np.int32]]  # vehicles, and for each the row of its road


def entering(roads: Sequence[str], vehicles: dict[str, int], fidelity: Fidelity) -> Entering:
    """For the simulation that is loaded now, which it must not outlive; the fast way where there is one.

    Args:
        roads: SUMO's ids of the watched roads.
        vehicles: index of each vehicle that matters, by its id in SUMO.
        fidelity: the mesoscopic model keeps its vehicles elsewhere than on lanes.
    """
    functions = native.functions(native.VEHICLES, native.NUMBER)
    if functions is None or fidelity == "meso":
        return Entering(roads, vehicles)
    return _Natively(roads, vehicles, *functions)


class Entering:
    """By libsumo's getter."""

    def __init__(self, roads: Sequence[str], vehicles: dict[str, int]) -> None:
        self._roads = roads
        self._vehicles = vehicles
        self._seen: list[Sequence[str]] = [()] * len(roads)

    def look(self, count: int) -> Entered | None:
        """Vehicles that have entered one of the first `count` roads since each was looked at last, by road and index."""
        found: list[tuple[int, int]] = []
        for road in range(count):
            now = sumo.edge_vehicles(self._roads[road])
            if now != self._seen[road]:
                entered = set(now).difference(self._seen[road])
                found += [(road, self._vehicles[name]) for name in entered if name in self._vehicles]
            self._seen[road] = now
        return _in_order(found)


class _Natively(Entering):
    """By SUMO's own numbers of vehicles, read in compiled code; the getter names each vehicle once."""

    def __init__(self, roads: Sequence[str], vehicles: dict[str, int], of_lane: int, of_vehicle: int) -> None:
        super().__init__(roads, vehicles)
        lanes = [[f"{road}_{i}" for i in range(sumo.lane_number(road))] for road in roads]
        self._lanes = native.lanes([lane for road in lanes for lane in road])
        self._first = np.concatenate([[0], np.cumsum([len(road) for road in lanes])])
        self._functions = (of_lane, of_vehicle)
        self._now = np.full((len(roads), 16), -1, np.int64)  # numbers of the vehicles on each road, then -1
        self._index: dict[int, int | None] = {}  # by number; None: of no matter

    def look(self, count: int) -> Entered | None:
        while (n := _most(self._functions[0], self._lanes, self._first[: count + 1])) > self._now.shape[1]:
            self._now = np.pad(self._now, ((0, 0), (0, int(n))), constant_values=-1)
        found: list[tuple[int, int]] = []
        for road, number in _enter(*self._functions, self._lanes, self._first[: count + 1], self._now):
            if number not in self._index:
                names = sumo.edge_vehicles(self._roads[road])
                of_names = [self._vehicles.get(name) for name in names]
                self._index.update(zip(self._now[road].tolist(), of_names, strict=False))
            if (vehicle := self._index[number]) is not None:
                found.append((road, vehicle))
        return _in_order(found)


def _in_order(found: list[tuple[int, int]]) -> Entered | None:
    """However they were found, decisions come by road and vehicle."""
    if not found:
        return None
    found.sort()
    return np.array([vehicle for _, vehicle in found], np.int32), np.array([road for road, _ in found], np.int32)


@numba.njit(cache=True)
def _most(of_lane, lanes, first):  # type: ignore[no-untyped-def]
    """Vehicles on the fullest road."""
    most = 0
    for road in range(first.size - 1):
        n = 0
        for lane in range(first[road], first[road + 1]):
            vector = pointer_of(of_lane, lanes[lane])
            n += (pointer_at(vector + 8) - pointer_at(vector)) // 8
        most = max(most, n)
    return most


@numba.njit(cache=True)
def _enter(of_lane, of_vehicle, lanes, first, now):  # type: ignore[no-untyped-def]
    """Roads and numbers of the vehicles that are new on a road; brings `now` up to date."""
    entered = [(0, now[0, 0]) for _ in range(0)]  # typed, and empty
    before = np.empty(now.shape[1], np.int64)
    for road in range(first.size - 1):
        before[:] = now[road]
        n = 0
        for lane in range(first[road], first[road + 1]):
            vector = pointer_of(of_lane, lanes[lane])
            for at in range(pointer_at(vector), pointer_at(vector + 8), 8):
                now[road, n] = pointer_of(of_vehicle, pointer_at(at))
                n += 1
        now[road, n:] = -1
        for k in range(n):
            if not (before == now[road, k]).any():
                entered.append((road, now[road, k]))
    return entered
