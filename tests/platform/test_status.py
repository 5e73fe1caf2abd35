"""`throng status`: what it says of runs that work, have stopped, and are finished; and that asking disturbs none."""

from __future__ import annotations

import contextlib
import sys
from fcntl import LOCK_SH, LOCK_UN, flock
from pathlib import Path

import pytest
from throng.platform import cli
from throng.platform.config import load_config
from throng.platform.status import Status, cells, runs_below, status
from throng.platform.store import RunStore
from throng.scenarios.errors import InputError

CONFIG = load_config(None, ["search.budget=100"])


def _commit(store: RunStore, *spent: float) -> None:
    history = [{"simulations": one, "best": 2.0 - one / 100, "seconds": 40.0} for one in spent]
    store.write_json("manifest.json", {"generation": len(spent) - 1, "history": history})


def test_the_states_of_a_run(tmp_path: Path) -> None:
    with contextlib.closing(RunStore.create(tmp_path / "run", CONFIG)) as store:
        new = status(tmp_path / "run")
        assert (new.state, new.spent, new.budget, new.best, new.left) == ("running", 0, 100, None, None)
        _commit(store, 10, 20)
        assert (status(tmp_path / "run").state, status(tmp_path / "run").spent) == ("running", 20)
        assert status(tmp_path / "run").best == pytest.approx(1.8)
        assert status(tmp_path / "run").left == pytest.approx(80 * 4)  # 20 simulations took 80 s
        assert status(tmp_path / "run").idle < 60
    stopped = status(tmp_path / "run")
    assert (stopped.state, stopped.left, stopped.error) == ("stopped", None, None)
    store.write_json("result.json", {"spent": 95.0})
    assert status(tmp_path / "run").state == "stopped"  # not evaluated yet
    store.write_json("evaluation.json", {"rows": [{"rmse": 0.9}, {"rmse": 2.0}], "floor": 0.7})
    done = status(tmp_path / "run")
    assert (done.state, done.spent, done.error, done.floor) == ("finished", 95, 0.9, 0.7)


def test_a_peer_has_no_generations(tmp_path: Path) -> None:
    with contextlib.closing(RunStore.create(tmp_path / "run", CONFIG)) as store:
        store.write_json("result.json", {"spent": 100.0})
        store.write_json("evaluation.json", {"rows": [{"rmse": 0.9}], "floor": 0.7})
    assert (status(tmp_path / "run").state, status(tmp_path / "run").best) == ("finished", None)


def test_a_run_that_is_only_asked_after_can_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock that asking takes for a moment is waited for."""
    RunStore.create(tmp_path, CONFIG).close()
    store = RunStore.open(tmp_path)
    assert not store.busy()
    with (tmp_path / "lock").open() as asking:
        flock(asking, LOCK_SH)
        monkeypatch.setattr("time.sleep", lambda _: flock(asking, LOCK_UN))
        with contextlib.closing(RunStore.create(tmp_path, CONFIG)):
            assert store.busy()
            with pytest.raises(InputError, match="another process"):
                RunStore.create(tmp_path, CONFIG)


def test_runs_are_found_below_a_folder(tmp_path: Path) -> None:
    for name in ("truth0-seed0/masdiff", "truth0-seed0/cma", "other"):
        RunStore.create(tmp_path / name, CONFIG).close()
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "config.yaml").write_text("name: no run\n")
    found = [path.relative_to(tmp_path).as_posix() for path in runs_below(tmp_path)]
    assert found == ["other", "truth0-seed0/cma", "truth0-seed0/masdiff"]
    assert runs_below(tmp_path / "other") == [tmp_path / "other"]
    with pytest.raises(InputError, match="no run here or below"):  # whatever its config.yaml is, it is no run's
        runs_below(tmp_path / "case")


def test_times_are_told_in_units_that_fit() -> None:
    def said(left: float | None, idle: float) -> str:
        one = Status(Path("a/b"), "running", 20.0, 64.0, 1.25, None, None, left, idle)
        assert cells(one, Path("a"))[:6] == ["b", "running", "20/64", "1.250", "–", "–"]
        return cells(one, Path("a"))[6]

    assert [said(None, idle) for idle in (3.2, 600, 4 * 3600)] == ["3 s ago", "10 min ago", "4.0 h ago"]
    assert said(300, 1) == "5 min left"


def test_no_run_to_ask_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["throng", "status", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "no run here or below" in capsys.readouterr().err.replace("\n", " ")
