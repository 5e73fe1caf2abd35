"""Fine-tuning from configuration to result: the same on Ray as in one process, resumed as if it had not stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch
from driving_scenes import fine_tuning, made
from safetensors.torch import load_file
from throng.platform.finetuning import RayCrew
from throng.platform.finetuning_config import FineTuningConfig
from throng.platform.store import RunStore
from throng.scenarios.driving.files import read_scenes
from throng.scenarios.errors import InputError
from throng.workers.pool import TENSOR_ALLOCATOR

Run = Callable[..., int]


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A configuration of a made-up scene, whose world model knows nothing."""
    new = {"lane": "lane2", "at": 70.0, "speed": 3.0, "ahead": 30.0}
    return fine_tuning(
        tmp_path,
        system="trafficgamer",
        scene={"insert": [new]},
        training={"episodes": 3, "rollouts": 5, "chunk": 2},
        evaluation={"futures": 4, "iterations": 1, "rollouts": 4, "evaluated": 8},
        workers={"rollouts": 0},
    )


def last(run: Path) -> dict[str, torch.Tensor]:
    """What the learner knew at the end."""
    return load_file(sorted((run / "checkpoints").glob("*.safetensors"))[-1])


def test_a_run_leaves_what_it_says(case: Path, throng_here: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run = case.parent / "run"
    assert throng_here("run", str(case), "--out", str(run)) == 0
    told = capsys.readouterr().out
    assert "CCE-gap in reward" in told and "new-1" in told
    result = json.loads((run / "evaluation.json").read_text())
    assert result["drivers"][0] == "new-1" and len(result["drivers"]) == 2
    told = result["gaps"]["reward"]
    assert told["gap"] == [max(best - own, 0.0) for own, best in zip(told["own"], told["best"], strict=True)]
    assert all(own < 0 for own in told["own"])  # what is far from its goal pays for it
    ledger = pq.read_table(sorted((run / "ledger").glob("*.parquet"))[-1]).to_pylist()
    assert [(row["episode"], row["agent"]) for row in ledger] == [(e, a) for e in range(3) for a in range(2)]
    (scene,) = read_scenes(run / "scenes" / "future-0.scene.npz")
    assert scene.focal.sum() == 2 and scene.ids[-1] == "new-1"
    before = made()
    assert (scene.tracks[:7, : before.history] == before.tracks[:, : before.history]).all()
    assert (scene.tracks[0, before.history :] != before.tracks[0, before.history : scene.steps]).any()
    record = result["record"]
    assert record["drivers"] == result["drivers"][1:], "what was put in has no record"
    frames = [f"future-0/frame-{moment:03}.png" for moment in range(13)]  # now, and six seconds later
    for name in ("training.png", "future-0.png", "future-0.html", *frames):
        assert (run / "figures" / name).stat().st_size > 5000
    assert not (run / "figures" / "future-0" / "frame-013.png").exists()
    assert throng_here("status", str(case.parent)) == 0
    assert "finished  3/3" in " ".join(capsys.readouterr().out.split(" ")).replace("   ", "  ")
    assert throng_here("report", str(run)) == 2
    assert "a fine-tuning (trafficgamer)" in capsys.readouterr().err


def test_actors_learn_what_one_process_learns(case: Path, throng_here: Run) -> None:
    runs = [case.parent / name for name in ("here", "there")]
    for run, rollouts in zip(runs, (0, 2), strict=True):
        options = (
            "--set",
            f"workers.rollouts={rollouts}",
            "--set",
            "evaluation.iterations=0",
            "--set",
            "evaluation.pictures=0",
        )
        assert throng_here("run", str(case), "--out", str(run), *options) == 0
    one, other = (last(run) for run in runs)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_players_have_the_allocator_of_tensors(case: Path, throng_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not reach a process is lost in silence."""
    told = []
    close = RayCrew.close

    def look(crew: RayCrew) -> None:
        player = ray.get(crew._players._members[0].actor.process.remote())
        told.append((Path(f"/proc/{player}/maps").read_text(), Path(f"/proc/{player}/environ").read_text()))
        close(crew)

    monkeypatch.setattr(RayCrew, "close", look)
    options = ("--set", "workers.rollouts=1", "--set", "training.episodes=1", "--set", "evaluation.iterations=0")
    assert throng_here("run", str(case), "--out", str(case.parent / "run"), *options) == 0
    ((maps, environment),) = told
    assert TENSOR_ALLOCATOR["LD_PRELOAD"] in maps
    assert TENSOR_ALLOCATOR["MALLOC_CONF"] in environment


def test_a_run_that_is_gone_on_with_is_one_that_never_stopped(case: Path, throng_here: Run) -> None:
    """And gaps that are measured on the way change nothing of what is learnt."""
    whole, parts = case.parent / "whole", case.parent / "parts"
    quick = ("--set", "system=cce-masac", "--set", "evaluation.futures=2", "--set", "evaluation.pictures=0")
    blind = (*quick, "--set", "evaluation.iterations=0")
    looking = (*quick, "--set", "evaluation.every=3")
    assert throng_here("run", str(case), "--out", str(whole), "--set", "training.episodes=4", *blind) == 0
    assert throng_here("run", str(case), "--out", str(parts), "--set", "training.episodes=2", *blind) == 0
    assert throng_here("run", str(case), "--out", str(parts), "--set", "training.episodes=4", *looking) == 2
    assert throng_here("run", str(case), "--out", str(parts), "--set", "training.episodes=4", "--resume", *looking) == 0
    one, other = last(whole), last(parts)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert {row["episode"] for path in (parts / "ledger").iterdir() for row in pq.read_table(path).to_pylist()} == set(
        range(4)
    )
    result = json.loads((parts / "evaluation.json").read_text())
    gaps = result["gaps"]["reward"]["gap"]
    assert [point["episode"] for point in result["gap_curve"]] == [3, 4]
    assert result["gap_curve"][-1]["gap"] == pytest.approx(sum(gaps) / len(gaps))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("system=mappa", "mappo"),
        ("algorithm.magnit=1", "has no such setting"),
        ("algorithm.epochs=many", "algorithm.epochs"),
        ("algorithm.epochs=0", "algorithm.epochs"),
        ("algorithm.discount=1.1", "algorithm.discount"),
        ("algorithm.actor_rate=-1", "algorithm.actor_rate"),
        ("algorithm={confidence: 1.0}", "algorithm.confidence: Input should be less than 1"),
        ("scene.agents=9", "only 7 vehicles move"),
        ("scene.drive=[z]", "no agent 'z'"),
        ("scene.file=nothing.npz", "nothing.npz: no such file"),
        ("scene.name=other", "no scene 'other'"),
        ("scene.horizon=40", "12 half seconds"),
        ("scene.goals={z: [0, 0]}", "no agent 'z'"),
        ("scene={file: made.scene.npz, agents: 1, drive: [a0], goals: {a1: [0, 0]}}", "'a1' is not driven"),
        ("world_model.folder=nowhere", "throng worldmodel train"),
        ("training.episode=3", "did you mean 'episodes'"),
    ],
)
def test_what_is_wrong_is_named(
    case: Path, throng_here: Run, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    assert throng_here("run", str(case), "--out", str(case.parent / "run"), "--set", option) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (case.parent / "run").exists()


@pytest.mark.parametrize(("learnt", "asked"), [({}, {"clip": 0.1}), ({"clip": 0.1}, {})])
def test_a_setting_that_a_run_had_not_is_another_run(
    tmp_path: Path, learnt: dict[str, float], asked: dict[str, float]
) -> None:
    """A run's `algorithm` has only what was set: a key more or less than in the folder is a difference, not a crash."""

    def config(algorithm: dict[str, float]) -> FineTuningConfig:
        data = {"system": "mappo", "world_model": {"folder": "/model"}, "algorithm": algorithm}
        return FineTuningConfig.model_validate(data)

    RunStore.create(tmp_path / "run", config(learnt)).close()
    with pytest.raises(InputError, match=r"holds another run: algorithm\.clip differs"):
        RunStore.create(tmp_path / "run", config(asked))
    RunStore.create(tmp_path / "run", config(learnt)).close()
