"""From a cheap simulation to what a full one would say: the multi-fidelity part of the search."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
PAIRS, PAIR_BYTES = 200, 2**27  # the last of them are learnt from, fewer where series are long
RIDGE = 1.0  # of the regression, as a multiple of the mean squared deviation of a cheap result
FEWEST = 8  # pairs below which nothing but the mean difference is learnt
RECENT = 40  # pairs that say how much larger the error of a full simulation is than that of the corrected series


class Correction:
    """Maps series of a cheap rung to the level of a better one, learnt where both were simulated.

    The difference is its mean and a ridge regression (in its kernel form) on how the cheap series deviates from the cheap
    mean. The error of what comes out still lies below the error of a full simulation, which brings the noise of its seed
    with it, so that a candidate that was simulated in full would lose against those that were not: `error` adds what
    errors were larger by, in squares, for pairs that the regression had not seen (and scales them where they were smaller).
    """

    def __init__(self) -> None:
        self._cheap: list[Array] = []  # series as they come, flat
        self._difference: list[Array] = []
        self._errors: list[tuple[float, float]] = []  # squared: of the corrected series, of the full one
        self._fit: tuple[Array, Array, Array, Array, NDArray[np.float64]] | None = None

    def add(self, cheap: Array, better: Array, target: Array) -> None:
        """Learns from one more pair; `target` is the observed series, of the same shape."""
        self._errors.append((_mean_square(self.apply(cheap) - target), _mean_square(better - target)))
        self._cheap.append(cheap.ravel().astype(np.float32))
        self._difference.append((better - cheap).ravel().astype(np.float32))
        keep = max(FEWEST, min(PAIRS, PAIR_BYTES // (8 * cheap.size)))
        for kept, count in ((self._cheap, keep), (self._difference, keep), (self._errors, RECENT)):
            del kept[:-count]
        self._fit = None

    def apply(self, cheap: Array) -> Array:
        """The series `[..., *shape]` at the better level; shrunk towards the cheap one while there are few pairs."""
        count = len(self._cheap)
        if not count:
            return cheap
        mean_cheap, deviation, mean_difference, difference, gain = self._fitted()
        shift = np.broadcast_to(
            mean_difference * (count / (count + 2)), (cheap.size // mean_cheap.size, mean_cheap.size)
        )
        if count >= FEWEST:
            along = (cheap.reshape(-1, mean_cheap.size) - mean_cheap) @ deviation.T  # [series, pairs]
            shift = shift + (along @ gain).astype(np.float32) @ difference
        return (cheap + shift.reshape(cheap.shape)).astype(np.float32)

    def _fitted(self) -> tuple[Array, Array, Array, Array, NDArray[np.float64]]:
        if self._fit is None:
            cheap, difference = np.stack(self._cheap), np.stack(self._difference)
            means = cheap.mean(axis=0), difference.mean(axis=0)
            cheap, difference = cheap - means[0], difference - means[1]
            gram = (cheap @ cheap.T).astype(np.float64)
            scale = max(float(np.trace(gram)) / len(gram), 1e-12)
            gain = np.linalg.inv(gram + RIDGE * scale * np.eye(len(gram)))
            self._fit = means[0], cheap, means[1], difference, gain
        return self._fit

    def error(self, rmse: float) -> float:
        """The error that a full simulation would have, from the root mean squared error of a corrected series."""
        if not self._errors:
            return rmse
        corrected, full = np.sum(self._errors, axis=0) / (len(self._errors) + 2.0)
        if full < corrected:  # a difference could leave less than nothing
            return float(rmse * np.sqrt(full / corrected))
        return float(np.sqrt(rmse**2 + full - corrected))

    def tensors(self) -> dict[str, NDArray[np.floating]]:
        """What a checkpoint has to keep."""
        if not self._cheap:
            return {}
        pairs = {"cheap": np.stack(self._cheap), "difference": np.stack(self._difference)}
        return {**pairs, "errors": np.array(self._errors, np.float64)}

    def load(self, tensors: dict[str, NDArray[np.floating]]) -> None:
        """Restores what `tensors` returned."""
        if tensors:
            self._cheap = list(tensors["cheap"].astype(np.float32))
            self._difference = list(tensors["difference"].astype(np.float32))
            self._errors = [(corrected, full) for corrected, full in tensors["errors"].tolist()]
            self._fit = None


def _mean_square(difference: Array) -> float:
    return float(np.nanmean(np.square(difference)))
