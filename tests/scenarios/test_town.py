"""The built-in town is what the documentation says it is, and SUMO drives it as it stands."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from collections import Counter, deque
from pathlib import Path

import pytest
import sumo
from throng.scenarios.errors import InputError
from throng.scenarios.town import Town, write_town

BIN = Path(sumo.SUMO_HOME) / "bin"


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Town:
    return write_town(tmp_path_factory.mktemp("town"))


def _roads(town: Town) -> list[ET.Element]:
    return [edge for edge in ET.parse(town.net).getroot().iter("edge") if edge.get("function") != "internal"]


def _trips(town: Town) -> list[ET.Element]:
    return list(ET.parse(town.trips).getroot().iter("trip"))


def _between_roads(town: Town) -> dict[tuple[str, str], str]:
    """Direction of every connection of two roads, by their ids."""
    roads = {road.get("id") for road in _roads(town)}
    links = ET.parse(town.net).getroot().iter("connection")
    return {(c.get("from", ""), c.get("to", "")): c.get("dir", "") for c in links if c.get("from") in roads}


def _sumo(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "sumo"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_town_has_the_size_of_the_study(town: Town) -> None:
    """A wrong count would make every comparison with the paper's table one of different problems."""
    roads = _roads(town)
    ends = {road.get("from") for road in roads} | {road.get("to") for road in roads}
    junctions = [j for j in ET.parse(town.net).getroot().iter("junction") if j.get("type") != "internal"]
    assert len(roads) == 114
    assert len(ends) == len(junctions) == 45
    assert {junction.get("id") for junction in junctions} == ends
    turns = Counter(direction == "t" for direction in _between_roads(town).values())
    assert turns == {False: 264, True: 20}, "U-turns only at the 20 dead ends"


def test_half_of_the_inner_junctions_have_signals_of_one_cycle(town: Town) -> None:
    """Without both kinds a taste for signals could not be learnt; netconvert may drop a signal in silence."""
    root = ET.parse(town.net).getroot()
    entered = Counter(road.get("to") for road in _roads(town))
    kinds = Counter(j.get("type") for j in root.iter("junction") if entered[j.get("id")] > 1)
    assert kinds == {"traffic_light": 13, "priority": 12}
    for program in root.iter("tlLogic"):
        assert program.get("type") == "static"
        assert sum(float(phase.get("duration", 0)) for phase in program.iter("phase")) == 80.0


def test_roads_differ_in_length_width_and_speed_independently(town: Town) -> None:
    """Collinear features would leave preferences unidentifiable whatever the search does."""
    lanes = [road.findall("lane") for road in _roads(town)]
    lengths = [float(lane[0].get("length", 0)) for lane in lanes]
    assert 140 < min(lengths) < max(lengths) < 310
    kinds = Counter((len(lane), float(lane[0].get("speed", 0))) for lane in lanes)
    for width in (1, 2):
        assert {speed for (n, speed) in kinds if n == width} >= {8.33, 11.11, 16.67}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_the_same_streets(town: Town, tmp_path: Path) -> None:
    """A date or a path of this machine in the files would make equal runs look different."""
    again, other = write_town(tmp_path / "again"), write_town(tmp_path / "other", seed=1)
    for ours, theirs in ((town.net, again.net), (town.trips, again.trips), (town.config, again.config)):
        assert ours.read_bytes() == theirs.read_bytes()
    assert other.net.read_bytes() == town.net.read_bytes()
    assert other.trips.read_bytes() != town.trips.read_bytes()
    assert b"<!--" not in town.net.read_bytes()
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == [
        "town.net.xml",
        "town.rou.xml",
        "town.sumocfg",
    ]


@pytest.mark.parametrize(
    ("vehicles", "minutes", "horizon"),
    [(1557, None, 30), (2758, None, 60), (4423, None, 90), (100, None, 30), (1557, 45, 45), (1, 1, 1)],
)
def test_every_vehicle_departs_within_the_horizon(
    tmp_path: Path, vehicles: int, minutes: int | None, horizon: int
) -> None:
    """A departure beyond the end would be a vehicle that the observed series cannot know."""
    town = write_town(tmp_path, vehicles=vehicles, minutes=minutes)
    trips = _trips(town)
    departs = [int(trip.get("depart", -1)) for trip in trips]
    assert town.minutes == horizon
    assert len({trip.get("id") for trip in trips}) == len(trips) == vehicles
    assert departs == sorted(departs), "SUMO drops what is not sorted"
    assert departs[0] >= 0
    assert departs[-1] < 60 * horizon
    end = ET.parse(town.config).getroot().find("time/end")
    assert end is not None
    assert end.get("value") == str(60 * horizon)


def test_departures_have_one_mild_peak(town: Town) -> None:
    """Expected by the density: 1/3 + 0.35 * sqrt(3) / (2 pi) = 43 % of the vehicles in the middle third."""
    departs = [int(trip.get("depart", 0)) for trip in _trips(town)]
    middle = sum(600 <= depart < 1200 for depart in departs) / len(departs)
    assert middle == pytest.approx(0.430, abs=0.04)


def test_trips_are_varied_and_none_is_trivial(town: Town) -> None:
    """Breadth-first search over the written network, not over the plan: at least four roads on any route."""
    trips = _trips(town)
    assert all(
        set(trip.attrib) == {"id", "type", "depart", "from", "to", "departLane", "departSpeed"} for trip in trips
    )
    assert len({trip.get("from") for trip in trips}) >= 60
    assert len({trip.get("to") for trip in trips}) >= 60
    follow: dict[str, list[str]] = {}
    for (a, b), direction in _between_roads(town).items():
        if direction != "t":
            follow.setdefault(a, []).append(b)
    for origin in {trip.get("from", "") for trip in trips}:
        steps, queue = {origin: 1}, deque([origin])
        while queue:
            road = queue.popleft()
            for after in follow.get(road, []):
                if after not in steps:
                    steps[after] = steps[road] + 1
                    queue.append(after)
        assert all(steps[trip.get("to", "")] >= 4 for trip in trips if trip.get("from") == origin)


def test_duarouter_finds_a_route_for_every_trip(town: Town, tmp_path: Path) -> None:
    """A trip that cannot be driven ends a plain sumo run with an error."""
    command = [
        str(BIN / "duarouter"),
        "-n",
        str(town.net),
        "-r",
        str(town.trips),
        "-o",
        str(tmp_path / "routes.xml"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    assert "Warning" not in done.stderr
    assert len(list(ET.parse(tmp_path / "routes.xml").getroot().iter("vehicle"))) == 1557


def test_plain_sumo_runs_the_configuration_from_anywhere(town: Town, tmp_path: Path) -> None:
    done = _sumo("-c", town.config, "--end", "60", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_town_is_loaded_but_not_gridlocked(town: Town, tmp_path: Path) -> None:
    """In free flow there is nothing to learn, in gridlock nothing to learn from (emergence.md, item 11)."""
    out = tmp_path / "statistics.xml"
    done = _sumo("-c", town.config, "--statistic-output", out, "--duration-log.statistics", "true")
    assert done.returncode == 0, done.stderr
    root = ET.parse(out).getroot()
    vehicles, teleports, trips = (
        root.find("vehicles"),
        root.find("teleports"),
        root.find("vehicleTripStatistics"),
    )
    assert vehicles is not None and teleports is not None and trips is not None
    assert int(teleports.get("total", -1)) < 5
    assert int(vehicles.get("inserted", 0)) > 0.95 * 1557
    assert int(vehicles.get("running", 1557)) < 0.25 * 1557
    assert 0.2 < float(trips.get("timeLoss", 0)) / float(trips.get("duration", 1)) < 0.6


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"vehicles": 0}, "vehicles=0"),
        ({"vehicles": 10.5}, "vehicles=10.5"),
        ({"vehicles": True}, "vehicles=True"),
        ({"minutes": 0}, "minutes=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_numbers_that_make_no_town_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, int], name: str
) -> None:
    with pytest.raises(InputError, match=name):
        write_town(tmp_path / "town", **arguments)
    assert not (tmp_path / "town").exists()
