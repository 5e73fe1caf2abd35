"""SUMO's own tools on small cases: they run, on the case as it is, and what comes back is what they are meant to find."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console
from throng.platform import peers
from throng.platform.config import load_config
from throng.platform.progress import Progress
from throng.platform.workbench import Workbench, observation_seed, workbench
from throng.policies.navigation import fastest_routes
from throng.scenarios.demand import Routes
from throng.scenarios.errors import InputError
from throng.scenarios.network import RoadNetwork, load_network
from throng.scenarios.town import write_town
from throng.workers.simulator import Job
from throng.workers.sumo import SumoRollout

ALONG = ("w0A0", "A0B0", "B0C0", "C0D0", "D0E0", "E0e0")  # the southern road of the town
BUSES = 8


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 vehicles in four minutes, and a bus line with a stop."""
    folder = tmp_path_factory.mktemp("town")
    write_town(folder, vehicles=120, minutes=4)
    stop = '<busStop id="halt" lane="C0D0_0" startPos="20" endPos="50"/>'
    (folder / "stops.add.xml").write_text(f'<additional>{stop}<vType id="bus" vClass="bus"/></additional>')
    (folder / "bus.rou.xml").write_text(
        f'<routes><route id="line" edges="{" ".join(ALONG)}"><stop busStop="halt" duration="10"/></route>'
        f'<flow id="bus" type="bus" route="line" begin="60" end="120" number="{BUSES}" departSpeed="max"/></routes>'
    )
    return folder


@pytest.fixture(scope="module")
def open_bench(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Workbench]]:
    """(more YAML, more of the scenario, demand files) -> the case on the workbench, everything in this process."""
    with ExitStack() as stack:

        def make(more: str = "", scenario: str = "", demand: str = "town.rou.xml") -> Workbench:
            path = tmp_path_factory.mktemp("case") / "case.yaml"
            files = ", ".join(str(town / name) for name in demand.split())
            path.write_text(
                f"scenario:\n  net: {town}/town.net.xml\n  demand: [{files}]\n{scenario}"
                f"  minutes: 4\nworkers: {{rollouts: 0}}\n{more}"
            )
            progress = stack.enter_context(Progress(Console(quiet=True)))
            return stack.enter_context(workbench(load_config(path), None, progress))

        yield make


@pytest.fixture(scope="module")
def bench(open_bench: Callable[..., Workbench]) -> Workbench:
    """A synthetic study of queues, without buses."""
    return open_bench()


@pytest.fixture(scope="module")
def with_buses(open_bench: Callable[..., Workbench], town: Path) -> Workbench:
    """The same with buses, from 60 s on, in half seconds."""
    extra = f"  additional: [{town}/stops.add.xml]\n  begin: 60\n  step_length: 0.5\n  options: [--time-to-teleport, '-1']\n"
    return open_bench(scenario=extra, demand="town.rou.xml bus.rou.xml")


def connected(roads: list[int], network: RoadNetwork) -> bool:
    rows = network.find_connections(roads[:-1], roads[1:])
    return bool(((rows >= 0) & network.allowed[rows]).all())


def drivable(routes: Routes, bench: Workbench) -> bool:
    """Every vehicle from its own origin to its own destination, over connections that drivers may choose."""
    scenario = bench.case.scenario
    ways = [routes.route(vehicle).tolist() for vehicle in range(len(routes))]
    ends = [(way[0], way[-1]) for way in ways]
    trips = list(zip(scenario.demand.origin.tolist(), scenario.demand.destination.tolist(), strict=True))
    return ends == trips and all(connected(way, scenario.network) for way in ways)


def edges(element: ElementTree.Element) -> list[str]:
    return element.find("route").attrib["edges"].split()  # type: ignore[union-attr]


def passes(file: Path) -> Counter[str]:
    """How often the vehicles of a route file pass each road."""
    return Counter(edge for vehicle in ElementTree.parse(file).iter("vehicle") for edge in edges(vehicle))


def counted(folder: Path) -> Counter[str]:
    """What routeSampler was told to meet, over all minutes."""
    total: Counter[str] = Counter()
    for edge in ElementTree.parse(folder / "counts.xml").iter("edge"):
        total[edge.attrib["id"]] += int(edge.attrib["entered"])
    return total


# -- duaIterate -------------------------------------------------------------------------------------------------------


def test_the_first_iteration_drives_the_fastest_routes(bench: Workbench, tmp_path: Path) -> None:
    """Free flow is all it knows then. SUMO counts the seconds on junctions too, so it may differ a little from ours."""
    routes = peers.duaiterate(bench, 1, 3, tmp_path)
    assert drivable(routes, bench)
    scenario = bench.case.scenario
    seconds = scenario.network.length / scenario.network.speed
    best = fastest_routes(scenario.network, scenario.demand.origin, scenario.demand.destination)
    taken, least = (np.add.reduceat(seconds[one.roads], one.offsets[:-1]) for one in (routes, best))
    assert (taken >= least - 1e-3).all()
    assert (taken <= 1.15 * least).all()
    assert taken.sum() < 1.02 * least.sum()


def test_the_budget_is_the_number_of_simulations_and_the_last_one_counts(bench: Workbench, tmp_path: Path) -> None:
    routes = peers.duaiterate(bench, 3, 3, Path(os.path.relpath(tmp_path)))  # wherever the folder is named from
    assert drivable(routes, bench)
    # SUMO writes the travel times of each simulation into the folder of its iteration.
    assert [path.parent.name for path in sorted(tmp_path.glob("*/dump_*.xml"))] == ["000", "001", "002"]
    written = ElementTree.parse(tmp_path / "002" / "trips_002.rou.xml").iter("vehicle")
    last = {vehicle.attrib["id"]: edges(vehicle) for vehicle in written}
    names = bench.case.scenario.network.road_ids
    for row, vehicle in enumerate(bench.case.scenario.demand.ids):
        assert [names[road] for road in routes.route(row)] == last[vehicle]


def test_the_same_seed_gives_the_same_equilibrium(bench: Workbench, tmp_path: Path) -> None:
    found = []
    for run, seed in enumerate((7, 7, 8)):
        found.append(peers.duaiterate(bench, 3, seed, tmp_path / str(run)).roads)
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_drivers_leave_a_road_that_has_become_slow(
    open_bench: Callable[..., Workbench], town: Path, tmp_path: Path
) -> None:
    """Sixty vehicles from one road to another within a minute: free flow sends all one way, experience does not."""
    lines = "".join(f'<trip id="{i}" depart="{i}" from="w1A1" to="E1e1" departSpeed="max"/>' for i in range(60))
    (town / "crowd.rou.xml").write_text(f"<routes>{lines}</routes>")
    crowd = open_bench(demand="crowd.rou.xml")
    ways = []
    for iterations in (1, 6):
        routes = peers.duaiterate(crowd, iterations, 1, tmp_path / str(iterations))
        ways.append({tuple(routes.route(vehicle)) for vehicle in range(len(routes))})
    assert len(ways[0]) == 1
    assert len(ways[1]) > 1


def test_the_tool_simulates_the_case_as_it_is(with_buses: Workbench, tmp_path: Path) -> None:
    """Window, step, seed, options, and the background with its types and stops."""
    peers.duaiterate(with_buses, 1, 11, tmp_path)
    settings = {
        element.tag: element.attrib.get("value", "")
        for element in ElementTree.parse(tmp_path / "000" / "iteration_000.sumocfg").iter()
    }
    assert [float(settings[name]) for name in ("begin", "end", "step-length", "seed")] == [60, 300, 0.5, 11]
    assert float(settings["time-to-teleport"]) == -1
    inserted = [line for line in (tmp_path / "dua.log").read_text().splitlines() if "Inserted:" in line]
    assert int(inserted[-1].split()[1]) == len(with_buses.case.scenario.demand) + BUSES


def test_nobody_takes_roads_that_learnt_vehicles_do_not(town: Path, tmp_path: Path) -> None:
    """Residents may use a bus road by SUMO's rules, and it is their fastest way; Throng routes them as all other cars."""
    net = (town / "town.net.xml").read_text()
    closed = net.replace('<lane id="B2C2_0" index="0"', '<lane id="B2C2_0" index="0" allow="bus"')
    closed = closed.replace('<lane id="B2C2_1" index="1"', '<lane id="B2C2_1" index="1" allow="bus"')
    (tmp_path / "net.net.xml").write_text(closed)
    trips = "".join(
        f'<trip id="{i}" type="resident" depart="{2 * i}" from="A2B2" to="C2C3" departSpeed="max"/>' for i in range(100)
    )
    trips += '<trip id="far" type="resident" depart="200" from="w1A1" to="E1e1" departSpeed="max"/>'  # has a choice
    types = '<vType id="resident" vClass="ignoring"/>'
    (tmp_path / "residents.rou.xml").write_text(f"<routes>{types}{trips}</routes>")
    options = ["--net-file", "net.net.xml", "--route-files", "residents.rou.xml", "--output-file", "fast.rou.xml"]
    subprocess.run([str(peers.BIN / "duarouter"), *options], cwd=tmp_path, check=True, capture_output=True)
    assert passes(tmp_path / "fast.rou.xml")["B2C2"] == 100
    path = tmp_path / "case.yaml"
    path.write_text("scenario: {net: net.net.xml, demand: [residents.rou.xml], minutes: 4}\nworkers: {rollouts: 0}\n")
    with Progress(Console(quiet=True)) as progress, workbench(load_config(path), None, progress) as residents:
        assert "B2C2" in residents.case.scenario.network.closed_ids
        assert drivable(peers.duaiterate(residents, 2, 1, tmp_path / "dua"), residents)
        sampled = peers.route_sampler(residents, 1, tmp_path / "sampler")
    assert not any("B2C2" in route.split() for route in sampled.routes)
    assert set(sampled.scenario.demand.attributes) == {'type="resident" departSpeed="max"'}


def test_no_iteration_is_no_answer(bench: Workbench, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give at least 1"):
        peers.duaiterate(bench, 0, 1, tmp_path)


def test_what_a_tool_refuses_is_in_the_message(bench: Workbench, tmp_path: Path) -> None:
    scenario = replace(bench.case.scenario, options=("--nonsense", "1"))
    case = replace(bench.case, problem=replace(bench.case.problem, scenario=scenario))
    with pytest.raises(InputError, match=r"(?s)duaIterate.py failed.*nonsense"):
        peers.duaiterate(replace(bench, case=case), 1, 1, tmp_path)


def test_what_a_tool_starts_ends_with_it(tmp_path: Path) -> None:
    """duaIterate's sumo would otherwise go on for hours after the deadline."""
    mark = tmp_path / "alive"
    child = f"import time\nwhile True: open({str(mark)!r}, 'a').write('.'); time.sleep(0.05)"
    tool = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\ntime.sleep(600)"
    with pytest.raises(InputError, match="took longer than 3 s"):
        peers._run([sys.executable, "-c", tool], "tool", tmp_path, deadline=3.0)
    size = mark.stat().st_size
    time.sleep(0.5)
    assert size > 0
    assert mark.stat().st_size == size


# -- routeSampler -----------------------------------------------------------------------------------------------------


def test_the_counts_of_a_synthetic_study_are_those_of_what_was_observed(bench: Workbench, tmp_path: Path) -> None:
    """routeSampler gets the counts of that very simulation: SUMO's own program counts the same in the observed traffic."""
    peers.route_sampler(bench, 5, tmp_path)
    scenario = bench.case.scenario
    again = tmp_path / "again"
    again.mkdir()
    with SumoRollout(scenario, again) as rollout:
        assert bench.truth_routes is not None
        seen = rollout.run(bench.truth_routes, observation_seed(bench.case.config))
        np.testing.assert_array_equal(seen.macro.queue, bench.target.values)
        options = rollout.files.options(seen.seed, "micro", quiet=False, measure=True)
    subprocess.run([str(peers.BIN / "sumo"), *options], check=True, capture_output=True)
    expected: Counter[str] = Counter()
    for edge in ElementTree.parse(again / "edges.out.xml").iter("edge"):
        expected[edge.attrib["id"]] += int(edge.attrib["entered"]) + int(edge.attrib["departed"])
    found = counted(tmp_path)
    assert {road: found[road] for road in scenario.network.road_ids} == {
        road: expected[road] for road in scenario.network.road_ids
    }


def test_sampled_vehicles_meet_the_counts_and_can_be_simulated(bench: Workbench, tmp_path: Path) -> None:
    sampled = peers.route_sampler(bench, 5, tmp_path)
    scenario, known = sampled.scenario, bench.case.scenario.demand
    demand, network = scenario.demand, scenario.network
    assert len(sampled.routes) == len(demand) == len(set(demand.ids)) > 20
    assert (np.diff(demand.depart) >= 0).all()
    trips = set(zip(known.origin.tolist(), known.destination.tolist(), strict=True))
    for row, route in enumerate(sampled.routes):
        roads = [network.index[edge] for edge in route.split()]
        assert (roads[0], roads[-1]) == (demand.origin[row], demand.destination[row])
        assert (roads[0], roads[-1]) in trips
        assert connected(roads, network)
    assert set(demand.attributes) == {'type="car" departLane="best" departSpeed="max"'}
    # The linear programme never exceeds a count, rounding its answer does by little. It stays below many: to routeSampler a
    # vehicle passes all of its roads in one minute, and so few vehicles leave many roads empty in any one.
    wanted, used = counted(tmp_path), passes(tmp_path / "sampled.rou.xml")
    assert all(used[road] <= wanted[road] + 2 for road in network.road_ids)
    assert sum(used.values()) > 0.25 * sum(wanted.values())
    outcomes = bench.must([sampled.job(f"sampled{i}", 20 + i) for i in range(2)])
    for outcome in outcomes:
        assert outcome.arrived + outcome.running + outcome.waiting == len(demand)
        assert np.isfinite(bench.target.scores(bench.target.quantity(outcome.macro))["rmse"])  # type: ignore[arg-type]
    # The workbench's own vehicles are what is simulated next, not the sampled ones.
    (own,) = bench.must([Job("own", 1, routes=bench.truth_routes)])
    assert own.arrived + own.running + own.waiting == len(known)


def test_the_same_seed_samples_the_same_vehicles(bench: Workbench, tmp_path: Path) -> None:
    found = []
    for run, seed in enumerate((7, 7, 8)):
        found.append(peers.route_sampler(bench, seed, tmp_path / str(run)))
    assert found[0].routes == found[1].routes
    np.testing.assert_array_equal(found[0].scenario.demand.depart, found[1].scenario.demand.depart)
    assert found[0].routes != found[2].routes


def test_background_is_kept_and_not_sampled_a_second_time(with_buses: Workbench, tmp_path: Path) -> None:
    """Where no learnt vehicle drives but buses do, nobody is needed."""
    sampled = peers.route_sampler(with_buses, 5, tmp_path)
    scenario = with_buses.case.scenario
    assert sampled.scenario.demand.background == scenario.demand.background
    names, truth = scenario.network.road_ids, with_buses.truth_routes
    assert isinstance(truth, Routes)
    by_cars = Counter(names[road] for road in truth.roads)
    wanted = counted(tmp_path)
    assert wanted["w0A0"] <= by_cars["w0A0"] + 1  # and not eight more
    (outcome,) = with_buses.must([sampled.job("with buses", 1)])
    assert outcome.arrived + outcome.running + outcome.waiting == len(sampled.routes) + BUSES


def test_an_observed_table_of_counts_is_met_exactly_where_it_can_be(
    open_bench: Callable[..., Workbench], town: Path, tmp_path: Path
) -> None:
    """Three vehicles counted along the way of one trip in minute 1, and zero or nothing elsewhere: three such vehicles."""
    network = load_network(town / "town.net.xml")
    trips = ElementTree.parse(town / "town.rou.xml").iter("trip")
    trip = next(trip for trip in trips if trip.attrib["from"][0] in "nswe" and trip.attrib["to"][2] in "nswe")
    ends = [np.array([network.index[trip.attrib[key]]], np.int32) for key in ("from", "to")]
    way = {network.road_ids[road] for road in fastest_routes(network, *ends).roads}
    rows = ["road,minute,count"]
    rows += [f"{road},{minute},{3 * (road in way and minute == 1)}" for road in network.road_ids for minute in range(3)]
    (tmp_path / "counts.csv").write_text("\n".join(rows))
    observed = open_bench(f"target: {{observed: {tmp_path}/counts.csv}}\n")
    sampled = peers.route_sampler(observed, 2, tmp_path)
    assert {edge for route in sampled.routes for edge in route.split()} <= way
    used = passes(tmp_path / "sampled.rou.xml")
    assert used == dict.fromkeys(way, 3)
    depart = sampled.scenario.demand.depart
    assert ((depart >= 60) & (depart < 120)).all()
    (outcome,) = observed.must([sampled.job("three", 1)])
    assert observed.target.scores(observed.target.quantity(outcome.macro))["rmse"] < 1.0  # type: ignore[arg-type]


def test_counts_of_zero_need_nobody(open_bench: Callable[..., Workbench], tmp_path: Path) -> None:
    (tmp_path / "counts.csv").write_text("road,minute,count\nA0B0,0,0\nA0B0,1,0\n")
    observed = open_bench(f"target: {{observed: {tmp_path}/counts.csv}}\n")
    with pytest.raises(InputError, match="fits no vehicle into the counts"):
        peers.route_sampler(observed, 1, tmp_path)


@pytest.mark.parametrize("kind", ["queue", "speed"])
def test_an_observed_table_without_counts_is_a_reason_not_a_crash(
    open_bench: Callable[..., Workbench], tmp_path: Path, kind: str
) -> None:
    (tmp_path / "seen.csv").write_text(f"road,minute,{kind}\nA0B0,0,2\nA0B0,1,3\n")
    observed = open_bench(f"target: {{observed: {tmp_path}/seen.csv}}\n")
    with pytest.raises(peers.DoesNotApply, match=rf"needs counts, and .*seen\.csv holds {kind}"):
        peers.route_sampler(observed, 1, tmp_path)
    assert not (tmp_path / "sampled.rou.xml").exists()
