"""The network as arrays agrees with the network file, read here with nothing but an XML parser."""

from __future__ import annotations

import gzip
import itertools
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from throng.scenarios.errors import InputError
from throng.scenarios.network import TURNS, RoadNetwork, load_network, reachable_from


def _permits(lane: ElementTree.Element, vclass: str) -> bool:
    if "allow" in lane.attrib:
        return vclass in lane.attrib["allow"].split()
    return vclass not in lane.get("disallow", "").split()


@pytest.fixture(scope="module")
def lanes(block_path: Path) -> dict[str, list[ElementTree.Element]]:
    """Road id -> the lanes cars may use, straight from the file."""
    root = ElementTree.parse(block_path).getroot()
    usable = {
        edge.attrib["id"]: [lane for lane in edge.iterfind("lane") if _permits(lane, "passenger")]
        for edge in root.iterfind("edge")
        if edge.get("function", "normal") == "normal"
    }
    return {road: found for road, found in usable.items() if found}


@pytest.fixture(scope="module")
def joints(block_path: Path, lanes: dict[str, list[ElementTree.Element]]) -> dict[tuple[str, str], str]:
    """(from, to) -> direction, straight from the file."""
    allowed = {lane.attrib["id"] for found in lanes.values() for lane in found}
    return {
        (joint.attrib["from"], joint.attrib["to"]): joint.attrib["dir"]
        for joint in ElementTree.parse(block_path).getroot().iterfind("connection")
        if {f"{joint.attrib[end]}_{joint.attrib[end + 'Lane']}" for end in ("from", "to")} <= allowed
    }


def test_roads_are_what_cars_may_use(block: RoadNetwork, lanes: dict[str, list[ElementTree.Element]]) -> None:
    assert block.road_ids == tuple(sorted(lanes))
    assert "bf" not in block.road_ids
    assert block.closed_ids == {"bf"}
    for row, road in enumerate(block.road_ids):
        assert block.lane_ids[row] == tuple(lane.attrib["id"] for lane in lanes[road])
        assert block.lanes[row] == len(lanes[road])
        assert block.length[row] == pytest.approx(float(lanes[road][0].attrib["length"]))
        assert block.speed[row] == pytest.approx(max(float(lane.attrib["speed"]) for lane in lanes[road]))
    assert block.lane_ids[block.index["bc"]] == ("bc_1",)  # lane 0 is for buses


def test_connections_are_sorted_pairs_with_sumos_turns(block: RoadNetwork, joints: dict[tuple[str, str], str]) -> None:
    pairs = [(block.road_ids[a], block.road_ids[b]) for a, b in block.connections]
    assert pairs == sorted(joints)
    names = {
        "s": "straight",
        "l": "left",
        "r": "right",
        "t": "uturn",
        "L": "slight_left",
        "R": "slight_right",
    }
    assert [TURNS[turn] for turn in block.turn] == [names[joints[pair]] for pair in pairs]
    assert block.allowed.tolist() == [joints[pair] != "t" for pair in pairs]
    for row, road in enumerate(block.road_ids):
        mine = [block.index[b] for a, b in sorted(joints) if a == road]
        assert block.connections[block.first[row] : block.first[row + 1], 1].tolist() == mine
        ways = [block.index[b] for a, b in sorted(joints) if a == road and joints[a, b] != "t"]
        assert block.successors(row).tolist() == ways
        assert block.choice_roads()[row] == (len(ways) > 1)


def test_geometry_signals_and_counts(block: RoadNetwork, block_path: Path) -> None:
    row = block.index["ab"]
    start, end = block.start_xy[row], block.end_xy[row]
    assert start[0] < 5 < 150 < end[0] < 200 and start[1] == end[1]  # due east
    assert np.array_equal(block.shapes[row][[0, -1]], [start, end])
    assert {block.road_ids[road] for road in np.flatnonzero(block.signal)} == {"ab", "cb", "eb"}
    assert block.priority[block.index["cx"]] == -1
    text = block_path.read_text()
    assert block.junction_count == text.count("<junction id=") - text.count('<junction id=":') == 7
    assert block.signal_count == 1


def test_another_class_sees_other_roads(block_path: Path, block: RoadNetwork) -> None:
    bus = load_network(block_path, "bus")
    assert set(bus.road_ids) - set(block.road_ids) == {"bf"}
    assert bus.lanes[bus.index["bc"]] == 2
    assert bus.hash != block.hash


def test_hash_names_what_can_be_driven(block: RoadNetwork, block_path: Path, tmp_path: Path) -> None:
    packed = tmp_path / "net.net.xml.gz"
    with block_path.open("rb") as source, gzip.open(packed, "wb") as target:
        shutil.copyfileobj(source, target)
    assert load_network(packed).hash == block.hash
    closed = block.allowed.copy()
    closed[np.flatnonzero(closed)[0]] = False
    assert block.with_allowed(closed).hash != block.hash
    assert block.with_allowed(block.allowed).hash == block.hash
    assert pickle.loads(pickle.dumps(block)).hash == block.hash
    with pytest.raises(ValueError, match="shape"):
        block.with_allowed([True])


def test_reachability_is_the_closure_of_allowed_connections(block: RoadNetwork) -> None:
    reach = np.eye(block.road_count, dtype=bool)
    for a, b in block.connections[block.allowed]:
        reach[a, b] = True
    for k in range(block.road_count):  # Warshall
        reach |= reach[:, [k]] & reach[[k]]
    assert np.array_equal(reachable_from(block, range(block.road_count)), reach)
    assert not reach[block.index["cx"], block.index["xc"]]  # only a U-turn leads out of the dead end
    assert reachable_from(block, []).shape == (0, block.road_count)


def test_find_connections(block: RoadNetwork) -> None:
    rows = {tuple(pair): row for row, pair in enumerate(block.connections.tolist())}
    pairs = list(itertools.product(range(block.road_count), repeat=2))
    found = block.find_connections(*np.array(pairs).T)
    assert found.tolist() == [rows.get(pair, -1) for pair in pairs]


def test_graph_costs_what_the_next_road_costs(block: RoadNetwork) -> None:
    dense = block.graph(block.length).toarray()
    expected = np.zeros_like(dense)
    for a, b in block.connections[block.allowed]:
        expected[a, b] = block.length[b]
    assert np.array_equal(dense, expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ('<net version="1.9"><edge', "line 1: not well-formed"),
        ("this is not XML", "not well-formed"),
        ("<routes><vehicle/></routes>", "no road in it"),
        ("<net><edge/></net>", "not a SUMO network that sumolib understands"),
        ('<net><edge id="a" from="x"><lane/></edge></net>', "not a SUMO network that sumolib understands"),
    ],
)
def test_what_is_not_a_network_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "wrong.net.xml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load_network(path)
    assert str(path) in str(caught.value)


def test_truncated_gzip_is_refused(block_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.net.xml.gz"
    path.write_bytes(gzip.compress(block_path.read_bytes())[:-500])
    with pytest.raises(InputError, match="cannot be read"):
        load_network(path)


def test_classes_without_roads_are_refused(block_path: Path, netconvert: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="knows no vehicle class 'pasenger'"):
        load_network(block_path, "pasenger")
    footpath = netconvert(
        '<nodes><node id="a" x="0" y="0"/><node id="b" x="99" y="0"/></nodes>',
        '<edges><edge id="ab" from="a" to="b" allow="pedestrian"/></edges>',
    )
    with pytest.raises(InputError, match="none of its 1 roads allows vehicle class 'passenger'"):
        load_network(footpath)


@pytest.mark.parametrize(
    ("path", "roads", "junctions", "signals"),
    [  # ../shared/data/README.md
        ("RESCO/cologne1/cologne1.net.xml", 10, 9, 1),
        ("RESCO/cologne3/cologne3.net.xml", 48, 29, 3),
        ("RESCO/cologne8/cologne8.net.xml", 149, 78, 8),
        ("DLR-TS/bologna/acosta/acosta_buslanes.net.xml", 164, 112, 16),
        ("DLR-TS/bologna/pasubio/pasubio_buslanes.net.xml", 100, 65, 15),
        ("DLR-TS/bologna/joined/joined_buslanes.net.xml", 243, 158, 29),
        ("DLR-TS/Wildau/net.net.xml.gz", 674, 646, 3),
        ("LibSignal/atlanta_1x5/atlanta_1x5.net.xml", 32, 17, 5),
        ("LibSignal/manhattan_28x7/derived/manhattan_28x7.net.xml.gz", 854, 266, 196),
        ("LibSignal/pb_nanchang/derived/nanchang.net.xml.gz", 6024, 2048, 859),
    ],
)
def test_real_networks_have_their_published_size(
    sumo_data: Path, path: str, roads: int, junctions: int, signals: int
) -> None:
    network = load_network(sumo_data / path)
    assert (network.road_count, network.junction_count, network.signal_count) == (roads, junctions, signals)
