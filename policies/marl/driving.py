"""What driving games have in common: actions held for half a second, and what it pays to have done them (TrafficGamer)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...scenarios.driving.kinematics import curvature
from ..driving.tokens import STEP, STRIDE
from .game import Outcome

HIGHEST = (5.0, 0.05)  # m/s² and 1/m of actions that are 1


@dataclass(frozen=True)
class DrivingTerms:
    """Rewards per moment, and the constraint; defaults are those of TrafficGamer's code."""

    distance_limit: float = 5.0  # metres to the nearest other driver that policies are to keep
    per_metre: float = 0.1  # lost for every metre (L1) from the goal
    crash: float = 10.0  # lost by whose centre is nearer than `crash_distance` to another's
    crash_distance: float = 2.0
    off_road: float = 10.0
    speeding: float = 0.5  # lost for every m/s above `speed_limit`
    speed_limit: float = 15.0
    magnet_scale: tuple[float, float] = (0.1, 0.01)  # of the world model's acceleration and curvature, of the highest


def driven(agents: Tensor, action: Tensor) -> Tensor:
    """`[..., STRIDE, 4]` x, y, direction and speed of agents `[..., 4]` in the frames of a moment.

    Args:
        action: `[..., 2]` acceleration and curvature, 1 being the `HIGHEST`.
    """
    asked = action * torch.tensor(HIGHEST, dtype=action.dtype, device=action.device)
    frames = []
    for _ in range(STRIDE):
        agents = curvature(agents, asked, STEP)
        frames.append(agents)
    return torch.stack(frames, dim=-2)


def paid(
    terms: DrivingTerms, agents: Tensor, goals: Tensor, nearest: Tensor, nearest_driver: Tensor, off_road: Tensor
) -> Outcome:
    """Of a moment that left agents `[rollouts, agents, 4]` where they are.

    Args:
        goals: `[..., agents, 2]`.
        nearest, nearest_driver: `[rollouts, agents]` metres from the centre of anybody and of anybody who is driven: the
            least within the moment.
        off_road: `[rollouts, agents]` bool.
    """
    reward = -terms.per_metre * (agents[..., :2] - goals).abs().sum(-1)
    reward = reward - terms.crash * (nearest < terms.crash_distance).to(reward.dtype)
    reward = reward - terms.off_road * off_road.to(reward.dtype)
    reward = reward - terms.speeding * (agents[..., 3] - terms.speed_limit).clamp_min(0.0)
    return Outcome(reward, (nearest_driver < terms.distance_limit).to(reward.dtype))
