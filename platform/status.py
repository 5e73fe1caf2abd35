"""How far runs have come, read from their folders: `throng status`, from any shell that sees them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..scenarios.errors import InputError
from .config import read_yaml, validated
from .finetuning_config import FineTuningConfig
from .store import RunStore

State = Literal["running", "stopped", "finished"]


@dataclass(frozen=True)
class Status:
    """What one run has committed so far."""

    run: Path
    state: State  # stopped: the command that made it goes on with it
    spent: float  # micro-equivalent simulations; of a fine-tuning, episodes
    budget: float
    best: float | None  # estimated error of the best candidate
    error: float | None  # of the result on fresh seeds; a finished run's
    floor: float | None  # noise floor of that
    left: float | None  # seconds that a running search may take yet, at its pace so far
    idle: float  # seconds since anything was written


def runs_below(folder: Path) -> list[Path]:
    """All runs in the folder: itself, if it is one, and those anywhere below it.

    Raises:
        InputError: there are none.
    """
    found = sorted(path.parent for path in folder.rglob("config.yaml") if (path.parent / "journal").is_dir())
    if not found:
        raise InputError(f"{folder}: no run here or below; give a folder that `throng run` or `compare` printed")
    return found


def status(run: Path) -> Status:
    """Reads how far a run has come; it may be working at this moment.

    Raises:
        InputError: there is no run, or its configuration cannot be read.
    """
    store = RunStore.open(run)
    busy = store.busy()  # before what is written at the end
    evaluation, result = store.read_json("evaluation.json"), store.read_json("result.json")
    idle = time.time() - max(path.stat().st_mtime for path in (run, run / "journal"))
    data = read_yaml(run / "config.yaml")
    if "system" in data:
        episodes = validated(FineTuningConfig, data, run / "config.yaml").training.episodes
        done = store.manifest().get("episodes", 0)
        state: State = "running" if busy else "finished" if evaluation is not None and done >= episodes else "stopped"
        return Status(run, state, done, episodes, None, None, None, None, idle)
    config = store.config()
    history = store.manifest().get("history", [])
    spent = history[-1]["simulations"] if history else 0.0
    left = None
    if busy and history:
        pace = sum(row["seconds"] for row in history) / spent
        left = max(0.0, config.search.budget - spent) * pace
    finished = evaluation is not None and result is not None
    return Status(
        run,
        "running" if busy else "finished" if finished else "stopped",
        result["spent"] if result else spent,
        config.search.budget,
        history[-1]["best"] if history else None,
        evaluation["rows"][0]["rmse"] if finished and evaluation else None,
        evaluation["floor"] if finished and evaluation else None,
        left,
        idle,
    )


HEADINGS = ("run", "state", "sims", "best", "result", "floor", "")
EXPLAINED = (
    "sims: micro-equivalent simulations, of the budget (of a fine-tuning: episodes); best: estimated error of the best "
    "candidate so far; result: error on fresh seeds; floor: noise, a perfect answer's error; left: of the search, at its "
    "pace so far; ago: last written. The command that made a stopped run goes on with it."
)


def cells(one: Status, below: Path) -> list[str]:
    """A row of the table, under HEADINGS; runs are named from the folder `below` on."""

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    return [
        one.run.resolve().name if one.run == below else str(one.run.relative_to(below)),
        one.state,
        f"{one.spent:.0f}/{one.budget:g}",
        number(one.best),
        number(one.error),
        number(one.floor),
        f"{_span(one.idle)} ago" if one.left is None else f"{_span(one.left)} left",
    ]


def _span(seconds: float) -> str:
    minutes, hours = round(seconds / 60), seconds / 3600
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{hours:.1f} h"
