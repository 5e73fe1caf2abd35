"""Driving worlds on actors: the table is what the worlds did, a seed repeats it, actors give what one process does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from throng.policies.driving.mlp_policy import MlpPolicy
from throng.scenarios.driving.observation import Observation, Observer, Sight
from throng.scenarios.driving.recording import Map, Polyline, empty, scene_of
from throng.scenarios.driving.scene import Kind, Line, Scene
from throng.scenarios.driving.world import World
from throng.workers.fleet import Rules
from throng.workers.world_rollout import Drive, WorldFleet, WorldRollout, weights_of

STEPS, HISTORY = 30, 6
SIGHT = Sight(past=3, objects=4, points=8, lights=1)


def road(seed: int) -> Scene:
    """Three cars and somebody who walks; the third car leaves in the middle."""
    rng = np.random.default_rng(seed)
    time = np.arange(STEPS) * 0.1
    found = empty(f"road{seed}", "made", time, HISTORY, ["a", "b", "c", "w"], [Kind.VEHICLE] * 3 + [Kind.PEDESTRIAN])
    for i in range(4):
        speed = rng.uniform(5, 12) if i < 3 else 1.0
        found.xy[i] = np.column_stack([25.0 * i + speed * time, np.full(STEPS, 3.0 * (i % 2))])
        found.velocity[i], found.yaw[i], found.valid[i], found.size[i] = (speed, 0.0), 0.0, True, (4.0, 2.0)
    found.valid[2, STEPS // 2 :] = False
    edge = np.array([(-80, -8), (250, -8), (250, 8), (-80, 8), (-80, -8)], float)
    found.map = Map(
        [Polyline("edge", Line.ROAD_EDGE, edge), Polyline("lane", Line.LANE, np.array([(-80.0, 0.0), (250.0, 0.0)]))]
    )
    return scene_of(found)


class Brake:
    """Brakes by its weight, m/s²."""

    rate = 1.0

    def act(self, seen: Observation, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        action = torch.zeros(*seen.goal.shape[:2], 3)
        action[..., 0] = -self.rate
        return action, torch.full(action.shape[:2], -0.5)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.rate = float(state_dict["rate"])


def _drive(**options: Any) -> Drive:
    scenes = (road(0), road(1))
    controlled = tuple(np.array([True, False, False, False]) for _ in scenes)
    return Drive(scenes, controlled, options.pop("policy", Brake), sight=SIGHT, **options)


def test_the_table_holds_what_the_worlds_did() -> None:
    drive = _drive(rollouts=2, others="log")
    table = WorldRollout(drive).drive({"rate": np.array(2.0)}, 0)
    rows = table.to_pandas()
    assert rows.groupby("step").size().tolist()[:3] == [16, 16, 16], "two scenes, two rollouts, four agents"
    assert rows["step"].max() == STEPS - HISTORY
    driven = rows[rows.driven]
    assert set(driven.agent) == {0}
    for (scene, _), one in driven.groupby(["scene", "rollout"]):
        begin = drive.scenes[scene].tracks[0, HISTORY - 1]
        time = one.step.to_numpy() * 0.1
        speed = begin[3] - 2.0 * time
        np.testing.assert_allclose(one.speed, speed, atol=1e-4)
        travelled = np.concatenate([[0.0], np.cumsum(speed[:-1] * 0.1)])
        np.testing.assert_allclose(one.x, begin[0] + travelled, atol=1e-3)
        assert one.acceleration.to_numpy()[:-1].tolist() == [-2.0] * (len(one) - 1)
        assert np.isnan(one.acceleration.to_numpy()[-1])
        assert one.log_probability.to_numpy()[:-1].tolist() == [-0.5] * (len(one) - 1)
    others = rows[~rows.driven]
    assert others.acceleration.isna().all()
    third = others[(others.agent == 2) & (others.scene == 0) & (others["rollout"] == 0)]
    assert third.step.max() == STEPS // 2 - HISTORY, "who leaves is not in the table any more"
    for scene in (0, 1):
        one = others[(others.scene == scene) & (others["rollout"] == 1) & (others.agent == 1)]
        np.testing.assert_allclose(one.x, drive.scenes[scene].tracks[1, HISTORY - 1 :, 0], atol=1e-4)


def test_the_table_measures_what_the_worlds_measure() -> None:
    drive = _drive(steps=7)
    table = WorldRollout(drive).drive(None, 0).to_pandas()
    world = World(drive.scenes, drive.controlled, others="idm")
    state = world.reset()
    action = torch.tensor([-1.0, 0.0, 0.0]).expand(2, 4, 3)
    for step in range(8):
        rows = table[table.step == step].sort_values(["scene", "agent"])
        for name in ("nearest", "off_road", "red_light", "time_to_collision"):
            np.testing.assert_allclose(rows[name], getattr(world, name)(state)[state.present], atol=1e-4)
        state = world.step(state, action)


def test_a_seed_gives_the_same_table_again_and_what_was_seen_explains_the_actions() -> None:
    drive = _drive()
    world = World(drive.scenes, drive.controlled)
    size = Observer(world, SIGHT).observe([world.reset()]).flat().shape[-1]
    torch.manual_seed(0)
    policy = MlpPolicy(size, 16)
    weights = weights_of(policy.state_dict())
    worker = WorldRollout(_drive(policy=lambda: MlpPolicy(size, 16), observations=True))
    one, again, other = (worker.drive(weights, seed) for seed in (1, 1, 2))
    assert one.to_pandas().equals(again.to_pandas())
    assert not np.allclose(one["x"], other["x"])
    driven = one.filter(pc.and_(one["driven"], pc.is_finite(one["acceleration"])))
    seen = torch.tensor(np.stack(driven["seen"].to_numpy()))
    mean = torch.tensor([6.0, torch.pi / 4]) * torch.tanh(policy.mean(seen * 0.05))
    found = torch.distributions.Normal(mean, policy.log_spread.exp())
    action = torch.tensor(np.column_stack([driven["acceleration"], driven["steering"]]))
    np.testing.assert_allclose(driven["log_probability"], found.log_prob(action).sum(-1).detach(), atol=1e-4)


@pytest.mark.usefixtures("a_ray")
def test_actors_drive_as_one_process_does() -> None:
    class Local(Brake):  # so that Ray sends it by value
        pass

    drive = _drive(policy=Local)
    here = WorldRollout(drive)
    fleet = WorldFleet(drive, 2, Rules(deadline=120.0))
    try:
        found = dict(fleet.drive({"rate": np.array(3.0)}, range(3)))
    finally:
        fleet.close()
    assert sorted(found) == [0, 1, 2]
    for seed, table in found.items():
        expected = here.drive({"rate": np.array(3.0)}, seed)
        assert table.to_pandas().equals(expected.to_pandas())
