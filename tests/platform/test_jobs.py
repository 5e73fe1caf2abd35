"""`throng submit` and `throng job` on a real, token-protected Ray head of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from throng.cluster import jobs

RAY = Path(sys.executable).with_name("ray")
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}
SMALL = [
    "scenario.town.vehicles=80", "scenario.town.minutes=3", "search.population=4", "search.screen=1", "search.elites=1",
    "diffusion.updates=5", "diffusion.width=16", "report.seeds=2", "report.reference_seeds=2",
]  # fmt: skip
PATIENCE = 300.0  # seconds

Throng = Callable[..., "subprocess.CompletedProcess[str]"]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the job server of a head of our own, ended by its process."""
    port, dashboard, agent = _free_ports(3)
    # Ray tells jobs the address of the cluster that was begun last below the temporary folder, which another test's may be.
    # Not pytest's folder: names of sockets may not be that long.
    own = tempfile.mkdtemp(prefix="ray-")
    log = tmp_path_factory.mktemp("head") / "log"
    command = [
        str(RAY), "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2",
        f"--dashboard-agent-listen-port={agent}", f"--object-store-memory={200 * 2**20}",
        f"--temp-dir={own}",
    ]  # fmt: skip
    with log.open("w") as out:
        head = subprocess.Popen(command, env=os.environ | TOKEN, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        head.terminate()
        head.wait(60)
        shutil.rmtree(own, ignore_errors=True)


@pytest.fixture(scope="module")
def throng(address: str, tmp_path_factory: pytest.TempPathFactory) -> Throng:
    """(words, token) -> the command of these words, run in one folder against the head, which is up."""
    where = tmp_path_factory.mktemp("work")

    def run(*words: str, token: bool = True) -> subprocess.CompletedProcess[str]:
        group = 2 if words[0] == "job" else 1
        line = [*words[:group], "--address", address, *words[group:]]
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
        env |= {"COLUMNS": "200", "RAY_AUTH_TOKEN": TOKEN["RAY_AUTH_TOKEN"]} if token else {"RAY_AUTH_MODE": "disabled"}
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "throng.platform.cli", *line],
            cwd=where, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip

    until = time.monotonic() + PATIENCE
    while not _listens(address) or run("job", "list").returncode:
        assert time.monotonic() < until, "the head does not come up"
        time.sleep(0.2)
    run.where = where  # type: ignore[attr-defined]
    return run


def _listens(address: str) -> bool:
    host, _, port = address.rpartition("/")[2].partition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1.0):
        return True
    return False


def _committed(run: Path) -> int:
    """Generations that a run has committed."""
    manifest = run / "manifest.json"
    return json.loads(manifest.read_text())["generation"] + 1 if manifest.exists() else 0


@contextlib.contextmanager
def _held(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


def _is_told_to_end(process: int) -> bool:
    """Whether a SIGTERM waits for a process that is held, or it is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    pending = next(line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd"))
    return bool(int(pending, 16) & 1 << signal.SIGTERM - 1)


def _sets(*more: str) -> list[str]:
    return [word for setting in (*SMALL, *more) for word in ("--set", setting)]


def test_a_cancelled_job_goes_on_where_it_stopped(throng: Throng) -> None:
    """Submitted, found again, cancelled after a generation; the same command starts a second job, which finishes the run."""
    where: Path = throng.where  # type: ignore[attr-defined]
    run = where / "runs" / "mine"
    command = ["run", *_sets("search.budget=30", "search.patience=100"), "--out", "runs/mine"]
    first = throng("submit", "--no-wait", "--", *command)
    assert first.returncode == 0, first.stderr
    job = first.stdout.split()[1]
    assert job.startswith("throng-run-")
    until = time.monotonic() + PATIENCE
    while not _committed(run):
        assert time.monotonic() < until, throng("job", "list").stdout
        time.sleep(0.02)
    driver = int((run / "attempt").read_text().split()[2])
    with ThreadPoolExecutor(1) as beside, _held(driver):  # it is so small that it would end before commands have begun
        assert f"job {job}, under way already" in throng("submit", "--no-wait", "--", *command).stdout
        cancelled = beside.submit(throng, "job", "cancel", job)
        while not (cancelled.done() or _is_told_to_end(driver)):
            time.sleep(0.02)
    assert f"job {job}: stopped" in cancelled.result().stdout
    assert not (run / "evaluation.json").exists()
    kept = (run / "ledger" / "0000.parquet").stat().st_mtime_ns

    second = throng("submit", "--", *command)
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"job {job}-2\n" in second.stdout
    assert "searching" in second.stdout, "the progress of the run itself"
    assert "report: runs/mine/report.html" in second.stdout
    assert (run / "rewards.parquet").is_file()
    assert (run / "ledger" / "0000.parquet").stat().st_mtime_ns == kept, "it did not begin anew"

    listed = throng("job", "list").stdout
    assert f"{job} " in listed
    assert f"{job}-2" in listed
    assert "stopped" in listed
    assert "succeeded" in listed
    again = throng("job", "logs", f"{job}-2")
    assert again.returncode == 0
    assert "report: runs/mine/report.html" in again.stdout
    assert f"job {job}-2: succeeded" in throng("job", "cancel", f"{job}-2").stdout


def test_a_job_that_fails_says_why(throng: Throng) -> None:
    where: Path = throng.where  # type: ignore[attr-defined]
    (where / "taken").mkdir()
    (where / "taken" / "notes.txt").write_text("mine")
    done = throng("submit", "--", "run", *_sets(), "--out", "taken")
    assert done.returncode == 1
    assert "taken: not empty and not a run of Throng" in done.stdout
    assert "failed" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "runs/mine"], "cannot send `throng report`"),
        (["run", "--set", "search.populaton=3"], "search.populaton"),
        (["run", "--sett", "a=3"], "No such option: --sett"),
        (["run", "--set", "scenario.net=a.net.xml"], "name them in a configuration file"),
    ],
    ids=["command", "setting", "option", "path"],
)
def test_what_is_wrong_is_said_before_anything_is_sent(
    words: list[str],
    said: str,
    throng_here: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nobody is even called."""

    def called(address: str | None) -> None:
        raise AssertionError(f"{address} was called")

    monkeypatch.setattr(jobs, "connect", called)
    assert throng_here("submit", "--address", "http://nowhere", "--", *words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["logs", "cancel"])
def test_a_job_that_is_not_there_is_named(throng: Throng, verb: str) -> None:
    done = throng("job", verb, "nobody")
    assert done.returncode == 2
    assert "no job nobody on this cluster" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_its_token_the_cluster_is_closed(throng: Throng) -> None:
    done = throng("job", "list", token=False)
    assert done.returncode == 1
    assert "the cluster wants its token: set RAY_AUTH_MODE=token" in done.stderr


def test_ray_job_submit_by_hand(throng: Throng, address: str, tmp_path: Path) -> None:
    """Where Throng is installed on the cluster, Ray's own command does; the job works on the job's cluster."""
    code = f"{sys.executable} -m throng.platform.cli run --out {tmp_path}/run"
    sets = _sets("search.proposals=random", "search.generations=1")
    done = subprocess.run(
        [str(RAY), "job", "submit", "--address", address, "--", *code.split(), *sets],
        env=os.environ | TOKEN, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "report.html").is_file()
