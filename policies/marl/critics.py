"""Critics whose targets may lie anywhere: they learn them standardised."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .networks import StackedMlp
from .terms import Running


class ScaledCritic(nn.Module):
    """Values of every agent. What targets lie around is learnt apart from how they differ (PopArt, van Hasselt et al. 2016).

    Args:
        joint: numbers that all agents look at.
    """

    def __init__(self, agents: int, joint: int, generator: torch.Generator, hidden: int = 128) -> None:
        super().__init__()
        self.network = StackedMlp(agents, joint, 1, generator, hidden)
        self.targets = Running(agents)

    def forward(self, joint: Tensor) -> Tensor:
        """`[agents, n]` in the targets' unit, of `joint` as `StackedLinear` takes it."""
        return self.network(joint)[..., 0] * self.targets.spread[:, None] + self.targets.mean[:, None]

    @torch.no_grad()
    def hear(self, target: Tensor) -> None:
        """Takes the measure of targets `[agents, n]`; what the critic says stays what it was."""
        spread, mean = self.targets.spread, self.targets.mean.clone()
        self.targets.hear(target.T)
        now, last = self.targets.spread, self.network.last
        last.weight.mul_((spread / now)[:, None, None])
        last.bias.mul_((spread / now)[:, None, None]).add_(((mean - self.targets.mean) / now)[:, None, None])

    def loss(self, joint: Tensor, target: Tensor) -> Tensor:
        """`[agents]` mean squared error in units of the targets' spread."""
        return ((self(joint) - target) / self.targets.spread[:, None]).square().mean(1)


@torch.no_grad()
def polyak(targets: nn.Module, learnt: nn.Module, share: float) -> None:
    """Moves the parameters of target networks by a share of the way to those that learn."""
    for target, one in zip(targets.parameters(), learnt.parameters(), strict=True):
        target.lerp_(one, share)
