"""Macro observables against SUMO's own outputs, brute force and hand-computed numbers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from throng.scenarios.errors import InputError
from throng.scenarios.macro import (
    HALTING,
    critical_threshold,
    errors,
    lane_area_detectors,
    largest_functional_cluster,
    noise_gap,
    read_edge_data,
    read_lane_area,
    reference_speed,
)
from throng.scenarios.network import RoadNetwork, load_network

HandMade = Callable[[int, list[tuple[int, int]]], RoadNetwork]
CHAIN = [(road, road + 1) for road in range(9)]  # 0 -> 1 -> ... -> 9


def _lcc(network: RoadNetwork, speed: np.ndarray, q: float = 0.5, connectivity: str = "weak") -> list[float]:
    reference = np.full(network.road_count, 10, dtype=np.float32)
    result = largest_functional_cluster(speed.astype(np.float32), reference, network, q, connectivity)  # type: ignore[arg-type]
    return [round(float(value), 6) for value in result]


def test_free_roads_are_one_cluster(hand_made: HandMade, block: RoadNetwork) -> None:
    assert _lcc(hand_made(10, CHAIN), np.full((10, 3), 9.0)) == [1, 1, 1]
    assert _lcc(block, np.full((block.road_count, 1), 9.0)) == [1]  # both sides of a street hang together


def test_one_road_cut_splits_60_to_40(hand_made: HandMade) -> None:
    speed = np.full((10, 2), 9.0)
    speed[6, 1] = 1.0  # roads 0-5 remain on one side, 7-9 on the other
    assert _lcc(hand_made(10, CHAIN), speed) == [1, 0.6]
    assert _lcc(hand_made(10, CHAIN), np.zeros((10, 1))) == [0]


def test_strong_clusters_need_a_way_back(hand_made: HandMade) -> None:
    ring = hand_made(10, [*CHAIN, (9, 0)])
    speed = np.full((10, 2), 9.0)
    speed[3, 1] = 1.0
    assert _lcc(ring, speed, connectivity="strong") == [1, 0.1]
    assert _lcc(ring, speed, connectivity="weak") == [1, 0.9]


def test_cluster_never_grows_with_q(block: RoadNetwork) -> None:
    speed = np.random.default_rng(0).uniform(0, 10, (block.road_count, 20))
    for connectivity in ("weak", "strong"):
        curves = np.array([_lcc(block, speed, q, connectivity) for q in np.linspace(0, 1.1, 23)])
        assert (np.diff(curves, axis=0) <= 0).all()
        assert curves[0, 0] > curves[-1, 0] == 0


def test_cluster_equals_brute_force(hand_made: HandMade) -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        pairs = list({(int(a), int(b)) for a, b in random.integers(0, 12, (14, 2)) if a != b})
        working = random.random(12) < 0.7
        group = list(range(12))
        for _ in range(12):
            for a, b in pairs:
                if working[a] and working[b]:
                    group[a] = group[b] = min(group[a], group[b])
        sizes = [sum(working[i] and group[i] == g for i in range(12)) for g in range(12)]
        assert _lcc(hand_made(12, pairs), np.where(working, 9.0, 1.0)[:, None]) == [round(max(sizes) / 12, 6)]


def test_empty_minutes_hold_the_last_speed_for_three(hand_made: HandMade) -> None:
    nan = float("nan")
    speed = np.full((10, 8), 9.0)
    speed[6] = [nan, 1, nan, nan, nan, nan, nan, 1]  # empty before anybody came: free
    assert _lcc(hand_made(10, CHAIN), speed) == [1, 0.6, 0.6, 0.6, 0.6, 1, 1, 0.6]


def test_critical_threshold_is_where_the_chain_breaks(hand_made: HandMade) -> None:
    speed = np.full((10, 4), 9.0, dtype=np.float32)
    speed[5] = 3.2  # above q = 0.32 the chain falls into 5 and 4 roads; above 0.9 into nothing
    reference = np.full(10, 10, dtype=np.float32)
    assert critical_threshold(speed, reference, hand_made(10, CHAIN)) == pytest.approx(0.35)


def test_reference_speed_is_the_pooled_95th_percentile() -> None:
    random = np.random.default_rng(2)
    first, second = (random.uniform(1, 20, (4, t)).astype(np.float32) for t in (30, 50))
    first[0, :10] = np.nan
    first[1] = second[1] = np.nan  # nobody ever drove
    first[2] = second[2] = 0  # nobody ever moved
    limit = np.array([13.9, 8.3, 8.3, 13.9], dtype=np.float32)
    pooled = np.concatenate([first, second], axis=1)
    expected = [np.percentile(pooled[0, 10:], 95), 8.3, 8.3, np.percentile(pooled[3], 95)]
    assert reference_speed([first, second], limit) == pytest.approx(expected)


def test_errors_by_hand() -> None:
    observed = np.array([[1, 3, np.nan], [0, 2, 4], [5, 5, 5]])
    x = np.array([[2, 3, 99], [0, 0, 4], [5, 2, 5]])
    result = errors(x, observed)  # gaps: 1 0 - | 0 2 0 | 0 3 0
    assert result["rmse"] == pytest.approx(np.sqrt((1 + 4 + 9) / 8))
    assert result["mae"] == pytest.approx(6 / 8)
    means = np.array([2.5, 4 / 3, 4]), np.array([2, 2, 5])
    assert result["road_rmse"] == pytest.approx(np.sqrt(((means[0] - means[1]) ** 2).mean()))
    assert result["top50_corr"] == pytest.approx(np.corrcoef(*means)[0, 1])


def test_correlation_takes_the_fifty_most_congested_roads() -> None:
    random = np.random.default_rng(3)
    observed, x = random.uniform(0, 9, (80, 6)), random.uniform(0, 9, (80, 6))
    top = sorted(range(80), key=lambda road: -observed[road].mean())[:50]
    expected = np.corrcoef(x[top].mean(axis=1), observed[top].mean(axis=1))[0, 1]
    assert errors(x, observed)["top50_corr"] == pytest.approx(expected)
    assert np.isnan(errors(np.ones((3, 2)), observed[:3, :2])["top50_corr"])


def test_errors_refuse_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="shape"):
        errors(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="no road-minute"):
        errors(np.zeros((1, 1)), np.full((1, 1), np.nan))
    assert errors([0.5, 0.7], [0.5, 0.9])["rmse"] == pytest.approx(np.sqrt(0.02))  # a series for the whole city


def test_noise_gap() -> None:
    assert noise_gap(0.7, 0.7, 1.5) == 0
    assert noise_gap(1.5, 0.7, 1.5) == pytest.approx(1)
    assert noise_gap(1.1, 0.7, 1.5) == pytest.approx(0.5)
    assert np.isnan(noise_gap(1, 1.5, 1.5))


class _Observation:
    """One simulation of the block, with everything SUMO can say about it."""

    begin, minutes = 600, 5

    def __init__(self, folder: Path, network: RoadNetwork, run: Callable[..., subprocess.CompletedProcess[str]]):
        self.folder, self.network = folder, network
        (folder / "r.rou.xml").write_text(
            """<routes><flow id="w" begin="600" end="840" period="3" from="ab" to="cd" departLane="best"/>
            <flow id="n" begin="600" end="840" period="7" from="fe" to="ba"/>
            <flow id="s" begin="600" end="840" period="11" from="xc" to="ba"/></routes>"""
        )
        detectors = lane_area_detectors(network, "area.xml")
        edges = '<edgeData id="e" freq="60" file="edges.xml"/></additional>'
        (folder / "a.add.xml").write_text(detectors.replace("</additional>", edges))
        done = run(
            folder, "-n", str(network.path), "-r", "r.rou.xml", "-a", "a.add.xml", "-b", "600", "-e", "900",
            "--no-internal-links", "--fcd-output", "fcd.xml", "--vehroute-output", "routes.xml",
            "--vehroute-output.exit-times", "--vehroute-output.write-unfinished",
            "--tripinfo-output", "trips.xml", "--tripinfo-output.write-unfinished",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def root(self, name: str) -> ElementTree.Element:
        return ElementTree.parse(self.folder / name).getroot()


@pytest.fixture(scope="module")
def seen(
    tmp_path_factory: pytest.TempPathFactory,
    block: RoadNetwork,
    run_sumo: Callable[..., subprocess.CompletedProcess[str]],
) -> _Observation:
    return _Observation(tmp_path_factory.mktemp("run"), block, run_sumo)


def test_edge_data_counts_who_drove_where(seen: _Observation) -> None:
    """Counts against the vehicles' routes, halting against their trips, road time against their positions."""
    data = read_edge_data(seen.folder / "edges.xml", seen.network, seen.begin, seen.minutes)
    entered = np.zeros_like(data.count)
    for vehicle in seen.root("routes.xml").iterfind("vehicle"):
        route = vehicle.find("route")
        assert route is not None
        exits = [float(time) for time in route.attrib["exitTimes"].split()]
        times = [float(vehicle.attrib["depart"]), *exits[:-1]]  # without internal links, leaving is entering
        for road, time in zip(route.attrib["edges"].split(), times, strict=True):
            if time >= 0:  # -1: not there yet
                entered[seen.network.index[road], int(time - seen.begin) // 60] += 1
    assert data.count.sum() == entered.sum() > 200
    assert np.abs(data.count - entered).max() <= 1  # a vehicle that crosses as the minute turns
    halting = sum(float(trip.attrib["waitingTime"]) for trip in seen.root("trips.xml").iterfind("tripinfo"))
    assert data.waiting_time.sum() == pytest.approx(halting, rel=0.02)
    on_road = sum(len(step.findall("vehicle")) for step in seen.root("fcd.xml").iterfind("timestep"))
    assert data.sampled_seconds.sum() == pytest.approx(on_road, rel=0.05)
    assert np.array_equal(np.isfinite(data.speed), data.sampled_seconds > 0)
    assert np.nanmax(data.speed) < 1.3 * seen.network.speed.max()


def test_lane_area_detectors_count_halting_vehicles(seen: _Observation) -> None:
    """The detectors' queues against the vehicles' own speeds, second by second."""
    halting: dict[str, np.ndarray] = {
        lane: np.zeros(60 * seen.minutes) for lanes in seen.network.lane_ids for lane in lanes
    }
    for step in seen.root("fcd.xml").iterfind("timestep"):
        second = int(float(step.attrib["time"])) - seen.begin
        for vehicle in step.iterfind("vehicle"):
            if float(vehicle.attrib["speed"]) < HALTING and second < 60 * seen.minutes:
                halting[vehicle.attrib["lane"]][second] += 1
    lanes = [[halting[lane].reshape(-1, 60).max(axis=1) for lane in lanes] for lanes in seen.network.lane_ids]
    for how, combine in (("max", np.max), ("sum", np.sum)):
        queue = read_lane_area(seen.folder / "area.xml", seen.network, seen.begin, seen.minutes, how)  # type: ignore[arg-type]
        expected = np.array([combine(road, axis=0) for road in lanes])
        assert expected.max() >= 5
        assert np.abs(queue - expected).max() <= 1
        assert (queue == expected).mean() > 0.85


def test_readers_take_the_minutes_asked_for(seen: _Observation) -> None:
    whole = read_edge_data(seen.folder / "edges.xml", seen.network, 600, 5)
    later = read_edge_data(seen.folder / "edges.xml", seen.network, 720, 6)
    assert np.array_equal(later.count[:, :3], whole.count[:, 2:]) and later.count[:, 3:].sum() == 0
    queue = read_lane_area(seen.folder / "area.xml", seen.network, 720, 6)
    assert np.isnan(queue[:, 3:]).all() and np.isfinite(queue[:, :3]).all()


@pytest.mark.parametrize("reader", [read_edge_data, read_lane_area])
def test_readers_refuse_other_files(seen: _Observation, tmp_path: Path, reader: Callable[..., object]) -> None:
    network = seen.network
    with pytest.raises(InputError, match="no such file"):
        reader(tmp_path / "missing.xml", network, 600, 5)
    with pytest.raises(InputError, match="<vehicle> where <interval> should be"):
        reader(seen.folder / "routes.xml", network, 600, 5)
    name = "edges.xml" if reader is read_edge_data else "area.xml"
    with pytest.raises(InputError, match="600 to 660 s is not one of the minutes after 630 s"):
        reader(seen.folder / name, network, 630, 5)
    with pytest.raises(InputError, match=r"no (road|lane) of the network in the 5 minutes after 6000 s"):
        reader(seen.folder / name, network, 6000, 5)
    text = (seen.folder / name).read_text()
    broken = tmp_path / "broken.xml"
    broken.write_text(text.replace('entered="', 'entered="x').replace('maxJamLengthInVehicles="', 'j="'))
    with pytest.raises(InputError, match=r"broken\.xml: (edge|interval) '.*expected a number"):
        reader(broken, network, 600, 5)
    broken.write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match=r"broken\.xml, line .* not well-formed"):
        reader(broken, network, 600, 5)
    broken.write_text(text.replace('end="', 'stop="'))
    with pytest.raises(InputError, match="an interval without begin and end"):
        reader(broken, network, 600, 5)


def test_cluster_of_a_city_of_six_thousand_roads(sumo_data: Path) -> None:
    network = load_network(sumo_data / "LibSignal/pb_nanchang/derived/nanchang.net.xml.gz")
    speed = np.tile(network.speed[:, None], (1, 60))
    assert largest_functional_cluster(speed, network.speed, network).min() > 0.99
