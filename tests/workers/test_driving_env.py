"""Driving worlds keep PettingZoo's contract, and end for who collides, leaves the road or arrives."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from pettingzoo.test import parallel_api_test, parallel_seed_test
from throng.scenarios.driving.recording import Map, Polyline, empty, scene_of
from throng.scenarios.driving.scene import Kind, Line, Scene
from throng.scenarios.errors import InputError
from throng.workers.driving_env import PENALTY, DrivingEnv

STEPS, HISTORY = 40, 6


def road() -> Scene:
    """East at 10 m/s: `a`, 20 m behind it `b`; `w` walks beside them; `p` is parked 60 m ahead of `a` in its lane."""
    time = np.arange(STEPS) * 0.1
    kinds = [Kind.VEHICLE, Kind.VEHICLE, Kind.PEDESTRIAN, Kind.VEHICLE]
    found = empty("road", "made", time, HISTORY, ["a", "b", "w", "p"], kinds)
    for i, (x, y, speed) in enumerate(((0.0, 0.0, 10.0), (-20.0, 0.0, 10.0), (0.0, 6.0, 1.0), (60.0, 0.0, 0.0))):
        found.xy[i] = np.column_stack([x + speed * time, np.full(STEPS, y)])
        found.velocity[i], found.yaw[i], found.valid[i] = (speed, 0.0), 0.0, True
        found.size[i] = (0.5, 0.5) if i == 2 else (4.0, 2.0)
    edge = np.array([(-80, -8), (150, -8), (150, 8), (-80, 8), (-80, -8)], float)
    lane = Polyline("lane", Line.LANE, np.array([(-80.0, 0.0), (150.0, 0.0)]))
    found.map = Map([Polyline("edge", Line.ROAD_EDGE, edge), lane])
    return scene_of(found)


def _drive(env: DrivingEnv, action: tuple[float, float]) -> list[tuple[dict, ...]]:
    env.reset()
    seen = []
    while env.agents:
        seen.append(env.step({agent: np.array(action, np.float32) for agent in env.agents}))
    return seen


def test_the_contract_of_pettingzoo_is_kept() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(DrivingEnv(road()), num_cycles=200)
        parallel_seed_test(lambda: DrivingEnv(road()))


def test_who_moves_and_drives_is_driven() -> None:
    assert DrivingEnv(road()).possible_agents == ["a", "b"]
    assert DrivingEnv(road(), drivers=["b", "p"]).possible_agents == ["b", "p"]
    with pytest.raises(InputError, match="no agent 'x'"):
        DrivingEnv(road(), drivers=["x"])
    with pytest.raises(InputError, match="w walks"):
        DrivingEnv(road(), drivers=["w"])


def test_at_constant_speed_they_arrive_where_the_log_did() -> None:
    """Goals are where they were seen last: 34 steps of 1 m from the beginning, less the 2 m that count as there."""
    seen = _drive(DrivingEnv(road()), (0.0, 0.0))
    rewards = sum(rewards["a"] for _, rewards, *_ in seen)
    assert rewards == pytest.approx(33.0, abs=1e-3)
    assert len(seen) == 33
    _, _, terminated, truncated, infos = seen[-1]
    assert terminated == {"a": True, "b": True}
    assert truncated == {"a": False, "b": False}
    assert infos["a"] == {"collided": False, "off_road": False, "reached": True}


def test_the_scene_ends_for_who_does_not_arrive() -> None:
    seen = _drive(DrivingEnv(road()), (-6.0, 0.0))
    assert len(seen) == STEPS - HISTORY
    assert seen[-1][3] == {"a": True, "b": True}


def test_who_leaves_the_road_is_gone_and_the_others_see_it_no_more() -> None:
    env = DrivingEnv(road(), others="log")
    env.reset()
    while env.agents == ["a", "b"]:
        seen, rewards, terminated, _, infos = env.step({"a": np.array([0.0, 0.5]), "b": np.array([-2.0, 0.0])})
    assert terminated == {"a": True, "b": False}
    assert infos["a"]["off_road"]
    assert not infos["a"]["collided"]
    assert rewards["a"] < -PENALTY / 2
    assert env.agents == ["b"]
    kinds = env._observer.observe(env._states).object_kind[0, 1]
    assert (kinds >= 0).sum() == 2  # the parked one and the walker
    assert seen["b"].shape == env.observation_space("b").shape


def test_who_hits_another_collides() -> None:
    """From 10 m/s at 6 m/s² the 51 m to the parked car take 2.8 s."""
    scene = road()
    env = DrivingEnv(replace(scene, goals=scene.goals + 1000.0), drivers=["a"], others="log")
    seen = _drive(env, (6.0, 0.0))
    assert seen[-1][4]["a"] == {"collided": True, "off_road": False, "reached": False}
    assert len(seen) in (27, 28, 29)
    assert not any(infos["a"]["collided"] for *_, infos in seen[:-1])
