"""Actors of several agents: a stack of networks, and a head that says what their outputs mean."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .game import Played, Seen
from .heads import Head
from .networks import StackedMlp


class Actors(nn.Module):
    """What plays, whatever it learns by."""

    head: Head
    actor: StackedMlp

    def act(self, seen: Seen, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws `[rollouts, agents, drawn]` and their log-probabilities."""
        raw = self.actor(seen.observation.transpose(0, 1)).transpose(0, 1)
        draw = self.head.draw(raw, generator)
        return draw, self.head.log_prob(raw, draw)


class Learner(Actors, ABC):
    """Actors that learn from what they played."""

    optimizer: torch.optim.Optimizer

    @abstractmethod
    def update(self, played: Played) -> dict[str, Tensor]:
        """Learns from rollouts; numbers of each agent, `[agents]`."""
