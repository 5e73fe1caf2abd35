"""`throng scenes`: scenes cut out of a SUMO simulation are what SUMO itself says, and a bad file does not end a list."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
import sumo
from rich.console import Console
from throng.platform.cli import main
from throng.platform.progress import Progress
from throng.platform.scenes import SMOOTH, Wanted, scenes_from_record, scenes_from_sumo
from throng.scenarios.driving.files import read_scenes
from throng.scenarios.driving.moments import LIGHTS
from throng.scenarios.driving.scene import SUFFIX, Light, Line, Relation, Scene, save_scene
from throng.scenarios.errors import InputError
from throng.scenarios.town import write_town

SUMO = Path(sumo.SUMO_HOME) / "bin" / "sumo"
SEED, BEGIN, STEP = 3, 120.0, 0.2
WANTED = Wanted(6, BEGIN, history=3.0, future=3.0, radius=60.0, pause=8.0, seed=SEED)


def _silent() -> Progress:
    return Progress(Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Scene], ET.Element, ET.Element]:
    """Six scenes of the town, and the plain binary's record of the same simulation: positions, and traffic lights."""
    folder = tmp_path_factory.mktemp("town")
    files = write_town(folder, 300, 4)
    paths = scenes_from_sumo(files.config, None, STEP, WANTED, folder / "scenes", _silent())
    scenes = [scene for path in paths for scene in read_scenes(path)]
    net = ET.parse(files.net).getroot()
    lights = "".join(
        f'<timedEvent type="SaveTLSStates" source="{one.get("id")}" dest="lights.xml"/>' for one in net.iter("tlLogic")
    )
    (folder / "lights.add.xml").write_text(f"<additional>{lights}</additional>")
    command = [
        str(SUMO), "-c", str(files.config), "--step-length", str(STEP), "--seed", str(SEED), *SMOOTH, "--fcd-output",
        str(folder / "fcd.xml"), "--additional-files", str(folder / "lights.add.xml"), "--no-step-log", "--precision", "6",
        "--end", "200",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return scenes, ET.parse(folder / "fcd.xml").getroot(), ET.parse(folder / "lights.xml").getroot()


def test_agents_are_where_sumo_says(cut: tuple[list[Scene], ET.Element, ET.Element]) -> None:
    """SUMO gives front bumpers and angles from north, clockwise; scenes have centres and radians."""
    scenes, fcd, _ = cut
    there = {round(float(moment.get("time", 0)), 1): moment for moment in fcd}
    compared = 0
    for scene in scenes:
        time = _began(scene)
        for step in range(scene.steps):
            found = {one.get("id"): one for one in there[round(time + step * STEP, 1)]}
            assert _same(scene, step, found), (scene.name, step)
            compared += int(scene.valid[:, step].sum())
    assert len(scenes) == 6
    assert compared > 300


def _began(scene: Scene) -> float:
    """When SUMO's record has the first step: it writes a step under the time at which it begins, libsumo after it."""
    return float(scene.name.split("@")[1].split("s-")[0]) - STEP


def _same(scene: Scene, step: int, found: dict[str | None, ET.Element]) -> bool:
    for agent in np.flatnonzero(scene.valid[:, step]):
        theirs = found[scene.ids[agent]]
        x, y, yaw, speed, length = scene.tracks[agent, step, :5].astype(float)
        front = np.array([x + length / 2 * math.cos(yaw), y + length / 2 * math.sin(yaw)]) + scene.origin
        angle = math.radians(float(theirs.get("angle", 0)))
        close = np.hypot(front[0] - float(theirs.get("x", 0)), front[1] - float(theirs.get("y", 0))) < 0.01
        faces = math.cos(math.pi / 2 - angle - yaw) > 1 - 1e-6
        if not (close and faces and abs(speed - float(theirs.get("speed", 0))) < 1e-3):
            return False
    return True


def test_lights_show_what_sumo_showed(cut: tuple[list[Scene], ET.Element, ET.Element]) -> None:
    """Of every light, the states in a scene are those of one connection of one junction then."""
    scenes, _, record = cut
    states: dict[str, dict[float, str]] = {}
    for one in record:
        states.setdefault(str(one.get("id")), {})[round(float(one.get("time", 0)), 1)] = str(one.get("state"))
    lit = [scene for scene in scenes if len(scene.lights)]
    assert lit
    for scene in lit:
        for light, lane in zip(scene.lights, scene.light_lane, strict=True):
            junction = scene.line_ids[lane].lstrip(":").split("_")[0]
            times = [round(_began(scene) + step * STEP, 1) for step in range(scene.steps)]
            shown = [states[junction][time] for time in times]
            possible = [[LIGHTS[state[index]] for state in shown] for index in range(len(shown[0]))]
            assert light.tolist() in possible
    assert len({state for scene in lit for state in scene.lights.ravel().tolist()}) > 1


def test_cars_drive_on_the_road_and_along_its_lanes(cut: tuple[list[Scene], ET.Element, ET.Element]) -> None:
    scenes, _, _ = cut
    for scene in scenes:
        rings = [shapely.Polygon(scene.polyline(line)) for line in scene.of_kind(Line.ROAD_EDGE)]
        outer = [ring for ring in rings if ring.exterior.is_ccw]
        holes = [ring for ring in rings if not ring.exterior.is_ccw]
        road = shapely.union_all(outer).difference(shapely.union_all(holes)).buffer(0.05)
        lanes = shapely.union_all([shapely.LineString(scene.polyline(line)) for line in scene.of_kind(Line.LANE)])
        places = shapely.points(scene.tracks[:, :, :2][scene.valid])
        assert shapely.contains(road, places).all()
        assert np.quantile(shapely.distance(lanes, places), 0.7) < 0.3, "all but those that change lanes"
        starts = {line: scene.polyline(line)[0] for line in scene.of_kind(Line.LANE)}
        for one, other, kind in scene.lane_graph:
            if kind == Relation.SUCCESSOR:
                assert np.linalg.norm(scene.polyline(one)[-1] - starts[other]) < 1.0


def test_the_same_seed_gives_the_same_scenes(tmp_path: Path) -> None:
    files = write_town(tmp_path, 200, 3)
    wanted = replace(WANTED, count=2, begin=60.0)
    both = [scenes_from_sumo(files.config, None, STEP, wanted, tmp_path / name, _silent()) for name in "ab"]
    assert [path.name for path in both[0]] == [path.name for path in both[1]]
    for one, other in zip(*both, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_a_record_gives_the_scenes_that_the_simulation_gave(
    cut: tuple[list[Scene], ET.Element, ET.Element], tmp_path: Path
) -> None:
    """But for lights, which it has not."""
    scenes, fcd, _ = cut
    ET.ElementTree(fcd).write(tmp_path / "fcd.xml")
    files = write_town(tmp_path, 300, 4)
    paths = scenes_from_record(tmp_path / "fcd.xml", files.net, WANTED, tmp_path / "scenes", _silent())
    found = [scene for path in paths for scene in read_scenes(path)]
    assert len(found) == len(scenes)
    for one, other in zip(found, scenes, strict=True):
        assert one.ids == other.ids
        np.testing.assert_allclose(one.tracks[:, :, :5], other.tracks[:, :, :5], atol=0.01)
        np.testing.assert_array_equal(one.points, other.points)
        assert set(one.lights.ravel()) <= {Light.UNKNOWN}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<fcd-export></fcd-export>", "fewer than two time steps"),
        ('<fcd-export><timestep time="0"/><timestep time="5"/></fcd-export>', "time steps of 5 s"),
        ('<fcd-export><timestep time="0"><vehicle id="a" x="1"/></timestep></fcd-export>', "timestep 0: KeyError"),
        ("<routes><trip/></routes>", "a <trip>; expected SUMO's floating-car data"),
    ],
    ids=["empty", "coarse", "bare", "other"],
)
def test_what_is_no_record_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "fcd.xml").write_text(text)
    files = write_town(tmp_path, 1, 1)
    with pytest.raises(InputError, match=said):
        scenes_from_record(tmp_path / "fcd.xml", files.net, WANTED, tmp_path / "out", _silent())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<configuration><input/></configuration>", "names no net-file"),
        ("<configuration>", "not well-formed XML"),
        (
            '<configuration><input><net-file value="gone.net.xml"/></input></configuration>',
            "gone.net.xml: no such file",
        ),
    ],
    ids=["no-net", "broken", "gone"],
)
def test_a_configuration_without_a_network_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.sumocfg").write_text(text)
    with pytest.raises(InputError, match=said):
        scenes_from_sumo(tmp_path / "a.sumocfg", None, STEP, WANTED, tmp_path / "out", _silent())


def test_empty_roads_make_no_scenes(tmp_path: Path) -> None:
    files = write_town(tmp_path, 1, 1)
    with pytest.raises(InputError, match="no junction with at least 4 agents"):
        scenes_from_sumo(files.config, None, STEP, replace(WANTED, begin=0.0), tmp_path / "out", _silent())


def test_a_bad_file_does_not_end_the_list_and_pictures_are_drawn(
    cut: tuple[list[Scene], ET.Element, ET.Element],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hostile = "../<script>alert(1)</script>[/b]"
    scene = replace(cut[0][0], name=hostile)
    save_scene(scene, tmp_path / f"good{SUFFIX}")
    (tmp_path / f"bad{SUFFIX}").write_bytes(b"PK\3\4 nothing")
    monkeypatch.chdir(tmp_path)

    def throng(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["throng", "scenes", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    code, out, _ = throng("check", ".")
    assert code == 1
    assert "1 scenes, 1 files could not be read" in out
    assert f"cannot be read: bad{SUFFIX}: not a scene" in out
    code, _, wrong = throng("show", f"good{SUFFIX}", "--out", "pictures")
    assert code == 0, wrong
    png, html = sorted((tmp_path / "pictures").iterdir(), key=lambda path: path.suffix, reverse=True)
    assert png.read_bytes().startswith(b"\x89PNG")
    page = html.read_text()
    assert hostile not in page
    data = json.loads(page.split("const scene = ")[1].split(";\n")[0].replace("<\\/", "</"))
    assert len(data["agents"]) == scene.agents
    assert data["agents"][0]["states"][0] is None or len(data["agents"][0]["states"][0]) == 6
    code, _, wrong = throng("show", f"good{SUFFIX}", "--step", "99")
    assert code == 2
    assert "has 30 steps" in wrong
    code, _, wrong = throng("from-sumo", "--out", "scenes", "--fcd", "fcd.xml")
    assert code == 2
    assert "--fcd FILE --net FILE" in wrong


def test_scenes_are_exported_by_name(
    cut: tuple[list[Scene], ET.Element, ET.Element],
    tmp_path: Path,
    throng_here: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    scene = cut[0][0]
    save_scene(scene, tmp_path / f"one{SUFFIX}")
    out = tmp_path / "out"

    def throng(*words: str) -> tuple[int, str, str]:
        return throng_here("scenes", "export", str(tmp_path / f"one{SUFFIX}"), *words), *capsys.readouterr()

    for to, suffix in (("scenarionet", ".sd.npz"), ("openscenario", ".xosc"), ("fcd", ".fcd.xml")):
        code, told, wrong = throng("--to", to, "--out", str(out))
        assert code == 0, wrong
        assert told.strip() == str(out / f"{scene.stem}{suffix}")
    (found,) = read_scenes(out / f"{scene.stem}.sd.npz")
    assert found.ids == scene.ids
    assert found.line_ids == scene.line_ids
    np.testing.assert_array_equal(found.lights, scene.lights)
    assert len(list(out.iterdir())) == 3, "nothing is left half written"
    code, _, wrong = throng("--to", "kml", "--out", str(out))
    assert code == 2 and "no format 'kml'" in wrong
    code, _, wrong = throng("--to", "fcd", "--out", str(out), "--scene", "1")
    assert code == 2 and "has no scene 1" in wrong
