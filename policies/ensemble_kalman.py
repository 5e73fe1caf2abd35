"""Steps towards an observation by ensemble Kalman regression (Iglesias, Law and Stuart 2013, "Ensemble Kalman methods for
inverse problems").

A fitness says how far a candidate's traffic is from what was observed; the whole series says where. Regressing latents on
the traffic that they led to turns the difference into a step of the latent. No derivative is taken, and the regression
lives in the span of the simulations made so far, so it works for latents of any size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class EnsembleKalman:
    """The gain `C_zx (C_xx + damping)^-1` between latents and series, from simulated pairs."""

    def __init__(self, z: Array, values: Array, fidelity: NDArray[np.int64]) -> None:
        """Takes pairs `z [samples, d]`, `values [samples, cells]`.

        `fidelity [samples]` numbers the rung each pair was simulated on; deviations are from the mean of their rung.
        """
        z, values = z.astype(np.float32), values.astype(np.float32)
        for rung in np.unique(fidelity):
            rows = fidelity == rung
            z[rows] -= z[rows].mean(axis=0)
            values[rows] -= values[rows].mean(axis=0)
        self._z, self._values = z, values
        spectrum, self._vectors = np.linalg.eigh((values @ values.T).astype(np.float64))
        self._spectrum = np.maximum(spectrum, 0.0)
        self._scale = max(float(self._spectrum.mean()), 1e-12)

    def step(self, residual: Array, damping: NDArray[np.float64]) -> Array:
        """What to add to latents `[candidates, d]` to change their series by `residual [candidates, cells]`.

        Args:
            damping: `[candidates]`, positive: observation noise as a multiple of the mean squared deviation of a sample from
                the ensemble mean. Small: the residual is trusted to the last cell; large: a short step along the gradient.
        """
        along = self._vectors.T @ (self._values @ residual.T.astype(np.float32))  # [samples, candidates]
        share = along / (self._spectrum[:, None] + self._scale * damping[None])
        return ((self._vectors @ share).T.astype(np.float32) @ self._z).astype(np.float32)
