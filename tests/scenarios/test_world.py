"""Worlds: the log comes back, what is driven is driven, all at once is as each alone, and gradients are right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
import torch
from throng.scenarios.driving.geometry import corners
from throng.scenarios.driving.kinematics import bicycle_action
from throng.scenarios.driving.recording import Map, Polyline, empty, scene_of
from throng.scenarios.driving.scene import Kind, Line, Scene
from throng.scenarios.driving.world import FAR, World
from throng.scenarios.errors import InputError

STEPS, STEP, HISTORY = 60, 0.1, 11


def make_scene(seed: int = 0, agents: int = 5, name: str = "made", **changes: object) -> Scene:
    """Cars on a wide straight road, one behind the other and beside each other; the last comes later, one walks."""
    rng = np.random.default_rng(seed)
    kinds = [Kind.VEHICLE] * (agents - 1) + [Kind.PEDESTRIAN]
    found = empty(name, "made", np.arange(STEPS) * STEP, HISTORY, [f"a{i}" for i in range(agents)], kinds)
    time = np.arange(STEPS) * STEP
    for i in range(agents):
        steering, speed = rng.uniform(-0.1, 0.1), rng.uniform(3, 9)
        slip = np.arctan(0.5 * np.tan(steering))  # a bicycle with its axles as far from its middle
        yaw = speed * time / (0.3 * 4.5) * np.sin(slip)
        way = speed * STEP * np.column_stack([np.cos(yaw + slip), np.sin(yaw + slip)])
        start = np.array([12.0 * i, 4.0 * (i % 3) - 4.0])
        found.xy[i] = start + np.vstack([np.zeros(2), np.cumsum(way[:-1], axis=0)])
        velocity = speed * np.column_stack([np.cos(yaw), np.sin(yaw)])
        found.yaw[i], found.velocity[i], found.size[i], found.valid[i] = yaw, velocity, (4.5, 1.9), True
    found.valid[-1, : HISTORY + 5] = False
    ring = np.array([(-50, -30), (200, -30), (200, 30), (-50, 30), (-50, -30)], float)
    lanes = [Polyline(f"lane {y}", Line.LANE, np.array([(-50.0, y), (90.0, y), (200.0, y + 20)])) for y in (-4.0, 0.0)]
    found.map = Map([Polyline("edge", Line.ROAD_EDGE, ring), *lanes])
    return replace(scene_of(found), **changes)  # type: ignore[arg-type]


def _nobody(scenes: list[Scene]) -> list[np.ndarray]:
    return [np.zeros(scene.agents, bool) for scene in scenes]


def _actions(world: World) -> torch.Tensor:
    return torch.zeros(len(world.scene), world.log.shape[1], 3, dtype=world.log.dtype)


def test_without_control_the_log_comes_back() -> None:
    scenes = [make_scene(0), make_scene(1, agents=3)]
    world = World(scenes, _nobody(scenes), rollouts=2)
    state = world.reset()
    for step in range(HISTORY - 1, STEPS):
        for w in range(4):
            scene = scenes[w // 2]
            np.testing.assert_array_equal(state.present[w, : scene.agents], scene.valid[:, step])
            assert not state.present[w, scene.agents :].any()
            seen = np.flatnonzero(scene.valid[:, step])
            np.testing.assert_allclose(state.agents[w, seen], scene.tracks[seen, step, :4], atol=1e-6)
        if step + 1 < STEPS:
            state = world.step(state, _actions(world))
    with pytest.raises(ValueError, match="logs end after 49 steps"):
        world.step(state, _actions(world))


def test_actions_of_the_log_drive_along_it_and_all_worlds_at_once_as_each_alone() -> None:
    scenes = [make_scene(0), make_scene(1, agents=3)]
    drive = [np.array([kind == Kind.VEHICLE for kind in scene.kind]) for scene in scenes]
    world = World(scenes, drive, dtype=torch.float64)
    states = [world.reset()]
    for _ in range(world.horizon):
        step = states[-1].step
        logged = world.log[world.scene]
        action = bicycle_action(states[-1].agents, logged[:, :, step + 1], world.rear, world.seconds)
        states.append(world.step(states[-1], torch.cat([action, torch.zeros_like(action[..., :1])], -1)))
    final, logged = states[-1], world.log[:, :, -1]
    driven = world.controlled & final.present
    assert (final.agents - logged)[driven][:, :2].norm(dim=-1).max() < 1e-3
    for i, scene in enumerate(scenes):
        alone = World([scene], [drive[i]], dtype=torch.float64)
        state = alone.reset()
        for before in states[:-1]:
            action = bicycle_action(
                before.agents[i : i + 1, : scene.agents], world.log[i : i + 1, : scene.agents, before.step + 1],
                alone.rear, alone.seconds,
            )  # fmt: skip
            state = alone.step(state, torch.cat([action, torch.zeros_like(action[..., :1])], -1))
        here = state.present[0]
        torch.testing.assert_close(state.agents[0][here], final.agents[i, : scene.agents][here])


def test_a_step_changes_nothing_that_was() -> None:
    scene = make_scene()
    world = World([scene], [np.array([True, False, True, False, False])])
    state = world.reset()
    before = (state.agents.clone(), state.present.clone())
    action = torch.randn(1, 5, 3)
    one, other = world.step(state, action), world.step(state, action)
    torch.testing.assert_close(one.agents, other.agents, atol=0, rtol=0)
    torch.testing.assert_close(state.agents, before[0], atol=0, rtol=0)
    assert one.agents[0, 0, 3] == state.agents[0, 0, 3] + action[0, 0, 0] * STEP


def test_distances_are_shapelys() -> None:
    """Of agents who are there, to the nearest other who is there; the road's edge from the worst corner."""
    rng = np.random.default_rng(0)
    scene = make_scene(agents=6)
    world = World([scene], [np.ones(6, bool) & scene.valid[:, HISTORY - 1]], dtype=torch.float64)
    state = world.reset()
    agents = state.agents.clone()
    for _ in range(30):
        agents[0, :, :2] = torch.tensor(rng.normal([20, 0], [12, 25], (6, 2)))
        agents[0, :, 2] = torch.tensor(rng.uniform(-3, 3, 6))
        here = replace(state, agents=agents)
        found, off = world.nearest(here)[0].numpy(), world.off_road(here)[0].numpy()
        boxes = shapely.polygons(corners(agents[0, :, :3], world.size[0]).numpy())
        there = np.flatnonzero(state.present[0])
        assert found[5] == FAR
        for i in there:
            theirs = min(shapely.distance(boxes[i], boxes[j]) for j in there if j != i)
            assert found[i] == pytest.approx(theirs, abs=1e-5) if theirs > 0 else found[i] <= 0
        road = shapely.box(*(np.array([-50, -30, 200, 30]) - np.tile(scene.origin, 2)))
        lanes = shapely.union_all([shapely.LineString(scene.polyline(line)) for line in scene.of_kind(Line.LANE)])
        theirs_all = shapely.distance(lanes, shapely.points(agents[0, :, :2].numpy()))
        np.testing.assert_allclose(world.lane_distance(here)[0], theirs_all, atol=1e-4)
        leads = world.lane_direction(here)[0]
        assert all(min(abs(one), abs(one - np.arctan2(20, 110))) < 1e-4 for one in leads.tolist())
        for i in there:
            points = [shapely.Point(p) for p in shapely.get_coordinates(boxes[i])]
            theirs = max(point.distance(road.exterior) * (-1 if road.contains(point) else 1) for point in points)
            assert off[i] == pytest.approx(theirs, abs=1e-4)


def test_gradients_through_many_steps_are_numerical_ones() -> None:
    scene = make_scene()
    world = World([scene], [np.array([True, True, False, False, False])], dtype=torch.float64)
    goal = torch.tensor([30.0, 2.0], dtype=torch.float64)

    def cost(action: torch.Tensor) -> torch.Tensor:
        state, total = world.reset(), torch.zeros((), dtype=torch.float64)
        for _ in range(20):
            state = world.step(state, action)
            total = total + world.nearest(state)[0, :2].sum() - world.off_road(state)[0, :2].sum()
        return total + (state.agents[0, :2, :2] - goal).square().sum()

    start = 0.05 * torch.randn(1, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    action = start.clone().requires_grad_()
    cost(action).backward()
    assert action.grad is not None
    assert not action.grad[0, 2:].any(), "who is not controlled does not listen"
    for place in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)):
        nudge = torch.zeros_like(start)
        nudge[place] = 1e-6
        slope = (cost(start + nudge) - cost(start - nudge)) / 2e-6
        assert action.grad[place] == pytest.approx(float(slope), rel=1e-4, abs=1e-4)


def test_idm_keeps_to_its_way_and_stops_behind_who_stands() -> None:
    scene = make_scene(agents=3)
    tracks = scene.tracks.copy()
    tracks[1, :, :4] = [18.0 - scene.origin[0], tracks[0, 10, 1], 0.0, 0.0]  # stands in the way of the first
    tracks[0, :, 1] = tracks[0, 10, 1]
    tracks[0, :, 2] = 0.0
    scene = replace(scene, tracks=tracks)
    world = World([scene], _nobody([scene]), others="idm", dtype=torch.float64)
    state, closest = world.reset(), FAR
    for _ in range(world.horizon):
        state = world.step(state, _actions(world))
        closest = min(closest, float(world.nearest(state)[0, 0]))
        assert state.agents[0, 0, 1] == pytest.approx(float(tracks[0, 10, 1]), abs=1e-5)
    assert 1.0 < closest < 6.0
    assert state.agents[0, 0, 3] < 0.5 * tracks[0, 10, 3]
    assert state.agents[0, 1, :2].tolist() == pytest.approx(tracks[1, 10, :2].tolist(), abs=0.5)


def test_idm_alone_drives_as_fast_as_it_ever_did_and_beyond_its_log() -> None:
    scene = make_scene(agents=2)
    tracks = scene.tracks.copy()
    tracks[0, 30:, 3] = 12.0  # its highest speed
    world = World([replace(scene, tracks=tracks)], _nobody([scene]), others="idm", dtype=torch.float64)
    state = world.reset()
    before = state.agents[0, 0].clone()
    for _ in range(world.horizon):
        state = world.step(state, _actions(world))
    assert before[3] < state.agents[0, 0, 3] < 12.0
    way = (state.agents[0, 0, :2] - before[:2]).norm()
    assert way > np.linalg.norm(tracks[0, -1, :2] - tracks[0, 10, :2]), "it is faster than the log"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda scene: [scene, replace(scene, name="b", step=0.2)], "scene 'b' has steps of 0.2 s, 'made' of 0.1 s"),
        (lambda scene: [replace(scene, line_kind=np.full(3, Line.LANE, np.int8))], "'made' has no road edges"),
        (lambda scene: [replace(scene, line_kind=np.full(3, Line.ROAD_EDGE, np.int8))], "'made' has no lanes"),
        (lambda scene: [replace(scene, history=STEPS)], "has 60 steps: nothing comes after step 59"),
        (lambda scene: [], "no scenes"),
    ],
    ids=["step", "map", "lanes", "short", "none"],
)
def test_scenes_that_make_no_world_are_refused(spoil: object, said: str) -> None:
    scenes = spoil(make_scene())  # type: ignore[operator]
    with pytest.raises(InputError, match=said):
        World(scenes, _nobody(scenes))


def test_who_is_not_there_cannot_be_driven() -> None:
    scene = make_scene()
    with pytest.raises(InputError, match="agent a4 is not there in step 10"):
        World([scene], [np.ones(5, bool)])


def test_ways_of_some_curvature_are_driven() -> None:
    """At 0.02 1/m and constant speed everybody who drives turns by 0.02 rad a metre; who walks steps."""
    scene = make_scene(agents=4)
    drives = [scene.valid[:, HISTORY - 1]]
    world = World([scene], drives, motion="curvature", dtype=torch.float64)
    state = world.reset()
    begin = state.agents
    for _ in range(20):
        state = world.step(state, torch.tensor([0.0, 0.02, 0.0]).expand(1, 4, 3))
    for i in np.flatnonzero(drives[0] & (scene.kind == Kind.VEHICLE)):
        turned = state.agents[0, i, 2] - begin[0, i, 2]
        assert turned == pytest.approx(0.02 * 20 * STEP * float(begin[0, i, 3]), rel=1e-6)
        assert state.agents[0, i, 3] == begin[0, i, 3]
