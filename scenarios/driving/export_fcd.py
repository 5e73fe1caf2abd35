"""Scenes as SUMO's floating-car data, as `sumo --fcd-output` writes it (see `fcd`, which reads it)."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from .scene import LENGTH, SPEED, YAW, Kind, Scene, X, Y

TYPES = {Kind.VEHICLE: "passenger", Kind.CYCLIST: "bicycle", Kind.OTHER: "ignoring"}  # SUMO's classes


def write_fcd(scene: Scene, path: Path) -> None:
    """Front bumpers in the recording's coordinates, angles from north, clockwise; the first step is at 0 s.

    Who walks is a person, whose place is the centre. Speeds have no sign: SUMO's are not negative. Lanes are empty: a scene
    does not know on which somebody is, but SUMO's tools ask for them. Sizes and lights are not part of the format.
    """
    root = Element("fcd-export")
    kinds = scene.kind
    walks = kinds == Kind.PEDESTRIAN
    order = np.argsort(walks, kind="stable")  # vehicles first, as the schema has it
    for step in range(scene.steps):
        moment = SubElement(root, "timestep", time=f"{step * scene.step:.2f}")
        for agent in order[scene.valid[order, step]].tolist():
            state = scene.tracks[agent, step].astype(np.float64)
            ahead = 0.0 if walks[agent] else state[LENGTH] / 2
            where = {
                "id": scene.ids[agent],
                "x": f"{scene.origin[0] + state[X] + ahead * math.cos(state[YAW]):.3f}",
                "y": f"{scene.origin[1] + state[Y] + ahead * math.sin(state[YAW]):.3f}",
                "angle": f"{(90.0 - math.degrees(state[YAW])) % 360.0:.3f}",
            }
            speed = f"{abs(state[SPEED]):.3f}"
            # In SUMO's order, by which its tools read.
            if walks[agent]:
                SubElement(moment, "person", where, speed=speed, edge="", slope="0.00")
            else:
                kind = TYPES[Kind(kinds[agent])]
                SubElement(moment, "vehicle", where, type=kind, speed=speed, lane="", slope="0.00")
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
