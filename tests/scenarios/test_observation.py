"""What agents see: everything nearest, in their own frame, of nobody who is not there; and how far red lights are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from throng.scenarios.driving.files import read_scenes
from throng.scenarios.driving.geometry import FAR
from throng.scenarios.driving.observation import CELL, Observer, Sight
from throng.scenarios.driving.recording import Map, Polyline, Signal, empty, scene_of
from throng.scenarios.driving.routes import routes
from throng.scenarios.driving.scene import YAW, Kind, Light, Line, Relation, Scene, X, Y
from throng.scenarios.driving.world import World, WorldState

STEPS, STEP, HISTORY = 60, 0.1, 11
STOP = 40.0  # metres: where the lights of the crossing stand


def crossing(turns: bool, changes: bool = False, name: str = "crossing") -> Scene:
    """Two cars drive east at 10 m/s towards a light that is red until step 40, and someone walks.

    The first goes straight on, or turns left; there is a light for either way, and only that for straight on is red. With
    `changes` it begins on the lane to the left of its own, which has no light.
    """
    time = np.arange(STEPS) * STEP
    found = empty(name, "made", time, HISTORY, ["first", "second", "walker"], [Kind.VEHICLE] * 2 + [Kind.PEDESTRIAN])
    along = 10.0 * time
    ends = np.column_stack([along, np.zeros(STEPS)])
    if turns:
        beyond = np.clip(along - STOP - 5.0, 0.0, None)
        ends = np.column_stack([np.minimum(along, STOP + 5.0), beyond])
    if changes:
        ends[:, 1] += np.clip(3.5 - along / 5.0, 0.0, 3.5)
    yaw = np.zeros(STEPS)
    yaw[:-1] = np.arctan2(*np.diff(ends, axis=0).T[::-1])
    yaw[-1] = yaw[-2]
    found.xy[0], found.yaw[0] = ends, yaw
    found.xy[1], found.yaw[1] = np.column_stack([along - 12.0, np.zeros(STEPS)]), 0.0
    found.xy[2], found.yaw[2] = np.column_stack([np.full(STEPS, 20.0), 8.0 + time]), np.pi / 2
    for i, (speed, size) in enumerate(((10.0, (4.5, 1.9)), (10.0, (4.5, 1.9)), (1.0, (0.6, 0.6)))):
        found.velocity[i] = speed * np.column_stack([np.cos(found.yaw[i]), np.sin(found.yaw[i])])
        found.size[i], found.valid[i] = size, True
    found.valid[2, HISTORY + 20 :] = False
    lines = [
        Polyline("edge", Line.ROAD_EDGE, np.array([(-60, -20), (120, -20), (120, 90), (-60, 90), (-60, -20)], float)),
        Polyline("to", Line.LANE, np.array([(-50.0, 0.0), (STOP, 0.0)])),
        Polyline("left of it", Line.LANE, np.array([(-50.0, 3.5), (STOP, 3.5)])),
        Polyline("straight", Line.LANE, np.array([(STOP, 0.0), (STOP + 15, 0.0)])),
        Polyline("left", Line.LANE, np.array([(STOP, 0.0), (STOP + 5, 0.0), (STOP + 5, 10.0)])),
        Polyline("on", Line.LANE, np.array([(STOP + 15, 0.0), (110.0, 0.0)])),
        Polyline("off", Line.LANE, np.array([(STOP + 5, 10.0), (STOP + 5, 80.0)])),
    ]
    pairs = (("to", "straight"), ("to", "left"), ("straight", "on"), ("left", "off"))
    links = [(one, other, Relation.SUCCESSOR) for one, other in pairs]
    links += [("to", "left of it", Relation.LEFT), ("left of it", "to", Relation.RIGHT)]
    red = np.where(np.arange(STEPS) < 40, Light.STOP, Light.GO).astype(np.int8)
    green = np.full(STEPS, Light.GO, np.int8)
    signals = [Signal("straight", (STOP, 0.0), red), Signal("left", (STOP, 0.0), green)]
    found.map = Map(lines, links, signals)
    return scene_of(found)


def _world(scene: Scene, **options: object) -> World:
    return World([scene], [np.zeros(scene.agents, bool)], dtype=torch.float64, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [False, True])
def test_a_red_light_counts_for_who_goes_that_way_and_only_near_it(changes: bool) -> None:
    scene = crossing(turns=False, changes=changes)
    world = _world(scene)
    for step in range(world.horizon + 1):
        state = world.logged(step)
        x = state.agents[0, :2, 0].numpy() + scene.origin[0]
        red = HISTORY - 1 + step < 40
        expected = np.where(red & (x - STOP < 5.0), x - STOP, -FAR)
        np.testing.assert_allclose(world.red_light(state)[0, :2], expected, atol=1e-5)
        assert world.red_light(state)[0, 2] == -FAR  # walks


def test_who_turns_off_heeds_the_light_of_its_own_way() -> None:
    world = _world(crossing(turns=True))
    beyond = torch.stack([world.red_light(world.logged(step))[0] for step in range(world.horizon + 1)])
    assert (beyond[:, 0] == -FAR).all()
    assert (beyond[:20, 1] > -FAR).all()


def test_the_search_finds_the_way_of_the_log_among_many() -> None:
    """A ladder of 12 crossings with two ways on at each, 4096 ways in all; the log turns at the seventh."""
    lines, links = [], []
    for i in range(12):
        lines.append(Polyline(f"s{i}", Line.LANE, np.array([(10.0 * i, 0.0), (10.0 * i + 10, 0.0)])))
        lines.append(Polyline(f"t{i}", Line.LANE, np.array([(10.0 * i, 0.0), (10.0 * i, 10.0)])))
        lines.append(Polyline(f"u{i}", Line.LANE, np.array([(10.0 * i, 10.0), (10.0 * i + 10, 0.0)])))
        links += [(f"t{i}", f"u{i}", Relation.SUCCESSOR)]
        if i < 11:
            links += [(f"{a}{i}", f"{b}{i + 1}", Relation.SUCCESSOR) for a in "su" for b in "st"]
    time = np.arange(STEPS) * STEP
    found = empty("ladder", "made", time, 1, ["a"], [Kind.VEHICLE])
    corners = np.array([(2.0, 0.0), (60.0, 0.0), (60.0, 10.0), (70.0, 0.0), (75.0, 0.0)])
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    at = np.linspace(0.0, length[-1], STEPS)
    found.xy[0] = np.column_stack([np.interp(at, length, corners[:, k]) for k in range(2)])
    found.yaw[0], found.velocity[0], found.size[0], found.valid[0] = 0.0, (14.0, 0.0), (4.5, 1.9), True
    light = np.full(STEPS, Light.STOP, np.int8)
    found.map = Map(lines, links, [Signal("t6", (60.0, 0.0), light), Signal("s6", (60.0, 0.0), light)])
    (route,) = routes(scene_of(found), 0).values()
    np.testing.assert_array_equal(route.lights, [0])
    np.testing.assert_allclose(route.stops, [60.0], atol=1e-5)


def test_how_far_a_light_is_has_the_gradient_of_the_way() -> None:
    world = _world(crossing(turns=False))
    agents = world.reset().agents.clone().requires_grad_()
    beyond = world.red_light(WorldState(agents, world.reset().present, 0))
    (gradient,) = torch.autograd.grad(beyond[0, :2].sum(), agents)
    np.testing.assert_allclose(gradient[0, :2], [[1.0, 0.0, 0.0, 0.0]] * 2, atol=1e-9)


def test_idm_waits_at_a_red_light_and_drives_on_when_it_is_green() -> None:
    scene = crossing(turns=False)
    world = _world(scene, others="idm")
    state = world.reset()
    nothing = torch.zeros(1, 3, 3, dtype=torch.float64)
    for _ in range(40 - HISTORY):
        state = world.step(state, nothing)
        assert state.agents[0, 0, 0] + 2.25 < STOP - scene.origin[0] + 0.1
    before = state.agents[0, 0, 0].item()
    while state.step < world.horizon:
        state = world.step(state, nothing)
    assert state.agents[0, 0, 0] > before + 5.0


def _seen_by(world: World, states: list[WorldState], agent: int, place: np.ndarray) -> np.ndarray:
    """Places `[..., 2]` in the frame of an agent, by the plain formula."""
    x, y, yaw = states[-1].agents[0, agent, :3].tolist()
    off = place - np.array([x, y])
    along, left = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
    return np.stack([off @ along, off @ left], axis=-1)


def test_agents_see_themselves_each_other_and_the_lights_in_their_own_frame() -> None:
    scene = crossing(turns=True)
    world = _world(scene)
    now = 45
    states = [world.logged(step) for step in range(now - 3, now + 1)]
    seen = Observer(world, Sight(past=6, objects=4, lights=3)).observe(states)
    tracks = scene.tracks[:, :, [X, Y]].astype(np.float64)
    steps = [HISTORY - 1 + step for step in (now - 3, now - 3, now - 3, now - 2, now - 1, now)]
    np.testing.assert_allclose(seen.ego[0, 0, :, :2], _seen_by(world, states, 0, tracks[0, steps]), atol=1e-5)
    turn = scene.tracks[0, steps, YAW] - scene.tracks[0, steps[-1], YAW]
    np.testing.assert_allclose(seen.ego[0, 0, :, 2], np.cos(turn), atol=1e-5)
    np.testing.assert_allclose(seen.ego[0, 0, -1, 4:], [10.0, 0.0, 4.5, 1.9], atol=1e-5)
    np.testing.assert_allclose(seen.goal[0, 0], _seen_by(world, states, 0, tracks[0, -1]), atol=1e-5)
    # The walker is gone; the first sees the second and nobody else.
    np.testing.assert_array_equal(seen.object_kind[0], [[Kind.VEHICLE, -1, -1, -1]] * 2 + [[-1] * 4])
    np.testing.assert_allclose(seen.objects[0, 0, 0, :2], _seen_by(world, states, 0, tracks[1, steps[-1]]), atol=1e-5)
    assert not seen.objects[0, :, 1:].any()
    np.testing.assert_allclose(seen.objects[0, 0, 0, 2:4], [np.cos(-np.pi / 2), np.sin(-np.pi / 2)], atol=1e-5)
    np.testing.assert_array_equal(seen.light_state[0, 0], [Light.GO, Light.GO, -1])
    stop = _seen_by(world, states, 0, np.array([[STOP, 0.0]] * 2) - scene.origin)
    np.testing.assert_allclose(seen.lights[0, 0, :2], stop, atol=1e-5)
    for name in ("ego", "goal", "objects", "points", "lights"):  # who is not there sees nothing
        assert not getattr(seen, name)[0, 2].any()
    assert seen.flat().shape == (1, 3, 6 * 8 + 2 + 4 * (8 + 4) + 128 * (4 + 9) + 3 * (2 + 4))


def test_the_past_before_the_beginning_is_that_of_the_log() -> None:
    scene = crossing(turns=False)
    world = _world(scene)
    states = [world.logged(step) for step in range(-5, 1)]
    ego = Observer(world, Sight(past=6)).observe(states).ego
    np.testing.assert_allclose(ego[0, 0, :, 0], [-5.0, -4.0, -3.0, -2.0, -1.0, 0.0], atol=1e-5)


def test_the_nearest_points_of_the_map_are_seen() -> None:
    scene = crossing(turns=False)
    world = _world(scene)
    observer = Observer(world, Sight(points=60, spacing=1.0))
    seen = observer.observe([world.reset()])
    lane = np.column_stack([np.linspace(-50.0, STOP, 91), np.zeros(91)]) - scene.origin
    for agent in range(2):
        ours = seen.points[0, agent].numpy()
        there = seen.point_kind[0, agent].numpy() >= 0
        assert there.all()
        reach = np.linalg.norm(ours[:, :2], axis=1).max()
        expected = _seen_by(world, [world.reset()], agent, lane)
        near = expected[np.linalg.norm(expected, axis=1) < reach - CELL * np.sqrt(2.0)]
        assert len(near) > 3
        apart = np.linalg.norm(near[:, None] - ours[None, :, :2], axis=-1)
        assert apart.min(axis=1).max() < 1e-4
        lanes = seen.point_kind[0, agent].numpy() == Line.LANE
        np.testing.assert_allclose(ours[lanes, 2:], [[1.0, 0.0]] * lanes.sum(), atol=1e-5)


def test_all_worlds_at_once_see_what_each_sees_alone() -> None:
    scenes = [crossing(turns=False), crossing(turns=True)]
    together = World(scenes, [np.zeros(3, bool)] * 2, rollouts=2, dtype=torch.float64)
    states = [together.logged(step) for step in range(7)]
    seen = Observer(together).observe(states).flat()
    for i, scene in enumerate(scenes):
        world = _world(scene)
        alone = Observer(world).observe([world.logged(step) for step in range(7)]).flat()
        for rollout in range(2):
            np.testing.assert_allclose(seen[2 * i + rollout], alone[0], atol=1e-9)


def test_what_is_seen_has_gradients() -> None:
    world = _world(crossing(turns=True))
    observer = Observer(world, Sight(past=1, objects=2, points=3, lights=2))
    state = world.logged(10)
    somewhere = state.agents + torch.tensor([0.3, 0.4, 0.1, 0.2])  # not where what is nearest changes

    def see(agents: torch.Tensor) -> torch.Tensor:
        return observer.observe([WorldState(agents, state.present, 10)]).flat()

    assert torch.autograd.gradcheck(see, somewhere.requires_grad_(), eps=1e-6, atol=1e-4)


def test_hardly_anybody_ran_a_red_light_on_recorded_roads(recorded: Path) -> None:
    crossed = waited = 0
    for name in ("2bd577a009790706", "a898cbc905050656", "9c52d259d258d6a3"):
        (path,) = recorded.rglob(f"*{name}*.json*")
        world = _world(next(read_scenes(path)))
        beyond = torch.stack([world.red_light(world.logged(step))[0] for step in range(world.horizon + 1)])
        present = torch.stack([world.logged(step).present[0] for step in range(world.horizon + 1)])
        before = (beyond[:-1] <= 0) & (beyond[:-1] > -60.0) & present[:-1] & present[1:]
        crossed += int((before & (beyond[1:] > 0)).any(0).sum())
        waited += int(before.any(0).sum())
    assert waited > 10
    assert crossed <= waited / 10
