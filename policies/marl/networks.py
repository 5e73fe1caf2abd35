"""Networks of several agents as one: their parameters are stacked, and a layer is one batched product.

Agents come first in every tensor. No agent's output or gradient depends on another's parameters.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from .kernels import norm_relu


class StackedLinear(nn.Module):
    """A linear layer `[inputs] -> [outputs]` for each of `agents`, orthogonal in the beginning.

    Args:
        gain: of the orthogonal weights.
        generator: of the weights.
    """

    def __init__(self, agents: int, inputs: int, outputs: int, gain: float, generator: torch.Generator) -> None:
        super().__init__()
        weight = torch.empty(agents, inputs, outputs)
        for one in weight:
            nn.init.orthogonal_(one, gain, generator)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(agents, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """`[agents, n, outputs]` of `[agents, n, inputs]`, or of `[n, inputs]` that all agents look at."""
        return torch.bmm(x.expand(len(self.weight), -1, -1), self.weight).add_(self.bias)


class StackedMlp(nn.Module):
    """Linear, layer norm, ReLU, linear (TrafficGamer's actors and critics), for each of `agents`.

    Args:
        own: numbers of a second input, the agents' own, beside one that all look at.
        last_gain: of the last layer.
    """

    def __init__(
        self, agents: int, inputs: int, outputs: int, generator: torch.Generator, hidden: int = 128,
        own: int = 0, last_gain: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.first = StackedLinear(agents, inputs, hidden, 2**0.5, generator)
        self.own = StackedLinear(agents, own, hidden, 2**0.5, generator) if own else None
        self.weight = nn.Parameter(torch.ones(agents, 1, hidden))
        self.bias = nn.Parameter(torch.zeros(agents, 1, hidden))
        self.last = StackedLinear(agents, hidden, outputs, last_gain, generator)

    def forward(self, x: Tensor, own: Tensor | None = None) -> Tensor:
        """`[agents, n, outputs]` of `x` as `StackedLinear` takes it and `own` `[agents, n, numbers]`."""
        h = self.first(x)
        if self.own is not None:
            assert own is not None
            h = h + self.own(own)
        return self.last(norm_relu(h, self.weight, self.bias))


def clip_each(parameters: Iterable[nn.Parameter], most: float) -> None:
    """Scales the gradients `[agents, ...]` of every agent to a norm of `most` if theirs is larger."""
    gradients = [one.grad for one in parameters if one.grad is not None]
    norm = torch.stack([vector_norm(one.flatten(1), dim=1) for one in gradients]).norm(dim=0)
    scale = (most / norm.clamp_min(1e-12)).clamp_max(1.0)
    for one in gradients:
        one.mul_(scale.view(-1, *[1] * (one.dim() - 1)))
