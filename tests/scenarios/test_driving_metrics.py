"""Metrics of driving: by hand where a scene is made for it, by scipy where it has the formula, by loops otherwise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, wasserstein_distance
from throng.scenarios.driving import divergence, realism
from throng.scenarios.driving.divergence import Histogram
from throng.scenarios.driving.geometry import FAR
from throng.scenarios.driving.metrics import (
    Features,
    displacement,
    displacement_of,
    fidelity_samples,
    logged,
    measure,
    rates,
)
from throng.scenarios.driving.recording import Map, Polyline, empty, scene_of
from throng.scenarios.driving.scene import Kind, Line, Scene
from throng.scenarios.driving.world import World, WorldState

STEPS, STEP, HISTORY = 42, 0.1, 2  # moment 0 is step 1 of the recording; 40 steps come
TIME = (np.arange(STEPS) - 1) * STEP  # of each step since moment 0
HORIZON = STEPS - HISTORY
Way = tuple[np.ndarray, np.ndarray]  # [steps, 2] metres, [steps] radians


def make_scene(ways: list[Way], kinds: list[Kind] | None = None, seen: np.ndarray | None = None) -> Scene:
    """Cars of 4 m by 2 m on a road of 400 m by 60 m about the origin."""
    kinds = kinds or [Kind.VEHICLE] * len(ways)
    found = empty("made", "made", TIME + STEP, HISTORY, [f"a{i}" for i in range(len(ways))], kinds)
    for i, (xy, yaw) in enumerate(ways):
        found.xy[i], found.yaw[i] = xy, yaw
        found.velocity[i], found.size[i], found.valid[i] = np.gradient(xy, STEP, axis=0), (4.0, 2.0), True
    if seen is not None:
        found.valid = seen
    ring = np.array([(-200, -30), (200, -30), (200, 30), (-200, 30), (-200, -30)], float)
    lane = Polyline("lane", Line.LANE, np.array([(-200.0, 0.0), (200.0, 0.0)]))
    found.map = Map([Polyline("edge", Line.ROAD_EDGE, ring), lane])
    return scene_of(found)


def straight(x: float, y: float, speed: float, acceleration: float = 0.0) -> Way:
    way = x + speed * TIME + acceleration / 2 * TIME**2
    return np.column_stack([way, np.full(STEPS, y)]), np.zeros(STEPS)


def circle(radius: float, turning: float) -> Way:
    yaw = turning * TIME
    return radius * np.column_stack([np.sin(yaw), -np.cos(yaw)]), yaw


def of_log(scene: Scene) -> Features:
    world = World([scene], [np.ones(scene.agents, bool)], dtype=torch.float64)
    return measure(world, logged(world))


def only(features: Features, agent: int) -> Features:
    """As if only one were asked about."""
    who = np.zeros_like(features.who)
    who[:, agent] = features.who[:, agent]
    return replace(features, who=who)


def test_bins_are_numpys_and_nobody_beyond_them_is_lost() -> None:
    rng = np.random.default_rng(0)
    histogram = Histogram(-1.0, 2.0, 7)
    samples = rng.uniform(-1, 2, 500)
    np.testing.assert_array_equal(Histogram(0.0, 4.0, 4).counts(np.arange(5)), np.histogram(np.arange(5), 4)[0])
    np.testing.assert_array_equal(histogram.counts(samples), np.histogram(samples, 7, (-1.0, 2.0))[0])
    np.testing.assert_array_equal(histogram.counts(np.array([-9.0, -1.0, 2.0, 9.0, np.nan])), [2, 0, 0, 0, 0, 0, 2])
    np.testing.assert_allclose(Histogram(0.0, 1.0, 4).centres, [0.125, 0.375, 0.625, 0.875])
    with pytest.raises(ValueError, match="0 bins from 1 to 0"):
        Histogram(1.0, 0.0, 0)


def test_the_paper_s_histograms() -> None:
    assert set(divergence.MRIC) < set(Features.__dataclass_fields__)
    assert {one.bins for one in divergence.MRIC.values()} == {200}
    assert (divergence.MRIC["progress_m"].high, divergence.MRIC["road_edge_m"].low) == (280.0, -20.0)


def test_divergences_are_scipys() -> None:
    rng = np.random.default_rng(1)
    histogram = Histogram(-3.0, 5.0, 40)
    for shift in (0.0, 0.7, 3.0):
        p, q = histogram.counts(rng.normal(size=400)), histogram.counts(rng.normal(shift, 1.5, 300))
        floor = 1e-7
        found = divergence.kullback_leibler(p, q, floor)
        assert found == pytest.approx(entropy(p / p.sum() + floor, q / q.sum() + floor), rel=1e-12)
        assert divergence.jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q) ** 2, rel=1e-9)
        theirs = wasserstein_distance(histogram.centres, histogram.centres, p, q)
        assert divergence.wasserstein(p, q, histogram) == pytest.approx(theirs, rel=1e-9)
        cosine = np.sqrt(p / p.sum()) @ np.sqrt(q / q.sum())
        assert divergence.hellinger(p, q) == pytest.approx(np.sqrt(1 - cosine), rel=1e-9)


def test_divergences_of_what_is_apart() -> None:
    histogram = Histogram(0.0, 8.0, 4)
    p, q = np.array([5, 0, 0, 0]), np.array([0, 0, 0, 2])
    assert divergence.hellinger(p, q) == pytest.approx(1.0)
    assert divergence.jensen_shannon(p, q) == pytest.approx(np.log(2))
    assert divergence.wasserstein(p, q, histogram) == pytest.approx(6.0)
    assert divergence.kullback_leibler(p, q) == pytest.approx(np.log(1e7), rel=1e-5)
    assert [f(p, 3 * p) for f in (divergence.hellinger, divergence.jensen_shannon)] == [0.0, 0.0]
    r = np.array([1, 1, 0, 0])
    assert divergence.kullback_leibler(p, r) == pytest.approx(np.log(2), abs=1e-5), "p is the first of the two"


@pytest.mark.parametrize(
    ("p", "q", "said"),
    [
        ([1, 2], [1, 2, 3], "shapes"),
        ([0, 0], [1, 2], "p is no histogram"),
        ([1, 2], [-1, 2], "q is no histogram"),
        ([1, 2], [1, 2], "2 counts of a histogram with 3 bins"),
    ],
    ids=["bins", "nobody", "negative", "other"],
)
def test_what_are_no_two_histograms_is_refused(p: list[int], q: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        divergence.wasserstein(np.array(p), np.array(q), Histogram(0.0, 1.0, 3))


def test_constant_acceleration_is_found_where_there_are_steps_on_both_sides() -> None:
    features = of_log(make_scene([straight(-50, 0, 4.0, 1.5), straight(0, 10, 0.0)]))
    after = TIME[HISTORY:]
    np.testing.assert_allclose(features.speed_m_s[0, 0, :-1], 4.0 + 1.5 * after[:-1], atol=1e-4)
    np.testing.assert_allclose(features.acceleration_m_s2[0, 0, 1:-2], 1.5, atol=1e-3)
    assert np.flatnonzero(np.isnan(features.speed_m_s[0, 0])).tolist() == [HORIZON - 1]
    assert np.flatnonzero(np.isnan(features.acceleration_m_s2[0, 0])).tolist() == [0, HORIZON - 2, HORIZON - 1]
    np.testing.assert_allclose(features.progress_m[0], [4.0 * 4 + 0.75 * 4**2, 0.0], atol=1e-4)
    np.testing.assert_allclose(features.curvature_1_m[0], [0.0, np.nan], atol=1e-6)
    assert np.isnan(features.step_curvature_1_m[0, 1]).all(), "who stands has no curvature"
    assert len(features.samples("speed_m_s")) == 2 * (HORIZON - 1)
    assert len(features.samples("curvature_1_m")) == 1


def test_a_circle_has_its_curvature_all_around() -> None:
    """Directions pass pi on the way, where they jump."""
    radius, turning = 10.0, -1.2
    features = of_log(make_scene([circle(radius, turning)]))
    np.testing.assert_allclose(features.angular_speed_rad_s[0, 0, :-1], turning, atol=1e-4)
    np.testing.assert_allclose(features.angular_acceleration_rad_s2[0, 0, 1:-2], 0.0, atol=1e-3)
    chord = radius * np.sin(-turning * STEP) / STEP  # what is left of the speed over two steps
    np.testing.assert_allclose(features.speed_m_s[0, 0, :-1], chord, atol=1e-4)
    np.testing.assert_allclose(features.step_curvature_1_m[0, 0, :-1], turning / chord, atol=1e-4)
    assert features.curvature_1_m[0, 0] == pytest.approx(-1 / radius, rel=1e-3)
    assert features.progress_m[0, 0] == pytest.approx(radius * -turning * HORIZON * STEP, rel=1e-3)


def test_who_overlaps_with_whom_and_from_when_on() -> None:
    """The first drives into the second, which stands 12 m ahead of it: they touch after 8 m, in step 16."""
    ways = [straight(0, 0, 5.0), straight(12, 0, 0.0), straight(0, 20, 5.0)]
    features = of_log(make_scene(ways, [Kind.VEHICLE, Kind.PEDESTRIAN, Kind.VEHICLE]))
    driven = 5.0 * TIME[HISTORY:]
    before = driven < 7.9
    np.testing.assert_allclose(features.spacing_m[0, 0, before], 8.0 - driven[before], atol=1e-4)
    assert np.flatnonzero(features.spacing_m[0, 0] < -1e-3)[0] == 16
    np.testing.assert_allclose(
        features.time_to_collision_s[0, 0, before], np.minimum(1.6 - driven[before] / 5, 5), atol=1e-3
    )
    found = rates(features)
    assert (found.collision.tolist(), found.agents.tolist(), found.vehicles.tolist()) == ([2 / 3], [3], [2])
    assert [rates(only(features, one)).collision[0] for one in range(3)] == [1.0, 1.0, 0.0]
    early = np.arange(HORIZON) < 15
    assert rates(replace(features, who=features.who & early)).collision.tolist() == [0.0]


def test_who_leaves_the_road_and_for_how_long() -> None:
    """The road ends at x = 200: the front of a car at 190 m, with 8 m/s, is there after a second."""
    ways = [straight(190, 0, 8.0), straight(0, 0, 8.0), straight(190, 10, 8.0)]
    features = of_log(make_scene(ways, [Kind.VEHICLE, Kind.VEHICLE, Kind.PEDESTRIAN]))
    np.testing.assert_allclose(features.road_edge_m[0, 0, :9], 0.8 * np.arange(1, 10) - 8, atol=1e-4)
    found = rates(features)
    assert found.off_road.tolist() == [0.5]
    off = HORIZON - 10  # 40 steps less those up to the second
    assert found.off_road_steps[0] == pytest.approx(off / (2 * HORIZON), abs=1.1 / (2 * HORIZON))
    assert (features.road_edge_m[0, 0] > 1e-3).sum() == off


def test_what_no_car_can_drive() -> None:
    ways = [straight(-90, 0, 2, 6.5), straight(-90, 9, 2, 5.5), circle(3.0, 0.6), circle(4.0, 0.6), circle(3.0, 0.6)]
    kinds = [Kind.VEHICLE] * 4 + [Kind.PEDESTRIAN]
    features = of_log(make_scene(ways, kinds))
    assert [rates(only(features, one)).infeasible[0] for one in range(4)] == [1, 0, 1, 0]
    assert rates(features).infeasible[0] == 0.5
    assert np.isnan(rates(only(features, 4)).infeasible[0]), "who walks is no vehicle"


def test_red_lights_are_run_by_who_passes_them_while_they_are_red() -> None:
    scene = make_scene([straight(0, y, 2.0) for y in (-9, -3, 3, 9)])
    world = World([scene], [np.ones(4, bool)])
    beyond = np.full((4, HORIZON + 1), -FAR)
    beyond[0, :9] = np.arange(9) - 4.5  # passes at red in step 5
    beyond[1, 20:22] = 3.0  # is 3 m beyond when it turns red
    beyond[2] = -2.0  # waits
    world.red_light = lambda state: torch.as_tensor(beyond[None, :, state.step])  # type: ignore[method-assign]
    features = measure(world, logged(world))
    assert np.flatnonzero(features.ran_red_light[0, 0]).tolist() == [4]
    found = rates(features)
    assert (found.red_light.tolist(), found.ran_red_light.tolist()) == ([0.5], [0.25])


def test_who_was_not_there_is_not_measured() -> None:
    seen = np.ones((2, STEPS), bool)
    seen[1, :20] = False
    seen[1, 30] = False
    scene = make_scene([straight(0, 0, 5.0), straight(0, 0, 5.0)], seen=seen)
    world = World([scene], [np.array([True, False])])
    features = measure(world, logged(world), np.ones((1, 2), bool))
    there = seen[1, HISTORY:]
    np.testing.assert_array_equal(features.who[0], seen[:, HISTORY:])
    np.testing.assert_array_equal(np.isnan(features.road_edge_m[0, 1]), ~there)
    np.testing.assert_array_equal(features.spacing_m[0, 0] < 0, there)
    speed = np.isnan(features.speed_m_s[0, 1])
    assert speed[18] and not speed[19], "a speed needs somebody before and after"
    # 42 steps less 20, and less the one in the middle: ways are between steps 20 and 29, and 31 and 41.
    assert features.progress_m[0, 1] == pytest.approx(0.5 * (9 + 10), rel=1e-4)
    nobody = rates(measure(world, logged(world), np.zeros((1, 2), bool)))
    assert np.isnan(nobody.collision[0])
    assert np.isnan(nobody.overall()["off_road"])


def test_worlds_are_of_their_scenes_and_rates_of_everybody_are_weighted() -> None:
    """Nobody is controlled: all rollouts are the log. Actions carry gradients, as in training."""
    crash = make_scene([straight(0, 0, 5.0), straight(12, 0, 0.0)])
    alone = make_scene([straight(0, 0, 5.0)])
    world = World([crash, alone], [np.zeros(2, bool), np.zeros(1, bool)], rollouts=2)
    states = [world.reset()]
    for _ in range(world.horizon):
        states.append(world.step(states[-1], torch.zeros(4, 2, 3, requires_grad=True)))
    asked = np.array([[True, True], [True, True], [True, False], [True, False]])
    features = measure(world, states, asked)
    assert (features.spacing_m[2:, 0] == FAR).all()
    found = rates(features)
    assert found.collision.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert found.overall()["collision"] == pytest.approx(4 / 6)
    log = of_log(crash)
    for w in (0, 1):
        np.testing.assert_allclose(features.speed_m_s[w], log.speed_m_s[0], atol=1e-3)
        np.testing.assert_allclose(features.spacing_m[w], log.spacing_m[0], atol=1e-4)


def test_what_does_not_follow_each_other_is_refused() -> None:
    world = World([make_scene([straight(0, 0, 5.0)])], [np.ones(1, bool)])
    states = logged(world)
    for given, said in (
        (states[:1], "1 states"),
        (states[::2], "state 1 is of step 2: expected 1"),
        ([states[0], WorldState(torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.bool), 1)], r"agents \(1, 2, 4\)"),
    ):
        with pytest.raises(ValueError, match=said):
            measure(world, given)
    with pytest.raises(ValueError, match=r"who is \(2,\)"):
        measure(world, states, np.ones(2, bool))
    with pytest.raises(ValueError, match=r"who is \(2, 1\)"):
        displacement(world, states, np.ones((2, 1), bool))


def test_what_trafficgamer_compares() -> None:
    scene = make_scene([straight(0, 0, 5.0), straight(30, 0, 0.0), straight(0, 8, 5.0), straight(-100, 0, 5.0)])
    world = World([scene], [np.array([True, True, True, False])], dtype=torch.float64)
    speed, distance = fidelity_samples(world, logged(world))
    np.testing.assert_allclose(speed, 5.0, atol=1e-4)
    assert len(speed) == 2 * HORIZON
    assert len(distance) == 3 * HORIZON
    assert distance.min() == pytest.approx(8.0, abs=1e-4)
    assert len(fidelity_samples(world, [replace(one, agents=100 * one.agents) for one in logged(world)])[1]) == 0


def test_displacement_by_hand() -> None:
    """Errors of two rollouts, agents and steps: 3 and 5, 2 and 0 in the first, 1 and 1, 4 and 6 in the second."""
    log = np.zeros((1, 2, 2, 2))
    xy = np.zeros((2, 2, 2, 2))
    xy[0, :, :, 0] = [[3, 5], [2, 0]]
    xy[1, :, :, 1] = [[1, 1], [4, -6]]
    valid = np.ones((1, 2, 2), bool)
    found = displacement_of(xy, log, valid)
    assert found.ade[0] == pytest.approx((4 + 1 + 1 + 5) / 4)
    assert found.min_ade[0] == pytest.approx((1 + 1) / 2)
    assert found.min_sade[0] == pytest.approx(min((4 + 1) / 2, (1 + 5) / 2))
    assert found.min_fde[0] == pytest.approx((1 + 0) / 2)
    assert found.miss_rate[0] == 0.0
    assert found.brier_min_fde[0] == pytest.approx(0.5 + 0.25)
    chance = np.array([[0.9, 0.9], [0.1, 0.1]])
    assert displacement_of(xy, log, valid, chance).brier_min_fde[0] == pytest.approx(0.5 + (0.9**2 + 0.1**2) / 2)
    valid[0, 1, 1] = False  # the second agent's last logged step is now its first
    found = displacement_of(xy, log, valid)
    assert found.ade[0] == pytest.approx((4 + 2 + 1 + 4) / 4)
    assert found.min_fde[0] == pytest.approx((1 + 2) / 2)
    valid[0, 0] = False
    xy[0, 1, 0] = [2.1, 0]
    found = displacement_of(xy, log, valid)
    assert (found.min_fde[0], found.miss_rate[0]) == (pytest.approx(2.1), 1.0)
    assert np.isnan(displacement_of(xy, log, np.zeros_like(valid)).min_sade[0])


def test_displacement_of_rollouts_is_of_their_scenes_and_of_who_is_controlled() -> None:
    seen = np.ones((2, STEPS), bool)
    seen[0, 20:] = False
    scene = make_scene([straight(0, 0, 5.0), straight(0, 9, 5.0)], seen=seen)
    world = World([scene] * 2, [np.array([True, False]), np.array([False, True])], rollouts=2, dtype=torch.float64)
    shift = torch.tensor([[1.0, 7.0], [2.0, 7.0], [7.0, 3.0], [7.0, 5.0]], dtype=torch.float64)
    states = logged(world)
    for one in states:
        one.agents[..., 1] += shift
    found = displacement(world, states)
    for name, expected in (
        ("ade", [1.5, 4.0]),
        ("min_ade", [1.0, 3.0]),
        ("min_sade", [1.0, 3.0]),
        ("miss_rate", [0, 1]),
    ):
        np.testing.assert_allclose(getattr(found, name), expected, atol=1e-9)
    both = displacement(world, states, np.array([[True, True], [True, False]]))
    np.testing.assert_allclose(both.ade, [(1.5 + 7) / 2, 7.0], atol=1e-9)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (((3, 2, 5, 2), (2, 2, 5, 2), (2, 2, 5), None), "xy is"),
        (((2, 2, 4, 2), (2, 2, 5, 2), (2, 2, 5), None), "xy is"),
        (((2, 2, 5, 2), (2, 2, 5), (2, 2, 5), None), "log is"),
        (((2, 2, 5, 2), (2, 2, 5, 2), (2, 2, 5), (2, 5)), "probability is"),
    ],
    ids=["rollouts", "steps", "log", "probability"],
)
def test_trajectories_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...] | None, ...], said: str) -> None:
    xy, log, valid, chance = (None if shape is None else np.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match=said):
        displacement_of(xy, log, valid.astype(bool), chance)


def test_a_likelihood_by_hand() -> None:
    """Of 5 samples 3 are in the first of two bins, 1 is unknown and 1 beyond the last."""
    scores = realism.log_likelihood(
        np.array([[0.2, 1.9]]), np.array([[0.1, 0.5, 0.9, np.nan, 7.0]]), Histogram(0.0, 2.0, 2), 0.1
    )
    np.testing.assert_allclose(scores, np.log([[3.1 / 4.2, 1.1 / 4.2]]))


def random_features(rng: np.random.Generator, worlds: int, agents: int, steps: int, kind: np.ndarray) -> Features:
    shape = (worlds, agents, steps)
    series = [
        rng.normal(mean, spread, shape) for mean, spread in ((9, 7), (0, 5), (0, 0.3), (0, 2), (9, 9), (3, 2), (-9, 9))
    ]
    none = np.full(shape, np.nan)
    return Features(
        *series, none, rng.random(shape) < 0.02, none, none[..., 0], none[..., 0], rng.random(shape) < 0.9, kind
    )  # fmt: skip


def scene_score(log: np.ndarray, ours: np.ndarray, valid: np.ndarray, edges: np.ndarray, pseudo_count: float) -> float:
    """Of one scene with loops: `[agents, steps]`, `[rollouts, agents, steps]`."""
    scores = []
    for agent, step in np.argwhere(valid):
        counts = np.histogram(np.clip(ours[:, agent], edges[0], edges[-1]), edges)[0] + pseudo_count
        one = np.histogram(np.clip(log[agent, step], edges[0], edges[-1]), edges)[0].argmax()
        scores.append(np.log(counts[one] / counts.sum()))
    return float(np.exp(np.mean(scores)))


def test_realism_is_that_of_loops() -> None:
    rng = np.random.default_rng(2)
    scenes, rollouts, agents, steps = 2, 4, 3, 12
    kind = np.array([[Kind.VEHICLE, Kind.PEDESTRIAN, Kind.VEHICLE]] * scenes)
    log = random_features(rng, scenes, agents, steps, kind)
    ours = random_features(rng, scenes * rollouts, agents, steps, np.repeat(kind, rollouts, axis=0))
    found = realism.realism(log, ours)
    for i in range(scenes):
        span = slice(i * rollouts, (i + 1) * rollouts)
        valid = log.who[i]
        cars = valid & (kind[i] == Kind.VEHICLE)[:, None]
        once, twice = np.zeros_like(valid), np.zeros_like(valid)
        for t in range(1, steps - 1):
            once[:, t] = valid[:, t - 1] & valid[:, t + 1]
        for t in range(1, steps - 1):
            twice[:, t] = once[:, t - 1] & once[:, t + 1]
        expected = {
            "linear_speed": (log.speed_m_s, ours.speed_m_s, once, 0, 25, 10),
            "linear_acceleration": (log.acceleration_m_s2, ours.acceleration_m_s2, twice, -12, 12, 11),
            "angular_speed": (log.angular_speed_rad_s, ours.angular_speed_rad_s, once, -0.628, 0.628, 11),
            "angular_acceleration": (
                log.angular_acceleration_rad_s2, ours.angular_acceleration_rad_s2, twice, -3.14, 3.14, 11),
            "distance_to_nearest_object": (log.spacing_m, ours.spacing_m, valid, -5, 40, 10),
            "time_to_collision": (log.time_to_collision_s, ours.time_to_collision_s, cars, 0, 5, 10),
            "distance_to_road_edge": (log.road_edge_m, ours.road_edge_m, valid, -20, 40, 10),
        }  # fmt: skip
        for name, (logs, theirs, mask, low, high, bins) in expected.items():
            score = scene_score(logs[i], theirs[span], mask, np.linspace(low, high, bins + 1), 0.1)
            assert found.likelihoods[name][i] == pytest.approx(score, rel=1e-12), name
        happened = {
            "collision_indication": (log.spacing_m < 0, ours.spacing_m < 0, valid),
            "offroad_indication": (log.road_edge_m > 0, ours.road_edge_m > 0, valid),
            "traffic_light_violation": (log.ran_red_light, ours.ran_red_light, cars),
        }
        for name, (logs, theirs, mask) in happened.items():
            scores = []
            for agent in range(agents):
                share = ((theirs[span, agent] & mask[agent]).any(-1).sum() + 0.001) / (rollouts + 0.002)
                scores.append(np.log(share if (logs[i, agent] & mask[agent]).any() else 1 - share))
            assert found.likelihoods[name][i] == pytest.approx(np.exp(np.mean(scores)), rel=1e-12), name
    one = found.likelihoods
    kinematic = one["linear_speed"] + one["linear_acceleration"] + one["angular_speed"] + one["angular_acceleration"]
    np.testing.assert_allclose(found.groups["kinematic"], kinematic / 4)
    near, ttc = one["distance_to_nearest_object"], one["time_to_collision"]
    np.testing.assert_allclose(
        found.groups["interactive"], (0.1 * near + 0.25 * one["collision_indication"] + 0.1 * ttc) / 0.45
    )
    edge, light = one["distance_to_road_edge"], one["traffic_light_violation"]
    np.testing.assert_allclose(
        found.groups["map_based"], (0.05 * edge + 0.25 * one["offroad_indication"] + 0.05 * light) / 0.35
    )
    weighted = {"kinematic": 0.2, "interactive": 0.45, "map_based": 0.35}
    np.testing.assert_allclose(found.meta, sum(weight * found.groups[name] for name, weight in weighted.items()))


def test_a_log_among_itself_is_as_likely_as_bins_allow() -> None:
    """Who always drives 8 m/s is in one bin of ten, of 39 steps in each of two rollouts."""
    scene = make_scene([straight(-50, 0, 8.0), straight(-50, 9, 8.0)])
    log = only(of_log(scene), 0)
    world = World([scene], [np.array([True, False])], rollouts=2, dtype=torch.float64)
    found = realism.realism(log, measure(world, logged(world)))
    assert found.likelihoods["linear_speed"][0] == pytest.approx((78 + 0.1) / (78 + 1.0))
    assert found.likelihoods["angular_acceleration"][0] == pytest.approx((2 * 37 + 0.1) / (2 * 37 + 1.1))
    assert found.likelihoods["collision_indication"][0] == pytest.approx(2.001 / 2.002)
    assert 0.98 < found.meta[0] < 1.0


def test_without_vehicles_there_is_no_time_to_collision() -> None:
    rng = np.random.default_rng(3)
    features = random_features(rng, 1, 2, 9, np.full((1, 2), Kind.CYCLIST))
    found = realism.realism(features, features)
    assert np.isnan(found.likelihoods["time_to_collision"][0])
    assert np.isnan(found.meta[0])
    assert found.likelihoods["traffic_light_violation"][0] == pytest.approx(1.001 / 1.002)


def test_rollouts_of_other_scenes_are_refused() -> None:
    rng = np.random.default_rng(4)

    def make(worlds: int, agents: int) -> Features:
        return random_features(rng, worlds, agents, 9, np.zeros((worlds, agents), int))

    for ours in (make(3, 2), make(2, 3), make(1, 2)):
        with pytest.raises(ValueError, match="expected rollouts x 2, 2, 9"):
            realism.realism(make(2, 2), ours)
