"""Moments of a running simulation, for driving scenes: libsumo's, or a TraCI connection's, which have the same calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..scenarios.driving.moments import Moment
from ..scenarios.driving.scene import Kind

KINDS = {
    "bicycle": Kind.CYCLIST, "motorcycle": Kind.CYCLIST, "moped": Kind.CYCLIST, "scooter": Kind.CYCLIST,
    "pedestrian": Kind.PEDESTRIAN, "wheelchair": Kind.PEDESTRIAN,
}  # fmt: skip


def moments(sumo: Any, begin: float) -> Iterator[Moment]:
    """Steps the simulation and says who is where from `begin` (seconds) to its end, or until nobody is left.

    Args:
        sumo: the module libsumo, the module traci or a connection of it, with a simulation loaded.
    """
    looks: dict[str, tuple[float, float, Kind]] = {}
    end = sumo.simulation.getEndTime()  # negative: none
    while not 0 <= end <= sumo.simulation.getTime() and sumo.simulation.getMinExpectedNumber() > 0:
        sumo.simulationStep()
        time = round(sumo.simulation.getTime(), 3)
        if time >= begin:
            yield moment(sumo, time, looks)


def moment(sumo: Any, time: float, looks: dict[str, tuple[float, float, Kind]]) -> Moment:
    """Everybody there now; `looks` remembers what does not change: length, width and kind."""
    ids: list[str] = []
    rows: list[tuple[float, ...]] = []
    for domain in (sumo.vehicle, sumo.person):
        for one in domain.getIDList():
            if one not in looks:
                kind = KINDS.get(domain.getVehicleClass(one), Kind.VEHICLE)
                looks[one] = (domain.getLength(one), domain.getWidth(one), kind)
            ids.append(one)
            rows.append((*domain.getPosition(one)[:2], domain.getAngle(one), domain.getSpeed(one), *looks[one]))
    x, y, angle, speed, length, width, kinds = np.array(rows, np.float64).reshape(-1, 7).T
    yaw = np.radians(90.0 - angle)  # SUMO's angle is from north, clockwise; its position is of the front bumper
    xy = np.column_stack([x, y]) - (length / 2)[:, None] * np.column_stack([np.cos(yaw), np.sin(yaw)])
    lights = {name: sumo.trafficlight.getRedYellowGreenState(name) for name in sumo.trafficlight.getIDList()}
    size = np.column_stack([length, width])
    return Moment(time, tuple(ids), xy, yaw, speed, size, kinds.astype(np.int8), lights)
