"""Scenes in other formats: what is written says the same as the scene, to readers and schemas that others wrote."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import scenariogeneration
import sumo
import xmlschema
from driving_scenes import made
from sumolib.xml import parse_fast_nested
from throng.scenarios.driving.export import FORMATS, export
from throng.scenarios.driving.fcd import recorded_moments
from throng.scenarios.driving.files import read_scenes
from throng.scenarios.driving.scene import LENGTH, SPEED, TYPE, YAW, Kind, Line, Relation, Scene, X, Y
from throng.scenarios.errors import InputError

ORIGIN = np.array([7000.0, -3000.0])
SQUARE = np.array([(0, 0), (3, 0), (3, 6), (0, 6), (0, 0)], np.float32)
EXTRA = {  # lines beside the lanes and the edge of `made`
    Line.BIKE_LANE: SQUARE[:2], Line.ROAD_LINE: SQUARE[1:3], Line.CROSSWALK: SQUARE, Line.DRIVEWAY: SQUARE + 9,
    Line.SPEED_BUMP: SQUARE - 9, Line.STOP_SIGN: SQUARE[:1],
}  # fmt: skip


def rich() -> Scene:
    """A bicycle, a thing, somebody who drives backwards, who comes late, who leaves, who is not seen in between."""
    scene = made()
    tracks, valid = scene.tracks.copy(), scene.valid.copy()
    tracks[1, :, TYPE], tracks[3, :, TYPE] = Kind.CYCLIST, Kind.OTHER
    tracks[0, :, SPEED] *= -1
    valid[4, 60:], valid[5, 40:45] = False, False
    tracks[~valid] = 0.0
    points = np.concatenate([scene.points, *EXTRA.values()])
    ends = scene.offsets[-1] + np.cumsum([len(one) for one in EXTRA.values()])
    limits = np.full(scene.lines + len(EXTRA), np.nan, np.float32)
    limits[0] = 13.89
    return replace(
        scene, origin=scene.origin + ORIGIN, tracks=tracks, valid=valid, ego=2, focal=np.isin(np.arange(7), (1, 6)),
        points=points, offsets=np.concatenate([scene.offsets, ends]), speed_limit=limits,
        line_kind=np.concatenate([scene.line_kind, [*EXTRA]]).astype(np.int8),
        line_ids=(*scene.line_ids, *(kind.name.lower() for kind in EXTRA)),
        lane_graph=np.array(
            [(0, 1, Relation.LEFT), (0, 2, Relation.SUCCESSOR), (1, 0, Relation.RIGHT), (3, 2, Relation.SUCCESSOR)], np.int32
        ),
    )  # fmt: skip


def centres(scene: Scene, agent: int) -> np.ndarray:
    """`[steps, 2]` in the recording's coordinates."""
    return scene.tracks[agent, :, [X, Y]].T.astype(np.float64) + scene.origin


def along(scene: Scene, agent: int) -> np.ndarray:
    yaw = scene.tracks[agent, :, YAW].astype(np.float64)
    return np.column_stack([np.cos(yaw), np.sin(yaw)])


def test_scenarionet_reads_back_as_the_same_scene(tmp_path: Path) -> None:
    scene = rich()
    (found,) = read_scenes(export(scene, "scenarionet", tmp_path, "a"))
    for name in ("name", "step", "history", "ids", "ego", "line_ids"):
        assert getattr(found, name) == getattr(scene, name), name
    for name in ("kind", "valid", "focal", "line_kind", "offsets", "lane_graph", "light_lane", "lights"):
        np.testing.assert_array_equal(getattr(found, name), getattr(scene, name), name)
    np.testing.assert_allclose(found.speed_limit, scene.speed_limit, rtol=1e-6)
    np.testing.assert_allclose(found.tracks[:, :, 2:6], scene.tracks[:, :, 2:6], atol=1e-5)
    moved = scene.origin - found.origin
    np.testing.assert_allclose(found.points, scene.points + moved, atol=1e-4)
    np.testing.assert_allclose(found.light_xy, scene.light_xy + moved, atol=1e-4)
    there = scene.valid
    np.testing.assert_allclose(found.tracks[there][:, :2], scene.tracks[there][:, :2] + moved, atol=1e-4)
    assert not found.notes, "the file is whole: nothing had to be repaired"


def test_scenarionets_dictionary_has_what_metadrive_asks_for(tmp_path: Path) -> None:
    """Its `ScenarioDescription.sanity_check`, in short."""
    scene = rich()
    data = json.loads(export(scene, "scenarionet-json", tmp_path, "a").read_text())
    assert {"id", "version", "length", "metadata", "tracks", "dynamic_map_states", "map_features"} <= data.keys()
    assert {"ts", "coordinate", "metadrive_processed"} <= data["metadata"].keys()
    assert len(data["metadata"]["ts"]) == data["length"] == scene.steps
    assert data["metadata"]["sdc_id"] in data["tracks"]
    for name, one in [*data["tracks"].items(), *data["dynamic_map_states"].items()]:
        assert one["metadata"]["object_id"] == name
        assert one["metadata"]["type"] == one["type"]
        assert all(len(state) == data["length"] for state in one["state"].values())
    for one in data["tracks"].values():
        gone = ~np.array(one["state"]["valid"])
        assert not any(np.asarray(state)[gone].any() for state in one["state"].values())
    assert {one["type"] for one in data["tracks"].values()} == {"VEHICLE", "CYCLIST", "OTHER", "PEDESTRIAN"}
    assert data["dynamic_map_states"]["lane0"]["state"]["object_state"][0] == "LANE_STATE_STOP"
    lane = data["map_features"]["lane0"]
    assert lane["type"] == "LANE_SURFACE_STREET"
    assert lane["exit_lanes"] == ["lane2"] and lane["left_neighbor"] == [{"feature_id": "lane1"}]
    assert data["map_features"]["lane2"]["entry_lanes"] == ["lane0", "lane3"]
    assert lane["speed_limit_kmh"] == pytest.approx(50.0, abs=0.01)


def test_names_that_an_npz_cannot_have_are_changed(tmp_path: Path) -> None:
    scene = replace(made(), ids=("a/b", "a_b", "../x", "d", "e", "f", "g"), line_ids=("l", "l", "m/n", "o", "p", "q"))
    (found,) = read_scenes(export(scene, "scenarionet", tmp_path, "a"))
    assert found.ids == ("a_b", "a_b (2)", ".._x", "d", "e", "f", "g")
    assert found.line_ids == ("l", "l (2)", "m_n", "o", "p", "q")
    np.testing.assert_array_equal(found.lights, scene.lights)


def test_sumos_record_says_where_everybody_was(tmp_path: Path) -> None:
    """SUMO has front bumpers, centres of who walks, and angles from north; its schema is met."""
    scene = rich()
    path = export(scene, "fcd", tmp_path, "a")
    xmlschema.validate(str(path), str(Path(sumo.SUMO_HOME) / "data" / "xsd" / "fcd_file.xsd"))
    told = [
        float(one.x) for _, one in parse_fast_nested(str(path), "timestep", ["time"], "vehicle", ["id", "x", "lane"])
    ]
    assert len(told) == scene.valid[scene.kind != Kind.PEDESTRIAN].sum(), "SUMO's tools find all vehicles"
    moments = list(recorded_moments(path))
    assert [moment.time for moment in moments] == pytest.approx([0.1 * step for step in range(scene.steps)])
    for step, moment in enumerate(moments):
        assert set(moment.ids) == {scene.ids[agent] for agent in np.flatnonzero(scene.valid[:, step])}
        for i, name in enumerate(moment.ids):
            agent = scene.ids.index(name)
            walks = scene.kind[agent] == Kind.PEDESTRIAN
            assert (moment.kind[i] == Kind.PEDESTRIAN) == walks
            ahead = 0.0 if walks else scene.tracks[agent, step, LENGTH] / 2
            front = moment.xy[i] + moment.size[i, 0] / 2 * np.array([math.cos(moment.yaw[i]), math.sin(moment.yaw[i])])
            expected = centres(scene, agent)[step] + ahead * along(scene, agent)[step]
            np.testing.assert_allclose(front, expected, atol=2e-3)
            assert math.cos(moment.yaw[i] - scene.tracks[agent, step, YAW]) > 1 - 1e-8
            assert moment.speed[i] == pytest.approx(abs(scene.tracks[agent, step, SPEED]), abs=1e-3)


def test_openscenario_moves_everybodys_box_as_the_scene_does(tmp_path: Path) -> None:
    scene = rich()
    path = export(scene, "openscenario", tmp_path, "a")
    schemas = Path(scenariogeneration.__file__).parents[1] / "schemas"
    xmlschema.validate(str(path), str(schemas / "OpenSCENARIO_1_2.xsd"))
    root = ElementTree.parse(path).getroot()
    entities = {str(one.get("name")): one for one in root.iter("ScenarioObject")}
    assert tuple(entities) == scene.ids
    assert [entities[name][0].tag for name in scene.ids] == [
        "Vehicle", "Vehicle", "Vehicle", "MiscObject", "Vehicle", "Vehicle", "Pedestrian"
    ]  # fmt: skip
    assert [one[0].find("Properties/Property") is not None for one in entities.values()] == scene.focal.tolist()
    began = {str(one.get("entityRef")) for one in root.findall(".//Init//Private")}
    for group in root.iter("ManeuverGroup"):
        name = str(next(group.iter("EntityRef")).get("entityRef"))
        agent = scene.ids.index(name)
        steps = np.flatnonzero(scene.valid[agent])
        times = [float(str(one.get("time"))) for one in group.iter("Vertex")]
        np.testing.assert_allclose(times, scene.step * steps, atol=1e-6)
        centre = next(entities[name].iter("Center")).get("x")
        for vertex, step in zip(group.iter("Vertex"), steps, strict=True):
            place = next(vertex.iter("WorldPosition"))
            x, y, h = (float(str(place.get(key))) for key in "xyh")
            box = np.array([x, y]) + float(str(centre)) * np.array([math.cos(h), math.sin(h)])
            np.testing.assert_allclose(box, centres(scene, agent)[step], atol=1e-3)
            assert math.cos(h - scene.tracks[agent, step, YAW]) > 1 - 1e-8
        assert (name in began) == (steps[0] == 0)
        assert len(list(group.iter("AddEntityAction"))) == (steps[0] > 0)
        assert len(list(group.iter("DeleteEntityAction"))) == (steps[-1] < scene.steps - 1)
        started = [float(str(one.get("value"))) for one in group.iter("SimulationTimeCondition")]
        assert started == pytest.approx(
            [0.1 * steps[0], *([0.1 * (steps[-1] + 1)] if steps[-1] < scene.steps - 1 else [])]
        )


def test_without_its_package_openscenario_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scenariogeneration", None)
    with pytest.raises(InputError, match=r"pip install 'throng\[openscenario\]'"):
        export(made(), "openscenario", tmp_path, "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", FORMATS)
def test_who_is_never_seen_is_left_out(to: str, tmp_path: Path) -> None:
    """Of a generated scene: who would have come after it began. Indices of the others still fit."""
    scene = rich()
    tracks, valid = scene.tracks.copy(), scene.valid.copy()
    tracks[1], valid[1] = 0.0, False
    path = export(replace(scene, tracks=tracks, valid=valid), to, tmp_path, "a")
    if to == "scenarionet":
        (found,) = read_scenes(path)
        assert found.ids == (scene.ids[0], *scene.ids[2:]) and not found.notes
        assert found.ids[found.ego] == scene.ids[2]
        assert [found.ids[i] for i in np.flatnonzero(found.focal)] == [scene.ids[6]]
    else:
        assert '"a1"' not in path.read_text() and '"a2"' in path.read_text()


def test_an_unknown_format_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no format 'kml'.*{', '.join(FORMATS)}"):
        export(made(), "kml", tmp_path, "a")
