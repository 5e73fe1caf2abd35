"""The cheapest rung of the fidelity ladder: judging candidates by their flows, without a simulation.

`road_flows` drives all vehicles along their routes at the speeds of a known traffic state; `FlowSurrogate` learns from the
simulations made so far how such flows become queues, and predicts a candidate's error against the observation.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from ..scenarios.demand import Routes
from ..scenarios.scenario import Scenario

Array = NDArray[np.float32]
DISCHARGE = 2.0  # seconds that one queued vehicle takes to leave, per lane
SIGNAL_WAIT = 15.0  # seconds lost on average at a traffic light


def road_flows(scenario: Scenario, routes: Routes, queue: Array) -> Array:
    """Vehicles entering each road per minute, `[roads, minutes] float32`, were they to meet the queues `queue`.

    A road takes its free-flow time, the discharge of the queue found there, and the mean wait at its signal.
    """
    network = scenario.network
    free = network.length / network.speed + SIGNAL_WAIT * network.signal
    delay = DISCHARGE * queue if scenario.lanes == "max" else DISCHARGE * queue / network.lanes[:, None]
    seconds = (free[:, None] + delay).astype(np.float32)
    depart = scenario.demand.depart - scenario.begin
    return _propagate(routes.roads, routes.offsets, depart, np.ascontiguousarray(seconds), scenario.minutes)


@numba.njit(cache=True, nogil=True)
def _propagate(roads, offsets, depart, seconds, minutes):  # type: ignore[no-untyped-def]
    flows = np.zeros((seconds.shape[0], minutes), np.float32)
    last = seconds.shape[1] - 1
    for i in range(offsets.size - 1):
        t = depart[i]
        for k in range(offsets[i], offsets[i + 1]):
            minute = int(t // 60.0)
            if minute >= minutes:
                break
            flows[roads[k], minute] += 1.0
            t += seconds[roads[k], min(minute, last)]
    return flows


class FlowSurrogate:
    """Ridge regression, road by road, from flows to the observed quantity.

    A cell (road, minute) deviates from the mean of its fidelity in proportion to how the road's flow now, just before and
    so far deviates from the mean flow. Slopes are shared by all fidelities; the level predicted is that of the best one.
    """

    FEATURES = 4

    def __init__(self, flows: Array, values: Array, fidelity: NDArray[np.int64], ridge: float = 10.0) -> None:
        """Fits to `flows [samples, roads, minutes]` and simulated `values` of the same shape (queues, say).

        `fidelity [samples]` numbers the rung each value comes from; the highest present sets the level.
        """
        features = _features(flows)  # [samples, roads, minutes, features]
        x: NDArray[np.float64] = np.empty(features.shape)
        y: NDArray[np.float64] = np.empty(values.shape)
        for rung in np.unique(fidelity):
            rows = fidelity == rung
            self._feature_mean, self._value_mean = features[rows].mean(axis=0), values[rows].mean(axis=0)
            x[rows], y[rows] = features[rows] - self._feature_mean, values[rows] - self._value_mean
        x = x.transpose(1, 0, 2, 3).reshape(flows.shape[1], -1, self.FEATURES)
        y = y.transpose(1, 0, 2).reshape(flows.shape[1], -1)
        self._scale = np.maximum(x.std(axis=1, keepdims=True), 1e-6)  # [roads, 1, features]
        x = x / self._scale
        gram = np.einsum("rnf,rng->rfg", x, x) + ridge * np.eye(self.FEATURES)
        self._slope = np.linalg.solve(gram, np.einsum("rnf,rn->rf", x, y)[..., None])[..., 0]

    def predict(self, flows: Array) -> Array:
        """Expected values `[samples, roads, minutes]` of candidates with these flows."""
        x = (_features(flows) - self._feature_mean) / self._scale
        return (self._value_mean + np.einsum("srtf,rf->srt", x, self._slope)).astype(np.float32)


def _features(flows: Array) -> NDArray[np.float64]:
    one = np.pad(flows, ((0, 0), (0, 0), (1, 0)))[:, :, :-1]
    two = np.pad(flows, ((0, 0), (0, 0), (2, 0)))[:, :, :-2]
    total = np.cumsum(flows, axis=2)
    return np.stack([flows, one + two, np.sqrt(total), np.square(flows)], axis=-1).astype(np.float64)
