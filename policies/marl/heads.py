"""What an actor's outputs mean: a distribution over actions, and how it lies to the magnet's and to its former self's.

A *draw* is what a head's density is of; the game is told the *action* that comes of it: clipped, squashed, or a choice. A
magnet is the distribution that policies are pulled towards: what the world model thinks an agent does (TrafficGamer, Eq. 9).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import elu, one_hot, softplus

NARROW = 2.0**-24  # single precision's least distance from 1
LEAST = 0.02  # of a Laplace distribution's scale, of the highest action


class Head(Protocol):
    """Between the `[..., outputs]` of an actor and actions `[..., actions]`."""

    outputs: int
    actions: int
    drawn: int  # numbers of a draw

    def draw(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        """`[..., drawn]`; without a gradient."""

    def action(self, draw: Tensor) -> Tensor:
        """`[..., actions]`."""

    def log_prob(self, raw: Tensor, draw: Tensor) -> Tensor:
        """`[...]` nats."""

    def entropy(self, raw: Tensor) -> Tensor:
        """`[...]` nats."""

    def divergence(self, raw: Tensor, before: Tensor) -> Tensor:
        """`[...]` KL(now || before), in closed form."""

    def magnet_log_prob(self, magnet: Tensor, draw: Tensor) -> Tensor:
        """`[...]` of magnets `[..., numbers]` or `[..., modes, numbers]`."""

    def weighed(self, raw: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws `[draws, ..., drawn]` and their weights `[draws, ...]`, whose sum over draws is an expectation.

        With a gradient: of weights, or of draws.
        """


class LaplaceHead:
    """Independent Laplace distributions of actions between -1 and 1.

    Args:
        first: scale of each action's distribution where an actor says 0, as it does in the beginning.
        squashed: actions are tanh of draws, with the density of actions; otherwise draws are clipped, and the density is that
            of draws.
    """

    def __init__(self, first: tuple[float, ...], squashed: bool) -> None:
        self.actions = self.drawn = len(first)
        self.outputs = 2 * self.actions
        self.squashed = squashed
        self._first = torch.tensor(first) - LEAST

    def parameters(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Means and scales, `[..., actions]` each."""
        mean, wide = raw.chunk(2, -1)
        return mean, LEAST + self._first.to(raw.device) * (elu(wide) + 1.0)

    def draw(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            return self.weighed(raw, generator)[0][0]

    def action(self, draw: Tensor) -> Tensor:
        return torch.tanh(draw) if self.squashed else draw.clamp(-1.0, 1.0)

    def log_prob(self, raw: Tensor, draw: Tensor) -> Tensor:
        mean, scale = self.parameters(raw)
        density = laplace(draw, mean, scale)
        return (density - bent(draw) if self.squashed else density).sum(-1)

    def entropy(self, raw: Tensor) -> Tensor:
        """Of draws."""
        return (1.0 + torch.log(2.0 * self.parameters(raw)[1])).sum(-1)

    def divergence(self, raw: Tensor, before: Tensor) -> Tensor:
        mean, scale = self.parameters(raw)
        old_mean, old_scale = self.parameters(before)
        apart = (mean - old_mean).abs()
        kl = torch.log(old_scale / scale) + (apart + scale * torch.exp(-apart / scale)) / old_scale - 1.0
        return kl.sum(-1)

    def magnet_log_prob(self, magnet: Tensor, draw: Tensor) -> Tensor:
        """Of mixtures `[..., modes, 2 * actions + 1]`: means, scales and a logit of each mode, of actions."""
        mean, scale, logit = torch.split(magnet, [self.actions, self.actions, 1], -1)
        # Where draws are clipped the magnet's density is of draws, too: beyond the ends it goes on falling.
        told = torch.tanh(draw) if self.squashed else draw
        modes = laplace(told[..., None, :], mean, scale).sum(-1)
        return torch.logsumexp(modes + logit[..., 0].log_softmax(-1), dim=-1)

    def weighed(self, raw: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One draw, by the inverse distribution function (CCE-MASAC, Eq. 11)."""
        mean, scale = self.parameters(raw)
        draw = quantile(mean, scale, torch.rand(mean.shape, generator=generator).to(mean))
        return draw[None], torch.ones_like(draw[None, ..., 0])


class CategoricalHead:
    """One of several choices; an action is one-hot, and magnets are logits `[..., choices]`."""

    drawn = 1

    def __init__(self, choices: int) -> None:
        self.outputs = self.actions = choices

    def draw(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        share = raw.detach().softmax(-1)
        return torch.multinomial(share.flatten(0, -2), 1, generator=generator).view(*raw.shape[:-1], 1).to(raw.dtype)

    def action(self, draw: Tensor) -> Tensor:
        return one_hot(draw[..., 0].long(), self.actions).to(draw.dtype)

    def log_prob(self, raw: Tensor, draw: Tensor) -> Tensor:
        return raw.log_softmax(-1).gather(-1, draw.long())[..., 0]

    def entropy(self, raw: Tensor) -> Tensor:
        return -(raw.softmax(-1) * raw.log_softmax(-1)).sum(-1)

    def divergence(self, raw: Tensor, before: Tensor) -> Tensor:
        return (raw.softmax(-1) * (raw.log_softmax(-1) - before.log_softmax(-1))).sum(-1)

    def magnet_log_prob(self, magnet: Tensor, draw: Tensor) -> Tensor:
        return self.log_prob(magnet, draw)

    def weighed(self, raw: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """All choices, with their probabilities."""
        weights = raw.softmax(-1).movedim(-1, 0)
        choices = torch.arange(self.actions, dtype=raw.dtype, device=raw.device)
        return choices.view(-1, *[1] * raw.dim()).expand(*weights.shape, 1), weights


def quantile(mean: Tensor, scale: Tensor, share: Tensor) -> Tensor:
    """Of Laplace distributions: what a share, in [0, 1], of all draws lies below; finite also of 0 and 1."""
    u = (2.0 * share - 1.0).clamp(-1.0 + NARROW, 1.0 - NARROW)
    return mean - scale * torch.sign(u) * torch.log1p(-u.abs())


def bent(draw: Tensor) -> Tensor:
    """Logarithm of 1 - tanh(x)^2, by which squashed actions change with draws, without cancellation."""
    return 2.0 * (0.6931471805599453 - draw - softplus(-2.0 * draw))


def laplace(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Log-density."""
    return -torch.log(2.0 * scale) - (x - mean).abs() / scale
