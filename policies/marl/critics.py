"""Critics of several agents: they look at what all agents see, and their targets may lie anywhere."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, relu

from .networks import StackedMlp, clip_each
from .terms import Running


class Critic(nn.Module):
    """Values of every agent: one layer that all share, then a network of each agent's own (`StackedMlp`).

    What all agents see together is thousands of numbers, so that nearly all weights and products of a critic are in its first
    layer. TrafficGamer's code has one for every agent; shared, an update costs a fraction (`bench/finetuning.py`), and what
    one agent's critic learns has some effect on the others'.

    Args:
        joint: numbers that all agents look at.
        own: numbers of an agent's own action; 0 for values of states.
    """

    def __init__(self, agents: int, joint: int, generator: torch.Generator, hidden: int = 128, own: int = 0) -> None:
        super().__init__()
        self.shared = nn.Linear(joint, hidden)
        nn.init.orthogonal_(self.shared.weight, 2**0.5, generator)
        nn.init.zeros_(self.shared.bias)
        self.each = StackedMlp(agents, hidden, 1, generator, hidden, own)

    def forward(self, joint: Tensor, own: Tensor | None = None) -> Tensor:
        """`[agents, n]` of `joint` `[n, numbers]`, or of `[agents, n, numbers]` of which each looks at its own."""
        return self.values(self.features(joint), own)

    def features(self, joint: Tensor) -> Tensor:
        """`[..., hidden]` of `joint`: nearly all of the work, and the same for all actions."""
        h = self.shared(joint)
        return relu(layer_norm(h, h.shape[-1:]))

    def values(self, features: Tensor, own: Tensor | None = None) -> Tensor:
        """`[agents, n]`."""
        return self.each(features, own)[..., 0]

    def clip(self, most: float) -> None:
        """Scales the gradients of each agent's network, and of what all share, to a norm of `most` if it is larger."""
        clip_each(self.each.parameters(), most)
        nn.utils.clip_grad_norm_(self.shared.parameters(), most)


class TwinCritic(nn.ModuleList):
    """Two critics of actions, of which the lesser is believed (TD3, Fujimoto et al. 2018); arguments as `Critic` has them."""

    def __init__(self, agents: int, joint: int, generator: torch.Generator, hidden: int, own: int) -> None:
        super().__init__(Critic(agents, joint, generator, hidden, own) for _ in range(2))

    def features(self, joint: Tensor) -> list[Tensor]:
        """Of each, as `Critic.features`."""
        return [one.features(joint) for one in self._both()]

    def values(self, features: list[Tensor], own: Tensor) -> list[Tensor]:
        """`[agents, n]` of each."""
        return [one.values(h, own) for one, h in zip(self._both(), features, strict=True)]

    def clip(self, most: float) -> None:
        """As `Critic.clip`."""
        for one in self._both():
            one.clip(most)

    def _both(self) -> list[Critic]:
        return cast(list[Critic], list(self))


class ScaledCritic(nn.Module):
    """Values of states. What targets lie around is learnt apart from how they differ (PopArt, van Hasselt et al. 2016).

    Args:
        joint: numbers that all agents look at.
    """

    def __init__(self, agents: int, joint: int, generator: torch.Generator, hidden: int = 128) -> None:
        super().__init__()
        self.network = Critic(agents, joint, generator, hidden)
        self.targets = Running(agents)

    def forward(self, joint: Tensor) -> Tensor:
        """`[agents, n]` in the targets' unit, of `joint` as `Critic` takes it."""
        return self.network(joint) * self.targets.spread[:, None] + self.targets.mean[:, None]

    @torch.no_grad()
    def hear(self, target: Tensor) -> None:
        """Takes the measure of targets `[agents, n]`; what the critic says stays what it was."""
        spread, mean = self.targets.spread, self.targets.mean.clone()
        self.targets.hear(target.T)
        now, last = self.targets.spread, self.network.each.last
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
