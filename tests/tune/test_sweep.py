"""A sweep in small: interrupted, gone on with, stopped early, and what it leaves behind."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from driving_scenes import fine_tuning
from ray.cluster_utils import Cluster
from ray.tune.search import Searcher
from rich.console import Console
from throng.platform.config import load_config, read_yaml, validated
from throng.platform.finetuning import BLOCK
from throng.platform.finetuning_config import FineTuningConfig
from throng.platform.progress import Progress
from throng.platform.store import RunStore
from throng.scenarios.errors import InputError
from throng.tune.experiments import perform
from throng.tune.results import cells, headings, parallel, ranked, write
from throng.tune.spec import Spec, load_spec
from throng.tune.sweep import Plan, Trial, _Chosen, save_best, sweep

SMALL = [
    "scenario.town.vehicles=80", "scenario.town.minutes=3", "search.screen=1", "search.elites=1", "search.budget=8",
    "search.generations=2", "diffusion.updates=5", "diffusion.width=16", "report.seeds=2", "report.reference_seeds=2",
]  # fmt: skip
SWEEP = f"""
set: {json.dumps(SMALL)}
space:
  navigation.lambda_metres: [100, 400, 1600]
  search.population: [3, 4]
search: grid
samples: 3
concurrent: 2
"""


def _trials(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("trials/*/outcome.json"))}


def test_a_sweep_goes_on_where_it_was_stopped(
    tmp_path: Path,
    throng_here: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C in the middle; then the same command does what is missing, ranks all, and hands over the best."""
    (tmp_path / "small.yaml").write_text(SWEEP)
    out = tmp_path / "out"
    command = ["sweep", "small.yaml", "--out", str(out)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "throng.tune.cli", *command], cwd=tmp_path, stdout=log,
            stderr=subprocess.STDOUT, env=os.environ | {"COLUMNS": "200"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        while process.poll() is None and not _trials(out):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130, (tmp_path / "log").read_text()
    assert "the same command goes on" in (tmp_path / "log").read_text()
    known = _trials(out)
    assert known
    assert len(known) < 3
    monkeypatch.chdir(tmp_path)
    assert throng_here(*command) == 0
    outcomes = _trials(out)
    assert len(outcomes) == 3
    assert {name: outcomes[name] for name in known} == known, "what had ended was done again"
    assert len({json.dumps(one["point"]) for one in outcomes.values()}) == 3
    done = [one for one in outcomes.values() if one["state"] == "finished"]
    best = min(done, key=lambda one: one["error"])
    assert "trial" in capsys.readouterr().out
    config = load_config(out / "best.yaml")
    assert config.navigation.lambda_metres == best["point"]["navigation.lambda_metres"]
    assert config.search.population == best["point"]["search.population"]
    assert config.scenario.town is not None
    assert config.scenario.town.vehicles == 80
    assert (out / "small.png").read_bytes().startswith(b"\x89PNG")
    assert f"{best['error']:.3f}" in (out / "small.md").read_text()


def test_another_sweep_is_refused_and_a_longer_one_is_not(tmp_path: Path) -> None:
    spec = Spec.model_validate({"space": {"search.population": [4, 8]}, "samples": 2})
    Plan.open(spec, tmp_path / "sweep")
    Plan.open(spec.model_copy(update={"samples": 9, "concurrent": 1}), tmp_path / "sweep")
    other = Spec.model_validate({"space": {"search.population": [4, 9]}})
    with pytest.raises(InputError, match="holds another sweep: space differ; choose another --out"):
        Plan.open(other, tmp_path / "sweep")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("important")
    with pytest.raises(InputError, match="not a sweep of Throng"):
        Plan.open(spec, tmp_path / "thesis")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A fine-tuning of a made-up scene, whose world model knows nothing."""
    return fine_tuning(
        tmp_path,
        system="mappo",
        scene={"horizon": 1},
        training={"episodes": 2, "rollouts": 2},
        evaluation={"futures": 2, "pictures": 0, "iterations": 1, "rollouts": 2, "evaluated": 2},
    )


def test_fine_tunings_are_ranked_by_their_gaps(
    scene: Path, throng_here: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table's numbers are the runs' own, and the best is a configuration of a fine-tuning."""
    sets = "system=mappo, scene.file=made.scene.npz, scene.agents=2, scene.horizon=1, world_model.folder=model"
    more = (
        "training.episodes=2, training.rollouts=2, evaluation.futures=2, evaluation.iterations=1, evaluation.rollouts=2"
        ", evaluation.pictures=0"
    )
    text = f"set: [{sets}, {more}, evaluation.evaluated=2]\nspace: {{algorithm.actor_rate: [0.0, 0.1]}}\nsearch: grid\n"
    (scene.parent / "rates.yaml").write_text(f"{text}stop_early: false")
    monkeypatch.chdir(scene.parent)  # what `set` says is relative to here
    assert throng_here("sweep", "rates.yaml", "--out", "out") == 0
    out = scene.parent / "out"
    outcomes = _trials(out)
    assert [one["state"] for one in outcomes.values()] == ["finished"] * 2
    for name, outcome in outcomes.items():
        result = json.loads((out / "trials" / name / "run" / "evaluation.json").read_text())
        assert outcome["error"] == pytest.approx(sum(result["gaps"]["reward"]["gap"]) / 2)
        returns = RunStore.open(out / "trials" / name / "run").ledger()["return"].to_numpy()
        assert (outcome["estimate"], outcome["simulations"]) == (pytest.approx(-returns.mean()), 2)
    table = (out / "rates.md").read_text()
    assert "| trial | CCE-gap | -return | episodes |" in table
    best = min(outcomes.values(), key=lambda one: (one["error"], one["number"]))
    assert f"{best['error']:.3f}" in table
    config = validated(FineTuningConfig, read_yaml(out / "best.yaml"), out / "best.yaml")
    assert config.algorithm == {"actor_rate": best["point"]["algorithm.actor_rate"]}
    assert config.world_model.folder == scene.parent / "model"


def test_trials_are_stopped_by_their_returns(scene: Path) -> None:
    """A report for each block of episodes, of the same quantity to the end; a gap is reported only where it is known."""
    path = scene.parent / "sweep.yaml"
    path.write_text(f"case: case.yaml\nset: [training.episodes={BLOCK + 2}]\nspace: {{terms.crash: [1.0]}}")
    for sets in (["evaluation.iterations=0"], []):
        config = load_spec(path, sets).config({"terms.crash": 1.0}, ("workers.rollouts=0",))
        assert isinstance(config, FineTuningConfig)
        told: list[dict[str, Any]] = []
        folder = scene.parent / f"run{len(sets)}"
        perform(config.model_dump(mode="json"), folder, Console(quiet=True), told.append)
        rows = RunStore.open(folder).ledger().to_pylist()

        def lost(first: int, last: int, rows: list[dict[str, Any]] = rows) -> Any:
            """Minus the mean return of these episodes."""
            returns = [row["return"] for row in rows if first <= row["episode"] < last]
            return pytest.approx(-sum(returns) / len(returns))

        estimates = [lost(0, BLOCK), lost(BLOCK, BLOCK + 2), lost(2, BLOCK + 2)]
        assert [one["estimate"] for one in told] == estimates
        assert [one["simulations"] for one in told] == [BLOCK, BLOCK + 2, BLOCK + 2]
        assert [one.get("finished") for one in told] == [None, None, True]
        assert ["error" in one for one in told] == [bool(sets), bool(sets), True]
    assert told[-1]["error"] >= 0


@pytest.mark.long
def test_a_sweep_outlives_a_node(tmp_path: Path) -> None:
    """The node of one of two trials dies: it begins again on the other from what it had committed, and all three finish."""
    (tmp_path / "small.yaml").write_text(f"{SWEEP}stop_early: false\n")
    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 2, "health_check_timeout_ms": 500}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": quick})
    out = tmp_path / "out"
    try:
        node = cluster.add_node(num_cpus=1)

        def kill() -> None:
            until = time.monotonic() + 300
            while len(list(out.glob("trials/*/run/journal/*.npz"))) < 12 and time.monotonic() < until:
                time.sleep(0.1)
            cluster.remove_node(node, allow_graceful=False)

        with ThreadPoolExecutor(1) as beside:
            killed = beside.submit(kill)
            plan = sweep(load_spec(tmp_path / "small.yaml"), out, cluster.address, Console(quiet=True))
            killed.result()
    finally:
        gc.collect()
        ray.shutdown()
        cluster.shutdown()
    assert len(plan.of("finished")) == 3
    attempts = sorted(int(path.read_text().split()[0]) for path in out.glob("trials/*/run/attempt"))
    assert attempts == [1, 1, 2], "no trial was at work on the node that died"


@pytest.mark.long
def test_a_sweep_of_which_nothing_works_says_why(tmp_path: Path) -> None:
    """The scenario's own fault shows in the first simulation only."""
    spec = Spec.model_validate(
        {
            "set": [*SMALL, 'scenario.options=["--nonsense", "1"]'],
            "space": {"search.population": [3]},
            "search": "grid",
            "concurrent": 1,
        }
    )
    with pytest.raises(InputError, match=r"no trial has finished, the first with: .*nonsense"):
        sweep(spec, tmp_path / "sweep", "local", Console(quiet=True))


def test_values_that_do_not_go_together_fail_that_trial_alone(tmp_path: Path) -> None:
    """Each is right with the others' first: only the trial that has both is found wrong, and the next one is begun."""
    space = {"search.kept_first": [0.5, 0.9], "search.kept_last": [0.6, 0.95]}
    plan = Plan.open(Spec.model_validate({"space": space, "search": "grid"}), tmp_path)
    chosen = _Chosen(plan, Progress(Console(quiet=True)))
    begun = list(iter(lambda: chosen.suggest("one"), Searcher.FINISHED))
    assert [one["settings"]["search"]["kept_last"] for one in begun] == [0.6, 0.95, 0.95]
    (failed,) = plan.of("failed")
    assert failed.point == {"search.kept_first": 0.9, "search.kept_last": 0.6}
    assert "kept_first must not exceed kept_last" in failed.failure


def _plan(folder: Path) -> Plan:
    space = {"navigation.lambda_metres": {"low": 100, "high": 1600, "scale": "log"}, "search.reuse": [True, False]}
    plan = Plan.open(Spec.model_validate({"space": space}), folder)
    outcomes = [
        ("finished", 0.9, 0.01),
        ("stopped", 0.7, None),
        ("finished", 0.8, 0.02),
        ("failed", float("inf"), None),
    ]
    for number, (state, error, sd) in enumerate(outcomes):
        point = {"navigation.lambda_metres": 100 * 2**number, "search.reuse": number % 2 == 0}
        plan.trials.append(Trial(number, point, state, error, sd, 10.0 * number))  # type: ignore[arg-type]
    return plan


def test_only_finished_trials_are_the_best(tmp_path: Path) -> None:
    """A stopped trial's error is an estimate that was not checked on fresh seeds."""
    plan = _plan(tmp_path)
    assert [trial.number for trial in ranked(plan)] == [2, 0, 1, 3]
    assert load_config(save_best(plan)).navigation.lambda_metres == 400
    table = [dict(zip(headings(plan.spec), cells(trial, plan.spec), strict=True)) for trial in ranked(plan)]
    assert [row["error"] for row in table] == ["0.800", "0.900", "0.700", "–"]
    path = write(plan, "throng sweep x.yaml")
    assert len(json.loads(path.with_suffix(".json").read_text())["trials"]) == 4


def test_a_stopped_trial_without_a_gap_is_shown_without_one(tmp_path: Path) -> None:
    """It was stopped by its return, which is another quantity: its line ends at the last setting."""
    given = {
        "set": ["system=mappo", "world_model.folder=/model"],
        "space": {"terms.crash": [1, 2], "terms.off_road": [1, 2]},
    }
    plan = Plan.open(Spec.model_validate(given), tmp_path)
    points = [{"terms.crash": one, "terms.off_road": 1} for one in (1, 2)]
    plan.trials += [Trial(0, points[0], "stopped", estimate=20.0), Trial(1, points[1], "finished", 0.5, estimate=30.0)]
    assert [trial.number for trial in ranked(plan)] == [1, 0]
    assert cells(ranked(plan)[1], plan.spec)[:3] == ["000", "–", "20.000"]
    (axes,) = parallel(plan).axes
    assert sorted(len(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) != 2 or line.get_alpha()) == [
        2,
        3,
    ]  # type: ignore[arg-type]
    assert "1 finished trials, 1 stopped early" in axes.get_title()


def test_the_picture_shows_every_trial_that_has_an_error(tmp_path: Path) -> None:
    (axes,) = parallel(_plan(tmp_path)).axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]  # type: ignore[arg-type]
    assert len(lines) == 3
    assert max(line.get_linewidth() for line in lines) == lines[-1].get_linewidth(), "the best is on top"
    assert list(lines[-1].get_ydata()) == pytest.approx([0.5, 0.0, 0.5])  # type: ignore[arg-type]
