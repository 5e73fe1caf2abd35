"""The plainest driver that can be trained: a multilayer perceptron on what an agent sees, one for all agents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...scenarios.driving.kinematics import HIGHEST
from ...scenarios.driving.observation import Observation

METRES = 0.05  # what is seen is in metres and metres per second: about 1 after this


class MlpPolicy(nn.Module):
    """Normal accelerations (m/s²) and steering angles (radians); their spread is learnt, the same for all.

    Args:
        numbers: of an observation, `Observation.flat().shape[-1]`.
        hidden: units of both layers.
    """

    def __init__(self, numbers: int, hidden: int = 128) -> None:
        super().__init__()
        last = nn.Linear(hidden, 2)
        self.mean = nn.Sequential(nn.Linear(numbers, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), last)
        self.log_spread = nn.Parameter(torch.tensor([-0.5, -4.0]))
        nn.init.zeros_(last.bias)
        nn.init.normal_(last.weight, std=1e-3)

    def distribution(self, seen: Observation) -> torch.distributions.Normal:
        """Of actions `[worlds, agents, 2]`."""
        highest = torch.tensor(HIGHEST, device=seen.ego.device)
        return torch.distributions.Normal(
            highest * torch.tanh(self.mean(seen.flat() * METRES)), self.log_spread.exp(), validate_args=False
        )

    def act(self, seen: Observation, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Actions `[worlds, agents, 3]` as worlds take them, and their log-probabilities `[worlds, agents]`."""
        found = self.distribution(seen)
        noise = torch.randn(found.mean.shape, generator=generator, device=found.mean.device)
        drawn = found.mean + found.stddev * noise
        return torch.cat([drawn, torch.zeros_like(drawn[..., :1])], dim=-1), found.log_prob(drawn).sum(-1)  # type: ignore[no-untyped-call]
