"""What a run tells while it works is what happened: in its log, and to Prometheus."""

from __future__ import annotations

import gc
import json
import re
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console
from throng.platform import telemetry
from throng.platform.config import load_config
from throng.platform.experiment import run
from throng.workers.pool import RayPool

ROOT = Path(__file__).parents[2]
SMALL = [
    "scenario={town: {vehicles: 100, minutes: 4}}", "search.population=4", "search.screen=1", "search.elites=1",
    "search.budget=12", "search.generations=2", "diffusion.updates=5", "diffusion.width=16", "report.seeds=2",
    "report.reference_seeds=2", "workers.rollouts=1",
]  # fmt: skip


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def metrics() -> Iterator[str]:
    """The address at which a Ray of our own serves its metrics."""
    port = _free_port()
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=200 * 2**20, _metrics_export_port=port,
    )  # fmt: skip
    yield f"http://127.0.0.1:{port}/metrics"
    gc.collect()
    ray.shutdown()


def _scraped(address: str, simulations: int) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Throng's samples by name, with their labels, once all simulations are told; Ray sends them every ten seconds."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with urllib.request.urlopen(address, timeout=30) as answer:
            text = answer.read().decode()
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for name, labels, value in re.findall(r"^(ray_throng_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            found.setdefault(name, []).append((dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)))
        if sum(value for _, value in found.get("ray_throng_simulations_total", [])) >= simulations:
            return found
        time.sleep(1.0)
    raise AssertionError(f"{simulations} simulations were never told")


def test_a_run_is_told_as_it_was(metrics: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker is killed on the way: it is in the log and among the metrics, and the counts agree with what was done."""
    simulate, seen = RayPool.simulate, []

    def disturbed(self: RayPool, jobs: Any) -> Iterator[Any]:
        for key, result in simulate(self, jobs):
            seen.append(key)
            if len(seen) == 12:
                ray.kill(self.rollouts._members[0].actor)
            yield key, result

    monkeypatch.setattr(RayPool, "simulate", disturbed)
    directory = tmp_path / "told"
    run(load_config(None, SMALL), directory, resume=False, console=Console(quiet=True))
    found = _scraped(metrics, len(seen))
    done = found["ray_throng_simulations_total"]
    assert all(labels["run"] == str(directory) for samples in found.values() for labels, _ in samples)
    assert sum(value for _, value in done) == len(seen)
    assert {labels["fidelity"] for labels, _ in done} == {"meso", "micro"}
    assert [value for _, value in found["ray_throng_generation"]] == [2]
    lost = {labels["fleet"]: value for labels, value in found["ray_throng_actors_lost_total"]}
    assert lost == {"rollout worker": 1}
    best = next(value for labels, value in found["ray_throng_error"] if labels["of"] == "best")
    assert best == pytest.approx(json.loads((directory / "manifest.json").read_text())["history"][-1]["best"])

    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    assert Counter(line["event"] for line in lines) == {"simulation": len(seen), "generation": 2, "lost": 1}
    assert {line["attempt"] for line in lines} == {1}
    candidates = [line for line in lines if line.get("individual") is not None]
    assert {line["generation"] for line in candidates} >= {0, 1}
    assert all(f"-i{line['individual']:06d}" in line["key"] for line in candidates)
    (loss,) = (line for line in lines if line["event"] == "lost")
    assert (loss["level"], loss["fleet"]) == ("warning", "rollout worker")


def test_the_dashboard_draws_what_there_is() -> None:
    """Every metric it asks for is one that is served, and every one that is served is drawn."""
    text = (ROOT / "cluster" / "launch" / "grafana.json").read_text()
    board = json.loads(text)
    asked = set(re.findall(r"ray_throng_\w+", text))
    described = re.findall(r"^    (throng_\w+) ", telemetry.__doc__ or "", re.MULTILINE)
    assert asked == {f"ray_{name}" for name in described}
    assert "ray_object_store_memory" in text
    places = [tuple(panel["gridPos"][key] for key in "xy") for panel in board["panels"]]
    assert len(set(places)) == len(board["panels"])
