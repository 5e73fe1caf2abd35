"""Driving games on recorded scenes: who is driven does what it is told, all others what the world model says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from driving_scenes import HISTORY, made
from throng.policies.driving.imagination import likeliest
from throng.policies.driving.world_model import WorldModel, WorldModelSettings
from throng.policies.marl.algorithms import ALGORITHMS
from throng.policies.marl.driving import DrivingTerms, driven
from throng.policies.marl.exploitability import restricted_gaps
from throng.policies.marl.game import play
from throng.policies.marl.imagined import ImaginedGame, actions_of
from throng.scenarios.driving.insertion import Newcomer, drivers, with_goals, with_newcomers
from throng.scenarios.errors import InputError

MODEL = WorldModelSettings(hidden=24, heads=2, modes=3, future=30)


def game(chosen: tuple[int, ...] = (3, 0), **options: object) -> ImaginedGame:
    torch.manual_seed(0)
    return ImaginedGame(WorldModel(MODEL).eval(), made(), chosen, DrivingTerms(), **options)  # type: ignore[arg-type]


def test_drivers_do_what_they_are_told_and_others_what_is_likeliest() -> None:
    one = game()
    with torch.no_grad():
        state = one.begin(3, torch.Generator())
        assert torch.allclose(one.places(state)[0], torch.from_numpy(one.scene.tracks[[3, 0], HISTORY - 1, :4]))
        action = torch.tensor([[0.4, 0.2], [-0.3, -0.5]]).expand(3, 2, 2)
        after, outcome = one.step(state, action)
        assert torch.allclose(one.places(after), driven(one.places(state), action)[..., -1, :], atol=1e-4)
        mode = likeliest(state.found)
        for row, agent in enumerate(state.rows.tolist()):
            world, who = divmod(agent, 7)
            if who not in (0, 3):
                there = after.imagined.batch.agents[world, who, -1, :2]
                assert torch.allclose(there, state.found.trajectory[row, mode[row], 4, :2], atol=1e-4)
    assert outcome.reward.shape == outcome.cost.shape == (3, 2)
    seen = one.see(after)
    assert seen.observation.shape == (3, 2, one.numbers)
    assert seen.magnet.shape == (3, 2, MODEL.modes, 5)


def test_rewards_are_those_of_the_code() -> None:
    one = game((0, 1))
    with torch.no_grad():
        state = one.begin(1, torch.Generator())
        after, outcome = one.step(state, torch.zeros(1, 2, 2))
        end = one.places(after)[0]
        goals = torch.from_numpy(one.scene.goals[[0, 1]])
        plain = -0.1 * (end[:, :2] - goals).abs().sum(-1) - 0.5 * (end[:, 3] - 15).clamp_min(0)
        off = outcome.reward[0] - plain
    # What is left are crashes and roads that were left, ten each.
    assert torch.allclose(off / 10, (off / 10).round(), atol=1e-3)


def test_actions_of_ways_are_those_that_made_them() -> None:
    now = torch.tensor([[1.0, 2.0, 0.3, 8.0], [0.0, 0.0, -2.0, 3.0]])
    action = torch.tensor([[0.2, 0.3], [-0.1, -0.6]])
    way = driven(now, action)[:, None, :, :3]
    assert torch.allclose(actions_of(now, way)[:, 0], action, atol=0.02)


def test_a_game_is_repeated_by_its_seeds() -> None:
    one = game()
    learner = ALGORITHMS["trafficgamer"].made(one, ALGORITHMS["trafficgamer"].settings(), 0)
    told = [play(one, learner.act, learner.head.action, 4, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(told[0].reward, told[1].reward)
    assert told[0].observation.shape[:3] == (one.horizon, 4, 2)
    assert one.horizon == 12
    learner.update(told[0])
    (first,), (again,) = (restricted_gaps(one, learner, 4, seed=0) for _ in range(2))
    assert torch.equal(first.best, again.best) and torch.equal(first.own, again.own)
    assert torch.isfinite(first.gap).all()


def test_agents_that_are_far_are_left_out_and_drivers_never() -> None:
    one = game((5, 1), most=3)
    state = one.begin(2, torch.Generator())
    assert state.imagined.batch.size.shape[:2] == (2, 3)
    assert torch.allclose(one.places(state)[0], torch.from_numpy(one.scene.tracks[[5, 1], HISTORY - 1, :4]))


def test_newcomers_stand_on_their_lane_and_want_along_it() -> None:
    scene = made()
    more = with_newcomers(scene, (Newcomer("lane2", 40.0, 3.0, 30.0),))
    assert more.ids[-1] == "new-1" and more.agents == scene.agents + 1
    now = more.tracks[-1, HISTORY - 1]
    lane = scene.polyline(2)
    way = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(lane, axis=0), axis=1))])
    for metres, place in ((40.0, now[:2]), (70.0, more.goals[-1])):
        assert place == pytest.approx([np.interp(metres, way, lane[:, k]) for k in range(2)], abs=1e-3)
    assert np.linalg.norm(more.tracks[-1, -1, :2] - now[:2]) == pytest.approx(3.0 * 6.0, rel=1e-3)
    assert drivers(more, 2).tolist()[0] == more.agents - 1


def test_goals_are_given_in_the_coordinates_of_the_recording() -> None:
    scene = made(shift=(5000.0, -300.0))
    other = with_goals(scene, {"a3": (5010.0, -290.0)})
    assert (other.goals[3] + other.origin).tolist() == pytest.approx([5010.0, -290.0], abs=1e-3)
    assert np.array_equal(np.delete(other.goals, 3, axis=0), np.delete(scene.goals, 3, axis=0))
    with pytest.raises(InputError, match="no agent 'z'"):
        with_goals(scene, {"z": (0.0, 0.0)})


def test_what_cannot_be_driven_is_named() -> None:
    scene = made()
    with pytest.raises(InputError, match="no lane 'nowhere'"):
        with_newcomers(scene, (Newcomer("nowhere", 0.0, 1.0, 10.0),))
    with pytest.raises(InputError, match="does not reach to 4000 m"):
        with_newcomers(scene, (Newcomer("lane2", 4000.0, 1.0, 10.0),))
    with pytest.raises(InputError, match="new-1 already"):
        with_newcomers(scene, (Newcomer("lane2", 40.0, 3.0, 30.0), Newcomer("lane2", 41.0, 3.0, 30.0)))
    with pytest.raises(InputError, match="no agent 'z'"):
        drivers(scene, 1, ("z",))
    with pytest.raises(InputError, match="a6 is no vehicle"):
        drivers(scene, 1, ("a6",))
    with pytest.raises(InputError, match="only 6 vehicles move"):
        drivers(scene, 9)
    assert drivers(scene, 2, ("a4",)).tolist()[0] == 4
