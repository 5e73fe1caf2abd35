"""Which way a vehicle goes by the lanes of the map, and which traffic lights stand on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from .recording import LANES, Array
from .scene import YAW, Relation, Scene, X, Y

CANDIDATES, DEPTH = 64, 180  # ways that are compared, lanes of one at most (MRIC, Table XII)
NEAR = 4.0  # metres from a lane within which a vehicle may be on it
ALIGNED = np.cos(np.pi / 3)  # of the angle between a vehicle and its lane, at least
AHEAD = 80.0  # metres that a way goes on behind where its vehicle was seen last
SAMPLES = 16  # places of a log that are compared with a way


@dataclass(frozen=True, eq=False)
class Route:
    """The way of one vehicle."""

    points: Array  # [points, 2] metres
    lights: NDArray[np.int64]  # [lights on the way]: indices into those of the scene
    stops: Array  # [lights on the way]: metres along the way at which one has to stop


def routes(scene: Scene, begin: int) -> dict[int, Route]:
    """By agent: the ways of those who were seen on a lane from step `begin` on, where there are lights on them.

    Of the ways that a depth-first search over the lane graph finds, each vehicle's is the one nearest to its log (MRIC,
    Sec. IV-F). They begin on the lane where a vehicle was first, or on those beside it, for it may have changed lanes.
    """
    if not len(scene.lights):
        return {}
    return _Lanes(scene).routes(scene, begin)


class _Lanes:
    """The lane graph of a scene."""

    def __init__(self, scene: Scene) -> None:
        self.lanes = [line for line in scene.of_kind(*LANES).tolist() if len(scene.polyline(line)) > 1]
        self.points = {line: scene.polyline(line).astype(np.float64) for line in self.lanes}
        self.shapes = np.array([shapely.LineString(self.points[line]) for line in self.lanes], object)
        self.length = dict(zip(self.lanes, shapely.length(self.shapes).tolist(), strict=True))
        self.after: dict[int, list[int]] = {line: [] for line in self.lanes}
        self.beside: dict[int, list[int]] = {line: [] for line in self.lanes}
        for one, other, relation in scene.lane_graph.tolist():
            if one in self.points and other in self.points:
                (self.after if relation == Relation.SUCCESSOR else self.beside)[one].append(other)
        self.lights: dict[int, list[int]] = {}
        for light, line in enumerate(scene.light_lane.tolist()):
            self.lights.setdefault(line, []).append(light)

    def routes(self, scene: Scene, begin: int) -> dict[int, Route]:
        found = {}
        for agent in range(scene.agents):
            steps = begin + np.flatnonzero(scene.valid[agent, begin:])
            if steps.size:
                track = scene.tracks[agent, steps].astype(np.float64)
                route = self._route(scene, track[:, [X, Y]], float(track[0, YAW]))
                if route is not None:
                    found[agent] = route
        return found

    def _route(self, scene: Scene, log: Array, yaw: float) -> Route | None:
        """Of who was at `log` `[steps, 2]`; None without a lane or without a light."""
        far = shapely.distance(self.shapes, shapely.Point(log[0]))
        looking = np.array([np.cos(yaw), np.sin(yaw)])
        near = [i for i in np.flatnonzero(far < NEAR).tolist() if self._along(i, log[0]) @ looking > ALIGNED]
        starts = dict.fromkeys(self.lanes[i] for i in near)
        for line in list(starts):
            starts.update(dict.fromkeys(self._all_beside(line)))
        if not starts:
            return None
        places = shapely.points(log[np.linspace(0, len(log) - 1, SAMPLES).astype(int)])
        apart = shapely.distance(self.shapes[:, None], places)  # [lanes, places]
        row = {line: i for i, line in enumerate(self.lanes)}
        from_log = dict(zip(self.lanes, apart.min(axis=1).tolist(), strict=True))
        long = float(np.linalg.norm(np.diff(log, axis=0), axis=1).sum()) + AHEAD
        ways = (
            lanes
            for start in starts
            for lanes in self._ways(start, long + float(self.shapes[row[start]].project(places[0])), from_log)
        )
        lanes = min(ways, key=lambda lanes: float(apart[[row[line] for line in lanes]].min(axis=0).mean()))
        lights = [light for line in lanes for light in self.lights.get(line, ())]
        if not lights:
            return None
        way = shapely.LineString(np.concatenate([self.points[line] for line in lanes]))
        stops = shapely.line_locate_point(way, shapely.points(scene.light_xy[lights].astype(np.float64)))
        return Route(np.asarray(shapely.simplify(way, 0.05).coords), np.array(lights), np.asarray(stops))

    def _along(self, lane: int, place: Array) -> Array:
        """`[2]` direction of a lane where it is nearest to a place."""
        line = self.shapes[lane]
        at = shapely.line_locate_point(line, shapely.Point(place))
        ends = [shapely.line_interpolate_point(line, float(np.clip(at + d, 0, line.length))) for d in (-0.5, 0.5)]
        way = np.array([ends[1].x - ends[0].x, ends[1].y - ends[0].y])
        return way / max(float(np.linalg.norm(way)), 1e-9)

    def _all_beside(self, line: int) -> list[int]:
        found, queue = {line}, [line]
        while queue:
            new = [other for other in self.beside[queue.pop()] if other not in found]
            found.update(new)
            queue += new
        return sorted(found)

    def _ways(self, start: int, long: float, from_log: dict[int, float]) -> Iterator[list[int]]:
        """Up to `CANDIDATES` ways of `long` metres, those near the log first."""
        stack = [([start], self.length[start])]
        count = 0
        while stack and count < CANDIDATES:
            lanes, length = stack.pop()
            onward = [line for line in self.after[lanes[-1]] if line not in lanes]
            if not onward or length >= long or len(lanes) >= DEPTH:
                count += 1
                yield lanes
                continue
            for line in sorted(onward, key=from_log.__getitem__, reverse=True):
                stack.append(([*lanes, line], length + self.length[line]))
