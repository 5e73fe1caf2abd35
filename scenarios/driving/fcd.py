"""Moments of a recorded simulation: SUMO's floating-car data (`--fcd-output FILE`), plain or gzipped."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from ..errors import InputError
from ..sumo_xml import elements
from .moments import Moment
from .scene import Kind

EXPECTED = "SUMO's floating-car data (sumo --fcd-output FILE)"
LENGTH, WIDTH = 5.0, 1.8  # metres, SUMO's for passenger cars; the record does not say


def recorded_moments(path: Path, step: float = 0.0) -> Iterator[Moment]:
    """Every time step of the record; it knows no traffic lights, and no sizes: SUMO's usual ones are taken.

    SUMO writes what a step led to under the time at which the step began: `step` seconds are added.

    Raises:
        InputError: naming the file, and the time step at fault.
    """
    for element in elements(path, EXPECTED):
        if element.tag != "timestep":
            raise InputError(f"{path}: a <{element.tag}>; expected {EXPECTED}")
        try:
            time = round(float(element.get("time", "")) + step, 3)
            rows = [_row(one) for one in element if one.tag in ("vehicle", "person")]
            ids = tuple(one.attrib["id"] for one in element if one.tag in ("vehicle", "person"))
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: timestep {element.get('time')}: {error!r}; expected {EXPECTED}") from error
        x, y, yaw, speed, length, width, kind = np.array(rows, np.float64).reshape(-1, 7).T
        xy = np.column_stack([x - length / 2 * np.cos(yaw), y - length / 2 * np.sin(yaw)])
        yield Moment(time, ids, xy, yaw, speed, np.column_stack([length, width]), kind.astype(np.int8), {})


def _row(one: Element) -> tuple[float, ...]:
    yaw = math.radians(90.0 - float(one.attrib["angle"]))  # SUMO's is from north, clockwise
    walks = one.tag == "person"
    size = (0.0, 0.5, Kind.PEDESTRIAN) if walks else (LENGTH, WIDTH, Kind.VEHICLE)
    return (float(one.attrib["x"]), float(one.attrib["y"]), yaw, float(one.attrib["speed"]), *size)
