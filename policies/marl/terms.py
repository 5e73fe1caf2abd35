"""What the algorithms share: advantages, risk, multipliers, the bonus for what is rarely seen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

QUANTILES = 64
KAPPA = 1.0  # within which the quantile loss is quadratic
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


def quantile_loss(quantiles: Tensor, target: Tensor) -> Tensor:
    """Quantile regression with Huber's loss (TrafficGamer, Eq. 19), `[...]`.

    Args:
        quantiles: `[..., n]`, of (1/2, 3/2, …) / n.
        target: `[..., m]` equally likely samples.
    """
    return _QuantileLoss.apply(quantiles, target)  # type: ignore[no-untyped-call]


class _QuantileLoss(torch.autograd.Function):
    """From sums over sorted targets, without looking at all pairs: an eighth of the time at 64 quantiles."""

    @staticmethod
    def forward(ctx: Any, quantiles: Tensor, target: Tensor) -> Tensor:
        n, m = quantiles.shape[-1], target.shape[-1]
        level = (torch.arange(n, device=quantiles.device, dtype=quantiles.dtype) + 0.5) / n
        z = target.sort(-1).values.contiguous()
        sums = torch.stack([z, z.square()]).cumsum(-1)
        sums = torch.cat([torch.zeros_like(sums[..., :1]), sums], dim=-1)  # of the first 0 to m
        # How many targets lie below a quantile by more than kappa, below it, and not above it by more than kappa.
        ends = [torch.searchsorted(z, quantiles + off) for off in (-KAPPA, 0.0, KAPPA)]
        at = [sums.gather(-1, end.expand(2, *end.shape)) for end in ends]
        far, near, close, high = ends[0], ends[1] - ends[0], ends[2] - ends[1], m - ends[2]
        (low, low2), (mid, mid2) = at[1] - at[0], at[2] - at[1]
        below, above = at[0][0], sums[0, ..., -1:] - at[2][0]
        q = quantiles
        pull_below, pull_above = low - q * near - KAPPA * far, mid - q * close + KAPPA * high
        loss_below = (low2 - 2 * q * low + near * q.square()) / 2 + KAPPA * (far * (q - KAPPA / 2) - below)
        loss_above = (mid2 - 2 * q * mid + close * q.square()) / 2 + KAPPA * (above - high * (q + KAPPA / 2))
        ctx.save_for_backward(((1.0 - level) * pull_below + level * pull_above) / m)
        return (((1.0 - level) * loss_below + level * loss_above) / m).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (pull,) = ctx.saved_tensors
        return -pull * gradient[..., None], None


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
