"""ScenarioNet's and MetaDrive's ScenarioDescription, flattened into an npz of arrays and one JSON of all else (`__meta__`).

The data sets' own files are pickles, which are not read: they could run anything. Keys are paths into the description; older
versions differ in where lights keep their states, and in whether sizes are one array or two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ..errors import InputError
from .recording import Array, Map, Polyline, Recording, Signal, empty, scene_of
from .scene import Kind, Light, Line, Relation, Scene
from .womd import LIGHTS, MPH, closed

SOURCE = "scenarionet"
STEP, HISTORY = 0.1, 11  # where the file does not say
KINDS = {"VEHICLE": Kind.VEHICLE, "PEDESTRIAN": Kind.PEDESTRIAN, "CYCLIST": Kind.CYCLIST}


def read_npz(path: Path) -> Iterator[Scene]:
    """The scene of a file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            flat: dict[str, Any] = {name: file[name] for name in file.files}
        flat |= json.loads(flat.pop("__meta__").tobytes())
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(f"not a ScenarioDescription as npz ({error})") from error
    try:
        yield scene_of(_recording(_nested(flat), path.name.split(".")[0]))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"not a ScenarioDescription ({error!r})") from error


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Dictionaries again; lists that JSON holds as text, as JSON's own lists are."""
    root: dict[str, Any] = {}
    for path, value in flat.items():
        *above, last = path.split("/")
        here = root
        for part in above:
            here = here.setdefault(part, {})
        if last:
            here[last] = value
    return root


def _recording(data: dict[str, Any], name: str) -> Recording:
    about = data.get("metadata", {})
    tracks = {name: one for name, one in data["tracks"].items() if "state" in one}
    if not tracks:
        raise InputError("no agents: `tracks` is empty")
    steps = max(len(one["state"]["position"]) for one in tracks.values())
    times = np.asarray(about.get("ts", data.get("ts", np.arange(steps) * STEP)), np.float64)
    if len(times) != steps:
        raise InputError(f"{len(times)} time stamps, {steps} time steps")
    found = empty(
        str(data.get("id", name)), SOURCE, times, min(int(about.get("current_time_index", HISTORY - 1)) + 1, steps),
        list(tracks), (KINDS.get(one["type"], Kind.OTHER) for one in tracks.values()),
    )  # fmt: skip
    for agent, one in enumerate(tracks.values()):
        state = one["state"]
        found.valid[agent] = np.asarray(state["valid"]).reshape(steps) > 0
        found.xy[agent] = state["position"][:, :2]
        found.yaw[agent] = np.asarray(state["heading"]).reshape(steps)
        found.velocity[agent] = state["velocity"][:, :2]
        sizes = state["size"][:, :2] if "size" in state else [np.reshape(state[k], steps) for k in ("length", "width")]
        found.size[agent] = sizes if "size" in state else np.column_stack(sizes)
    found.focal = [str(one.get("track_id", "")) for one in about.get("tracks_to_predict", {}).values()]
    found.ego = str(about.get("sdc_id", data.get("sdc_track_index", "")))
    found.map = _map(data, steps)
    return found


def _map(data: dict[str, Any], steps: int) -> Map:
    made = Map()
    for name, one in data.get("map_features", {}).items():
        kind = _line(str(one["type"]).upper())
        if kind is None:
            continue
        points = next(np.asarray(one[k], np.float64) for k in ("polyline", "polygon", "position", "pos") if k in one)
        points = points.reshape(-1, points.shape[-1])[:, :2]
        if kind in (Line.CROSSWALK, Line.DRIVEWAY, Line.SPEED_BUMP):
            points = closed(points)
        limit = float(one.get("speed_limit_mph") or 0) * MPH or np.nan
        made.lines.append(Polyline(name, kind, points, limit))
        for key in ("exit_lanes", "exit"):
            made.links += [(name, str(other), Relation.SUCCESSOR) for other in np.ravel(one.get(key, ()))]
        for key, relation in (("left_neighbor", Relation.LEFT), ("right_neighbor", Relation.RIGHT)):
            beside = [other.get("feature_id", other.get("id")) for other in one.get(key, ())]
            made.links += [(name, str(other), relation) for other in beside]
    lights = data.get("dynamic_map_states", {})
    for name, one in lights.items() if isinstance(lights, dict) else ():
        made.signals += _signal(name, one, steps)
    return made


def _line(kind: str) -> Line | None:
    if kind.startswith("LANE"):
        return Line.BIKE_LANE if "BIKE" in kind else Line.LANE
    if kind.startswith("ROAD_EDGE"):
        return Line.ROAD_EDGE
    if kind.startswith("ROAD_LINE"):
        return Line.ROAD_LINE
    kind = kind.replace("CROSS_WALK", "CROSSWALK")
    return Line[kind] if kind in Line.__members__ else None


def _signal(name: str, one: dict[str, Any], steps: int) -> list[Signal]:
    states = one["state"]["object_state"]
    codes = np.array([_light(state) for state in states], np.int8)
    places: Array = np.asarray(one.get("stop_point", one["state"].get("stop_point")), np.float64).reshape(-1, 3)
    known = places[(places != 0).any(axis=1)]
    if not len(known) or len(codes) != steps:
        return []
    return [Signal(name, (float(known[0, 0]), float(known[0, 1])), codes)]


def _light(state: Any) -> Light:
    """Of a name (`LANE_STATE_ARROW_STOP`), or of Waymo's number."""
    if isinstance(state, str):
        word = state.rpartition("_")[2]
        return Light[word] if word in Light.__members__ else Light.UNKNOWN
    return LIGHTS[int(state)] if state is not None and 0 <= int(state) < len(LIGHTS) else Light.UNKNOWN
