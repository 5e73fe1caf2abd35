"""Waymo Open Motion as JSON, one scene a file: the form of the Nocturne and GPUDrive loaders, plain or gzipped.

It names no lane's followers; `recording` finds them where lanes meet. Nocturne's files give headings in degrees, GPUDrive's
in radians, and neither says which: taken is what agrees with where agents move.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .recording import Array, Map, Polyline, Recording, Signal, empty, scene_of
from .scene import Kind, Light, Line, Scene
from .womd import closed

SOURCE = "womd-json"
STEP = 0.1  # seconds
HISTORY = 11
KINDS = {"vehicle": Kind.VEHICLE, "pedestrian": Kind.PEDESTRIAN, "cyclist": Kind.CYCLIST}
LINES = {
    "lane": Line.LANE, "road_edge": Line.ROAD_EDGE, "road_line": Line.ROAD_LINE, "crosswalk": Line.CROSSWALK,
    "driveway": Line.DRIVEWAY, "speed_bump": Line.SPEED_BUMP, "stop_sign": Line.STOP_SIGN,
}  # fmt: skip
BIKE = 3  # `map_element_id` of a lane for bicycles
MOVING = 2.0  # m/s above which headings are compared with movements


def read_json(path: Path) -> Iterator[Scene]:
    """The scene of a file."""
    try:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        data = json.loads(text)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"not JSON, or truncated ({error})") from error
    try:
        yield scene_of(_recording(data, path.name.split(".json")[0]))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"not a scene in the JSON of GPUDrive or Nocturne ({error!r})") from error


def _recording(data: dict[str, Any], name: str) -> Recording:
    objects = data["objects"]
    if not objects:
        raise InputError("no agents: `objects` is empty")
    steps = len(objects[0]["position"])
    ids = [str(one.get("id", i)) for i, one in enumerate(objects)]
    found = empty(
        str(data.get("scenario_id", name)), SOURCE, STEP * np.arange(steps, dtype=np.float64), min(HISTORY, steps), ids,
        (KINDS.get(one["type"], Kind.OTHER) for one in objects),
    )  # fmt: skip
    goals = np.full((len(ids), 2), np.nan)
    for agent, one in enumerate(objects):
        for key in ("position", "velocity", "heading", "valid"):
            if len(one[key]) != steps:
                raise InputError(f"agent {ids[agent]}: {len(one[key])} values of {key!r}, {steps} time steps")
        found.xy[agent] = _points(one["position"])
        found.velocity[agent] = _points(one["velocity"])
        found.yaw[agent] = one["heading"]
        found.valid[agent] = one["valid"]
        found.size[agent] = one["length"], one["width"]
        if one.get("goalPosition"):
            goals[agent] = one["goalPosition"]["x"], one["goalPosition"]["y"]
    found.goals = goals
    if _in_degrees(found):
        found.yaw = np.radians(found.yaw)
    about = data.get("metadata", {})
    found.focal = [ids[one["track_index"]] for one in about.get("tracks_to_predict", ())]
    if 0 <= about.get("sdc_track_index", -1) < len(ids):
        found.ego = ids[about["sdc_track_index"]]
    found.map = _map(data, steps)
    return found


def _in_degrees(found: Recording) -> bool:
    speed = np.hypot(found.velocity[:, :, 0], found.velocity[:, :, 1])
    moving = found.valid & (speed > MOVING)
    if not moving.any():
        return bool(np.abs(found.yaw[found.valid]).max(initial=0.0) > 2 * np.pi)
    direction = np.arctan2(found.velocity[moving][:, 1], found.velocity[moving][:, 0])
    yaw = found.yaw[moving]
    radians, degrees = (np.abs(np.cos(one - direction)).mean() for one in (yaw, np.radians(yaw)))
    return bool(degrees > radians)


def _map(data: dict[str, Any], steps: int) -> Map:
    made = Map()
    for i, road in enumerate(data["roads"]):
        if road["type"] not in LINES:
            raise InputError(f"road {road.get('id', i)} is a {road['type']!r}; expected {', '.join(LINES)}")
        kind = LINES[road["type"]]
        if kind == Line.LANE and road.get("map_element_id") == BIKE:
            kind = Line.BIKE_LANE
        points = _points(road["geometry"])
        outline = kind in (Line.CROSSWALK, Line.DRIVEWAY, Line.SPEED_BUMP)
        made.lines.append(Polyline(str(road.get("id", f"road {i}")), kind, closed(points) if outline else points))
    for lane, light in data.get("tl_states", {}).items():
        states = np.zeros(steps, np.int8)
        for moment, state in zip(light["time_index"], light["state"], strict=True):
            if 0 <= moment < steps:
                states[moment] = _light(state)
        made.signals.append(Signal(lane, (light["x"][0], light["y"][0]), states))
    return made


def _light(state: str) -> Light:
    word = state.rpartition("_")[2].upper()
    return Light[word] if word in Light.__members__ else Light.UNKNOWN


def _points(given: list[dict[str, float]]) -> Array:
    return np.array([(one["x"], one["y"]) for one in given], np.float64).reshape(-1, 2)
