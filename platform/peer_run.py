"""A peer's run in a comparison: SUMO's tools on the same case, judged on the same fresh seeds as a search."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from rich.console import Console

from ..workers.simulator import Job
from .config import Config
from .experiment import judge, opened
from .peers import duaiterate, route_sampler
from .store import RunStore
from .workbench import Workbench


def run_peer(name: str, config: Config, directory: Path, console: Console, sibling: Path | None = None) -> RunStore:
    """Runs a peer and evaluates it; `sibling` is a run on the same case, whose floors and nulls are taken over.

    Raises:
        DoesNotApply: the case lacks what the peer needs.
        InputError: bad inputs, or a tool that failed.
    """
    with (
        opened(config, directory, False, console, sibling) as (bench, store, known, progress),
        tempfile.TemporaryDirectory(prefix="throng-") as folder,
    ):
        progress.phase(name)
        began = time.monotonic()
        jobs, spent = _jobs(name, bench, Path(folder))
        seconds = time.monotonic() - began
        progress.phase("evaluating")
        judge(bench, store, name, bench.must(jobs), known)
        store.write_json("result.json", {"spent": spent, "seconds": seconds, "finished": time.time()})
    return store


def _jobs(name: str, bench: Workbench, folder: Path) -> tuple[list[Job], float]:
    """The simulations that judge a peer, and the simulations it has spent."""
    config = bench.case.config
    seeds = [(f"evaluate-{name}-{i}", bench.seed("evaluate", i)) for i in range(config.report.seeds)]
    if name == "duaiterate":
        iterations = max(1, int(config.search.budget))
        routes = duaiterate(bench, iterations, bench.seed(name), folder)
        return [Job(key, seed, routes=routes) for key, seed in seeds], float(iterations)
    sampled = route_sampler(bench, bench.seed(name), folder)
    return [sampled.job(key, seed) for key, seed in seeds], 0.0
