"""Histograms of what agents do, and how far the distribution of one kind of agents is from that of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .recording import Array

Numbers = NDArray[np.floating[Any] | np.integer[Any]]
FLOOR = 1e-7  # added to the share of every bin before logarithms (as TrafficGamer's code does)


@dataclass(frozen=True)
class Histogram:
    """Bins of the same width; each has its lower end, the last one both."""

    low: float
    high: float
    bins: int

    def __post_init__(self) -> None:
        if not self.low < self.high or self.bins < 1:
            raise ValueError(f"a histogram of {self.bins} bins from {self.low:g} to {self.high:g}")

    @property
    def centres(self) -> Array:
        """`[bins]`."""
        edges = self._edges
        return (edges[1:] + edges[:-1]) / 2

    def index(self, samples: Numbers) -> NDArray[np.int64]:
        """The bin of each sample, in the samples' shape; beyond an end it is the bin there, of NaN the last."""
        return np.clip(np.searchsorted(self._edges, samples, side="right") - 1, 0, self.bins - 1)

    def counts(self, samples: Numbers) -> Array:
        """`[bins]`; samples beyond an end count in the bin there, NaN nowhere."""
        known = samples[~np.isnan(samples)]
        return np.bincount(self.index(known), minlength=self.bins).astype(np.float64)

    @property
    def _edges(self) -> Array:
        return np.linspace(self.low, self.high, self.bins + 1)


# MRIC, Table XI. Keys are fields of `metrics.Features`; the last two are one number for each agent and rollout.
MRIC: Mapping[str, Histogram] = MappingProxyType(
    {
        "speed_m_s": Histogram(0.0, 35.0, 200),
        "angular_speed_rad_s": Histogram(-1.0, 1.0, 200),
        "acceleration_m_s2": Histogram(-10.0, 10.0, 200),
        "angular_acceleration_rad_s2": Histogram(-2.0, 2.0, 200),
        "spacing_m": Histogram(-5.0, 40.0, 200),
        "time_to_collision_s": Histogram(0.0, 5.0, 200),
        "road_edge_m": Histogram(-20.0, 40.0, 200),
        "curvature_1_m": Histogram(-0.2, 0.2, 200),
        "progress_m": Histogram(0.0, 280.0, 200),
    }
)
TRAFFICGAMER_SPEED_M_S = Histogram(0.0, 15.2, 99)  # its code says linspace(0, 15.2, 100): so many edges
TRAFFICGAMER_DISTANCE_M = Histogram(0.2, 60.0, 99)


def kullback_leibler(p: Numbers, q: Numbers, floor: float = FLOOR) -> float:
    """KL(p || q) of two histograms, nats; p is the log's, q the simulation's.

    Args:
        p, q: `[bins]` counts or shares.
        floor: added to all shares, which then are made to sum to 1 again: without it, a bin in which q has nobody and p
            somebody makes the divergence infinite.
    """
    one, other = (_shares(_shares(each) + floor) for each in _pair(p, q))
    return _relative_entropy(one, other)


def hellinger(p: Numbers, q: Numbers) -> float:
    """Hellinger distance of two histograms `[bins]`, between 0 and 1: the root H, not the H² of TrafficGamer's Eq. 2."""
    one, other = (_shares(each) for each in _pair(p, q))
    return float(np.sqrt(np.square(np.sqrt(one) - np.sqrt(other)).sum() / 2))


def jensen_shannon(p: Numbers, q: Numbers) -> float:
    """Jensen-Shannon divergence of two histograms `[bins]`, nats, at most ln 2; its root would be a distance.

    MRIC's (Table I prints it times 1000) does not say its logarithm's base.
    """
    one, other = (_shares(each) for each in _pair(p, q))
    middle = (one + other) / 2
    return (_relative_entropy(one, middle) + _relative_entropy(other, middle)) / 2


def wasserstein(p: Numbers, q: Numbers, histogram: Histogram) -> float:
    """Wasserstein-1 distance of two histograms `[bins]`, in the unit of what was counted.

    All of a bin is at its centre. (TrafficGamer's code takes the heights of the bars for samples, which is something else.)
    """
    one, other = (_shares(each) for each in _pair(p, q))
    if len(one) != histogram.bins:
        raise ValueError(f"{len(one)} counts of a histogram with {histogram.bins} bins")
    width = (histogram.high - histogram.low) / histogram.bins
    return float(np.abs(np.cumsum(one - other)).sum() * width)


def _relative_entropy(p: Array, q: Array) -> float:
    """Where p is 0, nothing is added; q is positive where p is."""
    some = p > 0
    return float((p[some] * np.log(p[some] / q[some])).sum())


def _shares(counts: Numbers) -> Array:
    return counts / counts.sum()


def _pair(p: Numbers, q: Numbers) -> tuple[Array, Array]:
    one, other = np.asarray(p, np.float64), np.asarray(q, np.float64)
    if one.ndim != 1 or one.shape != other.shape:
        raise ValueError(f"histograms of shapes {one.shape} and {other.shape}: expected the same bins of both")
    for name, counts in (("p", one), ("q", other)):
        if not np.isfinite(counts).all() or (counts < 0).any() or not counts.any():
            raise ValueError(f"{name} is no histogram: expected counts, not negative, of at least one sample")
    return one, other
