"""A run on a cluster of three nodes of this machine, whose nodes and driver are killed under it."""

from __future__ import annotations

import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster
from rich.console import Console
from throng.platform.config import Config, load_config
from throng.platform.experiment import run
from throng.workers.fleet import Fleet
from throng.workers.pool import RayPool
from throng.workers.ray_internals import node_of
from throng.workers.reward import RewardClient

SMALL = [
    "scenario={town: {vehicles: 80, minutes: 3}}", "search.population=6", "search.screen=2", "search.elites=2",
    "search.budget=20", "search.generations=2", "diffusion.updates=10", "diffusion.width=32", "report.seeds=2",
    "report.reference_seeds=2",
]  # fmt: skip
# A lost node is noticed after a second or two, not after the 17 of Ray's defaults.
QUICK = {
    "health_check_period_ms": 500, "health_check_failure_threshold": 2, "health_check_timeout_ms": 500,
    "health_check_initial_delay_ms": 0,
}  # fmt: skip


def _config(*more: str) -> Config:
    return load_config(None, [*SMALL, *more])


def _result(directory: Path) -> tuple[list[dict[str, Any]], str]:
    """All individuals of a run, and the evaluation of the best."""
    paths = sorted((directory / "ledger").glob("*.parquet"))
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    return rows, json.dumps(json.loads((directory / "evaluation.json").read_text())["rows"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "undisturbed"
    run(_config("workers.rollouts=0"), directory, resume=False, console=Console(quiet=True))
    return directory


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without work and three nodes, each with room for two rollout workers, the learner and the reward service."""
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK}
    )
    try:
        for _ in range(3):
            made.add_node(num_cpus=3)
        yield made
    finally:
        gc.collect()
        ray.shutdown()
        made.shutdown()


def _kill_node_of(fleet: Fleet, cluster: Cluster) -> bool:
    """Ends the raylet of the node of a fleet's first member at once; the head's stays."""
    actor = fleet._members[0].actor
    where = None if actor is None else node_of(actor)
    node = next((node for node in cluster.worker_nodes if node.node_id == where), None)
    if node is None:
        return False
    cluster.remove_node(node, allow_graceful=False)
    return True


def test_nodes_may_die_under_a_run(
    cluster: Cluster, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node of the reward service during a training, then that of the learner during simulations: what is left does the
    rest, nobody is blamed for it, and the result is the same to the bit."""
    simulate, train = RayPool.simulate, RewardClient.train
    seen = itertools.count()
    killed: list[str] = []

    def disturbed(self: RayPool, jobs: Any) -> Iterator[Any]:
        for key, result in simulate(self, jobs):
            yield key, result
            if next(seen) >= 30 and "learner" not in killed and _kill_node_of(self.learners, cluster):
                killed.append("learner")

    def trained(self: RewardClient, *given: Any) -> Any:
        finish = train(self, *given)
        assert self._fleet is not None
        if "reward" not in killed and _kill_node_of(self._fleet, cluster):
            killed.append("reward")
        return finish

    monkeypatch.setattr(RayPool, "simulate", disturbed)
    monkeypatch.setattr(RewardClient, "train", trained)
    directory = tmp_path / "disturbed"
    sets = [f"workers.address={cluster.address}", "workers.rollouts=2", "workers.restarts=0"]
    run(_config(*sets), directory, resume=False, console=Console(quiet=True))
    assert sorted(killed) == ["learner", "reward"]
    assert _result(directory) == _result(undisturbed)


@pytest.mark.long
def test_a_killed_driver_is_followed_by_the_same_command(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    """SIGKILL: its actors end with it, and what had been committed is not done again."""
    directory = tmp_path / "run"
    sets = [*SMALL, f"workers.address={cluster.address}", "workers.rollouts=2"]
    command = [sys.executable, "-W", "ignore", "-m", "throng.platform.cli", "run", "--out", str(directory)]
    command += [part for setting in sets for part in ("--set", setting)]
    journal = directory / "journal"
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    while driver.poll() is None and len(list(journal.glob("*.npz"))) < 12:
        time.sleep(0.05)
    assert driver.poll() is None, (tmp_path / "log").read_text()
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    known = {path.name: path.stat().st_mtime_ns for path in journal.glob("[!.]*.npz")}
    assert len(known) >= 12
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    kept = {path.name: path.stat().st_mtime_ns for path in journal.glob("[!.]*.npz")}
    assert all(kept[name] == written for name, written in known.items() if name in kept)
    assert _result(directory) == _result(undisturbed)
