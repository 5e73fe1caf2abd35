"""What a trial runs, and what it is judged by: a search of MASDiff, or a fine-tuning of drivers. Less is better."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ..platform import experiment, finetuning
from ..platform.config import Config, validated
from ..platform.finetuning_config import FineTuningConfig
from ..platform.store import RunStore
from ..scenarios.errors import InputError


@dataclass(frozen=True)
class Objective:
    """What trials are judged by, in a table's words."""

    name: str
    beside: str  # what is shown beside it; "": nothing
    spent: str  # what a trial's budget consists of
    about: str


ERROR = Objective(
    "error", "s.d.", "simulations",
    "error: of finished trials on fresh seeds (s.d. between them), of stopped ones as it was estimated when they were; "
    "simulations: micro-equivalent ones used.",
)  # fmt: skip
OF_RETURN = f"-return: minus the return of a game, mean of drivers, in the last {finetuning.BLOCK} episodes or less"
RETURN = Objective("-return", "", "episodes", f"{OF_RETURN} (no gaps are measured: evaluation.iterations is 0).")
GAP = Objective(
    "CCE-gap", "-return", "episodes",
    f"CCE-gap: in reward, by best responses, mean of drivers, at the end; the trials are ranked by it. {OF_RETURN}; they are "
    "stopped early by it, and stopped ones have no gap.",
)  # fmt: skip


def objective(config: Config | FineTuningConfig) -> Objective:
    """What a run of this configuration is judged by."""
    if isinstance(config, Config):
        return ERROR
    return GAP if config.evaluation.iterations else RETURN


def budget(config: Config | FineTuningConfig) -> float:
    """What a run may spend, in `Objective.spent`."""
    return config.search.budget if isinstance(config, Config) else config.training.episodes


def perform(settings: dict[str, Any], folder: Path, console: Console, report: Callable[[dict[str, Any]], None]) -> None:
    """Does a run of these settings in a folder, or goes on with it.

    Args:
        settings: a configuration as plain data.
        report: told, on the way and at the end, `estimate`, by which trials are stopped, `simulations`, what is spent, and,
            where it is known, `error`, by which they are ranked; at the end `finished`; of bad input the `failure`.
    """
    try:
        if "system" in settings:
            _fine_tune(validated(FineTuningConfig, settings, None), folder, console, report)
        else:
            _search(validated(Config, settings, None), folder, console, report)
    except InputError as error:  # no second try would help
        report({"error": math.inf, "estimate": math.inf, "simulations": 0.0, "failure": str(error)})


def _search(config: Config, folder: Path, console: Console, report: Callable[[dict[str, Any]], None]) -> None:
    def heard(row: dict[str, float]) -> None:
        report({"error": row["best"], "estimate": row["best"], "simulations": row["simulations"]})

    store = experiment.run(config, folder, False, console, heard=heard)
    result, evaluation = store.read_json("result.json"), store.read_json("evaluation.json")
    assert result is not None
    assert evaluation is not None
    own = evaluation["rows"][0]
    end = {"error": own["rmse"], "estimate": own["rmse"], "sd": own["rmse_sd"], "simulations": result["spent"]}
    report({**end, "finished": True})


def _fine_tune(
    config: FineTuningConfig, folder: Path, console: Console, report: Callable[[dict[str, Any]], None]
) -> None:
    # What trials are stopped by must be the same quantity from the first look to the last.
    known = objective(config) is RETURN

    def heard(block: dict[str, float]) -> None:
        estimate = -block["return"]
        report({"estimate": estimate, "simulations": block["episodes"], **({"error": estimate} if known else {})})

    store = finetuning.run(config, folder, False, console, heard)
    estimate = -_last_return(store)
    error = estimate
    if not known:
        evaluation = store.read_json("evaluation.json")
        assert evaluation is not None
        error = float(np.mean(evaluation["gaps"]["reward"]["gap"]))
    report({"error": error, "estimate": estimate, "simulations": config.training.episodes, "finished": True})


def _last_return(store: RunStore) -> float:
    """Mean over drivers and the last episodes."""
    ledger = store.ledger()
    episode = ledger["episode"].to_numpy()
    return float(ledger["return"].to_numpy()[episode > episode.max() - finetuning.BLOCK].mean())
