"""Throng's benchmarks: `python bench/run.py [--only NAME …] [--quick] [--out FILE]`.

Prints a table and exits 1 if a bar is missed. All of them at full length also write their rows to bench/results.json, others
only where `--out` says. `--quick` measures little: it shows that the benchmarks run, not what they say. A quiet machine with
two processors takes half an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: one thread, as in the workers

import city
import finetuning
import fleet
import imagined
import learning
import rollouts
import scale
import search
import worlds
from measure import Result
from rich.console import Console
from rich.table import Table
from throng.workers.pool import ALLOCATOR

GROUPS: dict[str, Callable[[bool], list[Result]]] = {
    "pretrip": rollouts.pretrip,
    "junction": rollouts.junction,
    "mesoscopic": rollouts.mesoscopic,
    "value_iteration": learning.learn,
    "dqn": learning.dqn_training,
    "iql": learning.iql_training,
    "routing": learning.routing,
    "ray": search.ray_workers,
    "nodes": search.nodes,
    "workers": fleet.workers,
    "generation": search.generation,
    "search": search.mesoscopic_search,
    "memory": scale.memory,
    "growth": scale.growth,
    "city": city.city,
    "driving": worlds.driving,
    "imagined": imagined.imagined,
    "finetuning": finetuning.finetuning,
}


def main() -> int:
    if not os.environ.items() >= ALLOCATOR.items():  # read when a process starts: start again, as a worker does
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **ALLOCATOR})
    parser = argparse.ArgumentParser(description="Throng's benchmarks: ratios, all taken in one run.")
    names = ", ".join(GROUPS)
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="NAME", help=f"some of: {names}")
    parser.add_argument("--quick", action="store_true", help="fewest repeats: do the benchmarks run?")
    parser.add_argument("--out", type=Path, help="a JSON file; by default bench/results.json, if nothing is left out")
    given = parser.parse_args()
    out = given.out or (None if given.only or given.quick else Path(__file__).with_name("results.json"))
    console = Console(highlight=False)
    results: list[Result] = []
    for name in given.only or GROUPS:
        began = time.monotonic()
        rows = GROUPS[name](given.quick)
        results += rows
        values = ", ".join(f"{row.value:.3g}" for row in rows)
        console.print(f"{name}: {values} ({time.monotonic() - began:.0f} s)", style="dim")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps([result.row() for result in results], indent=1) + "\n")
    console.print(_table(results))
    return 0 if all(result.ok for result in results) else 1


def _table(results: list[Result]) -> Table:
    table = Table("what", "value", "bar", "", "detail")
    for one in results:
        sign = "≤" if one.better == "lower" else "≥"
        verdict = "ok" if one.ok else "MISSED"
        table.add_row(one.name, f"{one.value:.3g}", f"{sign} {one.bar:g}", verdict, one.detail)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
