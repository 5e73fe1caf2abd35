"""Driving scenes: one small scene, written in every format by writers of this file, is the same from every reader."""

from __future__ import annotations

import gzip
import json
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from throng.scenarios.driving import av2, interaction, scenarionet, womd, womd_json
from throng.scenarios.driving.files import read_scenes, reader_of, scene_files
from throng.scenarios.driving.scene import (
    SUFFIX,
    Kind,
    Light,
    Line,
    Relation,
    Scene,
    load_scene,
    save_scene,
)
from throng.scenarios.errors import InputError

STEPS, STEP = 30, 0.1
FEW = 4  # recorded files of a format that a test looks at
IDS = ("11", "12", "13")
KINDS = (Kind.VEHICLE, Kind.PEDESTRIAN, Kind.CYCLIST)
SIZES = np.array([(4.5, 2.0), (0.5, 0.6), (1.9, 0.8)])
CENTRE = np.array([7000.0, -3000.0])
NAME = "scene-a"
# Two lanes that follow each other and one on the left of the first; an edge; a crosswalk; a light on the second lane.
LANES = {"1": [(0, 0), (20, 0)], "2": [(20, 0), (40, 0)], "3": [(0, 4), (20, 4)]}
EDGE = [(0, -2), (40, -2)]
CROSSING = [(20, -2), (23, -2), (23, 6), (20, 6)]
LIGHTS = [Light.STOP] * 12 + [Light.GO] * (STEPS - 12)


def _motion() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Places [3, steps, 2], directions, velocities and who is seen: a car turns, somebody walks, a cyclist comes later."""
    time = np.arange(STEPS) * STEP
    yaw = np.stack([0.2 * time, np.full(STEPS, 2.0), np.full(STEPS, -3.0)])
    speed = np.array([8.0, 1.2, 4.0])[:, None]
    velocity = speed[..., None] * np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
    start = np.array([(0.0, 0.0), (21.0, 3.0), (35.0, 0.0)])
    xy = CENTRE + start[:, None] + np.cumsum(velocity * STEP, axis=1)
    valid = np.ones((3, STEPS), bool)
    valid[2, :10] = False
    return xy, yaw, velocity, valid


def _shifted(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x + CENTRE[0], y + CENTRE[1]) for x, y in points]


# -- writers ----------------------------------------------------------------------------------------------------------


def write_av2(folder: Path) -> Path:
    xy, yaw, velocity, valid = _motion()
    agent, step = np.nonzero(valid)
    columns = {
        "observed": step < 15, "track_id": np.array(IDS)[agent],
        "object_type": np.array(["vehicle", "pedestrian", "cyclist"])[agent], "object_category": np.array([3, 0, 2])[agent],
        "timestep": step, "position_x": xy[agent, step, 0], "position_y": xy[agent, step, 1], "heading": yaw[agent, step],
        "velocity_x": velocity[agent, step, 0], "velocity_y": velocity[agent, step, 1],
        "scenario_id": [NAME] * len(agent), "focal_track_id": ["11"] * len(agent), "city": ["austin"] * len(agent),
    }  # fmt: skip
    path = folder / f"scenario_{NAME}.parquet"
    pa.parquet.write_table(pa.table(columns), path)

    def points(given: list[tuple[float, float]]) -> list[dict[str, float]]:
        return [{"x": x, "y": y, "z": 0.0} for x, y in _shifted(given)]

    def lane(name: str) -> dict[str, Any]:
        middle = LANES[name]
        return {
            "id": int(name), "is_intersection": False, "lane_type": "VEHICLE", "centerline": points(middle),
            "left_lane_boundary": points([(x, y + 2) for x, y in middle]), "left_lane_mark_type": "SOLID_WHITE",
            "right_lane_boundary": points([(x, y - 2) for x, y in middle]), "right_lane_mark_type": "NONE",
            "left_neighbor_id": 3 if name == "1" else None, "right_neighbor_id": 1 if name == "3" else None,
            "successors": [2] if name == "1" else [], "predecessors": [1] if name == "2" else [],
        }  # fmt: skip

    # Two areas that touch: the seam between them is no edge.
    areas = [[(0, -2), (20, -2), (20, 6), (0, 6)], [(20, -2), (40, -2), (40, 6), (20, 6)]]
    data = {
        "lane_segments": {name: lane(name) for name in LANES},
        "drivable_areas": {str(i): {"id": i, "area_boundary": points(one)} for i, one in enumerate(areas)},
        "pedestrian_crossings": {"9": {"id": 9, "edge1": points(CROSSING[:2]), "edge2": points(CROSSING[:1:-1])}},
    }
    (folder / f"log_map_archive_{NAME}.json").write_text(json.dumps(data))
    return path


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def _field(number: int, value: float | int | bytes) -> bytes:
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 1) + struct.pack("<d", value)
    return _varint(number << 3) + _varint(value)


def _single(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)


def _points(number: int, given: list[tuple[float, float]]) -> bytes:
    return b"".join(_field(number, _field(1, float(x)) + _field(2, float(y))) for x, y in _shifted(given))


def proto() -> bytes:
    """A `scenario` protocol buffer."""
    xy, yaw, velocity, valid = _motion()
    out = b"".join(_field(1, float(i * STEP)) for i in range(STEPS))
    for agent in range(3):
        states = b""
        for step in range(STEPS):
            state = b""
            if valid[agent, step]:
                state = _field(2, float(xy[agent, step, 0])) + _field(3, float(xy[agent, step, 1])) + _field(11, 1)
                numbers = (*SIZES[agent], 1.5, yaw[agent, step], *velocity[agent, step])
                state += b"".join(_single(number, value) for number, value in enumerate(numbers, 5))
            states += _field(3, state)
        out += _field(2, _field(1, int(IDS[agent])) + _field(2, (1, 2, 3)[agent]) + states)
    out += _field(5, NAME.encode()) + _field(6, 0) + _field(10, 10) + _field(11, _field(1, 2))
    codes = {Light.STOP: 4, Light.GO: 6}
    stop = _field(1, CENTRE[0] + 20.0) + _field(2, CENTRE[1] + 0.0)
    for state in LIGHTS:
        out += _field(7, _field(1, _field(1, 2) + _field(2, codes[state]) + _field(3, stop)))
    for name, line in LANES.items():
        lane = _field(1, 30.0) + _field(2, 2) + _points(8, line)
        lane += _field(10, _varint(2)) if name == "1" else b""  # packed
        lane += _field(11, _field(1, 3)) if name == "1" else b""
        lane += _field(12, _field(1, 1)) if name == "3" else b""
        out += _field(8, _field(1, int(name)) + _field(3, lane))
    out += _field(8, _field(1, 7) + _field(5, _field(1, 1) + _points(2, EDGE)))
    return out + _field(8, _field(1, 8) + _field(8, _points(1, CROSSING)))


def write_womd(folder: Path, records: int = 1) -> Path:
    path = folder / "training.tfrecord-00000-of-00001"
    data = proto()
    path.write_bytes((struct.pack("<Q", len(data)) + b"\0" * 4 + data + b"\0" * 4) * records)
    return path


def write_json(folder: Path, degrees: bool = False) -> Path:
    xy, yaw, velocity, valid = _motion()

    def pairs(given: np.ndarray) -> list[dict[str, float]]:
        return [{"x": float(x), "y": float(y)} for x, y in given]

    names = {Kind.VEHICLE: "vehicle", Kind.PEDESTRIAN: "pedestrian", Kind.CYCLIST: "cyclist"}
    objects = [
        {
            "position": pairs(np.where(valid[i, :, None], xy[i], -10000.0)), "velocity": pairs(velocity[i]),
            "heading": (np.degrees(yaw[i]) if degrees else yaw[i]).tolist(), "valid": valid[i].tolist(),
            "length": SIZES[i, 0], "width": SIZES[i, 1], "type": names[KINDS[i]], "id": int(IDS[i]),
            "goalPosition": pairs(xy[i, -1:])[0],
        }
        for i in range(3)
    ]  # fmt: skip
    lines = [("lane", int(name), line) for name, line in LANES.items()]
    lines += [("road_edge", 7, EDGE), ("crosswalk", 8, CROSSING)]
    roads = [{"type": kind, "id": i, "geometry": pairs(np.array(_shifted(line)))} for kind, i, line in lines]
    light = {
        "state": [state.name.lower() for state in LIGHTS], "x": [CENTRE[0] + 20.0] * STEPS, "y": [CENTRE[1]] * STEPS,
        "time_index": list(range(STEPS)),
    }  # fmt: skip
    data = {
        "scenario_id": NAME, "objects": objects, "roads": roads, "tl_states": {"2": light},
        "metadata": {"sdc_track_index": 0, "tracks_to_predict": [{"track_index": 2}]},
    }  # fmt: skip
    path = folder / f"{NAME}.json.gz"
    path.write_bytes(gzip.compress(json.dumps(data).encode()))
    return path


def write_npz(folder: Path) -> Path:
    xy, yaw, velocity, valid = _motion()
    arrays: dict[str, np.ndarray] = {"metadata/ts": np.arange(STEPS) * STEP}
    about: dict[str, Any] = {"id": NAME, "metadata/sdc_id": "11", "metadata/current_time_index": 10}
    for i, name in enumerate(IDS):
        state = f"tracks/{name}/state"
        about[f"tracks/{name}/type"] = KINDS[i].name
        arrays[f"{state}/position"] = np.column_stack([xy[i], np.zeros(STEPS)])
        arrays[f"{state}/size"] = np.tile([*SIZES[i], 1.5], (STEPS, 1))
        arrays[f"{state}/heading"], arrays[f"{state}/velocity"] = yaw[i], velocity[i]
        arrays[f"{state}/valid"] = valid[i]
    about["metadata/tracks_to_predict/13/track_id"] = "13"
    for name, line in LANES.items():
        about |= {f"map_features/{name}/type": "LANE_SURFACE_STREET", f"map_features/{name}/speed_limit_mph": 30.0}
        arrays[f"map_features/{name}/polyline"] = np.column_stack([_shifted(line), np.zeros(len(line))])
    arrays["map_features/1/exit_lanes"] = np.array([2])
    about["map_features/1/left_neighbor"] = [{"feature_id": "3"}]
    about["map_features/3/right_neighbor"] = [{"feature_id": "1"}]
    for name, kind, line in (("7", "ROAD_EDGE_BOUNDARY", EDGE), ("8", "CROSSWALK", CROSSING)):
        about[f"map_features/{name}/type"] = kind
        key = "polygon" if kind == "CROSSWALK" else "polyline"
        arrays[f"map_features/{name}/{key}"] = np.column_stack([_shifted(line), np.zeros(len(line))])
    about["dynamic_map_states/2/type"] = "TRAFFIC_LIGHT"
    about["dynamic_map_states/2/state/object_state"] = [f"LANE_STATE_{state.name}" for state in LIGHTS]
    arrays["dynamic_map_states/2/stop_point"] = np.array([CENTRE[0] + 20.0, CENTRE[1], 0.0])
    path = folder / f"{NAME}.sd.npz"
    np.savez(path, __meta__=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
    return path


def write_csv(folder: Path) -> Path:
    xy, yaw, velocity, valid = _motion()
    lines = ["track_id,frame_id,timestamp_ms,agent_type,x,y,vx,vy,psi_rad,length,width"]
    for i, name in enumerate(IDS):
        kind = ("car", "pedestrian", "bicycle")[i]
        for step in np.flatnonzero(valid[i]):
            numbers = (*xy[i, step], *velocity[i, step], yaw[i, step], *SIZES[i])
            lines.append(f"{name},{step},{step * 100},{kind}," + ",".join(map(repr, map(float, numbers))))
    path = folder / "vehicle_tracks_000.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    av2.MOTION: write_av2, womd.SOURCE: write_womd, womd_json.SOURCE: write_json, scenarionet.SOURCE: write_npz,
    interaction.SOURCE: write_csv,
}  # fmt: skip
WITH_MAP = [name for name in WRITERS if name != interaction.SOURCE]


def only(path: Path) -> Scene:
    (scene,) = read_scenes(path)
    return scene


# -- what every reader gives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_every_reader_finds_the_same_traffic(name: str, tmp_path: Path) -> None:
    scene = only(WRITERS[name](tmp_path))
    xy, yaw, velocity, valid = _motion()
    assert scene.source == name
    assert scene.ids == IDS
    assert scene.step == STEP
    assert scene.kind.tolist() == list(KINDS)
    np.testing.assert_array_equal(scene.valid, valid)
    found = scene.tracks[valid]
    np.testing.assert_allclose(found[:, :2] + scene.origin, xy[valid], atol=2e-3)
    np.testing.assert_allclose(np.cos(found[:, 2] - yaw[valid]), 1.0, atol=1e-6)
    np.testing.assert_allclose(found[:, 3], np.linalg.norm(velocity[valid], axis=1), atol=1e-3)
    np.testing.assert_allclose(scene.goals + scene.origin, xy[:, -1], atol=2e-3)
    assert not scene.tracks[~valid].any()
    if name == av2.MOTION:
        assert any("no size" in note for note in scene.notes)
    else:
        np.testing.assert_allclose(found[:, 4:6], np.broadcast_to(SIZES[:, None], (3, STEPS, 2))[valid], atol=1e-5)


@pytest.mark.parametrize("name", WITH_MAP)
def test_every_reader_finds_the_same_map(name: str, tmp_path: Path) -> None:
    scene = only(WRITERS[name](tmp_path))
    for lane, line in LANES.items():
        index = scene.line_ids.index(lane)
        assert scene.line_kind[index] == Line.LANE
        np.testing.assert_allclose(scene.polyline(index) + scene.origin, _shifted(line), atol=2e-3)
    links = {(scene.line_ids[a], scene.line_ids[b], Relation(kind)) for a, b, kind in scene.lane_graph}
    beside = {("1", "3", Relation.LEFT), ("3", "1", Relation.RIGHT)}
    assert links == {("1", "2", Relation.SUCCESSOR)} | (beside if name != womd_json.SOURCE else set())
    (crossing,) = scene.of_kind(Line.CROSSWALK)
    np.testing.assert_allclose(
        sorted(map(tuple, np.round(scene.polyline(crossing)[:-1] + scene.origin, 2))),
        sorted(_shifted(CROSSING)),
        atol=0.011,
    )
    np.testing.assert_array_equal(scene.polyline(crossing)[0], scene.polyline(crossing)[-1])
    (edge,) = scene.of_kind(Line.ROAD_EDGE)
    points = scene.polyline(edge).astype(float)
    a, b = points[:-1], points[1:]
    centre = np.array([20.0, 1.0]) + CENTRE - scene.origin  # on the road
    along, across = b - a, centre - a
    assert (along[:, 0] * across[:, 1] > along[:, 1] * across[:, 0]).all(), "the road is on the left of its edge"
    if name == av2.MOTION:
        assert len(points) == 5, "the seam between two areas is no edge"
    else:
        assert scene.lights.tolist() == [LIGHTS]
        assert scene.line_ids[scene.light_lane[0]] == "2"
        np.testing.assert_allclose(scene.light_xy[0] + scene.origin, CENTRE + np.array([20.0, 0.0]), atol=2e-3)


def test_who_is_to_be_predicted_and_who_recorded(tmp_path: Path) -> None:
    focal = {name: only(WRITERS[name](tmp_path)).focal.tolist() for name in WITH_MAP}
    assert focal.pop(av2.MOTION) == [True, False, True]
    assert all(found == [False, False, True] for found in focal.values())
    scene = only(write_womd(tmp_path))
    assert scene.ego == 0
    assert scene.history == 11
    assert scene.speed_limit[0] == pytest.approx(30 * 1609.344 / 3600)


def test_headings_in_degrees_are_told_from_radians(tmp_path: Path) -> None:
    scene, degrees = only(write_json(tmp_path)), only(write_json(tmp_path, degrees=True))
    np.testing.assert_allclose(scene.tracks, degrees.tracks, atol=1e-5)


def test_a_sensor_log_is_placed_by_the_pose_of_its_car(tmp_path: Path) -> None:
    """A standing box, seen from a car that drives and turns, stands; the car itself is an agent."""
    stamps = 10**9 + np.arange(STEPS) * 10**8
    yaw = 0.1 * np.arange(STEPS) * STEP
    place = np.column_stack([5.0 * np.arange(STEPS) * STEP, np.zeros(STEPS), np.full(STEPS, 3.0)])
    half = yaw / 2
    pose = {"qw": np.cos(half), "qx": 0 * half, "qy": 0 * half, "qz": np.sin(half)}
    pose |= dict(zip(("tx_m", "ty_m", "tz_m"), place.T, strict=True))
    later = np.arange(STEPS)[::-1]  # in any order
    pa.feather.write_feather(
        pa.table({"timestamp_ns": stamps[later]} | {name: values[later] for name, values in pose.items()}),
        tmp_path / "city_SE3_egovehicle.feather",
    )
    there, facing = np.array([30.0, 4.0]), 0.7
    ahead = np.stack([np.cos(yaw), np.sin(yaw)], axis=1)
    aside = np.stack([-np.sin(yaw), np.cos(yaw)], axis=1)
    offset = there - place[:, :2]
    seen = np.column_stack([(offset * ahead).sum(axis=1), (offset * aside).sum(axis=1), np.zeros(STEPS)])
    turned = (facing - yaw) / 2
    boxes = {
        "timestamp_ns": stamps, "track_uuid": ["box"] * STEPS, "category": ["BUS"] * STEPS, "length_m": [12.0] * STEPS,
        "width_m": [2.5] * STEPS, "qw": np.cos(turned), "qx": 0 * turned, "qy": 0 * turned, "qz": np.sin(turned),
        **dict(zip(("tx_m", "ty_m", "tz_m"), seen.T, strict=True)),
    }  # fmt: skip
    pa.feather.write_feather(pa.table(boxes), tmp_path / "annotations.feather")
    scene = only(tmp_path / "annotations.feather")
    assert scene.ids == ("box", "ego")
    assert scene.ego == 1
    np.testing.assert_allclose(scene.tracks[0, :, :2] + scene.origin, np.tile(there, (STEPS, 1)), atol=1e-3)
    np.testing.assert_allclose(scene.tracks[0, :, 2], facing, atol=1e-5)
    np.testing.assert_allclose(scene.tracks[0, :, 3], 0.0, atol=1e-3)
    np.testing.assert_allclose(scene.tracks[0, :, 4:6], [[12.0, 2.5]] * STEPS)
    middle = np.hypot(5.0 - 0.142 * np.sin(yaw), 0.142 * np.cos(yaw))  # 1.42 m ahead of the axle, turning by 0.1 rad/s
    np.testing.assert_allclose(scene.tracks[1, 1:-1, 3], middle[1:-1], atol=1e-3)


def test_a_recording_is_cut_into_scenes_of_nine_seconds(tmp_path: Path) -> None:
    """With a frame in which nobody is there, and a rest that is too short for a scene."""
    rows = ["track_id,frame_id,timestamp_ms,agent_type,x,y,vx,vy,psi_rad,length,width"]
    rows += [f"1,{frame},{frame * 100},car,{frame * 0.5},0,5,0,0,4.5,1.8" for frame in range(190) if frame != 20]
    (tmp_path / "vehicle_tracks_000.csv").write_text("\n".join(rows))
    scenes = list(read_scenes(tmp_path / "vehicle_tracks_000.csv"))
    assert [scene.steps for scene in scenes] == [90, 90]
    assert np.flatnonzero(~scenes[0].valid[0]).tolist() == [20]
    assert scenes[1].tracks[0, 0, 0] + scenes[1].origin[0] == pytest.approx(45.0)


def test_a_saved_scene_comes_back_to_the_bit(tmp_path: Path) -> None:
    scene = only(write_womd(tmp_path))
    path = tmp_path / f"a{SUFFIX}"
    save_scene(scene, path)
    again = only(path)
    for name, value in vars(scene).items():
        np.testing.assert_array_equal(getattr(again, name), value, err_msg=name)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tracks": np.zeros((3, STEPS, 6), np.float32)}, r"tracks is \(3, 30, 6\), not \(3, 30, 7\)"),
        ({"light_lane": np.array([99], np.int32)}, "points nowhere"),
        ({"offsets": np.array([0, 5, 2, 6, 8, 13])}, "offsets do not cut"),
        ({"goals": np.full((3, 2), np.nan, np.float32)}, "goals is not finite"),
    ],
    ids=["shape", "index", "offsets", "nan"],
)
def test_a_saved_scene_that_does_not_fit_together_is_refused(
    change: dict[str, np.ndarray], said: str, tmp_path: Path
) -> None:
    save_scene(replace(only(write_womd(tmp_path)), **change), tmp_path / f"a{SUFFIX}")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=said):
        only(tmp_path / f"a{SUFFIX}")


# -- repairs and refusals ---------------------------------------------------------------------------------------------


def _spoilt(tmp_path: Path, **changes: Any) -> Path:
    """The JSON scene with other values at places of its first agent."""
    path = write_json(tmp_path)
    data = json.loads(gzip.decompress(path.read_bytes()))
    for key, (at, value) in changes.items():
        data["objects"][0][key][at] = value
    path.write_bytes(gzip.compress(json.dumps(data).encode()))
    return path


def test_what_is_not_a_number_counts_as_not_seen(tmp_path: Path) -> None:
    scene = only(_spoilt(tmp_path, heading=(4, float("nan"))))
    assert np.flatnonzero(~scene.valid[0]).tolist() == [4]
    assert scene.notes == ("agent 11: NaN in some steps, in which they count as not seen",)
    assert np.isfinite(scene.tracks).all()


def test_of_an_agent_that_jumps_the_longest_stretch_is_kept(tmp_path: Path) -> None:
    scene = only(_spoilt(tmp_path, position=(9, {"x": 0.0, "y": 0.0})))
    assert np.flatnonzero(scene.valid[0]).tolist() == list(range(10, STEPS))
    assert scene.notes == ("agent 11: jumped; the longest stretch without a jump is kept",)


def test_who_drives_backwards_has_a_negative_speed(tmp_path: Path) -> None:
    path = write_json(tmp_path)
    data = json.loads(gzip.decompress(path.read_bytes()))
    for velocity in data["objects"][2]["velocity"]:
        velocity.update(x=-velocity["x"], y=-velocity["y"])
    path.write_bytes(gzip.compress(json.dumps(data).encode()))
    scene = only(path)
    np.testing.assert_allclose(scene.tracks[2, 10:, 3], -4.0, atol=1e-5)


def _cut(path: Path, share: float = 0.6) -> Path:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


def _without(path: Path, column: str) -> Path:
    pa.parquet.write_table(pa.parquet.read_table(path).drop_columns([column]), path)
    return path


def _pickled(folder: Path) -> Path:
    path = folder / "evil.sd.npz"
    np.savez(path, __meta__=np.array([{"a": print}], dtype=object))
    return path


def _uneven(folder: Path) -> Path:
    path = write_npz(folder)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["metadata/ts"][20:] += 3.0
    np.savez(path, **arrays)
    return path


def _nobody(folder: Path) -> Path:
    path = write_json(folder)
    data = json.loads(gzip.decompress(path.read_bytes()))
    for one in data["objects"]:
        one["valid"] = [False] * STEPS
    path.write_bytes(gzip.compress(json.dumps(data).encode()))
    return path


def _examples(folder: Path) -> Path:
    path = folder / "a.tfrecord"
    data = _field(1, _field(1, b"features"))
    path.write_bytes(struct.pack("<Q", len(data)) + b"\0" * 4 + data + b"\0" * 4)
    return path


def _garbage(folder: Path) -> Path:
    """The right frame around fields of wrong kinds."""
    path = folder / "a.tfrecord"
    data = _field(1, b"\0" * 7) + _field(2, _field(3, _field(2, 5))) + _field(5, 3)
    path.write_bytes(struct.pack("<Q", len(data)) + b"\0" * 4 + data + b"\0" * 4)
    return path


def _endless(folder: Path) -> Path:
    path = write_csv(folder)
    path.write_text(path.read_text() + "11,999999999999,1,car,0,0,0,0,0,4,2\n")
    return path


def _map_without_lanes(folder: Path) -> Path:
    path = write_av2(folder)
    (folder / f"log_map_archive_{NAME}.json").write_text("{}")
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: _cut(write_av2(folder)), "truncated"),
        (lambda folder: _without(write_av2(folder), "heading"), "no column 'heading'"),
        (_map_without_lanes, "not a vector map of Argoverse 2"),
        (lambda folder: _cut(write_womd(folder)), "ends within record 0"),
        (_examples, "tf.Examples are not read"),
        (_garbage, "not the protocol buffer that was expected"),
        (_endless, "frames 0 to 999999999999: expected 1000000 at most"),
        (lambda folder: _cut(write_json(folder)), "not JSON, or truncated"),
        (lambda folder: _cut(write_npz(folder)), "not a ScenarioDescription"),
        (_pickled, "not a ScenarioDescription"),
        (_uneven, "time steps differ: 3.1 s after step 19, 0.1 s usually"),
        (_nobody, "no agent was seen in any step"),
    ],
    ids=[
        "parquet",
        "column",
        "map",
        "tfrecord",
        "examples",
        "garbage",
        "endless",
        "json",
        "npz",
        "pickle",
        "uneven",
        "nobody",
    ],
)
def test_what_is_no_scene_is_refused_by_name(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(InputError, match=r".") as caught:
        list(read_scenes(path))
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_scenes_before_a_fault_are_given(tmp_path: Path) -> None:
    path = _cut(write_womd(tmp_path, records=3), 0.8)
    found = []
    with pytest.raises(InputError, match="ends within record 2"):
        found += read_scenes(path)
    found = []
    scenes = read_scenes(path)
    found += [next(scenes), next(scenes)]
    assert [scene.name for scene in found] == [NAME, NAME]


def test_files_nobody_reads_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes.txt: no reader for a file of this name; read are"):
        scene_files([tmp_path / "notes.txt"])
    with pytest.raises(InputError, match="no scenes there"):
        scene_files([tmp_path])
    with pytest.raises(InputError, match="no such file"):
        scene_files([tmp_path / "absent.json"])
    with pytest.raises(InputError, match="not a scene that this version can read"):
        load_scene(tmp_path / "notes.txt")
    write_av2(tmp_path)
    assert [path.name for path in scene_files([tmp_path])] == [f"scenario_{NAME}.parquet"], "a map is no scene"


# -- the data sets' own files -----------------------------------------------------------------------------------------


def test_recorded_scenes_are_all_read_and_drive_as_they_say(recorded: Path) -> None:
    """What moves in a step agrees with the speed that is given, and cars point where they go."""
    formats: Counter[str] = Counter()
    for path in scene_files([recorded]):
        reader = reader_of(path)
        assert reader is not None
        formats[reader.name] += 1
        for scene in islice(read_scenes(path), 3) if formats[reader.name] <= FEW else ():
            both = scene.valid[:, 1:] & scene.valid[:, :-1]
            moved = np.linalg.norm(np.diff(scene.tracks[:, :, :2], axis=1), axis=2) / scene.step
            speed = (scene.tracks[:, 1:, 3] + scene.tracks[:, :-1, 3]) / 2
            fast = both & (np.abs(speed) > 3.0) & (scene.kind == Kind.VEHICLE)[:, None]
            if fast.sum() < 50:
                continue
            assert np.median(moved[fast] / np.abs(speed[fast])) == pytest.approx(1.0, abs=0.02), path
            way = np.diff(scene.tracks[:, :, :2], axis=1)[fast]
            yaw = scene.tracks[:, 1:, 2][fast]
            along = (way[:, 0] * np.cos(yaw) + way[:, 1] * np.sin(yaw)) / np.linalg.norm(way, axis=1)
            assert np.median(np.abs(along)) > 0.99, path
    assert len(formats) == 6


def test_argoverse_agrees_with_its_own_package(recorded: Path) -> None:
    serialization = pytest.importorskip("av2.datasets.motion_forecasting.scenario_serialization")
    path = next(recorded.glob("av2_mf/*/scenario_*.parquet"))
    scene = only(path)
    theirs = serialization.load_argoverse_scenario_parquet(path)
    assert {track.track_id for track in theirs.tracks} == set(scene.ids)
    for track in theirs.tracks:
        agent = scene.ids.index(track.track_id)
        for state in track.object_states:
            ours = scene.tracks[agent, state.timestep]
            np.testing.assert_allclose(ours[:2] + scene.origin, state.position, atol=2e-3)
            assert np.cos(ours[2] - state.heading) == pytest.approx(1.0, abs=1e-6)
            assert abs(ours[3]) == pytest.approx(np.hypot(*state.velocity), abs=1e-3)
