"""The genetic operators of MASDiff as plain functions: weights, roulette, annealing, and the error of an individual."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
WINSOR = 0.9  # quantile at which errors are clipped before Eq. 8: one gridlock must not set the scale


def rank_weights(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-rank weights as in CMA-ES, positive for the better half, summing to 1; ties share their weight.

    Departs from MASDiff's Eq. 8 on purpose: independent of the scale of errors and of outliers.
    """
    n = errors.size
    base = np.maximum(np.log(n / 2 + 0.5) - np.log(np.arange(1, n + 1)), 0.0)
    if not base.any():  # one individual
        base[:] = 1.0
    weights = np.empty(n)
    order = np.argsort(errors, kind="stable")
    weights[order] = base
    for value in np.unique(errors):
        same = errors == value
        weights[same] = weights[same].mean()
    return np.asarray(weights / weights.sum())


def linear_weights(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """MASDiff, Eq. 8: `1 - (rho - min) / (max - min)` after clipping at the 90th percentile; all equal: all ones.

    The paper's factor gamma is left out: it changes neither a roulette nor an Adam step.
    """
    clipped = np.minimum(errors, np.quantile(errors, WINSOR))
    low, high = clipped.min(), clipped.max()
    if high - low <= 0:
        return np.ones(errors.size)
    return np.asarray(1.0 - (clipped - low) / (high - low))


WEIGHTS = {"rank": rank_weights, "linear": linear_weights}


def roulette(weights: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Fitness-proportional draws with replacement by stochastic acceptance (Lipowski and Lipowska 2012)."""
    best = float(weights.max())
    if not best > 0:
        raise ValueError("roulette needs a positive weight")
    chosen: list[int] = []
    while len(chosen) < count:
        draws = rng.integers(weights.size, size=4 * count)
        accepted = draws[rng.random(draws.size) * best < weights[draws]]
        chosen.extend(accepted[: count - len(chosen)].tolist())
    return np.asarray(chosen, np.int64)


def effective_sample_size(weights: NDArray[np.float64]) -> float:
    """`(sum w)^2 / sum w^2`: how many samples the weights amount to."""
    return float(weights.sum() ** 2 / np.square(weights).sum())


def kept_signal(first: float, last: float, progress: float) -> float:
    """abar_t of the truncated diffusion, annealed linearly in the share of the budget that is used."""
    return first + (last - first) * min(max(progress, 0.0), 1.0)


Operator = Literal["prior", "diffusion", "mutation"]


@dataclass(eq=False)
class Individual:
    """One candidate explanation: a latent, the traffic state its policies are learnt at, and what simulations said."""

    id: int
    generation: int
    operator: Operator
    parent: int  # id; -1 for none
    z: Array
    tau: Array  # [roads, minutes] queue the policies are learnt at (the condition of the diffusion model)
    code: Array | None = None  # what a mutation changes, if it is not z itself (the noise of a GAN)
    traffic: Array | None = None  # [roads, minutes] queue in its own last simulation
    flows: Array | None = None  # [roads, minutes] vehicles entering, without simulation
    quantity: dict[str, Array] = field(default_factory=dict)  # by rung: the observed quantity, mean over seeds
    error: dict[str, float] = field(default_factory=dict)  # by rung; micro: mean over seeds
    samples: list[float] = field(default_factory=list)  # micro errors, one per fresh seed
    seeds: list[int] = field(default_factory=list)
    estimate: float = float("nan")  # of the micro error, by the best rung it reached
