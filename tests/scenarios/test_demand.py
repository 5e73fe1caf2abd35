"""Who is learnt, who is background, and what is refused; flows and files are checked against SUMO itself."""

from __future__ import annotations

import gzip
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from throng.scenarios.demand import LoadedDemand, Routes, load_demand
from throng.scenarios.errors import InputError
from throng.scenarios.network import UTURN, RoadNetwork, load_network

Run = Callable[..., subprocess.CompletedProcess[str]]
Load = Callable[..., LoadedDemand]

TYPES = """<vType id="car" vClass="passenger"/><vType id="bus" vClass="bus"/>
<vType id="rude" vClass="ignoring"/><vType id="plain"/>"""


@pytest.fixture
def load(block: RoadNetwork, tmp_path: Path) -> Load:
    """(XML of the elements, **options) -> the demand loaded from a file `d.rou.xml` with TYPES in it."""

    def call(text: str, begin: float = 0, end: float = 3600, **options: Any) -> LoadedDemand:
        path = tmp_path / "d.rou.xml"
        path.write_text(f"<routes>{TYPES}{text}</routes>")
        return load_demand([path], options.pop("network", block), begin, end, **options)

    return call


def test_origins_destinations_and_attributes(load: Load, block: RoadNetwork) -> None:
    loaded = load(
        """<trip id="late" depart="0:01:40.5" from="ab" to="ef" departLane="best" type="car"
            departSpeed="max"/>
        <vehicle id="routed" depart="7" type="plain" arrivalPos="-1" line="a &amp; &quot;b&quot;">
            <route edges="ab bc  cd "/></vehicle>
        <route id="named" edges="dc cf fe"/>
        <vehicle id="by name" depart="7" route="named"/>
        <trip id="short" depart="0" from="ab" to="ab" departPos="12"/>"""
    )
    demand, ids = loaded.demand, block.index
    assert demand.ids == ("short", "routed", "by name", "late")  # by departure, then as in the file
    assert demand.depart.tolist() == [0, 7, 7, 100.5]
    assert demand.origin.tolist() == [ids["ab"], ids["ab"], ids["dc"], ids["ab"]]
    assert demand.destination.tolist() == [ids["ab"], ids["cd"], ids["fe"], ids["ef"]]
    elements = [ElementTree.fromstring(f"<v {text}/>").attrib for text in demand.attributes]
    assert elements == [
        {"departPos": "12"},
        {"type": "plain", "arrivalPos": "-1", "line": 'a & "b"'},
        {},
        {"type": "car", "departLane": "best", "departSpeed": "max"},
    ]
    assert {one.attrib["id"] for one in ElementTree.fromstring(f"<t>{demand.types}</t>")} == {
        "car", "bus", "rude", "plain",
    }  # fmt: skip
    assert (demand.background, demand.background_count, demand.notes) == ("", 0, {})
    assert loaded.network is block


def test_published_routes_are_kept_apart(load: Load, block: RoadNetwork) -> None:
    loaded = load(
        """<vehicle id="v" depart="0"><route edges="ab bc cd"/></vehicle>
        <vehicle id="w" depart="1" type="rude"><route edges="ab bf fc"/></vehicle>
        <trip id="t" depart="2" from="ab" to="cd"/>"""
    )
    published = loaded.published
    assert published is not None
    assert published.edges == ("ab bc cd", "ab bf fc", "")
    assert published.known.tolist() == [True, False, False]  # bf is for buses: not a road of the network
    rows = [block.index[road] for road in ("ab", "bc", "cd")]
    assert [published.routes.route(i).tolist() for i in range(3)] == [rows, [], []]
    assert loaded.demand.ids == ("v", "w", "t")  # who ignores bus lanes is learnt too
    assert "edges" not in " ".join(loaded.demand.attributes)
    assert load('<trip id="t" depart="2" from="ab" to="cd"/>').published is None


def test_routes_round_trip() -> None:
    lists = [[3, 1, 2], [], [5]]
    routes = Routes.from_lists(lists)
    assert [routes.route(i).tolist() for i in range(len(routes))] == lists
    assert len(Routes.from_lists([])) == 0


BACKGROUND = """
    <route id="line" edges="ab bc"><stop lane="bc_1" endPos="50" duration="5"/></route>
    <route id="plain_way" edges="ab bf fe"/>
    <trip id="car" depart="3" from="ab" to="cd"/>
    <person id="p" depart="30"><walk edges="ab"/></person>
    <vehicle id="bus" depart="20" type="bus" route="plain_way"/>
    <vehicle id="waits" depart="10" type="car">
        <route edges="ab bc"/><stop lane="bc_1" endPos="50" duration="5"/></vehicle>
    <vehicle id="waits_too" depart="11" type="car" route="line"/>
    <trip id="detour" depart="12" from="ab" to="cd" via="be"/>
    <vehicle id="picked_up" depart="triggered" type="car"><route edges="ab bc"/></vehicle>
    <vehicle id="to_the_bus_road" depart="13" type="rude"><route edges="ab bf"/></vehicle>
    <flow id="buses" type="bus" begin="15" end="25" period="5" from="ab" to="bf"/>
    <trip id="zone" depart="16" fromJunction="a" toJunction="d"/>
    <vehicle id="tomorrow" depart="90000"><route edges="ab"/></vehicle>"""


def test_background_says_why_and_keeps_its_order(load: Load) -> None:
    demand = load(BACKGROUND).demand
    assert demand.ids == ("car",)
    assert demand.notes == {
        "outside the window": 1,
        "person": 1,
        "bus": 3,
        "has stops": 2,
        "via": 1,
        "triggered": 1,
        "starts or ends on a road closed to passenger": 1,
        "starts or ends at a junction or zone": 1,
    }
    elements = list(ElementTree.fromstring(f"<routes>{demand.background}</routes>"))
    assert {one.attrib["id"] for one in elements[:2]} == {"line", "plain_way"}
    assert [one.attrib["id"] for one in elements[2:]] == [
        "picked_up", "waits", "waits_too", "detour", "to_the_bus_road", "buses.0", "zone", "bus", "buses.1",
        "p",
    ]  # fmt: skip
    assert demand.background_count == len(elements) - 2
    assert load(BACKGROUND, via="ignore").demand.ids == ("car", "detour")


def test_sumo_accepts_what_is_written(load: Load, block_path: Path, tmp_path: Path, run_sumo: Run) -> None:
    (tmp_path / "x.add.xml").write_text(
        """<additional><vType id="van" vClass="delivery"/>
        <busStop id="stop" lane="bc_0" startPos="10" endPos="30"/>
        <e1Detector id="loop" lane="ab_0" pos="9" freq="60" file="loop.xml"/>
        <edgeData id="data" freq="60" file="data.xml"/></additional>"""
    )
    text = BACKGROUND.replace("<person", '<trip id="van" type="van" depart="25" from="ab" to="cd"/><person')
    loaded = load(text, additional=[tmp_path / "x.add.xml"])
    demand = loaded.demand
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "b.rou.xml").write_text(f"<routes>{demand.types}{demand.background}</routes>")
    (folder / "i.add.xml").write_text(f"<additional>{loaded.infrastructure}</additional>")
    before = {path for path in tmp_path.rglob("*")}
    done = run_sumo(
        folder, "-n", str(block_path), "-r", "b.rou.xml", "-a", "i.add.xml", "--junction-taz", "-e", "300",
        "--duration-log.statistics", "--no-warnings",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    inserted = demand.background_count - 2  # without the person and the vehicle that nobody triggers
    assert f"Inserted: {inserted}" in done.stdout
    assert {path for path in tmp_path.rglob("*")} == before  # the user's detectors write nowhere
    assert "stop" in loaded.infrastructure


FLOWS = """
    <flow id="a" begin="0" end="100" period="80" from="ab" to="cd"/>
    <flow id="b" begin="0" end="100" number="7" from="ab" to="cd"/>
    <flow id="e" begin="0" end="100" vehsPerHour="333" from="ef" to="cd"/>
    <flow id="g" begin="0" end="60" period="20" from="dc" to="ba"/>
    <flow id="j" begin="0" end="100" number="0" from="dc" to="ba"/>
    <flow id="i" begin="5" end="5" period="10" from="dc" to="ba"/>
    <flow id="c" begin="10" number="3" period="20.5" from="be" to="cd"/>
    <flow id="d" begin="0:00:10" number="3" from="be" to="cd"/>
    <flow id="h" begin="150" period="70" from="dc" to="ba"/>"""
NO_BEGIN = '<flow id="f" end="100" period="50" from="fe" to="ba"/>'  # begins with the simulation


@pytest.mark.parametrize("begin", [0, 30])
def test_flows_depart_as_in_sumo(load: Load, block_path: Path, tmp_path: Path, run_sumo: Run, begin: int) -> None:
    """One vehicle more or less, or another spacing, would be another demand than the one the user wrote."""
    later = '<flow id="h"'  # SUMO drops flows that stand after one that begins later
    text = NO_BEGIN + FLOWS if begin == 0 else FLOWS.replace(later, NO_BEGIN + later)
    demand = load(text, begin, 400).demand
    done = run_sumo(
        tmp_path, "-n", str(block_path), "-r", "d.rou.xml", "-b", str(begin), "-e", "400", "--no-warnings",
        "--vehroute-output", "out.xml", "--vehroute-output.intended-depart",
        "--vehroute-output.write-unfinished",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sumo = {
        one.attrib["id"]: float(one.attrib["depart"])
        for one in ElementTree.parse(tmp_path / "out.xml").getroot().iterfind("vehicle")
    }
    ours = dict(zip(demand.ids, demand.depart.tolist(), strict=True))
    assert ours.keys() == sumo.keys()
    assert all(ours[name] == pytest.approx(sumo[name], abs=0.011) for name in ours)  # SUMO prints two decimals


def test_random_flows_have_their_rate_and_one_seed(load: Load) -> None:
    text = """<flow id="p" begin="0" end="9000" probability="0.2" from="ab" to="cd"/>
    <flow id="e" begin="100" end="9000" period="exp(0.3)" from="ab" to="cd"/>
    <flow id="n" begin="0" period="exp(0.3)" number="5" from="ab" to="cd"/>"""
    demand = load(text, 0, 3600).demand
    count = Counter(name[0] for name in demand.ids)
    assert abs(count["p"] - 720) < 4 * np.sqrt(720 * 0.8)  # four standard deviations
    assert abs(count["e"] - 1050) < 4 * np.sqrt(1050)
    assert count["n"] == 5
    assert min(demand.depart[[name[0] == "e" for name in demand.ids]]) >= 100
    again = load(text, 0, 3600).demand
    assert again.ids == demand.ids and np.array_equal(again.depart, demand.depart)
    assert not np.array_equal(load(text, 0, 3600, seed=1).demand.depart[:50], demand.depart[:50])


def test_distributions_that_mix_cars_with_others_are_drawn_here(load: Load) -> None:
    mixed = """<vTypeDistribution id="mix"><vType id="m1" probability="3"/>
        <vType id="m2" vClass="truck" probability="1"/></vTypeDistribution>
    <vTypeDistribution id="cars" vTypes="car plain rude"/>
    <flow id="f" type="mix" begin="0" end="400" period="1" from="ab" to="cd"/>
    <trip id="t" type="cars" depart="9" from="ab" to="cd"/>"""
    demand = load(mixed).demand
    assert demand.notes.keys() == {"truck"}
    assert demand.background_count + len(demand) == 401
    assert abs(demand.notes["truck"] - 100) < 4 * np.sqrt(400 * 3 / 16)
    assert Counter(demand.attributes) == {'type="m1"': len(demand) - 1, 'type="cars"': 1}
    assert demand.background.count('type="m2"') == demand.background_count


def test_route_distributions_give_one_published_route(load: Load) -> None:
    text = """<route id="south" edges="ab bc cd"/><route id="north" edges="ab be ef fc cd"/>
    <routeDistribution id="both" routes="south north" probabilities="0.25 0.75"/>
    <flow id="f" begin="0" end="400" period="1" route="both"/>
    <vehicle id="v" depart="9"><routeDistribution last="1">
        <route edges="ab bc" probability="1"/><route edges="ab be" probability="0"/>
    </routeDistribution></vehicle>"""
    loaded = load(text)
    assert loaded.published is not None
    count = Counter(loaded.published.edges)
    assert count.keys() == {"ab bc cd", "ab be ef fc cd", "ab be"} and count["ab be"] == 1
    assert abs(count["ab bc cd"] - 100) < 4 * np.sqrt(400 * 3 / 16)


def test_only_needed_uturns_are_allowed(load: Load, block: RoadNetwork) -> None:
    loaded = load('<trip id="out" depart="0" from="xc" to="cd"/><trip id="turn" depart="1" from="ab" to="xc"/>')
    changed = np.flatnonzero(loaded.network.allowed != block.allowed)
    pairs = [tuple(block.road_ids[i] for i in pair) for pair in block.connections[changed]]
    assert pairs == [("cx", "xc")]  # the only way to xc
    assert (block.turn[changed] == UTURN).all() and loaded.network.allowed[changed].all()
    assert loaded.demand.ids == ("out", "turn")


@pytest.fixture(scope="module")
def one_way(netconvert: Callable[..., Path]) -> RoadNetwork:
    """a -> b -> c, a bus road c -> a: nobody drives back."""
    nodes = '<nodes><node id="a" x="0" y="0"/><node id="b" x="200" y="0"/><node id="c" x="400" y="90"/></nodes>'
    edges = """<edges><edge id="ab" from="a" to="b"/><edge id="bc" from="b" to="c"/>
        <edge id="ca" from="c" to="a" allow="bus"/></edges>"""
    return load_network(netconvert(nodes, edges))


def test_trips_that_cannot_be_driven(load: Load, one_way: RoadNetwork) -> None:
    good = '<trip id="good" depart="0" from="ab" to="bc"/>'
    bad = "".join(f'<trip id="bad{i}" depart="0" from="bc" to="ab"/>' for i in range(7))
    with pytest.raises(
        InputError, match=r"7 trips cannot be driven.*'bad4'.*\.\.\.; .*scenario.unreachable: drop"
    ) as caught:
        load(good + bad, network=one_way)
    assert "bad5" not in str(caught.value) and "d.rou.xml" in str(caught.value)
    dropped = load(good + bad, network=one_way, unreachable="drop").demand
    assert dropped.ids == ("good",) and dropped.notes == {"unreachable, dropped": 7}
    kept = load(good + '<vehicle id="v" type="rude" depart="1"><route edges="bc ca ab"/></vehicle>', network=one_way)
    assert kept.demand.notes == {"reachable only by roads closed to passenger": 1}
    assert kept.demand.background.count("bc ca ab") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<trip id="t" depart="0" from="ab" to="nowhere"/>', "trip 't' in .*d.rou.xml: road 'nowhere' is"),
        ('<vehicle id="v" depart="0"><route edges="ab zz"/></vehicle>', "vehicle 'v' .* road 'zz' is not in"),
        ('<vehicle id="v" depart="0"><route edges=""/></vehicle>', "'v' .* its route has no road"),
        ('<vehicle id="v" depart="0" route="r"/>', "'v' .* route 'r' is not defined"),
        ('<trip id="t" depart="0" from="ab"/>', "'t' .* neither a route nor both from and to"),
        ('<trip id="t" depart="0" from="ab" to="cd" type="tank"/>', "'t' .* type 'tank' is not defined"),
        ('<vTypeDistribution id="m" vTypes="car tank"/><trip id="t" depart="0" from="ab" to="cd" type="m"/>',
         "'t' .* type 'tank' is not defined"),
        ('<trip id="t" depart="0" from="ab" to="cd"/><trip id="t" depart="1" from="ab" to="cd"/>',
         "vehicle 't' in .*d.rou.xml: the id is taken in .*d.rou.xml"),
        ('<trip id="f.1" depart="0" from="ab" to="cd"/><flow id="f" end="9" period="1" from="ab" to="cd"/>',
         r"'f\.1': two vehicles get this id"),
        ('<trip id="t" depart="0" from="ab" to="cd"/><trip id="f.1" depart="0" from="ab" to="cd"/>'
         '<flow id="f" type="bus" end="9" period="1" from="ab" to="cd"/>', r"'f\.1': two vehicles get"),
        ('<trip id="t" depart="-1" from="ab" to="cd"/>', "'t' .* depart -1 is negative"),
        ('<trip id="t" depart="soon" from="ab" to="cd"/>', "'t' .* 'soon'.* times are seconds or hours"),
        ('<trip id="t" depart="1:30" from="ab" to="cd"/>', "'t' .* '1:30' is not a time"),
        ('<trip id="t" depart="now" from="ab" to="cd"/>', "'t' .* depart=\"now\" is no time"),
        ('<trip id="t" from="ab" to="cd"/>', "'t' .* it has no depart"),
        ('<trip depart="1" from="ab" to="cd"/>', "a <trip> without id"),
        ('<flow id="f" begin="0" end="9" from="ab" to="cd"/>', "flow 'f' .* got none"),
        ('<flow id="f" begin="0" end="9" period="1" number="3" from="ab" to="cd"/>', "'f' .* not both"),
        ('<flow id="f" begin="0" end="9" period="0" from="ab" to="cd"/>', "'f' .* period 0 is out of range"),
        ('<flow id="f" begin="0" end="9" probability="2" from="ab" to="cd"/>', "'f' .* probability 2 is out"),
        ('<flow id="f" begin="9" end="0" period="1" from="ab" to="cd"/>', "'f' .* end < begin"),
        ('<vType id="car" vClass="taxi"/>', "vType 'car' .* defined before and differently"),
        ('<vTypeDistribution id="m" vTypes="car bus" probabilities="1"/>', r"'m' .* expected 2 numbers >= 0"),
        ('<route id="r" edges="ab"/><route id="r" edges="cd"/>', "route 'r' .* the id is taken"),
        ('<vehicle id="v" depart="0"><routeDistribution last="3"><route/></routeDistribution></vehicle>',
         "'v' .* last='3'"),
        ('<vehicle id="v" depart="0"><routeDistribution/></vehicle>', "'v' .* route distribution is empty"),
        ('<include href="other.xml"/>', "<include> is not supported"),
        ('<trip id="t" depart="0" from="ab" to="cd"', "d.rou.xml, line 2, column .*: not well-formed"),
    ],
)  # fmt: skip
def test_mistakes_name_file_and_vehicle(load: Load, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(text)


def test_empty_windows_say_what_there_is(load: Load) -> None:
    text = """<trip id="t" depart="100" from="ab" to="cd"/>
    <trip id="b" type="bus" depart="5000" from="ab" to="cd"/>
    <flow id="f" begin="200" end="9000" period="99999" from="ab" to="cd"/>"""
    with pytest.raises(
        InputError, match=r"departs in \[4000, 6000\) s; vehicles depart between 100 and 9000 s; .*bus: 1"
    ):
        load(text, 4000, 6000)
    with pytest.raises(InputError, match="hold no vehicle"):
        load("")
    with pytest.raises(InputError, match="expected begin < end"):
        load(text, 60, 60)


def test_files_that_are_none(block: RoadNetwork, block_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.rou\.xml: no such file"):
        load_demand([tmp_path / "missing.rou.xml"], block, 0, 60)
    with pytest.raises(InputError, match="a SUMO <net>"):
        load_demand([block_path], block, 0, 60)
    cut = tmp_path / "cut.rou.xml.gz"
    cut.write_bytes(gzip.compress(b"<routes><trip id='t' depart='0' from='ab' to='cd'/></routes>")[:-12])
    with pytest.raises(InputError, match=r"cut\.rou\.xml\.gz: cannot be read"):
        load_demand([cut], block, 0, 60)


def test_several_files_plain_and_packed(block: RoadNetwork, tmp_path: Path) -> None:
    (tmp_path / "types.add.xml").write_text(f"<additional>{TYPES}</additional>")
    for name, depart in (("one", 9), ("two", 3)):
        with gzip.open(tmp_path / f"{name}.rou.xml.gz", "wt") as stream:
            stream.write(f"<routes>{TYPES}<trip id='{name}' type='car' depart='{depart}' from='ab' to='cd'/></routes>")
    files = [tmp_path / "one.rou.xml.gz", tmp_path / "two.rou.xml.gz"]
    demand = load_demand(files, block, 0, 60, additional=[tmp_path / "types.add.xml"]).demand
    assert demand.ids == ("two", "one")
    assert demand.types.count('id="car"') == 1  # SUMO refuses a type that is defined twice


@pytest.mark.parametrize(
    ("net", "files", "additional", "begin", "learnt", "everybody"),
    [  # vehicles of the first 30 minutes: README, plus those that SUMO reports as waiting at the end
        ("RESCO/cologne1/cologne1", ["RESCO/cologne1/cologne1"], [], 25200, 1126, 1126),
        ("RESCO/cologne3/cologne3", ["RESCO/cologne3/cologne3"], [], 25200, 1663, 1663),
        ("RESCO/cologne8/cologne8", ["RESCO/cologne8/cologne8"], [], 25200, 1138, 1138),
        ("LibSignal/atlanta_1x5/atlanta_1x5", ["LibSignal/atlanta_1x5/atlanta_1x5"], [], 0, 2171, 1320 + 851),
        (
            "DLR-TS/bologna/pasubio/pasubio_buslanes",
            ["DLR-TS/bologna/pasubio/pasubio", "DLR-TS/bologna/pasubio/pasubio_busses"],
            ["DLR-TS/bologna/pasubio/pasubio_vtypes"],
            0,
            4141,
            4378,
        ),
    ],
)
def test_real_demand_is_complete(
    sumo_data: Path,
    net: str,
    files: list[str],
    additional: list[str],
    begin: float,
    learnt: int,
    everybody: int,
) -> None:
    network = load_network(sumo_data / f"{net}.net.xml")
    loaded = load_demand(
        [sumo_data / f"{file}.rou.xml" for file in files],
        network,
        begin,
        begin + 1800,
        [sumo_data / f"{file}.add.xml" for file in additional],
    )
    assert len(loaded.demand) == learnt
    assert len(loaded.demand) + loaded.demand.background_count == everybody
    assert (np.diff(loaded.demand.depart) >= 0).all()


def test_city_scale_demand(sumo_data: Path) -> None:
    folder = sumo_data / "LibSignal/pb_nanchang/derived"
    network = load_network(folder / "nanchang.net.xml.gz")
    loaded = load_demand([folder / "nanchang.rou.xml.gz"], network, 0, 1e6)
    assert len(loaded.demand) == 126_669  # README
