"""What compared fine-tunings came to: measures of each run, their means over seeds, and how they go with what was varied."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .finetuning import BLOCK
from .store import RunStore

OF_RECORD = ("crashes", "least_spacing_m", "spacing_m", "speed_m_s", "cost")
RECORD = "the record"
BASELINES = {"trafficgamer": "mappo", "cce-masac": "masac"}
# Distances to the record's distributions, by quantity.
DISTANCES = {
    "speed": ("kullback_leibler_nats", "hellinger", "wasserstein_m_s"),
    "spacing": ("kullback_leibler_nats", "hellinger", "wasserstein_m"),
}
TRENDS = ("least_spacing_m", "spacing_m", "speed_m_s", "cost", "multiplier", "gap")


@dataclass(frozen=True)
class Axis:
    """A setting that varies, and its values as they were given."""

    key: str
    values: tuple[str, ...]

    @property
    def name(self) -> str:
        """Without the groups it is in."""
        return self.key.rpartition(".")[2]


@dataclass(frozen=True)
class Score:
    """What one run ended with. Numbers of drivers are means over them."""

    method: str
    cell: dict[str, str]
    seed: int
    run: str
    drivers: tuple[str, ...]
    measures: dict[str, float | None]  # by name; None: not measured
    curves: dict[str, list[float]]  # return, cost, multiplier, by episode
    gap_curve: tuple[tuple[int, float], ...]  # (episodes, CCE-gap in reward), where it was measured on the way
    record: dict[str, Any] | None  # what the drivers really did; None: nobody recorded them

    @property
    def where(self) -> tuple[str, ...]:
        """Values of what varies."""
        return tuple(self.cell.values())


def score(method: str, cell: dict[str, str], seed: int, out: Path, name: str) -> Score:
    """What the run of this name below `out` ended with."""
    store = RunStore.open(out / name)
    result = store.read_json("evaluation.json")
    assert result is not None
    ledger = store.ledger()
    curves = {key: _by_episode(ledger, key) for key in ("return", "cost", "multiplier") if key in ledger.column_names}
    gaps = result.get("gaps", {})
    of_reward = gaps.get("reward")
    # Multipliers that are all 0 in the end take nothing from the reward: its gap is not measured again.
    less_cost = gaps.get("reward less cost", of_reward if "multiplier" in curves else None)
    measures: dict[str, float | None] = {
        "return": float(np.mean(curves["return"][-BLOCK:])),
        "gap": float(np.mean(of_reward["gap"])) if of_reward else None,
        "restricted": float(np.mean(of_reward["restricted"])) if of_reward else None,
        "gap_less_cost": float(np.mean(less_cost["gap"])) if less_cost else None,
        **{key: result.get(key) for key in OF_RECORD},
        "multiplier": float(np.mean(curves["multiplier"])) if "multiplier" in curves else None,
        "seconds": float(np.mean(_by_episode(ledger, "seconds"))),
    }
    for quantity, keys in DISTANCES.items():
        distances = result["distances"][quantity] or {}
        measures |= {f"{quantity}_{key}": distances.get(key) for key in keys}
    curve = tuple((one["episode"], one["gap"]) for one in result.get("gap_curve", []))
    return Score(method, cell, seed, name, tuple(result["drivers"]), measures, curves, curve, result.get("record"))


def _by_episode(ledger: pa.Table, key: str) -> list[float]:
    """Mean over drivers."""
    episode, values = ledger["episode"].to_numpy(), ledger[key].to_numpy()
    means: list[float] = (np.bincount(episode, values) / np.bincount(episode)).tolist()
    return means


def summarise(scores: list[Score]) -> list[dict[str, Any]]:
    """A row for each fine-tuner and cell: mean and standard deviation over seeds of each measure; then the record's."""
    rows = []
    for method, where in dict.fromkeys((one.method, one.where) for one in scores):
        mine = [one for one in scores if (one.method, one.where) == (method, where)]
        values = {name: _spread([one.measures[name] for one in mine]) for name in mine[0].measures}
        rows.append({"method": method, "cell": mine[0].cell, "runs": len(mine), "values": values})
    records = [one.record for one in scores]
    if all(record is not None for record in records):
        # The same drivers in all runs; but a cost, say, is another one with another constraint.
        shown = {name: {record.get(name) for record in records if record} for name in OF_RECORD}
        values = {name: _spread([*found] if len(found) == 1 else []) for name, found in shown.items()}
        rows.append({"method": RECORD, "cell": {}, "runs": None, "values": values})
    return rows


def _spread(found: Sequence[float | None]) -> dict[str, float | None]:
    known = [one for one in found if one is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
    }


def ratios(scores: list[Score]) -> list[dict[str, Any]]:
    """Gaps of a fine-tuner over those of its baseline with the same seeds and values of what varies: ratio of their means."""
    found = []
    for (method, baseline), measure in itertools.product(BASELINES.items(), ("gap", "restricted")):
        of = {
            name: {(one.where, one.seed): one.measures[measure] for one in scores if one.method == name}
            for name in (method, baseline)
        }
        pairs = [(of[method][key], of[baseline][key]) for key in of[method] if key in of[baseline]]
        known = [(one, other) for one, other in pairs if one is not None and other is not None]
        total = sum(other for _, other in known)
        if total > 0:
            found.append(
                {
                    "method": method, "baseline": baseline, "measure": measure, "pairs": len(known),
                    "ratio": sum(one for one, _ in known) / total,
                    "below": sum(one < other for one, other in known),
                }
            )  # fmt: skip
    return found


def trends(scores: list[Score], axes: list[Axis]) -> list[dict[str, Any]]:
    """How measures go with what varies, if it is numbers, from the least to the greatest.

    A line is what a fine-tuner did with one seed (and value of the other setting) at each of the values. `first`, `last`:
    means over lines; `rises`, `falls`: for how many `of` these the measure does so from each value to the next.
    """
    found = []
    for method, axis in itertools.product(dict.fromkeys(one.method for one in scores), axes):
        try:
            values = sorted(axis.values, key=float)
        except ValueError:
            continue
        others = itertools.product(*(one.values for one in axes if one is not axis))
        ends = list(itertools.product(others, dict.fromkeys(one.seed for one in scores)))
        for measure in TRENDS:
            known = {(one.where, one.seed): one.measures[measure] for one in scores if one.method == method}
            told = [[known.get((_at(axes, axis, value, other), seed)) for value in values] for other, seed in ends]
            lines = np.array([line for line in told if None not in line], dtype=float)
            if not len(lines):
                continue
            steps = np.diff(lines)
            first, last = float(lines[:, 0].mean()), float(lines[:, -1].mean())
            found.append(
                {
                    "method": method, "key": axis.key, "from": values[0], "to": values[-1], "measure": measure,
                    "first": first, "last": last, "ratio": last / first if first > 0 else None,
                    "rises": int((steps > 0).all(axis=1).sum()), "falls": int((steps < 0).all(axis=1).sum()),
                    "of": len(lines),
                }
            )  # fmt: skip
    return found


def _at(axes: list[Axis], axis: Axis, value: str, other: tuple[str, ...]) -> tuple[str, ...]:
    """The cell with this value of an axis, and the other's."""
    rest = iter(other)
    return tuple(value if one is axis else next(rest) for one in axes)
