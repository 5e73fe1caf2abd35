"""RLlib's PPO as a fine-tuner: the same files as ours leave, and a run that goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from driving_scenes import fine_tuning
from safetensors.torch import load_file
from throng.cluster.session import session
from throng.platform.rllib_run import dividing
from throng.policies.marl.mappo import MappoSettings
from throng.scenarios.driving.files import read_scenes

Run = Callable[..., int]
STEPS = 13  # of an episode: ten passes over games of 4 moments, on 4 of 5 rows each (see `rllib_ppo`)


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A configuration of a made-up scene, whose world model knows nothing."""
    return fine_tuning(
        tmp_path,
        system="rllib-ppo",
        scene={"horizon": 4},
        algorithm={"hidden": 16},
        training={"episodes": 2, "rollouts": 4},
        evaluation={"futures": 4, "iterations": 1, "rollouts": 4, "evaluated": 8},
        workers={"rollouts": 0},
    )


def last(run: Path) -> dict[str, torch.Tensor]:
    """What was known at the end."""
    return load_file(sorted((run / "checkpoints").glob("*.safetensors"))[-1])


def test_a_run_leaves_what_ours_leave_and_goes_on_with_actors(
    case: Path, throng_here: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run = case.parent / "run"
    longer = ("training.episodes=3", "workers.rollouts=1", "evaluation.iterations=0")
    options = [word for one in longer for word in ("--set", one)]
    with session("local", 3):  # one Ray for both
        assert throng_here("run", str(case), "--out", str(run)) == 0
        assert "CCE-gap in reward" in capsys.readouterr().out
        first = last(run)
        assert throng_here("run", str(case), "--out", str(run), "--resume", *options) == 0
    after = last(run)
    rows = [row for path in sorted((run / "ledger").iterdir()) for row in pq.read_table(path).to_pylist()]
    assert [(row["episode"], row["agent"]) for row in rows] == [(e, a) for e in range(3) for a in range(2)]
    assert all(row["return"] < 0 and 0 <= row["cost"] <= 1 and row["seconds"] > 0 for row in rows)
    assert len(json.loads((run / "evaluation.json").read_text())["drivers"]) == 2
    (scene,) = read_scenes(run / "scenes" / "future-0.scene.npz")
    assert scene.focal.sum() == 2 and "rllib-ppo" in scene.name
    for name in ("training.png", "future-0.png", "future-0.html"):
        assert (run / "figures" / name).stat().st_size > 5000
    # An optimiser counts its steps, as many in every episode: it was reminded of them. A new network would be far off.
    steps = {name: int(one) for name, one in first.items() if name.endswith(".step")}
    assert len(steps) == 2 * 2 * 6 and set(steps.values()) == {2 * STEPS}
    assert all(int(after[name]) == 3 * STEPS for name in steps)
    moved = max(float((after[name] - one).abs().max()) for name, one in first.items() if "actor/network" in name)
    assert 0 < moved < 2 * STEPS * MappoSettings().actor_rate
    # Nobody else writes where the actors of `policies/marl` are read from: theirs are the same numbers.
    assert torch.equal(after["actor.first.weight"][1].T, after[f"rllib.{scene.ids[1]}-driver/actor/network.0.weight"])


def test_actors_play_the_same_number_of_games() -> None:
    assert [dividing(32, most) for most in (0, 1, 3, 12, 40)] == [0, 1, 2, 8, 32]
    assert dividing(7, 6) == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [("algorithm.magnet=1", "rllib-ppo has no such setting; it has discount"), ("evaluation.every=2", "at the end")],
)
def test_what_is_wrong_is_named(
    case: Path, throng_here: Run, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    assert throng_here("run", str(case), "--out", str(case.parent / "run"), "--set", option) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
