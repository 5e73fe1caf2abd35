"""TrafficGamer: PPO towards a coarse correlated equilibrium, pulled to what the world model says, under a constraint.

Each agent raises its reward and a bonus for what it rarely sees, less the divergence of its policy from the magnet's and from
its own of before (Eq. 14), while the tail of its costs stays within a budget (Eq. 17): the cost critic values moments by it,
and multipliers rise until the costliest games keep the budget, too. See Algorithm 1; where the paper and its code contradict
themselves, `TrafficGamerSettings` and the functions of `terms` say what is done.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .actors import Learner
from .critics import ScaledCritic
from .game import Played, by_agent
from .heads import Head
from .kernels import quantile_loss
from .networks import StackedMlp, clip_each
from .ranges import Count, NotNegative, Positive, Share, ShareBelowOne
from .terms import (
    QUANTILES,
    Multiplier,
    clipped_surrogate,
    cvar,
    generalised_advantage,
    rarity_bonus,
    standardised,
)


@dataclass(frozen=True)
class TrafficGamerSettings:
    """Defaults are those of the paper's code; the budget is ours (its code has none, so that multipliers could only rise)."""

    discount: Share = 0.99
    trace: Share = 0.95  # GAE's lambda
    clip: Positive = 0.2
    epochs: Count = 10  # passes over all rollouts of an update
    entropy: NotNegative = 0.005
    magnet: NotNegative = 0.05  # eta_1: weight of the divergence from the magnet
    proximal: NotNegative = 0.05  # 1 / eta_2: weight of the divergence from the policy before the update
    bonus: NotNegative = 0.1  # c of Eq. 11
    confidence: ShareBelowOne = 0.0  # of the costs' tail: 0 is their mean, 0.9 the mean of the costliest tenth of games
    budget: NotNegative = 0.02  # cost per moment that is allowed, in the mean of that tail
    multiplier_rate: NotNegative = 0.01
    actor_rate: NotNegative = 5e-5
    critic_rate: NotNegative = 1e-4
    cost_rate: NotNegative = 3e-4
    most: Positive = 0.5  # norm of an actor's and of a cost critic's gradient
    hidden: Count = 128
    cost_hidden: Count = 256


class TrafficGamer(Learner):
    """Actors, critics, cost critics and multipliers of all agents, and their optimisers.

    Args:
        numbers: of an agent's observation.
        joint: numbers of what all see together; by default that of these agents.
    """

    def __init__(
        self, agents: int, numbers: int, head: Head, settings: TrafficGamerSettings, seed: int, joint: int | None = None
    ) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.head, self.settings, self.seed = head, settings, seed
        self.actor = StackedMlp(agents, numbers, head.outputs, random, settings.hidden, last_gain=0.01)
        self.critic = ScaledCritic(agents, joint or agents * numbers, random, settings.hidden)
        self.costs = StackedMlp(agents, numbers, QUANTILES, random, settings.cost_hidden, last_gain=0.01)
        self.multiplier = Multiplier(agents, settings.budget, settings.multiplier_rate)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(self.actor.parameters()), "lr": settings.actor_rate},
                {"params": list(self.critic.parameters()), "lr": settings.critic_rate},
                {"params": list(self.costs.parameters()), "lr": settings.cost_rate},
            ],
            fused=True,
        )

    def update(self, played: Played) -> dict[str, Tensor]:
        given, shape = self.settings, played.reward.shape
        seen, joint = by_agent(played.observation), played.joint
        draw, before = by_agent(played.draw), by_agent(played.log_prob)

        def by_moment(values: Tensor) -> Tensor:
            return values.view(shape[2], *shape[:2]).movedim(0, 2)

        with torch.no_grad():
            old = self.actor(seen)
            # The reward r* of Eq. 15: divergences from the magnet, by what was drawn, in every moment to come.
            apart = before - self.head.magnet_log_prob(by_agent(played.magnet), draw)
            bonus = rarity_bonus(seen, given.bonus, self.seed)
            reward = played.reward + by_moment(bonus - given.magnet * apart)
            value = by_moment(self.critic(joint))
            advantage = generalised_advantage(reward, value, given.discount, given.trace)
            target = by_agent(advantage + value)
            advantage = standardised(by_agent(advantage), 1)
            self.critic.hear(target)
            risk = by_moment(cvar(self.costs(seen), given.confidence))
            dearer = by_agent(generalised_advantage(played.cost, risk, given.discount, given.trace))
            dearer = dearer - dearer.mean(1, keepdim=True)
        weight = self.multiplier.value[:, None].clone()
        for _ in range(given.epochs):
            raw = self.actor(seen)
            ratio = torch.exp(self.head.log_prob(raw, draw) - before)
            gain = clipped_surrogate(ratio, advantage, given.clip) - weight * ratio * dearer
            moved = self.head.divergence(raw, old)
            entropy = self.head.entropy(raw).mean(1)
            policy = (gain / (1.0 + weight) - given.proximal * moved).mean(1) + given.entropy * entropy
            self.optimizer.zero_grad()
            # Each network's gradient by itself: what it needs is then still in the cache.
            torch.autograd.backward(-policy.sum())
            value_error = self.critic.loss(joint, target)
            torch.autograd.backward(value_error.sum())
            torch.autograd.backward(self._cost_loss(seen, played).mean(1).sum())
            clip_each(self.actor.parameters(), given.most)
            clip_each(self.costs.parameters(), given.most)
            self.optimizer.step()
        cost = played.cost.mean((0, 1))
        # Eq. 17 constrains the risk of what a game costs. The paper's code has the mean here: then no confidence matters.
        self.multiplier.ascend(cvar(played.cost.mean(0).T, given.confidence))
        return {
            "return": played.returns().mean(0),
            "cost": cost,
            "entropy": entropy.detach(),
            "value_error": value_error.detach(),
            "multiplier": self.multiplier.value.clone(),
            "from_magnet": apart.mean(1),
        }

    def _cost_loss(self, seen: Tensor, played: Played) -> Tensor:
        """`[agents, n]`: Z(o) against c + gamma Z(o') (Eq. 18); the critic itself says what Z(o') is."""
        moments, rollouts, agents = played.cost.shape
        quantiles = self.costs(seen)
        later = quantiles.detach().view(agents, moments, rollouts, -1)
        later = torch.cat([later[:, 1:], torch.zeros_like(later[:, :1])], dim=1).flatten(1, 2)
        return quantile_loss(quantiles, by_agent(played.cost)[..., None] + self.settings.discount * later)
