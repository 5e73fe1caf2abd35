"""The main job end to end, in small: it runs, resumes bit for bit, loses nothing, and refuses what is wrong."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from rich.console import Console
from throng.cluster.session import session
from throng.platform import cli
from throng.platform.cli import app
from throng.platform.config import load_config
from throng.platform.experiment import Solution, diverse, run
from throng.platform.progress import Progress
from throng.platform.store import RunStore
from throng.scenarios.errors import InputError
from throng.workers.fleet import Failure
from throng.workers.placement import cpus_for
from throng.workers.pool import LocalPool, RayPool
from throng.workers.reward import RewardClient

SMALL = [
    "scenario.town.vehicles=80", "scenario.town.minutes=3", "search.population=6", "search.screen=2",
    "search.elites=2", "search.budget=30", "search.generations=3", "diffusion.updates=10", "diffusion.width=32",
    "report.seeds=2", "report.reference_seeds=2",
]  # fmt: skip


def small(*more: str, rollouts: int = 0) -> object:
    return load_config(None, ["scenario={town: {}}", *SMALL, f"workers.rollouts={rollouts}", *more])


def results(directory: Path) -> tuple[np.ndarray, list, list]:
    solution = Solution.load(directory / "solution.safetensors")
    table = RunStore.open(directory).ledger()
    evaluation = json.loads((directory / "evaluation.json").read_text())["rows"]
    return solution.z, table.select(["id", "estimate", "samples"]).to_pylist(), evaluation


def same(one: tuple, other: tuple) -> None:
    np.testing.assert_array_equal(one[0], other[0])
    assert one[1] == other[1]
    assert json.dumps(one[2]) == json.dumps(other[2])


def test_explanations_fit_and_differ() -> None:
    """Clones of the best are left for what differs and fits as well; what fits badly only fills up."""
    z = np.array([[0, 0], [0.1, 0], [5, 0], [0, 4], [0, 4.1], [9, 9]], np.float32)
    estimate = np.array([1.0, 1.0, 1.04, 1.03, 1.02, 1.2])
    assert diverse(z, estimate, 3) == [0, 2, 4]
    assert diverse(z, estimate, 6) == [0, 2, 4, 1, 3, 5]
    assert diverse(z[:2], estimate[:2], 10) == [0, 1]
    assert diverse(z[:1], estimate[:1], 10) == [0]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "undisturbed"
    run(small(), directory, resume=False, console=Console(quiet=True))
    return directory


def test_every_vehicle_gets_a_reward_model_and_a_route_it_can_drive(undisturbed: Path) -> None:
    from throng.platform.cli import _finish

    _finish(undisturbed)
    table = pq.read_table(undisturbed / "rewards.parquet")
    assert table.num_rows == 80
    for row in table.select(["origin", "destination", "route"]).to_pylist():
        assert row["route"][0] == row["origin"]
        assert row["route"][-1] == row["destination"]
    assert {"network_hash", "unit", "scaler_mean"} <= {key.decode() for key in table.schema.metadata}
    assert (undisturbed / "report.html").stat().st_size > 10_000
    for figure in ("network", "curves", "error", "preferences", "heatmap"):
        assert (undisturbed / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")


def test_a_crash_at_any_simulation_resumes_to_the_same_result_and_repeats_nothing(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "crashed"
    original = LocalPool.simulate
    asked: list[str] = []

    def dying(self: LocalPool, jobs):  # type: ignore[no-untyped-def]
        for key, result in original(self, jobs):
            asked.append(key)
            yield key, result
            if len(asked) % 17 == 0:
                raise KeyboardInterrupt

    monkeypatch.setattr(LocalPool, "simulate", dying)
    crashes = 0
    while True:
        try:
            run(small(), directory, resume=False, console=Console(quiet=True))
            break
        except KeyboardInterrupt:
            crashes += 1
    assert crashes >= 3
    # The 17th result is journaled only after it was yielded: that one alone may be asked for twice.
    repeated = len(asked) - len(set(asked))
    assert repeated <= crashes
    same(results(undisturbed), results(directory))


@pytest.fixture(scope="module")
def a_ray() -> Iterator[None]:
    """Begun once for the runs of this file that want it; the what-if on Ray of test_whatif.py begins its own."""
    with session("local", cpus_for(2, None)):
        yield


def test_ray_gives_the_result_of_one_process(a_ray: None, undisturbed: Path, tmp_path: Path) -> None:
    directory = tmp_path / "ray"
    run(small(rollouts=2), directory, resume=False, console=Console(quiet=True))
    same(results(undisturbed), results(directory))


def test_a_run_in_which_everything_dies_ends_as_if_nothing_had(
    a_ray: None, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rollout workers, learners and the reward service, killed in turn all the way, some of them amid their work:
    every simulation is committed once, and the result is the same to the bit."""
    simulate, train, put = RayPool.simulate, RewardClient.train, RunStore.journal_put
    results_seen, trainings, committed = itertools.count(), itertools.count(), []

    def disturbed(self: RayPool, jobs):  # type: ignore[no-untyped-def]
        for key, result in simulate(self, jobs):
            yield key, result
            seen = next(results_seen)
            if seen % 40 == 3:
                victim = self.rollouts._members[seen % 2]
                if victim.actor is not None:
                    ray.kill(victim.actor)
            if seen % 40 == 23 and self.learners._members[0].actor is not None:
                ray.kill(self.learners._members[0].actor)

    def trained(self: RewardClient, *given):  # type: ignore[no-untyped-def]
        finish = train(self, *given)
        assert self._fleet is not None
        if next(trainings) % 3 == 0:
            ray.kill(self._fleet._members[0].actor)
        return finish

    def noted(self: RunStore, key: str, arrays: dict) -> None:  # type: ignore[type-arg]
        committed.append(key)
        put(self, key, arrays)

    monkeypatch.setattr(RayPool, "simulate", disturbed)
    monkeypatch.setattr(RewardClient, "train", trained)
    monkeypatch.setattr(RunStore, "journal_put", noted)
    directory = tmp_path / "disturbed"
    run(small("workers.restarts=100", rollouts=2), directory, resume=False, console=Console(quiet=True))
    same(results(undisturbed), results(directory))
    assert len(committed) == len(set(committed))
    assert json.loads((directory / "result.json").read_text())["restarts"] >= 5


@pytest.mark.long
def test_it_still_learns_while_one_rollout_in_a_hundred_crashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The town with half of the default budget comes at least two fifths of the way to the noise floor."""
    simulate, rng = RayPool.simulate, np.random.default_rng(0)
    crashes = itertools.count()

    def crashing(self: RayPool, jobs):  # type: ignore[no-untyped-def]
        for key, result in simulate(self, jobs):
            yield key, result
            victim = self.rollouts._members[int(rng.integers(len(self.rollouts)))]
            if rng.random() < 0.01 and victim.actor is not None:
                next(crashes)
                ray.kill(victim.actor)

    monkeypatch.setattr(RayPool, "simulate", crashing)
    run(load_config(None, ["workers.rollouts=2", "search.budget=32"]), tmp_path, False, Console(quiet=True))
    result, evaluation = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("result", "evaluation"))
    assert next(crashes) >= 1
    assert result["restarts"] >= 1
    assert evaluation["rows"][0]["gap"] < 0.6, "of the way from the prior, 1, to the seed floor, 0"


def test_best_so_far_never_gets_worse_in_the_archive(undisturbed: Path) -> None:
    rows = RunStore.open(undisturbed).ledger().to_pylist()
    best = [min(r["estimate"] for r in rows if r["generation"] <= g) for g in range(max(r["generation"] for r in rows))]
    assert best == sorted(best, reverse=True)


def test_the_same_command_on_a_finished_run_simulates_nothing(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "again"
    shutil.copytree(undisturbed, directory)

    def refuse(self: LocalPool, jobs):  # type: ignore[no-untyped-def]
        assert not list(jobs)
        yield from ()

    monkeypatch.setattr(LocalPool, "simulate", refuse)
    run(small(), directory, resume=False, console=Console(quiet=True))
    same(results(undisturbed), results(directory))


def test_resume_extends_a_run(undisturbed: Path, tmp_path: Path) -> None:
    directory = tmp_path / "longer"
    shutil.copytree(undisturbed, directory)
    longer = small("search.generations=4", "search.budget=60")
    with pytest.raises(InputError, match=r"search\.budget.*--resume"):
        run(longer, directory, resume=False, console=Console(quiet=True))
    run(longer, directory, resume=True, console=Console(quiet=True))
    assert RunStore.open(directory).manifest()["generation"] == 3
    # The evaluation is that of the result as it is now, not one remembered from another.
    digest = Solution.load(directory / "solution.safetensors").digest
    assert len(list((directory / "journal").glob(f"evaluate-{digest}-*"))) == 2


def test_explanations_are_told_apart() -> None:
    """Evaluations are remembered under the digest: two explanations must not share it."""
    z, tau = np.zeros((1, 3), np.float32), np.zeros((1, 2, 2), np.float32)
    one, other = Solution(z, tau, np.zeros(1)), Solution(z + 1, tau, np.zeros(1))
    elsewhere = Solution(z, tau + 1, np.zeros(1))
    assert len({one.digest, other.digest, elsewhere.digest}) == 3


def test_a_folder_with_another_run_is_refused_and_left_alone(undisturbed: Path) -> None:
    before = (undisturbed / "config.yaml").read_text()
    with pytest.raises(InputError, match=r"holds another run: search\.population differs"):
        run(small("search.population=8"), undisturbed, resume=False, console=Console(quiet=True))
    assert (undisturbed / "config.yaml").read_text() == before


def test_resume_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        run(small(), tmp_path / "none", resume=True, console=Console(quiet=True))


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(InputError, match="not a run of Throng"):
        run(small(), tmp_path, resume=False, console=Console(quiet=True))


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    first = RunStore.create(tmp_path / "run", small())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="another process"):
        RunStore.create(tmp_path / "run", small())  # type: ignore[arg-type]
    first.close()
    RunStore.create(tmp_path / "run", small()).close()  # type: ignore[arg-type]


def test_failed_simulations_are_dropped_not_weighted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LocalPool.simulate

    def flaky(self: LocalPool, jobs):  # type: ignore[no-untyped-def]
        for key, result in original(self, jobs):
            yield key, Failure("boom") if "-meso-" in key and key.endswith("1") else result

    monkeypatch.setattr(LocalPool, "simulate", flaky)
    run(small("search.generations=1"), tmp_path / "run", resume=False, console=Console(quiet=True))
    rows = RunStore.open(tmp_path / "run").ledger().to_pylist()
    failed = [row for row in rows if row["id"] % 10 == 1]
    assert failed
    assert all(np.isinf(row["estimate"]) and not row["elite"] for row in failed)


def test_when_all_simulations_fail_the_reason_is_given_and_a_second_try_goes_on(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure must not be remembered for good: its cause may be mended."""
    original = LocalPool.simulate

    def broken(self: LocalPool, jobs):  # type: ignore[no-untyped-def]
        for key, result in original(self, jobs):
            yield key, Failure("no licence for Tuesdays") if key.startswith("g") else result

    directory = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(LocalPool, "simulate", broken)
        with pytest.raises(InputError, match=r"all \d+ simulations of generation 0 failed.*no licence for Tuesdays"):
            run(small(), directory, resume=False, console=Console(quiet=True))
    run(small(), directory, resume=False, console=Console(quiet=True))
    same(results(undisturbed), results(directory))


@pytest.mark.parametrize("kind", ["iid", "lcc"])
def test_other_targets_run(tmp_path: Path, kind: str) -> None:
    more = ["target.truth=iid"] if kind == "iid" else ["target.kind=lcc"]
    run(small("search.generations=1", *more), tmp_path / "run", resume=False, console=Console(quiet=True))
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["rows"][0]["rmse"] >= 0
    assert ("identifiability floor" in {row["method"] for row in evaluation["rows"]}) == (kind == "lcc")


@pytest.mark.parametrize("latent", ["token", "table"])
@pytest.mark.parametrize("replan", ["pretrip", "junction"])
def test_other_latents_and_live_routing_run(tmp_path: Path, latent: str, replan: str) -> None:
    more = [f"latent.kind={latent}", "latent.tokens=4", f"navigation.replan={replan}", "search.generations=1"]
    run(small(*more), tmp_path / "run", resume=False, console=Console(quiet=True))
    assert (tmp_path / "run" / "solution.safetensors").exists()


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "throng.platform.cli", "run", "--out", str(tmp_path / "run")]
    sets = [
        part
        for setting in [*SMALL, "workers.rollouts=0", "search.budget=1000", "search.generations=1000"]
        for part in ("--set", setting)
    ]
    process = subprocess.Popen(
        [*command, *sets],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # What runs in the background of a script inherits an ignored SIGINT; a person's terminal does not ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    journal = tmp_path / "run" / "journal"
    while process.poll() is None and not (journal.is_dir() and any(journal.glob("*.npz"))):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    assert "Traceback" not in said


def test_ctrl_c_that_compiled_code_made_another_error_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba's dispatcher wraps a KeyboardInterrupt that reaches it in a SystemError; without a Ctrl-C it is a defect."""

    def interrupted(**_: object) -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        defective()

    def defective(**_: object) -> None:
        raise SystemError("returned a result with an exception set")

    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        monkeypatch.setattr(cli, "app", interrupted)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == cli.INTERRUPTED
        signal.signal(signal.SIGINT, signal.default_int_handler)
        monkeypatch.setattr(cli, "app", defective)
        with pytest.raises(SystemError):
            cli.main()
    finally:
        signal.signal(signal.SIGINT, before)


def test_progress_is_plain_lines_when_not_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(Console(force_terminal=False, width=200)) as progress:
        progress.phase("searching")
        progress.advance(0.5, "generation 3 · best 0.9")
    said = capsys.readouterr().out
    assert "searching" in said
    assert "\x1b" not in said


def test_help_teaches_every_command() -> None:
    from typer.testing import CliRunner

    runner = CliRunner()
    said = runner.invoke(app, ["run", "--help"]).output
    assert "--resume" in said
    assert "--set" in said
    for command in ("report", "evaluate", "scenario"):
        assert runner.invoke(app, [command, "--help"]).exit_code == 0
