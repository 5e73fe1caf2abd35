"""Batches of weighted samples, as the diffusion model and the GAN train on (MASDiff, Eq. 9)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TOKENS_SEEN, TOKENS_PER_UPDATE = 64, 2048  # per-vehicle latents: vehicles in a sample, and tokens in a gradient step


def batches(
    z: NDArray[np.float32],
    condition: NDArray[np.float32],
    weight: NDArray[np.float64],
    updates: int,
    size: int,
    prior_share: float,
    generator: torch.Generator,
    device: torch.device,
) -> Iterator[list[Tensor]]:
    """Draws `updates` batches: samples, their conditions and, of per-vehicle latents, which vehicles were drawn.

    Samples are drawn with probability proportional to their weight, which has the same expected gradient as weighting the
    loss and no vanishing steps when few weigh much; a share of each batch is fresh N(0, I).

    Args:
        z: `[samples, *shape]`; condition: `[samples, condition]`; weight: `[samples]`, non-negative.
        size: of a batch; of latents `[vehicles, k]` fewer, and a random few of the vehicles: one network serves them all.

    Raises:
        ValueError: no sample has weight.
    """
    total = float(weight.sum())
    if not (weight >= 0).all() or not total > 0 or not math.isfinite(total):
        raise ValueError("weights must be non-negative, finite and not all zero")
    data, given = torch.from_numpy(np.ascontiguousarray(z)), torch.from_numpy(np.ascontiguousarray(condition))
    chance = torch.from_numpy(weight / total)
    some = min(TOKENS_SEEN, z.shape[1]) if z.ndim == 3 else 0
    size = min(size, max(2, TOKENS_PER_UPDATE // some)) if some else size
    fresh = round(prior_share * size)
    for _ in range(updates):
        rows = torch.multinomial(chance, size, replacement=True, generator=generator)
        clean, seen = data[rows], list[Tensor]()
        if some:
            vehicles = torch.randperm(z.shape[1], generator=generator)[:some]
            clean, seen = clean[:, vehicles], [vehicles]
        if fresh:
            clean[:fresh] = torch.randn((fresh, *clean.shape[1:]), generator=generator)
        yield [one.to(device) for one in (clean, given[rows], *seen)]
