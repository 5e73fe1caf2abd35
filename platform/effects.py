"""How large an effect is and how sure that is: accepted explanations and simulation seeds as two sources of spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

LEVEL = 0.9

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Effect:
    """A quantity before and after, of any shape [...], with the interval of its change."""

    before: Array
    after: Array
    change: Array  # after - before, mean over members and seeds
    low: Array  # of the `LEVEL` interval of the change; NaN where one member and one seed tell no spread
    high: Array
    sd_seeds: Array  # of the change, between seeds of one explanation; NaN: one seed cannot tell
    sd_members: Array  # of the change, between explanations, less what seeds account for; NaN: too few to tell

    @property
    def clear(self) -> NDArray[np.bool_]:
        """Whether the interval excludes zero."""
        return (self.low > 0) | (self.high < 0)

    def row(self) -> dict[str, Any]:
        """The numbers of a scalar effect."""
        names = ("before", "after", "change", "low", "high", "sd_seeds", "sd_members")
        return {name: _plain(getattr(self, name)) for name in names} | {"excludes_zero": bool(self.clear)}


def _plain(value: Array) -> float | None:
    return float(value) if np.isfinite(value) else None


def effect(before: ArrayLike, after: ArrayLike, level: float = LEVEL) -> Effect:
    """The effect of an edit on a quantity of every simulation.

    Args:
        before, after: `[members, seeds, ...]`; the same member and seed stand in the same place of both.
        level: of the interval.

    The interval is where the expected change lies for one more explanation that fits as well as the accepted ones: with
    B the variance between explanations and W that between seeds, `B (1 + 1/E) + W / (E S)`, estimated from the mean
    squares of a one-way layout with random effects, with Satterthwaite's degrees of freedom.
    """
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    change = second - first
    members, seeds = change.shape[:2]
    within = change.var(axis=1, ddof=1).mean(axis=0) if seeds > 1 else np.zeros(change.shape[2:])  # W
    if members > 1:
        spread = change.mean(axis=1).var(axis=0, ddof=1)  # estimates B + W / S
        parts = [((1 + 1 / members) * spread, members - 1), (within / seeds, members * (seeds - 1))]
        variance = parts[0][0] - parts[1][0]
        least = within / (seeds * members)
        freedom = variance**2 / np.maximum(sum(p**2 / n for p, n in parts if n > 0), 1e-300)
        freedom = np.where(variance > least, np.maximum(freedom, 1.0), max(parts[1][1], 1))
        variance = np.maximum(variance, least)
        between = np.maximum(spread - within / seeds, 0.0)
    else:
        variance = within / seeds if seeds > 1 else np.full(change.shape[2:], np.nan)
        freedom = np.full(change.shape[2:], float(max(seeds - 1, 1)))
        between = np.zeros(change.shape[2:])
    unknown = np.full(change.shape[2:], np.nan)
    half = student.ppf(0.5 + level / 2, freedom) * np.sqrt(variance)
    mean = change.mean(axis=(0, 1))
    return Effect(
        first.mean(axis=(0, 1)), second.mean(axis=(0, 1)), mean, mean - half, mean + half,
        np.sqrt(within) if seeds > 1 else unknown, np.sqrt(between) if min(members, seeds) > 1 else unknown,
    )  # fmt: skip
