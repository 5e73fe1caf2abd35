"""Networks that give a latent one number under a condition: how real it looks, or what its error will be."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class VectorCritic(nn.Module):
    """One number for one latent vector `[batch, d]`: a three-layer MLP."""

    def __init__(self, size: int, condition: int, width: int) -> None:
        super().__init__()
        self.layers = _layers(size + condition, width)

    def forward(self, z: Tensor, condition: Tensor) -> Tensor:
        """`[batch]` numbers."""
        return cast(Tensor, self.layers(torch.cat([z, condition], dim=1)))[:, 0]


class TokenCritic(nn.Module):
    """One number for vehicle tokens `[batch, vehicles, k]`: each token is judged beside the mean of all, its trip and the
    condition by one network shared by all vehicles, and the numbers are averaged. The number of vehicles is free."""

    def __init__(self, size: int, condition: int, width: int, trips: Tensor) -> None:
        super().__init__()
        self.register_buffer("trips", trips)  # [vehicles, trip features]
        self.layers = _layers(2 * size + trips.shape[1] + condition, width)

    def forward(self, z: Tensor, condition: Tensor, vehicles: Tensor | None = None) -> Tensor:
        """`[batch]` numbers; `vehicles [k]` names the vehicles that the tokens belong to, None: all of them."""
        known = cast(Tensor, self.trips)
        trips = known if vehicles is None else known[vehicles]
        each = (len(z), len(trips), -1)
        parts = [z, z.mean(dim=1, keepdim=True).expand(each), trips.expand(each), condition[:, None].expand(each)]
        return cast(Tensor, self.layers(torch.cat(parts, dim=2)))[..., 0].mean(dim=1)


def critic(shape: tuple[int, ...], condition: int, width: int, trips: NDArray[np.float32] | None) -> nn.Module:
    """The critic of latents of `shape`, `[d]` or `[vehicles, k]`; the latter needs `trips [vehicles, features]`."""
    if len(shape) == 1:
        return VectorCritic(shape[0], condition, width)
    assert trips is not None
    return TokenCritic(shape[1], condition, width, torch.from_numpy(trips))


def _layers(size: int, width: int) -> nn.Sequential:
    # Leaky at the bottom: a critic whose units have died tells the generator nothing.
    return nn.Sequential(
        nn.Linear(size, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, 1),
    )
