"""Argoverse 2: motion-forecasting scenarios (Parquet) and sensor logs (Feather), with their vector maps (JSON).

Formats: Wilson et al., "Argoverse 2", NeurIPS 2021 Datasets and Benchmarks, and the data set's user guide. Motion forecasting
gives no sizes of agents: the usual ones of their kind are taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather
import pyarrow.parquet
from numpy.typing import NDArray

from ..errors import InputError
from .recording import Array, Map, Polyline, Recording, empty, scene_of
from .road_edges import area, road_edges
from .scene import Kind, Line, Relation, Scene

MOTION, SENSOR = "av2", "av2-sensor"
RATE = 10.0  # Hz
HISTORY = 50  # steps that a predictor sees in motion forecasting
LONGEST = 10_000  # steps of a scene
FOCAL = (2, 3)  # object_category: scored, focal track
MOTION_KINDS = {
    "vehicle": Kind.VEHICLE, "bus": Kind.VEHICLE, "pedestrian": Kind.PEDESTRIAN, "cyclist": Kind.CYCLIST,
    "motorcyclist": Kind.CYCLIST,
}  # fmt: skip
SIZES = {"bus": (11.0, 2.6), "motorcyclist": (2.2, 0.8)}  # metres, of what is a kind's, but not as large as usual
SENSOR_KINDS = {
    Kind.VEHICLE: (
        "REGULAR_VEHICLE", "LARGE_VEHICLE", "BOX_TRUCK", "TRUCK", "TRUCK_CAB", "VEHICULAR_TRAILER", "BUS", "SCHOOL_BUS",
        "ARTICULATED_BUS", "MESSAGE_BOARD_TRAILER", "TRAFFIC_LIGHT_TRAILER", "RAILED_VEHICLE", "EGO_VEHICLE",
    ),
    Kind.PEDESTRIAN: ("PEDESTRIAN", "STROLLER", "WHEELCHAIR", "OFFICIAL_SIGNALER"),
    Kind.CYCLIST: ("BICYCLIST", "MOTORCYCLIST", "WHEELED_RIDER"),
}  # fmt: skip
EGO_SIZE = (4.87, 1.85)  # metres, of the recording car (a Ford Fusion)
EGO_CENTRE = 1.42  # metres from its rear axle, which poses are of, to the middle of it
LANES = {"VEHICLE": Line.LANE, "BIKE": Line.BIKE_LANE, "BUS": Line.BUS_LANE}
COLUMNS = {
    "track_id": pa.string(), "object_type": pa.string(), "object_category": pa.int64(), "timestep": pa.int64(),
    "position_x": pa.float64(), "position_y": pa.float64(), "heading": pa.float64(), "velocity_x": pa.float64(),
    "velocity_y": pa.float64(), "scenario_id": pa.string(),
}  # fmt: skip


def read_motion(path: Path) -> Iterator[Scene]:
    """The scene of one `scenario_*.parquet`; its map lies beside it."""
    table = _columns(pa.parquet.read_table(path), COLUMNS)
    column = {name: table.column(name).to_numpy(zero_copy_only=False) for name in COLUMNS}
    step = column["timestep"]
    if not len(step):
        raise InputError("no rows")
    if step.min() < 0 or step.max() >= LONGEST:
        raise InputError(f"timesteps {step.min()} to {step.max()}: expected 0 to {LONGEST - 1}")
    ids, first, agent = np.unique(column["track_id"].astype(str), return_index=True, return_inverse=True)
    types = column["object_type"][first]
    steps = int(step.max()) + 1
    found = empty(
        str(column["scenario_id"][0]), MOTION, np.arange(steps) / RATE, min(HISTORY, steps), list(ids),
        (MOTION_KINDS.get(one, Kind.OTHER) for one in types),
    )  # fmt: skip
    found.xy[agent, step] = np.column_stack([column["position_x"], column["position_y"]])
    found.yaw[agent, step] = column["heading"]
    found.velocity[agent, step] = np.column_stack([column["velocity_x"], column["velocity_y"]])
    found.valid[agent, step] = True
    for i, one in enumerate(types):
        found.size[i] = SIZES.get(one, (np.nan, np.nan))
    found.focal = ids[np.isin(column["object_category"][first], FOCAL)]
    found.ego = "AV"
    found.map = _beside(path.parent, path.stem.removeprefix("scenario_"))
    yield scene_of(found)


def read_sensor(path: Path) -> Iterator[Scene]:
    """The scene of a sensor log, found by its `annotations.feather`; poses and map lie beside it.

    The recording car is an agent of its own, `ego`.
    """
    boxes = _columns(pa.feather.read_table(path), {
        "timestamp_ns": pa.int64(), "track_uuid": pa.string(), "category": pa.string(), "length_m": pa.float64(),
        "width_m": pa.float64(), **dict.fromkeys(("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m"), pa.float64()),
    })  # fmt: skip
    poses_path = path.with_name("city_SE3_egovehicle.feather")
    if not poses_path.exists():
        raise InputError(f"{poses_path.name} is not beside it: the poses of the recording vehicle are needed")
    poses = _columns(pa.feather.read_table(poses_path), {
        "timestamp_ns": pa.int64(), **dict.fromkeys(("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m"), pa.float64()),
    })  # fmt: skip
    stamp = boxes.column("timestamp_ns").to_numpy()
    stamps, step = np.unique(stamp, return_inverse=True)
    pose_stamp = poses.column("timestamp_ns").to_numpy()
    order = np.argsort(pose_stamp)
    at = order[np.searchsorted(pose_stamp, stamps, sorter=order).clip(0, len(order) - 1)]
    if not np.array_equal(pose_stamp[at], stamps):
        raise InputError(f"{poses_path.name} has no pose at {int(stamps[pose_stamp[at] != stamps][0])} ns")
    rotation, place = _rotations(poses)[at], _places(poses)[at]
    ids, first, agent = np.unique(
        boxes.column("track_uuid").to_numpy(zero_copy_only=False).astype(str), return_index=True, return_inverse=True
    )
    categories = boxes.column("category").to_numpy(zero_copy_only=False)[first]
    kinds = {name: kind for kind, names in SENSOR_KINDS.items() for name in names}
    times = (stamps - stamps[0]) / 1e9
    found = empty(
        path.parent.name, SENSOR, np.round(times * RATE) / RATE, len(stamps) // 3, [*ids, "ego"],
        [*(kinds.get(one, Kind.OTHER) for one in categories), Kind.VEHICLE],
    )  # fmt: skip
    found.xy[agent, step] = (np.einsum("nij,nj->ni", rotation[step], _places(boxes)) + place[step])[:, :2]
    facing = np.einsum("nij,nj->ni", rotation[step], _rotations(boxes)[:, :, 0])
    found.yaw[agent, step] = np.arctan2(facing[:, 1], facing[:, 0])
    found.size[agent, step] = np.column_stack([boxes.column(name).to_numpy() for name in ("length_m", "width_m")])
    found.valid[agent, step] = True
    ahead = rotation[:, :2, 0]
    found.xy[-1] = place[:, :2] + EGO_CENTRE * ahead
    found.yaw[-1] = np.arctan2(ahead[:, 1], ahead[:, 0])
    found.size[-1] = EGO_SIZE
    found.valid[-1] = True
    _differences(found)
    found.ego = "ego"
    found.map = _beside(path.parent, "")
    yield scene_of(found)


def _differences(found: Recording) -> None:
    """Velocities from places seen one after the other."""
    for agent, seen in enumerate(found.valid):
        steps = np.flatnonzero(seen)
        found.velocity[agent, steps] = 0.0
        if len(steps) > 1:
            found.velocity[agent, steps] = np.gradient(found.xy[agent, steps], found.times[steps], axis=0)


def _columns(table: pa.Table, wanted: dict[str, pa.DataType]) -> pa.Table:
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise InputError(f"no column {missing[0]!r}; found {', '.join(table.column_names)}")
    table = table.select(list(wanted)).cast(pa.schema(wanted))
    for name in wanted:
        if table.column(name).null_count:
            row = pc.index(pc.is_null(table.column(name)), True).as_py()
            raise InputError(f"row {row + 1} has no {name}")
    return table


def _places(table: pa.Table) -> Array:
    return np.column_stack([table.column(name).to_numpy() for name in ("tx_m", "ty_m", "tz_m")])


def _rotations(table: pa.Table) -> Array:
    """`[rows, 3, 3]` of unit quaternions."""
    q = np.column_stack([table.column(name).to_numpy() for name in ("qw", "qx", "qy", "qz")])
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def _beside(folder: Path, name: str) -> Map:
    """The map in a folder: that of a name, or the only one."""
    found = sorted(folder.glob(f"log_map_archive_{name}*.json")) + sorted(folder.glob("map/log_map_archive_*.json"))
    if not found:
        return Map()
    return read_map(found[0])


def read_map(path: Path) -> Map:
    """Lanes with their graph, crosswalks, and the edges of drivable areas, of `log_map_archive_*.json`."""
    try:
        data = json.loads(path.read_text())
        made = Map()
        for lane in data["lane_segments"].values():
            _lane(made, lane)
        drivable = [area(_points(one["area_boundary"])) for one in data["drivable_areas"].values()]
        made.lines += [Polyline(f"edge {i}", Line.ROAD_EDGE, edge) for i, edge in enumerate(road_edges(drivable))]
        for crossing in data["pedestrian_crossings"].values():
            one, other = _points(crossing["edge1"]), _points(crossing["edge2"])
            outline = np.vstack([one, other[::-1], one[:1]])
            made.lines.append(Polyline(f"crossing {crossing['id']}", Line.CROSSWALK, outline))
        return made
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path.name}: not a vector map of Argoverse 2 ({error!r})") from error


def _lane(made: Map, lane: dict[str, Any]) -> None:
    name = str(lane["id"])
    left, right = _points(lane["left_lane_boundary"]), _points(lane["right_lane_boundary"])
    middle = _points(lane["centerline"]) if "centerline" in lane else _middle(left, right)
    made.lines.append(Polyline(name, LANES.get(lane["lane_type"], Line.LANE), middle))
    made.links += [(name, str(other), Relation.SUCCESSOR) for other in lane["successors"]]
    sides = ((left, "left", Relation.LEFT), (right, "right", Relation.RIGHT))
    for line, side, relation in sides:
        if lane[f"{side}_neighbor_id"] is not None:
            made.links.append((name, str(lane[f"{side}_neighbor_id"]), relation))
        if lane[f"{side}_lane_mark_type"] not in ("NONE", "UNKNOWN"):
            made.lines.append(Polyline(f"{name} {side}", Line.ROAD_LINE, line))


def _points(given: list[dict[str, float]]) -> Array:
    return np.array([(one["x"], one["y"]) for one in given], np.float64)


def _middle(left: Array, right: Array, points: int = 10) -> Array:
    """Between two lines, at equal shares of their lengths."""
    return (_resampled(left, points) + _resampled(right, points)) / 2


def _resampled(line: Array, points: int) -> NDArray[np.float64]:
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    at = np.linspace(0.0, along[-1], points)
    return np.column_stack([np.interp(at, along, line[:, k]) for k in range(2)])
