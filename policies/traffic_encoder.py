"""Encodes a traffic state (queues by road and minute) into the short vector that conditions the diffusion model."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCKS = 6  # time is averaged to this many blocks before the projection


@dataclass(frozen=True, eq=False)
class TrafficEncoder:
    """log(1 + queue), averaged over blocks of minutes, standardised, and projected on its principal components."""

    mean: NDArray[np.float32]  # [roads * blocks]
    components: NDArray[np.float32]  # [roads * blocks, size], scaled so that codes have unit variance

    @classmethod
    def fit(cls, queues: NDArray[np.float32], size: int) -> TrafficEncoder:
        """Fits to `queues [samples, roads, minutes]`; directions beyond the samples' rank are zero."""
        flat = _blocks(queues).astype(np.float64)  # in float32 the rounding of equal samples would pass for a direction
        mean = flat.mean(axis=0)
        _, singular, rows = np.linalg.svd(flat - mean, full_matrices=False)
        keep = int(min(size, (singular > 1e-6 * max(float(singular[0]), 1e-12)).sum()))
        components = np.zeros((flat.shape[1], size), np.float32)
        spread = singular[:keep] / np.sqrt(max(len(queues) - 1, 1))
        components[:, :keep] = rows[:keep].T / spread
        return cls(mean.astype(np.float32), components)

    def encode(self, queues: NDArray[np.float32]) -> NDArray[np.float32]:
        """`[samples, roads, minutes]` to `[samples, size] float32`, clipped to four standard deviations."""
        return np.clip((_blocks(queues) - self.mean) @ self.components, -4.0, 4.0).astype(np.float32)


def _blocks(queues: NDArray[np.float32]) -> NDArray[np.float32]:
    minutes = queues.shape[2]
    edges = np.linspace(0, minutes, min(BLOCKS, minutes) + 1).astype(int)
    logs = np.log1p(np.nan_to_num(queues))
    means = [logs[:, :, a:b].mean(axis=2) for a, b in itertools.pairwise(edges)]
    return np.concatenate(means, axis=1).astype(np.float32)
