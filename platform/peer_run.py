"""A peer's run in a comparison: SUMO's tools on the same case, judged on the same fresh seeds as a search."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from rich.console import Console

from ..workers.pool import Job
from . import references as refs
from .case import load_case
from .config import Config
from .experiment import judge
from .peers import duaiterate, route_sampler
from .progress import Progress
from .store import RunStore
from .workbench import Workbench, workbench


def run_peer(name: str, config: Config, directory: Path, console: Console, sibling: Path | None = None) -> RunStore:
    """Runs a peer and evaluates it; `sibling` is a run on the same case, whose floors and nulls are taken over.

    Raises:
        DoesNotApply: the case lacks what the peer needs.
        InputError: bad inputs, or a tool that failed.
    """
    with tempfile.TemporaryDirectory(prefix="throng-") as scratch:
        case = load_case(config, Path(scratch) / "case")
        store = RunStore.create(directory, config, extend=False)
        try:
            if sibling is not None:
                refs.take_over(store, sibling)
            with Progress(console) as progress, workbench(config, store, progress, case) as bench:
                model = case.problem.preference_model()
                progress.phase("floors and nulls")
                known = refs.measure(bench, model, config.report.reference_seeds)
                progress.phase(name)
                began = time.monotonic()
                jobs, spent = _jobs(name, bench, Path(scratch) / "tool")
                seconds = time.monotonic() - began
                progress.phase("evaluating")
                judge(bench, store, name, bench.must(jobs), known)
                store.write_json("result.json", {"spent": spent, "seconds": seconds, "finished": time.time()})
        finally:
            store.close()
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
