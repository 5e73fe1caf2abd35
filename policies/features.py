"""What a driver can like or dislike about a connection: a transferable feature basis.

Features are computed from the network alone (and the queues of the moment), so a reward model in terms of them can be
carried to an edited network, where a table indexed by connection has no entry for what is new.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..scenarios.network import TURNS, RoadNetwork

STATIC = ("travel_time", "arterial", "speed", "signal", "left", "right", "centre")
FEATURES = (*STATIC, "queue")
MEANING = {
    "travel_time": "free-flow seconds of the road driven onto",
    "arterial": "the road driven onto has two lanes or more",
    "speed": "speed limit of the road driven onto",
    "signal": "a traffic light stands at its end",
    "left": "the turn is a left turn",
    "right": "the turn is a right turn",
    "centre": "nearness to the centre of the network",
    "queue": "log(1 + vehicles queueing on the road driven onto)",
}


@dataclass(frozen=True, eq=False)
class FeatureScaler:
    """Standardisation fitted once on the reference network and kept for every edit of it."""

    mean: NDArray[np.float64]  # [static features]
    scale: NDArray[np.float64]  # [static features]; 1 where a feature is constant
    centre: NDArray[np.float64]  # [2] metres, the landmark of `centre`

    def to_dict(self) -> dict[str, Any]:
        return {
            "features": list(FEATURES),
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "centre": self.centre.tolist(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FeatureScaler:
        if list(data["features"]) != list(FEATURES):
            raise ValueError(f"the scaler is of features {data['features']}, this version has {list(FEATURES)}")
        return cls(*(np.asarray(data[key], np.float64) for key in ("mean", "scale", "centre")))


def _raw(network: RoadNetwork, centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[connections, static features]` in natural units."""
    to = network.connections[:, 1]
    left = np.isin(network.turn, [TURNS.index("left"), TURNS.index("slight_left")])
    right = np.isin(network.turn, [TURNS.index("right"), TURNS.index("slight_right")])
    return np.column_stack(
        [
            (network.length / network.speed)[to],
            network.lanes[to] >= 2,
            network.speed[to],
            network.signal[to],
            left,
            right,
            -np.abs(network.end_xy[to] - centre).sum(axis=1),
        ]
    ).astype(np.float64)


def fit_scaler(network: RoadNetwork) -> FeatureScaler:
    """Mean and standard deviation of every static feature over the allowed connections of `network`."""
    weight = network.length.astype(np.float64)[:, None]
    centre = (network.end_xy * weight).sum(axis=0) / weight.sum()
    raw = _raw(network, centre)[network.allowed]
    scale = raw.std(axis=0)
    return FeatureScaler(raw.mean(axis=0), np.where(scale > 1e-9, scale, 1.0), centre)


def static_features(network: RoadNetwork, scaler: FeatureScaler) -> NDArray[np.float32]:
    """Phi without the queue, `[connections, len(STATIC)] float32`, in standard deviations of the reference network."""
    return ((_raw(network, scaler.centre) - scaler.mean) / scaler.scale).astype(np.float32)


def queue_feature(queue: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """log(1 + queue) of any shape, queue in vehicles: one more vehicle matters less the longer the queue is."""
    return np.log1p(np.maximum(queue, 0.0)).astype(np.float32)
