"""What the algorithms share: advantages, risk, multipliers, the bonus for what is rarely seen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

QUANTILES = 64
KEPT = 0.95  # of means and mean squares, from one batch to the next
PROJECTED = 8  # numbers to which observations are projected before their density is told


def generalised_advantage(reward: Tensor, value: Tensor, discount: float, trace: float) -> Tensor:
    """GAE(lambda) of games that end: what is worth nothing comes after the last moment.

    Args:
        reward, value: `[moments, ...]`.
        trace: lambda.

    Returns:
        `[moments, ...]`; with the values added, targets of the values.
    """
    following = torch.cat([value[1:], torch.zeros_like(value[:1])])
    error = reward + discount * following - value
    found = torch.empty_like(error)
    carried = torch.zeros_like(error[0])
    for moment in range(len(error) - 1, -1, -1):
        carried = error[moment] + discount * trace * carried
        found[moment] = carried
    return found


def standardised(values: Tensor, dim: int) -> Tensor:
    """With mean 0 and standard deviation 1 along a dimension."""
    centred = values - values.mean(dim, keepdim=True)
    return centred / (centred.square().mean(dim, keepdim=True).sqrt() + 1e-8)


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """What PPO raises: the smaller of the advantage times the ratio of probabilities, and of the clipped ratio."""
    return torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage)


def cvar(quantiles: Tensor, confidence: float) -> Tensor:
    """Mean of what is worse than a share `confidence` of all that may come (conditional value at risk).

    Args:
        quantiles: `[..., n]` equally likely costs, in any order.
        confidence: in [0, 1): 0 is the mean, 0.9 the mean of the highest tenth; the higher, the more averse to risk. (The
            paper's alpha means this in one place and the opposite in another, and its code adds absolute deviations.)
    """
    if not 0.0 <= confidence < 1.0:
        raise ValueError(f"confidence must lie in [0, 1), got {confidence}")
    n = quantiles.shape[-1]
    ends = torch.arange(1, n + 1, device=quantiles.device, dtype=quantiles.dtype) / n
    weight = (ends - confidence).clamp(0.0, 1.0 / n) / (1.0 - confidence)
    return (quantiles.sort(-1).values * weight).sum(-1)


class Multiplier(nn.Module):
    """A Lagrange multiplier for each agent, projected to what is not negative.

    Args:
        budget: cost per moment that is allowed (epsilon of Eq. 16 and 17).
        rate: step of the dual ascent.
    """

    value: Tensor  # [agents]

    def __init__(self, agents: int, budget: float, rate: float) -> None:
        super().__init__()
        self.budget, self.rate = budget, rate
        self.register_buffer("value", torch.zeros(agents))

    def ascend(self, cost: Tensor) -> None:
        """Up where the cost per moment `[agents]` exceeds the budget, down where it does not."""
        self.value.add_(self.rate * (cost - self.budget)).clamp_min_(0.0)


def rarity_bonus(observation: Tensor, coefficient: float, seed: int) -> Tensor:
    """`[agents, n]` beta = c / rho(o) (TrafficGamer, Eq. 11), between c and 2c as in its code: c / sigmoid(exp(z)).

    z is the standardised log-density of what each agent saw. Observations have hundreds of numbers and a batch a few hundred
    rows: their density is that of a projection to a few directions, drawn once, by Gaussian kernels around all other rows.

    Args:
        observation: `[agents, n, numbers]`.
        seed: of the directions.
    """
    numbers = observation.shape[-1]
    told = standardised(observation, 1)
    if numbers > PROJECTED:
        random = torch.Generator().manual_seed(seed)
        directions = torch.randn(numbers, PROJECTED, generator=random) / numbers**0.5
        told = standardised(told @ directions.to(told), 1)
    n, dimensions = told.shape[1:]
    width = n ** (-1.0 / (dimensions + 4))  # Scott's rule
    near = torch.cdist(told, told).square().div(-2.0 * width**2)
    near.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    z = standardised(torch.logsumexp(near, dim=-1), 1)
    return coefficient / torch.sigmoid(torch.exp(z))


class Running(nn.Module):
    """Means and spreads of numbers that come in batches, of each agent; later batches count more."""

    mean: Tensor  # [agents]
    square: Tensor
    begun: Tensor

    def __init__(self, agents: int) -> None:
        super().__init__()
        for name in ("mean", "square", "begun"):
            self.register_buffer(name, torch.zeros(agents))

    def hear(self, values: Tensor) -> None:
        """Takes the measure of `[..., agents]`."""
        new = torch.where(self.begun > 0, 1.0 - KEPT, 1.0)
        self.begun.fill_(1.0)
        self.mean.lerp_(values.flatten(0, -2).mean(0), new)
        self.square.lerp_(values.square().flatten(0, -2).mean(0), new)

    @property
    def spread(self) -> Tensor:
        """`[agents]`."""
        return (self.square - self.mean.square()).clamp_min(1e-6).sqrt()

    def standardised(self, values: Tensor) -> Tensor:
        """`[..., agents]` less the mean, in units of the spread."""
        return (values - self.mean) / self.spread
