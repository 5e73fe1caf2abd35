"""Edits change what they say and nothing else, SUMO obeys them, nobody is lost silently, and nonsense is refused."""

from __future__ import annotations

import gzip
import re
import subprocess
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import sumo
import sumolib
from throng.scenarios.demand import load_demand
from throng.scenarios.edited import apply_edits
from throng.scenarios.edits import Edits
from throng.scenarios.errors import InputError
from throng.scenarios.net_patch import patch
from throng.scenarios.network import RoadNetwork, load_network
from throng.scenarios.scenario import Scenario
from throng.scenarios.town import write_town

Run = Callable[..., subprocess.CompletedProcess[str]]
NETCONVERT = Path(sumo.SUMO_HOME) / "bin" / "netconvert"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("town")


@pytest.fixture(scope="module")
def town(folder: Path) -> Scenario:
    files = write_town(folder, vehicles=400, minutes=10)
    loaded = load_demand([files.trips], load_network(files.net), 0, 600)
    return Scenario("town", loaded.network, loaded.demand, minutes=10)


def changed_lines(before: Path, after: Path) -> list[tuple[str, str]]:
    old, new = before.read_text().splitlines(), after.read_text().splitlines()
    assert len(old) == len(new)
    return [(a.strip(), b.strip()) for a, b in zip(old, new, strict=True) if a != b]


def drive(run_sumo: Run, folder: Path, net: Path, route: str, vclass: str) -> str:
    """What SUMO says of one vehicle on a route; "" if it drives."""
    text = f'<vType id="t" vClass="{vclass}"/><vehicle id="v" type="t" depart="0"><route edges="{route}"/></vehicle>'
    (folder / "one.rou.xml").write_text(f"<routes>{text}</routes>")
    done = run_sumo(folder, "-n", str(net), "-r", "one.rou.xml", "--end", "200")
    assert (done.returncode == 0) == (not done.stderr.strip())
    return done.stderr


def test_closing_a_road_changes_its_lanes_alone_and_sumo_keeps_cars_off_it(
    town: Scenario, tmp_path: Path, run_sumo: Run
) -> None:
    edited = apply_edits(town, Edits.parse(close=["C1C2"]), tmp_path)
    net = edited.scenario.network
    lines = changed_lines(town.network.path, net.path)
    assert {re.search(r'id="(.*?)"', new)[1] for _, new in lines} == {"C1C2_0", "C1C2_1"}  # type: ignore[index]
    assert set(town.network.road_ids) - set(net.road_ids) == {"C1C2"}
    assert "C1C2" in net.closed_ids
    assert "No connection" in drive(run_sumo, tmp_path, net.path, "B1C1 C1C2", "passenger")
    assert drive(run_sumo, tmp_path, net.path, "B1C1 C1C2 C2C3", "bus") == ""
    assert drive(run_sumo, tmp_path, net.path, "B1C1 C1D1", "passenger") == ""


def test_a_banned_turn_is_closed_to_cars_and_stays_in_the_signal_programs(
    town: Scenario, tmp_path: Path, run_sumo: Run
) -> None:
    """C1 has a signal: its links keep their numbers, or the program would not fit them."""
    edited = apply_edits(town, Edits.parse(ban_turn=["B1C1:C1C2"]), tmp_path)
    net = edited.scenario.network
    lines = changed_lines(town.network.path, net.path)
    connection, across = sorted((new for _, new in lines), key=lambda line: line.startswith("<lane"))
    assert 'from="B1C1" to="C1C2"' in connection
    assert re.search(r'via="(.*?)"', connection)[1] == re.search(r'id="(.*?)"', across)[1]  # type: ignore[index]
    assert net.road_ids == town.network.road_ids
    index = net.index
    assert net.find_connections(index["B1C1"], index["C1C2"]) == -1
    assert net.connection_count == town.network.connection_count - 1
    assert "No connection" in drive(run_sumo, tmp_path, net.path, "B1C1 C1C2", "passenger")
    assert drive(run_sumo, tmp_path, net.path, "B1C1 C1C2", "bus") == ""
    assert drive(run_sumo, tmp_path, net.path, "D1C1 C1C2", "passenger") == ""


def test_no_left_onto_a_road_bans_the_turns_that_netconvert_calls_left(town: Scenario, tmp_path: Path) -> None:
    net = apply_edits(town, Edits.parse(ban_left_onto=["C3D3"]), tmp_path).scenario.network
    root = ElementTree.parse(town.network.path).getroot()
    onto = {c.get("from"): c.get("dir") for c in root.iter("connection") if c.get("to") == "C3D3" and c.get("tl")}
    left = {road for road, way in onto.items() if way == "l"}
    assert left and left != set(onto)
    there = {net.road_ids[a] for a, b in net.connections if net.road_ids[b] == "C3D3"}
    assert there & set(onto) == set(onto) - left


def test_one_way_closes_the_opposite_directions(town: Scenario, tmp_path: Path) -> None:
    net = apply_edits(town, Edits.parse(one_way=["B1C1, C1C2"]), tmp_path).scenario.network
    assert set(town.network.road_ids) - set(net.road_ids) == {"C1B1", "C2C1"}  # the town names roads by their ends


def test_of_two_ways_back_the_nearer_is_the_opposite(netconvert: Callable[..., Path], tmp_path: Path) -> None:
    """Between a and b: two roads there and back, one pair straight, one in a wide arc to the north."""
    nodes = '<nodes><node id="a" x="0" y="0"/><node id="b" x="300" y="0"/><node id="c" x="600" y="0"/></nodes>'
    bend = 'shape="0,0 150,200 300,0"'
    back = 'shape="300,0 150,200 0,0"'
    edges = "".join(
        f'<edge id="{name}" from="{u}" to="{v}" numLanes="1" speed="10" {shape}/>'
        for name, u, v, shape in [
            ("there", "a", "b", ""), ("back", "b", "a", ""), ("arc", "a", "b", bend), ("arc_back", "b", "a", back),
            ("on", "b", "c", ""), ("home", "c", "b", ""),
        ]
    )  # fmt: skip
    path = netconvert(nodes, f"<edges>{edges}</edges>")
    (tmp_path / "t.rou.xml").write_text('<routes><trip id="0" depart="0" from="there" to="on"/></routes>')
    loaded = load_demand([tmp_path / "t.rou.xml"], load_network(path), 0, 60)
    scenario = Scenario("arcs", loaded.network, loaded.demand, minutes=1)
    for keep, close in (("there", "back"), ("arc", "arc_back")):
        net = apply_edits(scenario, Edits.parse(one_way=[keep]), tmp_path / keep).scenario.network
        assert set(loaded.network.road_ids) - set(net.road_ids) == {close}


def test_a_speed_is_in_kilometres_per_hour_and_of_one_road(town: Scenario, tmp_path: Path) -> None:
    edited = apply_edits(town, Edits.parse(speed=["B2B3=30"]), tmp_path)
    changed_lines(town.network.path, edited.scenario.network.path)
    old, new = (sumolib.net.readNet(str(p)) for p in (town.network.path, edited.scenario.network.path))
    for edge in old.getEdges():
        expected = 8.33 if edge.getID() == "B2B3" else edge.getSpeed()
        assert new.getEdge(edge.getID()).getSpeed() == pytest.approx(expected, abs=0.005)


def test_lanes_for_buses_keep_their_rights_and_their_limits(block: RoadNetwork, tmp_path: Path) -> None:
    """The right lane of "bc" is for buses: a limit for cars is none of it, and closing the road leaves it."""
    (tmp_path / "t.rou.xml").write_text('<routes><trip id="0" depart="0" from="ab" to="cd"/></routes>')
    loaded = load_demand([tmp_path / "t.rou.xml"], block, 0, 60)
    scenario = Scenario("block", loaded.network, loaded.demand, minutes=1)
    slower = apply_edits(scenario, Edits.parse(speed=["bc=30"]), tmp_path / "s").scenario.network
    lanes = sumolib.net.readNet(str(slower.path)).getEdge("bc").getLanes()
    assert [round(lane.getSpeed(), 2) for lane in lanes] == [13.89, 8.33]
    closed = apply_edits(scenario, Edits.parse(close=["bc"]), tmp_path / "c").scenario.network
    lanes = sumolib.net.readNet(str(closed.path)).getEdge("bc").getLanes()
    assert [lane.allows("bus") for lane in lanes] == [True, True]
    assert [lane.allows("passenger") for lane in lanes] == [False, False]


def test_what_stands_in_comments_and_in_odd_spelling_is_read_right(town: Scenario, tmp_path: Path) -> None:
    """A network as another program may write it: quotes, order and white space of its own, gzipped."""
    text = town.network.path.read_text()
    text = text.replace('<edge id="C1C2" from=', "<!-- <edge id=\"E1E2\"> --><edge\n  id='C1C2' from=")
    path = tmp_path / "odd.net.xml.gz"
    path.write_bytes(gzip.compress(text.encode()))
    odd = replace(town, network=load_network(path))
    assert odd.network.hash == town.network.hash
    net = apply_edits(odd, Edits.parse(close=["C1C2"]), tmp_path).scenario.network
    plain = apply_edits(town, Edits.parse(close=["C1C2"]), tmp_path / "plain").scenario.network
    assert net.hash == plain.hash


def test_edits_combine(town: Scenario, tmp_path: Path) -> None:
    edits = Edits.parse(["D1C1:C1C0"], ["C3D3"], ["B1C1"], ["E2E3"], ["B2B3=30", "B3B4=40"], 1.5)
    edited = apply_edits(town, edits, tmp_path)
    net = edited.scenario.network
    assert set(town.network.road_ids) - set(net.road_ids) == {"C1B1", "E2E3"}
    assert net.find_connections(net.index["D1C1"], net.index["C1C0"]) == -1
    assert [round(3.6 * float(net.speed[net.index[road]])) for road in ("B2B3", "B3B4")] == [30, 40]
    assert len(edited.scenario.demand) == 600
    assert set(edited.marks) == {"D1C1", "C3D3", "B1C1", "C1B1", "E2E3", "B2B3", "B3B4"}
    assert [net.road_ids[row] for row in range(net.road_count)] == [
        town.network.road_ids[row] for row in edited.kept
    ]  # nothing new


def test_no_edit_changes_nothing(town: Scenario, tmp_path: Path) -> None:
    edited = apply_edits(town, Edits(), tmp_path)
    assert edited.scenario.network.hash == town.network.hash
    assert edited.scenario.demand.ids == town.demand.ids
    np.testing.assert_array_equal(edited.scenario.demand.origin, town.demand.origin)
    assert not edited.moved
    assert not list(tmp_path.iterdir())


def test_netconvert_would_change_more_than_the_edit(sumo_data: Path, tmp_path: Path) -> None:
    """Why files are patched: cologne8, read and written by netconvert, has other lengths."""
    path, again = sumo_data / "RESCO/cologne8/cologne8.net.xml", tmp_path / "again.net.xml"
    subprocess.run([str(NETCONVERT), "-s", str(path), "-o", str(again)], check=True, capture_output=True)
    old, new = load_network(path), load_network(again)
    assert old.road_ids == new.road_ids
    assert np.abs(old.length - new.length).max() > 10
    patched = patch(path.read_text(), [], [], {old.road_ids[0]: 5.0}, ["passenger"])
    (tmp_path / "patched.net.xml").write_text(patched)
    np.testing.assert_array_equal(load_network(tmp_path / "patched.net.xml").length, old.length)


# ---- demand -----------------------------------------------------------------------------------------------------------


def test_more_demand_is_copies_that_depart_within_a_minute(town: Scenario, tmp_path: Path) -> None:
    edited = apply_edits(town, Edits.parse(demand_scale=2.25), tmp_path, seed=4)
    demand, old = edited.scenario.demand, town.demand
    assert len(demand) == 900 == len(set(demand.ids))
    times = np.bincount(edited.source, minlength=400)
    assert set(times.tolist()) == {2, 3} and (times == 3).sum() == 100
    np.testing.assert_array_equal(demand.origin, old.origin[edited.source])
    np.testing.assert_array_equal(demand.destination, old.destination[edited.source])
    apart = demand.depart - old.depart[edited.source]
    assert np.abs(apart).max() <= 60 and np.abs(apart).max() > 30
    assert demand.depart.min() >= 0 and demand.depart.max() < 600
    assert (np.diff(demand.depart) >= 0).all()
    assert set(old.ids) < set(demand.ids)
    again = apply_edits(town, Edits.parse(demand_scale=2.25), tmp_path, seed=4).scenario.demand
    other = apply_edits(town, Edits.parse(demand_scale=2.25), tmp_path, seed=5).scenario.demand
    assert again.ids == demand.ids
    assert other.ids != demand.ids


def test_less_demand_is_some_of_the_vehicles(town: Scenario, tmp_path: Path) -> None:
    edited = apply_edits(town, Edits.parse(demand_scale=0.25), tmp_path)
    demand = edited.scenario.demand
    assert len(demand) == 100
    assert [town.demand.ids[row] for row in edited.source] == list(demand.ids)
    np.testing.assert_array_equal(demand.depart, town.demand.depart[edited.source])


def reachable(network: RoadNetwork, start: str, back: bool = False) -> set[str]:
    """By a breadth-first search over road ids, on our own."""
    ways: dict[str, list[str]] = {}
    for (a, b), allowed in zip(network.connections, network.allowed, strict=True):
        if allowed:
            u, v = network.road_ids[a], network.road_ids[b]
            ways.setdefault(v if back else u, []).append(u if back else v)
    seen, queue = {start}, deque([start])
    while queue:
        for road in ways.get(queue.popleft(), []):
            if road not in seen:
                seen.add(road)
                queue.append(road)
    return seen


def middle(network: RoadNetwork, road: str) -> np.ndarray:
    row = network.index[road]
    return (network.start_xy[row].astype(float) + network.end_xy[row]) / 2


def test_who_loses_an_end_goes_to_the_nearest_road_with_a_way(town: Scenario, tmp_path: Path) -> None:
    """The exit to the east of row 3 and the way in from the south of column B are closed."""
    edited = apply_edits(town, Edits.parse(close=["E3e3", "s1B0"]), tmp_path)
    net, old = edited.scenario.network, town.network
    ids = np.array(old.road_ids)
    origins, destinations = ids[town.demand.origin], ids[town.demand.destination]
    lost = {i for i in range(400) if origins[i] == "s1B0" or destinations[i] == "E3e3"}
    assert {one.vehicle for one in edited.moved} == {town.demand.ids[i] for i in lost}
    assert len(lost) > 5
    for one in edited.moved:
        if one.origin[0] == one.origin[1]:
            choices = reachable(net, one.origin[0]) - {one.origin[0]}
            gone, there = one.destination
        elif one.destination[0] == one.destination[1]:
            choices = reachable(net, one.destination[0], back=True) - {one.destination[0]}
            gone, there = one.origin
        else:
            continue  # both
        apart = {road: float(np.linalg.norm(middle(net, road) - middle(old, gone))) for road in choices}
        assert apart[there] == pytest.approx(min(apart.values()))
        assert one.metres == pytest.approx(apart[there], rel=1e-5)
    rows = {name: i for i, name in enumerate(edited.scenario.demand.ids)}
    for one in edited.moved:
        row = rows[one.vehicle]
        assert net.road_ids[edited.scenario.demand.destination[row]] == one.destination[1]
        assert one.destination[1] in reachable(net, one.origin[1])


def test_who_loses_the_way_but_not_the_road_is_moved_too(town: Scenario, tmp_path: Path) -> None:
    """The exit e3 stays open but nobody may turn into it: its trips end on the nearest road instead."""
    turns = ["D3E3:E3e3", "E2E3:E3e3", "E4E3:E3e3"]
    edited = apply_edits(town, Edits.parse(ban_turn=turns), tmp_path)
    assert edited.moved
    for one in edited.moved:
        assert (one.destination[0], one.why) == ("E3e3", "destination without a way")
        assert one.destination[1] in reachable(edited.scenario.network, one.origin[1])


def test_positions_in_numbers_do_not_follow_to_another_road(town: Scenario, tmp_path: Path) -> None:
    demand = replace(town.demand, attributes=('type="car" departLane="1" departPos="180.5" arrivalPos="max"',) * 400)
    edited = apply_edits(replace(town, demand=demand), Edits.parse(close=["E3e3"]), tmp_path)
    moved = {one.vehicle for one in edited.moved}
    for name, attributes in zip(edited.scenario.demand.ids, edited.scenario.demand.attributes, strict=True):
        assert ("departPos" in attributes) == (name not in moved)
        assert 'type="car"' in attributes and 'arrivalPos="max"' in attributes


def test_uturns_that_trips_needed_stay_allowed(block: RoadNetwork, tmp_path: Path) -> None:
    """From c into the dead end x and out again: the U-turn at x has to survive an edit elsewhere."""
    (tmp_path / "t.rou.xml").write_text('<routes><trip id="0" depart="0" from="cx" to="xc"/></routes>')
    loaded = load_demand([tmp_path / "t.rou.xml"], block, 0, 60)
    scenario = Scenario("block", loaded.network, loaded.demand, minutes=1)
    edited = apply_edits(scenario, Edits.parse(speed=["be=20"]), tmp_path)
    assert not edited.moved
    assert "xc" in reachable(edited.scenario.network, "cx")


# ---- another network file ---------------------------------------------------------------------------------------------


def converted(town: Scenario, tmp_path: Path, *options: str) -> Path:
    out = tmp_path / "other.net.xml"
    command = [str(NETCONVERT), "-s", str(town.network.path), "-o", str(out), *options]
    subprocess.run(command, check=True, capture_output=True)
    return out


def test_an_edited_network_file_takes_the_place_of_the_old(town: Scenario, tmp_path: Path) -> None:
    other = converted(town, tmp_path, "--remove-edges.explicit", "C1C2,E3e3")
    edited = apply_edits(town, Edits.parse(close=["B1B2"], net=other), tmp_path / "out")
    net = edited.scenario.network
    assert set(town.network.road_ids) - set(net.road_ids) == {"C1C2", "E3e3", "B1B2"}
    assert edited.marks == {"C1C2": "removed", "E3e3": "removed", "B1B2": "closed"}
    assert any(one.destination[0] == "E3e3" for one in edited.moved)


def test_a_network_of_elsewhere_is_refused(
    town: Scenario, block: RoadNetwork, block_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"has 0 of the 114 roads.*keeps the ids"):
        apply_edits(town, Edits.parse(net=block_path), tmp_path)
    shifted = converted(town, tmp_path, "--offset.x", "400")
    with pytest.raises(InputError, match=r"its roads lie 400 m from where.*offset"):
        apply_edits(town, Edits.parse(net=shifted), tmp_path)
    with pytest.raises(InputError, match=r"none\.net\.xml: no such file"):
        apply_edits(town, Edits.parse(net=tmp_path / "none.net.xml"), tmp_path)


# ---- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"close": ["C1C9"]}, r"--close C1C9: no such road in .*town\.net\.xml; did you mean"),
        ({"ban_turn": ["B1C1:C2C3"]}, r"no turn leads from B1C1 to C2C3; B1C1 leads to .*C1C2"),
        ({"ban_turn": ["B1C1:nowhere"]}, r"--ban-turn nowhere: no such road"),
        ({"ban_turn": ["B1C1"]}, r"expected FROM:TO"),
        ({"ban_left_onto": ["w3A3"]}, r"no left turn leads onto it"),
        ({"one_way": ["B1C1,C1B1"]}, r"two directions of one street"),
        ({"one_way": ["B1C1"], "close": ["B1C1"]}, r"keeps the road that --close B1C1 closes"),
        ({"close": ["B1C1"], "speed": ["B1C1=30"]}, r"that --close B1C1 closes"),
        ({"one_way": ["B1C1"], "speed": ["C1B1=30"]}, r"that --one-way B1C1 closes"),
        ({"speed": ["B1C1=30", "B1C1=50"]}, r"is given 30 and 50 km/h"),
        ({"speed": ["B1C1=8.33m/s"]}, r"expected ROAD=KM/H"),
        ({"speed": ["B1C1=500"]}, r"500 km/h is no speed limit; expected 5 to 150"),
        ({"speed": ["B1C1=nan"]}, r"expected ROAD=KM/H"),
        ({"speed": ["B9C9=30"]}, r"--speed B9C9: no such road"),
        ({"demand_scale": 0.0}, r"--demand-scale 0: expected a factor from 0\.1 to 5"),
        ({"demand_scale": float("nan")}, r"--demand-scale nan"),
        ({"one_way": [" , "]}, r"--one-way: expected road ids"),
    ],
)
def test_nonsense_is_refused_with_the_reason(town: Scenario, tmp_path: Path, given: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        apply_edits(town, Edits.parse(**given), tmp_path)
    assert not list(tmp_path.iterdir())


def test_edits_that_cut_the_town_in_two_are_refused(town: Scenario, tmp_path: Path) -> None:
    """C and D are joined by rows 0, 1, 3 and 4: without these streets nobody gets from west to east."""
    bridges = [f"{a}{r}{b}{r}" for r in (0, 1, 3, 4) for a, b in ("CD", "DC")]
    with pytest.raises(InputError, match=r"disconnect the network: \d+ of 400 vehicles have no way"):
        apply_edits(town, Edits.parse(close=bridges), tmp_path)
    apply_edits(town, Edits.parse(close=bridges[2:]), tmp_path)  # one bridge is enough


def test_one_way_without_a_way_back_is_refused(netconvert: Callable[..., Path], tmp_path: Path) -> None:
    nodes = '<nodes><node id="a" x="0" y="0"/><node id="b" x="300" y="0"/><node id="c" x="600" y="0"/></nodes>'
    edges = '<edge id="ab" from="a" to="b"/><edge id="bc" from="b" to="c"/>'
    edges += '<edge id="foot" from="c" to="b" allow="pedestrian"/>'
    path = netconvert(nodes, f"<edges>{edges}</edges>")
    (tmp_path / "t.rou.xml").write_text('<routes><trip id="0" depart="0" from="ab" to="bc"/></routes>')
    loaded = load_demand([tmp_path / "t.rou.xml"], load_network(path), 0, 60)
    scenario = Scenario("line", loaded.network, loaded.demand, minutes=1)
    with pytest.raises(InputError, match="one-way already"):
        apply_edits(scenario, Edits.parse(one_way=["bc"]), tmp_path)
    with pytest.raises(InputError, match="closed to passenger already"):
        apply_edits(scenario, Edits.parse(close=["foot"]), tmp_path)


def test_background_cars_whose_way_is_closed_are_named_and_buses_drive_on(town: Scenario, tmp_path: Path) -> None:
    def with_other(vclass: str) -> Scenario:
        text = (
            f'<routes><vType id="other" vClass="{vclass}"/><vType id="car" vClass="passenger"/>'
            '<trip id="learnt" type="car" depart="1" from="w1A1" to="E1e1"/>'
            '<vehicle id="keeps" type="other" depart="0"><route edges="B1C1 C1C2 C2C3"/>'
            '<stop lane="C1C2_0" endPos="50" duration="10"/></vehicle></routes>'
        )
        (tmp_path / "mixed.rou.xml").write_text(text)
        loaded = load_demand([tmp_path / "mixed.rou.xml"], load_network(town.network.path), 0, 600)
        return Scenario("mixed", loaded.network, loaded.demand, minutes=10)

    for edits in (Edits.parse(close=["C1C2"]), Edits.parse(ban_turn=["B1C1:C1C2"])):
        with pytest.raises(InputError, match=r"1 vehicles that are not learnt.*'keeps'"):
            apply_edits(with_other("passenger"), edits, tmp_path)
        notes = apply_edits(with_other("bus"), edits, tmp_path).notes
        assert "1 background vehicles" in notes[0]
    apply_edits(with_other("passenger"), Edits.parse(close=["C3C4"]), tmp_path)
    other = converted(town, tmp_path, "--remove-edges.explicit", "C1C2")
    with pytest.raises(InputError, match=r"'keeps'"):  # no class can drive where there is no road
        apply_edits(with_other("bus"), Edits.parse(net=other), tmp_path)


def test_a_folder_is_named_after_the_edits() -> None:
    assert Edits.parse(close=["C1C2"], speed=["B1C1=30"]).name() == "close-C1C2_speed-B1C1-30"
    odd = Edits.parse(ban_turn=["5[1]/:a b"]).name()
    assert re.fullmatch(r"[\w.+-]+", odd)
    assert odd != Edits.parse(ban_turn=["5(1)/:a b"]).name()
    assert len(Edits.parse(close=[f"road{i}" for i in range(99)]).name()) <= 80
