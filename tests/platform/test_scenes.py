"""`throng scenes`: scenes cut out of a SUMO simulation are what SUMO itself says, and a bad file does not end a list."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import shapely
import sumo
from rich.console import Console
from throng.platform.progress import Progress
from throng.platform.scenes import SMOOTH, Wanted, scenes_from_sumo
from throng.scenarios.driving.files import read_scenes
from throng.scenarios.driving.moments import LIGHTS, Cut
from throng.scenarios.driving.scene import Line, Relation, Scene
from throng.scenarios.errors import InputError
from throng.scenarios.town import write_town

SUMO = Path(sumo.SUMO_HOME) / "bin" / "sumo"
SEED, BEGIN, STEP = 3, 120.0, 0.2
CUT = Cut(steps=30, history=15, pause=40)


def _silent() -> Progress:
    return Progress(Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Scene], ET.Element, ET.Element]:
    """Six scenes of the town, and the plain binary's record of the same simulation: positions, and traffic lights."""
    folder = tmp_path_factory.mktemp("town")
    files = write_town(folder, 300, 4)
    wanted = Wanted(6, STEP, BEGIN, SEED, CUT)
    paths = scenes_from_sumo(files.config, None, folder / "scenes", wanted, _silent())
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
        assert np.quantile(shapely.distance(lanes, places), 0.9) < 0.5
        starts = {line: scene.polyline(line)[0] for line in scene.of_kind(Line.LANE)}
        for one, other, kind in scene.lane_graph:
            if kind == Relation.SUCCESSOR:
                assert np.linalg.norm(scene.polyline(one)[-1] - starts[other]) < 1.0


def test_the_same_seed_gives_the_same_scenes(tmp_path: Path) -> None:
    files = write_town(tmp_path, 200, 3)
    wanted = Wanted(2, STEP, 60.0, SEED, CUT)
    both = [scenes_from_sumo(files.config, None, tmp_path / name, wanted, _silent()) for name in "ab"]
    assert [path.name for path in both[0]] == [path.name for path in both[1]]
    for one, other in zip(*both, strict=True):
        assert one.read_bytes() == other.read_bytes()


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
        scenes_from_sumo(tmp_path / "a.sumocfg", None, tmp_path / "out", Wanted(1, STEP, 0.0, 0, CUT), _silent())


def test_empty_roads_make_no_scenes(tmp_path: Path) -> None:
    files = write_town(tmp_path, 1, 1)
    with pytest.raises(InputError, match="no junction with at least 4 agents"):
        scenes_from_sumo(files.config, None, tmp_path / "out", Wanted(1, STEP, 0.0, 0, CUT), _silent())


def test_a_bad_file_does_not_end_the_list_and_pictures_are_drawn(
    cut: tuple[list[Scene], ET.Element, ET.Element], tmp_path: Path
) -> None:
    from throng.scenarios.driving.scene import SUFFIX, save_scene

    hostile = "../<script>alert(1)</script>"
    scene = type(cut[0][0])(**(vars(cut[0][0]) | {"name": hostile}))
    save_scene(scene, tmp_path / f"good{SUFFIX}")
    (tmp_path / f"bad{SUFFIX}").write_bytes(b"PK\3\4 nothing")

    def throng(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-W", "ignore", "-m", "throng.platform.cli", "scenes", *words]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)

    listed = throng("check", ".")
    assert listed.returncode == 1
    assert "1 scenes, 1 files could not be read" in listed.stdout
    assert f"cannot be read: bad{SUFFIX}: not a scene" in listed.stdout
    drawn = throng("show", f"good{SUFFIX}", "--out", "pictures")
    assert drawn.returncode == 0, drawn.stderr
    png, html = sorted((tmp_path / "pictures").iterdir(), key=lambda path: path.suffix, reverse=True)
    assert png.read_bytes().startswith(b"\x89PNG")
    page = html.read_text()
    assert hostile not in page
    data = json.loads(page.split("const scene = ")[1].split(";\n")[0].replace("<\\/", "</"))
    assert len(data["agents"]) == scene.agents
    assert data["agents"][0]["states"][0] is None or len(data["agents"][0]["states"][0]) == 6
    late = throng("show", f"good{SUFFIX}", "--step", "99")
    assert late.returncode == 2
    assert "has 30 steps" in late.stderr
