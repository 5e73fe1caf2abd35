"""The map of driving scenes from a SUMO network: lanes through junctions, what is painted, edges, crossings and signals."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.sax import SAXException

import numpy as np
import shapely
import sumolib

from ..errors import InputError
from .recording import Array, Map, Polyline
from .road_edges import area, road_edges
from .scene import Line, Relation


class SumoMap:
    """A SUMO network, from which pieces are cut.

    Raises:
        InputError: no such file, or no network.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"{path}: no such file; expected a SUMO network (.net.xml or .net.xml.gz)")
        try:
            net = sumolib.net.readNet(str(path), withInternal=True, withPedestrianConnections=True, lxml=False)
        except (SAXException, OSError, EOFError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: cannot be read as a SUMO network ({error})") from error
        self._lanes = [lane for edge in net.getEdges(withInternal=True) for lane in edge.getLanes()]
        self._shapes = [shapely.LineString(np.asarray(_flat(lane.getShape()))) for lane in self._lanes]
        self._tree = shapely.STRtree(self._shapes)
        self._kinds = [_kind(lane) for lane in self._lanes]
        self._nodes = [(shapely.Point(node.getCoord()[:2]), node) for node in net.getNodes()]
        self._signals = _signals(net)
        self.junctions: Array = np.array(
            [node.getCoord()[:2] for _, node in self._nodes if len(node.getIncoming()) > 1 and node.getOutgoing()]
        ).reshape(-1, 2)  # [junctions, 2] where ways meet

    def around(self, centre: tuple[float, float], radius: float) -> tuple[Map, list[tuple[str, int, str, Any]]]:
        """The map of all lanes that come within `radius` metres, and its signals.

        A signal is the traffic light's id, the index of the connection in its state, the lane through the junction, and
        where one has to stop.
        """
        circle = shapely.Point(centre).buffer(radius)
        made = Map()
        areas = []
        for i in sorted(self._tree.query(circle, predicate="intersects").tolist()):
            lane, shape, kind = self._lanes[i], self._shapes[i], self._kinds[i]
            if kind is None:
                continue
            if kind == Line.CROSSWALK:
                outline = np.asarray(shape.buffer(lane.getWidth() / 2, cap_style="flat").exterior.coords)
                made.lines.append(Polyline(lane.getID(), kind, outline))
                continue
            made.lines.append(Polyline(lane.getID(), kind, np.asarray(shape.coords), lane.getSpeed()))
            areas.append(shape.buffer(lane.getWidth() / 2, cap_style="flat"))
            self._link(made, lane, shape)
        for point, node in self._nodes:
            outline = np.asarray(_flat(node.getShape()))
            if len(outline) > 2 and point.distance(circle) < 1.0:
                areas.append(area(outline))
        for i, outline in enumerate(road_edges(areas)):
            made.lines.append(Polyline(f"edge {i}", Line.ROAD_EDGE, outline))
        there = {one.id for one in made.lines}
        return made, [one for one in self._signals if one[2] in there]

    def _link(self, made: Map, lane: Any, shape: shapely.LineString) -> None:
        for connection in lane.getOutgoing():
            onward = connection.getViaLaneID() or connection.getToLane().getID()
            made.links.append((lane.getID(), onward, Relation.SUCCESSOR))
        edge = lane.getEdge()
        if edge.getFunction() == "internal":  # lanes through a junction lie on one another
            return
        for other in edge.getLanes():
            if other.getIndex() == lane.getIndex() + 1:
                made.links.append((lane.getID(), other.getID(), Relation.LEFT))
                made.links.append((other.getID(), lane.getID(), Relation.RIGHT))
                between = shape.offset_curve(lane.getWidth() / 2)
                if between.geom_type == "LineString" and not between.is_empty:
                    made.lines.append(Polyline(f"{lane.getID()} left", Line.ROAD_LINE, np.asarray(between.coords)))


def _flat(shape: Any) -> list[tuple[float, float]]:
    return [(point[0], point[1]) for point in shape]


def _kind(lane: Any) -> Line | None:
    """What a lane is to those who drive; None for what is for others."""
    function = lane.getEdge().getFunction()
    if function == "crossing":
        return Line.CROSSWALK
    if function == "walkingarea":
        return None
    classes = (("passenger", Line.LANE), ("bus", Line.BUS_LANE), ("bicycle", Line.BIKE_LANE))
    return next((kind for vclass, kind in classes if lane.allows(vclass)), None)


def _signals(net: Any) -> list[tuple[str, int, str, Any]]:
    """Of every connection under a traffic light."""
    found = []
    for edge in net.getEdges(withInternal=False):
        for lane in edge.getLanes():
            for connection in lane.getOutgoing():
                name, index, through = connection.getTLSID(), connection.getTLLinkIndex(), connection.getViaLaneID()
                if name and index >= 0 and through:
                    found.append((name, index, through, tuple(lane.getShape()[-1][:2])))
    return found
