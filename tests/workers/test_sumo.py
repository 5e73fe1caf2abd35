"""Rollouts against the plain sumo program's own output of the same traffic."""

from __future__ import annotations

import gc
import os
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import libsumo
import numpy as np
import pytest
import sumo
from numpy.typing import NDArray
from throng.policies.navigation import fastest_routes
from throng.scenarios.demand import Routes
from throng.scenarios.scenario import Scenario
from throng.workers import delayed, halting, libsumo_binding, native
from throng.workers.sumo import GiveUp, Rollout, RolloutError, RolloutTimeout, SumoRollout

SUMO = str(Path(sumo.SUMO_HOME) / "bin" / "sumo")
Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def simulator(town: Scenario) -> Iterator[SumoRollout]:
    with SumoRollout(town) as rollout:
        yield rollout


@pytest.fixture(scope="module")
def usual(simulator: SumoRollout, shortest: Routes) -> Rollout:
    return simulator.run(shortest, seed=1)


def _same(a: Rollout, b: Rollout) -> bool:
    counts = ("arrived", "running", "waiting", "teleports", "minutes")
    return np.array_equal(a.macro.queue, b.macro.queue) and all(getattr(a, c) == getattr(b, c) for c in counts)


def _plain_sumo(scenario: Scenario, routes: Routes, seed: int, folder: Path) -> tuple[ET.Element, ET.Element]:
    """Drives the same routes with the plain program; its positions of every step and its edgeData."""
    network, demand = scenario.network, scenario.demand
    lines = ["<routes>", demand.types]
    for i in range(len(demand)):
        edges = " ".join(network.road_ids[road] for road in routes.route(i))
        lines.append(
            f'<vehicle id={quoteattr(demand.ids[i])} depart="{demand.depart[i]}" {demand.attributes[i]}>'
            f'<route edges="{edges}"/></vehicle>'
        )
    (folder / "plain.rou.xml").write_text("\n".join([*lines, "</routes>"]))
    (folder / "plain.add.xml").write_text(
        '<additional><edgeData id="e" freq="60" file="plain.edges.xml"/></additional>'
    )
    command = [
        SUMO, "-n", str(network.path), "-r", "plain.rou.xml", "-a", "plain.add.xml", "--seed", str(seed),
        "--begin", str(scenario.begin), "--end", str(scenario.end), "--step-length", str(scenario.step_length),
        "--fcd-output", "plain.fcd.xml", "--precision", "6", "--no-step-log", "true",
    ]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return ET.parse(folder / "plain.fcd.xml").getroot(), ET.parse(folder / "plain.edges.xml").getroot()


def _recount(scenario: Scenario, positions: ET.Element) -> Array:
    """The most vehicles below 0.1 m/s at a whole second of each minute, of the longest lane or of all lanes.

    SUMO dates a step by its beginning: what it writes for t is the state at t + step.
    """
    network = scenario.network
    queue = np.zeros((network.road_count, scenario.minutes), np.float32)
    lane_of = {lane: road for road, lanes in enumerate(network.lane_ids) for lane in lanes}
    for step in positions:
        after = float(step.get("time", "")) + scenario.step_length - scenario.begin
        minute = int(np.ceil(after / 60)) - 1
        if after % 1 or minute >= scenario.minutes:
            continue
        halting = Counter(v.get("lane", "") for v in step if float(v.get("speed", "")) < 0.1)
        road_halting: Counter[int] = Counter()
        for lane, count in halting.items():
            if lane in lane_of:
                road = lane_of[lane]
                longest = max(road_halting[road], count)
                road_halting[road] = longest if scenario.lanes == "max" else road_halting[road] + count
        for road, count in road_halting.items():
            queue[road, minute] = max(queue[road, minute], count)
    return queue


@pytest.mark.parametrize(
    ("lanes", "step_length", "begin"),
    [("max", 1.0, 0.0), ("sum", 1.0, 0.0), ("max", 0.5, 0.0), ("max", 1.0, 36_000.0)],
)
def test_queues_counts_and_speeds_are_sumos_own(
    town: Scenario, shortest: Routes, tmp_path: Path, lanes: str, step_length: float, begin: float
) -> None:
    """A recount of every vehicle's position and speed, and SUMO's edgeData; one cell off and Eq. 1 compares apples."""
    demand = replace(town.demand, depart=town.demand.depart + begin)
    scenario = replace(
        town, demand=demand, lanes=lanes, step_length=step_length, begin=begin, observe_speed=True
    )  # fmt: skip
    with SumoRollout(scenario) as rollout:
        result = rollout.run(shortest, seed=7)
    positions, edge_data = _plain_sumo(scenario, shortest, 7, tmp_path)
    expected = _recount(scenario, positions)
    assert expected.max() >= 4, "no queue worth counting"
    np.testing.assert_array_equal(result.macro.queue, expected)
    assert result.macro.speed is not None
    assert result.macro.count is not None
    speed, count = np.full_like(result.macro.speed, np.nan), np.zeros_like(result.macro.count)
    for minute, interval in enumerate(edge_data):
        for edge in interval:
            road = town.network.index[edge.get("id", "")]
            count[road, minute] = float(edge.get("entered", "")) + float(edge.get("departed", ""))
            if "speed" in edge.attrib:
                speed[road, minute] = float(edge.get("speed", ""))
    np.testing.assert_array_equal(result.macro.count, count)
    np.testing.assert_allclose(result.macro.speed, speed, atol=0.006)  # ours is written with two decimals


def test_travel_times_count_from_the_planned_departure_to_the_last_sight(
    town: Scenario, shortest: Routes, usual: Rollout, tmp_path: Path
) -> None:
    """Against the plain program's positions: who is gone before the end has arrived when last seen, to the second."""
    with SumoRollout(replace(town, observe_trips=True)) as simulator:
        found = simulator.run(shortest, seed=1)
    positions, _ = _plain_sumo(town, shortest, 1, tmp_path)
    last = {v.get("id", ""): float(step.get("time", "")) for step in positions for v in step.iter("vehicle")}
    end = max(last.values())
    arrived = np.array([last.get(name, end) < end for name in town.demand.ids])
    assert found.travel_time is not None
    assert 20 < arrived.sum() < len(town.demand)
    assert found.arrived == np.isfinite(found.travel_time).sum()
    seen = np.array([last.get(name, np.nan) for name in town.demand.ids]) - town.demand.depart
    certain = arrived & np.isfinite(found.travel_time)
    assert certain.sum() >= found.arrived - 5  # of those who leave in the last second, positions do not tell
    assert np.abs(found.travel_time - seen)[certain].max() <= 1
    assert _same(found, usual)  # looking changes nothing
    assert usual.travel_time is None


def test_every_vehicle_is_somewhere(usual: Rollout, town: Scenario) -> None:
    """Arrived, driving, or not let in: nobody is counted twice or lost. (The last second's departures are not due.)"""
    due = int((town.demand.depart < town.end - 1).sum())
    assert due <= usual.arrived + usual.running + usual.waiting <= len(town.demand)
    assert usual.minutes == 5
    assert usual.seconds >= usual.sumo_seconds > 0


def test_background_vehicles_drive_and_are_counted(town: Scenario, shortest: Routes, usual: Rollout) -> None:
    """The first half learnt, the second given as XML: the same traffic but for ties, and the same number of vehicles."""
    demand, half = town.demand, len(town.demand) // 2
    lines = []
    for i in range(half, len(demand)):
        edges = " ".join(town.network.road_ids[road] for road in shortest.route(i))
        head = f'<vehicle id="{demand.ids[i]}" depart="{demand.depart[i]}" {demand.attributes[i]}>'
        lines.append(f'{head}<route edges="{edges}"/></vehicle>')
    rows = slice(0, half)
    split = replace(
        demand,
        ids=demand.ids[rows],
        attributes=demand.attributes[rows],
        origin=demand.origin[rows],
        destination=demand.destination[rows],
        depart=demand.depart[rows],
        background="\n".join(lines),
        background_count=len(lines),
    )
    routes = Routes.from_lists([shortest.route(i) for i in range(half)])
    with SumoRollout(replace(town, demand=split)) as rollout:
        result = rollout.run(routes, seed=1)
    assert result.arrived + result.running + result.waiting == usual.arrived + usual.running + usual.waiting
    assert result.macro.queue.sum() == pytest.approx(usual.macro.queue.sum(), rel=0.3)


@pytest.mark.parametrize("fidelity", ["micro", "meso"])
def test_a_seed_decides_everything(simulator: SumoRollout, shortest: Routes, fidelity: str) -> None:
    """Bit for bit, also after other runs; another seed is another day. Without it no run could be resumed."""
    first = simulator.run(shortest, 3, fidelity)  # type: ignore[arg-type]
    other = simulator.run(shortest, 4, fidelity)  # type: ignore[arg-type]
    assert _same(simulator.run(shortest, 3, fidelity), first)  # type: ignore[arg-type]
    assert not _same(other, first)


def test_mesoscopic_queues_rank_roads_as_microscopic_ones(
    simulator: SumoRollout, shortest: Routes, usual: Rollout, town: Scenario
) -> None:
    """They need not be equal, but where people stand in one model they must be slow in the other."""
    meso = simulator.run(shortest, 1, "meso")
    assert meso.fidelity == "meso"
    assert np.isfinite(meso.macro.queue).all()
    assert (meso.macro.queue >= 0).all()
    assert np.corrcoef(meso.macro.queue.mean(axis=1), usual.macro.queue.mean(axis=1))[0, 1] > 0.6
    due = int((town.demand.depart < town.end - 1).sum())
    assert due <= meso.arrived + meso.running + meso.waiting <= len(town.demand)


NOISY_TYPES = [
    '<vType id="car" vClass="passenger"/>',
    '<vType id="car" vClass="passenger" sigma="0.8" speedFactor="normc(1.1, 0.2, 0.5, 2)"/>',
    '<vType id="car" vClass="passenger" speedFactor="norm(0.9,0.1)"/>',
    '<vType id="car" vClass="passenger" speedFactor="1.2" speedDev="0.3"/>',
]


@pytest.mark.parametrize("types", NOISY_TYPES)
def test_quiet_traffic_has_no_noise_left(town: Scenario, shortest: Routes, types: str) -> None:
    """Two seeds agree when quiet and differ when not: noise left over would be taken for merit in a ranking."""
    with SumoRollout(replace(town, demand=replace(town.demand, types=types))) as rollout:
        quiet, noisy = ([rollout.run(shortest, seed, quiet=q) for seed in (1, 2)] for q in (True, False))
    assert _same(*quiet)
    assert not _same(*noisy)
    assert quiet[0].quiet
    assert not noisy[0].quiet


def test_quiet_covers_vehicles_without_a_type(town: Scenario, shortest: Routes) -> None:
    """They drive SUMO's default type, which dawdles unless told otherwise."""
    attributes = tuple(a.replace('type="car"', "") for a in town.demand.attributes)
    demand = replace(town.demand, attributes=attributes, types="")
    with SumoRollout(replace(town, demand=demand)) as rollout:
        assert _same(*(rollout.run(shortest, seed, quiet=True) for seed in (1, 2)))


def test_routes_may_be_rows_or_names(simulator: SumoRollout, shortest: Routes, town: Scenario, usual: Rollout) -> None:
    """Published routes travel as strings: the same roads must make the same traffic."""
    names = town.network.road_ids
    strings = tuple(" ".join(names[road] for road in shortest.route(i)) for i in range(len(shortest)))
    assert _same(simulator.run(strings, 1), usual)


def test_other_routes_make_other_traffic(simulator: SumoRollout, town: Scenario, usual: Rollout) -> None:
    """Were an old route file read again, every candidate would have the same error."""
    routes = fastest_routes(town.network, town.demand.origin, town.demand.destination)
    assert not _same(simulator.run(routes, 1), usual)


def test_a_route_for_every_vehicle(simulator: SumoRollout, shortest: Routes) -> None:
    """One route too few would give everybody after it another's."""
    with pytest.raises(ValueError, match="zip"):
        simulator.run(Routes(shortest.roads, shortest.offsets[:-1]), 1)


def test_a_refused_route_is_reported_in_sumos_words(
    simulator: SumoRollout, shortest: Routes, usual: Rollout, capfd: pytest.CaptureFixture[str]
) -> None:
    """The message names vehicle and reason; the process can simulate again."""
    broken = Routes(shortest.roads.copy(), shortest.offsets)
    broken.roads[shortest.offsets[5] + 1] = broken.roads[shortest.offsets[5]]
    with pytest.raises(RolloutError, match=r"Vehicle '5' has no valid route"):
        simulator.run(broken, 1)
    unknown = tuple("n4E4 nowhere" for _ in range(len(shortest)))
    with pytest.raises(RolloutError, match="nowhere"):
        simulator.run(unknown, 1)
    assert _same(simulator.run(shortest, 1), usual)


@pytest.mark.parametrize("character", list("é#[=%{/(~:+日"))
def test_ids_that_sumo_allows_survive(town: Scenario, shortest: Routes, usual: Rollout, character: str) -> None:
    ids = tuple(f"v{character}{i}" for i in range(len(town.demand)))
    with SumoRollout(replace(town, demand=replace(town.demand, ids=ids))) as rollout:
        assert _same(rollout.run(shortest, 1), usual)


@pytest.mark.parametrize("character", list("\"'&<>|"))
def test_ids_that_sumo_refuses_arrive_there_unharmed(
    town: Scenario, shortest: Routes, usual: Rollout, character: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """SUMO 1.28 allows no quote, ampersand or bracket in an id: its message must quote the very id that we were given.

    Were the XML not escaped, the id would be cut, or the parser complain about the file.
    """
    ids = tuple(f"v{character}{i}" for i in range(len(town.demand)))
    with SumoRollout(replace(town, demand=replace(town.demand, ids=ids))) as rollout:
        with pytest.raises(RolloutError) as caught:
            rollout.run(shortest, 1)
        assert f"Invalid vehicle id 'v{character}0'" in str(caught.value)
    with SumoRollout(town) as rollout:  # the first refusal once left the process unusable
        assert _same(rollout.run(shortest, 1), usual)


def _no_target(town: Scenario) -> Array:
    return np.zeros((town.network.road_count, town.minutes), np.float32)


@pytest.mark.parametrize("observe_speed", [False, True])
def test_a_hopeless_run_is_given_up(town: Scenario, shortest: Routes, usual: Rollout, observe_speed: bool) -> None:
    """Its error so far is beyond the limit and a lower bound of the full run's; what was not simulated is NaN."""
    full = np.square(usual.macro.queue).sum(axis=0)
    limit = float(full[:2].sum() + 0.5 * full[2])
    with SumoRollout(replace(town, observe_speed=observe_speed)) as rollout:
        partial = rollout.run(shortest, 1, give_up=GiveUp(_no_target(town), limit, 10**6))
    assert partial.minutes == 3
    np.testing.assert_array_equal(partial.macro.queue[:, :3], usual.macro.queue[:, :3])
    assert np.isnan(partial.macro.queue[:, 3:]).all()
    so_far = float(np.nansum(np.square(partial.macro.queue)))
    assert limit < so_far <= full.sum()
    if observe_speed:
        assert partial.macro.count is not None
        assert partial.macro.speed is not None
        assert np.isfinite(partial.macro.count[:, :3]).all()
        for series in (partial.macro.count, partial.macro.speed):
            assert np.isnan(series[:, 3:]).all()


def test_a_hopeful_run_is_not_given_up(
    simulator: SumoRollout, town: Scenario, shortest: Routes, usual: Rollout
) -> None:
    """Also if the last minute brings it exactly to the limit; unobserved cells do not count."""
    total = float(np.square(usual.macro.queue).sum())
    assert _same(simulator.run(shortest, 1, give_up=GiveUp(_no_target(town), total, 10**6)), usual)
    blind = np.full_like(usual.macro.queue, np.nan)
    assert _same(simulator.run(shortest, 1, give_up=GiveUp(blind, 0.0, 10**6)), usual)


def test_vehicles_are_counted_as_sumo_counts_them(town: Scenario, shortest: Routes, tmp_path: Path) -> None:
    """Against the statistics that SUMO writes when it ends, in traffic that teleports."""
    file = tmp_path / "statistics.xml"
    told = ("--statistic-output", str(file), "--tripinfo-output", str(tmp_path / "trips.xml"))
    scenario = replace(town, options=("--time-to-teleport", "20", *told))
    with SumoRollout(scenario) as rollout:
        result = rollout.run(shortest, 1)
        libsumo_binding.close()
    statistics = ET.parse(file).getroot()
    vehicles, teleports = statistics.find("vehicles"), statistics.find("teleports")
    assert vehicles is not None and teleports is not None
    counts = [int(vehicles.attrib[name]) for name in ("inserted", "running", "waiting")]
    assert [result.arrived + result.running, result.running, result.waiting] == counts
    assert result.arrived == len(ET.parse(tmp_path / "trips.xml").getroot()) > 0
    assert result.teleports == int(teleports.attrib["total"]) > 5


def test_gridlock_is_given_up_by_its_teleports(town: Scenario, shortest: Routes) -> None:
    """With patience of 20 s at most every queue teleports: the run ends once there are more than allowed."""
    scenario = replace(town, options=("--time-to-teleport", "20"))
    with SumoRollout(scenario) as rollout:
        full = rollout.run(shortest, 1)
        assert full.teleports > 5
        partial = rollout.run(shortest, 1, give_up=GiveUp(_no_target(town), np.inf, 5))
    assert partial.minutes < 5
    assert 5 < partial.teleports <= full.teleports


def test_a_deadline_is_kept(simulator: SumoRollout, shortest: Routes, usual: Rollout) -> None:
    """And the next run is whole."""
    with pytest.raises(RolloutTimeout, match="minute 1 of 5"):
        simulator.run(shortest, 1, deadline=0.0)
    assert _same(simulator.run(shortest, 1), usual)


def test_a_second_simulation_in_the_process_is_refused(
    simulator: SumoRollout, shortest: Routes, usual: Rollout
) -> None:
    """libsumo would destroy the first in silence: the first must go on, and come out unharmed."""

    class Intruder:
        """Starts another rollout from within the first."""

        refused = 0

        def start(self, fidelity: str) -> None:
            with pytest.raises(RolloutError, match="already"):
                simulator.run(shortest, 2)
            Intruder.refused += 1

        def decide(self, queue: Array) -> None: ...

    with (
        pytest.raises(RolloutError, match="already"),
        libsumo_binding.simulation(
            simulator.files.options(1, "micro", False, False), simulator.files.directory / "one.log"
        ),
    ):
        simulator.run(shortest, 2)
    assert _same(simulator.run(shortest, 1, control=Intruder()), usual)  # type: ignore[arg-type]
    assert Intruder.refused == 1


@pytest.mark.parametrize("after_ours", [False, True])
def test_somebody_elses_simulation_is_left_alone(
    simulator: SumoRollout, shortest: Routes, town: Scenario, usual: Rollout, after_ours: bool
) -> None:
    """A user's own libsumo session in the process goes on as if nothing had been asked, whoever came first."""
    if after_ours:
        simulator.run(shortest, 1)
    if libsumo.isLoaded():
        libsumo.close()
    libsumo.start(["sumo", "-n", str(town.network.path), "--no-step-log", "true"])
    try:
        libsumo.simulation.step(12)
        with pytest.raises(RolloutError, match="did not start"):
            simulator.run(shortest, 1)
        assert libsumo.simulation.getTime() == 12
    finally:
        libsumo.close()
    assert _same(simulator.run(shortest, 1), usual)


def test_files_go_with_their_worker(town: Scenario, shortest: Routes) -> None:
    """By close, by the end of a block, and by garbage collection; never somebody's own directory."""
    first, second = SumoRollout(town), SumoRollout(town)
    folders = [first.files.directory, second.files.directory]
    assert len(set(folders)) == 2
    first.run(shortest, 1)
    assert all(folder.is_dir() for folder in folders)
    first.close()
    first.close()
    assert not folders[0].exists()
    del second
    gc.collect()
    assert not folders[1].exists()


def test_a_directory_of_ones_own_stays(town: Scenario, shortest: Routes, usual: Rollout, tmp_path: Path) -> None:
    with SumoRollout(town, tmp_path) as rollout:
        assert _same(rollout.run(shortest, 1), usual)
    assert (tmp_path / "routes.rou.xml").is_file()


def test_what_a_dead_worker_left_is_swept_up(town: Scenario) -> None:
    """A killed worker cannot clean up; memory would fill. Living processes' files stay."""
    with SumoRollout(town) as rollout:
        root = rollout.files.directory.parent
        finished = subprocess.Popen(["true"])
        finished.wait()
        dead = root / f"throng-rollout-{finished.pid}-test"
        alive = root / f"throng-rollout-{os.getppid()}-test"
        foreign = root / "throng-rollout-notes"
        for folder in (dead, alive, foreign):
            folder.mkdir(exist_ok=True)
            (folder / "file").write_text("x")
        try:
            SumoRollout(town).close()
            assert not dead.exists()
            assert alive.exists()
            assert foreign.exists()
            assert rollout.files.directory.exists()
        finally:
            for folder in (dead, alive, foreign):
                if folder.exists():
                    (folder / "file").unlink()
                    folder.rmdir()


@pytest.mark.parametrize("longest", [True, False])
def test_halting_vehicles_are_those_that_sumo_counts(
    simulator: SumoRollout, shortest: Routes, longest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes = simulator.scenario.network.lane_ids
    assert max(map(len, lanes)) > 1
    simulator.files.write_routes(shortest)
    options = simulator.files.options(1, "micro", False, False)
    with libsumo_binding.simulation(options, simulator.files.directory / "sumo.log"):
        assert native.functions(native.VEHICLES, native.SPEED), "the fast way is not there"
        ways = [halting.Halting(lanes, longest)]
        monkeypatch.setattr(libsumo_binding, "_library", None)
        ways.append(halting.Halting(lanes, longest))

        def counted() -> Array:
            counts = [[libsumo.lane.getLastStepHaltingNumber(lane) for lane in road] for road in lanes]
            return np.array([max(road) if longest else sum(road) for road in counts], np.float32)

        assert _watched(ways, counted, 0.0).sum() > 10


def _watched(ways: list[Any], expected: Callable[[], Array], atol: float) -> Array:
    """Steps through four minutes, in which every way must see what is expected; returns what that was at the end."""
    for second in range(240):
        if second % 60 == 0:
            peak = np.zeros_like(expected())
            for queues in ways:
                queues.forget()
        libsumo_binding.step()
        now = expected()
        peak = np.maximum(peak, now)
        for queues in ways:
            queues.look()
            np.testing.assert_allclose(queues.now(), now, rtol=0, atol=atol)
            np.testing.assert_allclose(queues.peak(), peak, rtol=0, atol=atol)
        np.testing.assert_array_equal(ways[0].now(), ways[1].now())
    return now


@pytest.mark.parametrize("longest", [True, False])
def test_delays_are_those_of_sumos_getters(
    simulator: SumoRollout, shortest: Routes, longest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = simulator.scenario.network
    simulator.files.write_routes(shortest)
    options = simulator.files.options(1, "meso", False, False)
    with libsumo_binding.simulation(options, simulator.files.directory / "sumo.log"):
        assert native.functions(native.ON_EDGE, native.MEAN_SPEED), "the fast way is not there"
        ways = [delayed.Delayed(network, longest)]
        monkeypatch.setattr(libsumo_binding, "_library", None)
        ways.append(delayed.Delayed(network, longest))
        share = 1 / network.lanes if longest else np.ones(network.road_count)

        def counted() -> Array:
            n = np.array([libsumo.edge.getLastStepVehicleNumber(road) for road in network.road_ids])
            speed = np.array([libsumo.edge.getLastStepMeanSpeed(road) for road in network.road_ids])
            return np.maximum(n * share * (1 - speed / network.speed), 0).astype(np.float32)

        assert _watched(ways, counted, 1e-5).sum() > 1


@pytest.mark.parametrize("portable", [False, True])
def test_a_network_that_changed_since_it_was_read(
    town: Scenario, shortest: Routes, portable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if portable:
        monkeypatch.setattr(libsumo_binding, "_library", None)
    lanes = [list(lanes) for lanes in town.network.lane_ids]
    lanes[3][0] = "gone_0"
    changed = replace(town, network=replace(town.network, lane_ids=tuple(map(tuple, lanes))))
    with SumoRollout(changed) as rollout, pytest.raises(RolloutError, match="gone_0"):
        rollout.run(shortest, 1)


def test_a_road_that_went_since_the_network_was_read(town: Scenario, shortest: Routes) -> None:
    roads = ("gone", *town.network.road_ids[1:])
    with SumoRollout(town) as rollout:
        rollout.scenario = replace(town, network=replace(town.network, road_ids=roads))
        with pytest.raises(RolloutError, match="no road 'gone'"):
            rollout.run(shortest, 1, "meso")
