"""Scenes as ScenarioNet's and MetaDrive's ScenarioDescription: as an npz that `scenarionet` reads, or as JSON.

Keys and types are those of MetaDrive's `scenario_description.py` and `type.py`. What a scene does not know is not made up but
where the format asks for it: heights are usual ones, paint is a broken white line, z is 0. What the format does not know is
lost: bus lanes are lanes, and agents' goals are left out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .recording import LANES
from .scene import LENGTH, SPEED, WIDTH, YAW, Kind, Light, Line, Relation, Scene, X, Y
from .womd import MPH

VERSION = "MetaDrive v0.3.0.1"
HEIGHTS = {Kind.VEHICLE: 1.6, Kind.PEDESTRIAN: 1.75, Kind.CYCLIST: 1.75, Kind.OTHER: 1.0}  # metres
TYPES = {
    Line.LANE: "LANE_SURFACE_STREET", Line.BIKE_LANE: "LANE_BIKE_LANE", Line.BUS_LANE: "LANE_SURFACE_STREET",
    Line.ROAD_EDGE: "ROAD_EDGE_BOUNDARY", Line.ROAD_LINE: "ROAD_LINE_BROKEN_SINGLE_WHITE", Line.CROSSWALK: "CROSSWALK",
    Line.DRIVEWAY: "DRIVEWAY", Line.SPEED_BUMP: "SPEED_BUMP", Line.STOP_SIGN: "STOP_SIGN",
}  # fmt: skip
OUTLINES = (Line.CROSSWALK, Line.DRIVEWAY, Line.SPEED_BUMP)


def write_npz(scene: Scene, path: Path) -> None:
    """Arrays under their paths in the dictionary, all else as JSON in `__meta__`."""
    flat = dict(_flat(description(scene)))
    arrays: dict[str, Any] = {name: one for name, one in flat.items() if isinstance(one, np.ndarray)}
    rest = {name: one for name, one in flat.items() if name not in arrays}
    with path.open("wb") as file:
        np.savez_compressed(file, __meta__=np.frombuffer(json.dumps(rest).encode(), np.uint8), **arrays)


def write_json(scene: Scene, path: Path) -> None:
    """The dictionary itself, arrays as lists."""
    path.write_text(json.dumps(description(scene), default=np.ndarray.tolist))


def description(scene: Scene) -> dict[str, Any]:
    """A scene as a ScenarioDescription, in the recording's coordinates."""
    agents, lines, kinds = _keys(scene.ids), _keys(scene.line_ids), scene.kind
    about = {
        "ts": scene.step * np.arange(scene.steps),
        "metadrive_processed": False,
        "coordinate": "waymo",  # x to the right, y up
        "dataset": scene.source,
        "scenario_id": scene.name,
        "current_time_index": scene.history - 1,
        "tracks_to_predict": {
            agents[i]: {"track_index": i, "track_id": agents[i], "object_type": Kind(kinds[i]).name}
            for i in np.flatnonzero(scene.focal).tolist()
        },
    }
    if scene.ego >= 0:
        about["sdc_id"] = agents[scene.ego]
    return {
        "id": scene.name,
        "version": VERSION,
        "length": scene.steps,
        "metadata": about,
        "tracks": {name: _track(scene, i, name, Kind(kinds[i])) for i, name in enumerate(agents)},
        "dynamic_map_states": _lights(scene, lines),
        "map_features": {name: _feature(scene, i, lines) for i, name in enumerate(lines)},
    }


def _keys(ids: Iterable[str]) -> list[str]:
    """Names that differ, and have no stroke: paths in an npz are parted by it."""
    met: Counter[str] = Counter()
    keys = []
    for one in ids:
        key = one.replace("/", "_")
        met[key] += 1
        keys.append(key if met[key] == 1 else f"{key} ({met[key]})")
    return keys


def _track(scene: Scene, agent: int, name: str, kind: Kind) -> dict[str, Any]:
    there = scene.valid[agent]
    state = scene.tracks[agent].astype(np.float64)
    position = np.where(there[:, None], state[:, [X, Y]] + scene.origin, 0.0)
    along = np.column_stack([np.cos(state[:, YAW]), np.sin(state[:, YAW])])
    return {
        "type": kind.name,
        "state": {
            "position": np.column_stack([position, np.zeros(scene.steps)]),
            "heading": state[:, YAW],
            "velocity": state[:, SPEED, None] * along,
            "length": state[:, LENGTH],
            "width": state[:, WIDTH],
            "height": np.where(there, HEIGHTS[kind], 0.0),
            "valid": there,
        },
        "metadata": _object(scene, kind.name, name),
    }


def _object(scene: Scene, kind: str, name: str) -> dict[str, Any]:
    return {"type": kind, "object_id": name, "track_length": scene.steps, "dataset": scene.source}


def _lights(scene: Scene, lines: list[str]) -> dict[str, Any]:
    """By the lanes that they are for."""
    keys = _keys(lines[lane] if lane >= 0 else "no lane" for lane in scene.light_lane)
    return {
        key: {
            "type": "TRAFFIC_LIGHT",
            "state": {"object_state": [f"LANE_STATE_{Light(one).name}" for one in scene.lights[i]]},
            "lane": lines[scene.light_lane[i]] if scene.light_lane[i] >= 0 else "",
            "stop_point": np.array([*(scene.light_xy[i] + scene.origin), 0.0]),
            "metadata": _object(scene, "TRAFFIC_LIGHT", key),
        }
        for i, key in enumerate(keys)
    }


def _feature(scene: Scene, line: int, lines: list[str]) -> dict[str, Any]:
    kind = Line(scene.line_kind[line])
    points = scene.polyline(line) + scene.origin
    found: dict[str, Any] = {"type": TYPES[kind]}
    if kind == Line.STOP_SIGN:
        return found | {"position": points[0]}
    if kind in OUTLINES:
        return found | {"polygon": points}
    found["polyline"] = points
    if kind not in LANES:
        return found
    first, second, relation = scene.lane_graph.T
    found["exit_lanes"] = [lines[i] for i in second[(first == line) & (relation == Relation.SUCCESSOR)]]
    found["entry_lanes"] = [lines[i] for i in first[(second == line) & (relation == Relation.SUCCESSOR)]]
    for key, side in (("left_neighbor", Relation.LEFT), ("right_neighbor", Relation.RIGHT)):
        found[key] = [{"feature_id": lines[i]} for i in second[(first == line) & (relation == side)]]
    limit = float(scene.speed_limit[line])
    return found | ({"speed_limit_mph": limit / MPH, "speed_limit_kmh": limit * 3.6} if np.isfinite(limit) else {})


def _flat(data: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, one in data.items():
        if isinstance(one, dict):
            yield from _flat(one, f"{above}{name}/")
        else:
            yield f"{above}{name}", one
