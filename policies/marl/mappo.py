"""MAPPO (Yu et al. 2022): PPO for every agent, each with a critic that sees what all agents see."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .actors import Learner
from .critics import ScaledCritic
from .game import Played, by_agent
from .heads import Head
from .networks import StackedMlp, clip_each
from .ranges import Count, NotNegative, Positive, Share
from .terms import clipped_surrogate, generalised_advantage, standardised


@dataclass(frozen=True)
class MappoSettings:
    """Defaults are those of TrafficGamer's code, whose baseline it is."""

    discount: Share = 0.99
    trace: Share = 0.95  # GAE's lambda
    clip: Positive = 0.2
    epochs: Count = 10  # passes over all rollouts of an update
    entropy: NotNegative = 0.005
    actor_rate: NotNegative = 5e-5
    critic_rate: NotNegative = 1e-4
    most: Positive = 0.5  # norm of an actor's gradient
    hidden: Count = 128


class Mappo(Learner):
    """Actors and critics of all agents, and their optimisers.

    Args:
        numbers: of an agent's observation.
        joint: numbers of what all see together; by default that of these agents.
    """

    def __init__(
        self, agents: int, numbers: int, head: Head, settings: MappoSettings, seed: int, joint: int | None = None
    ) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.head, self.settings = head, settings
        self.actor = StackedMlp(agents, numbers, head.outputs, random, settings.hidden, last_gain=0.01)
        self.critic = ScaledCritic(agents, joint or agents * numbers, random, settings.hidden)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(self.actor.parameters()), "lr": settings.actor_rate},
                {"params": list(self.critic.parameters()), "lr": settings.critic_rate},
            ],
            fused=True,
        )

    def update(self, played: Played) -> dict[str, Tensor]:
        given = self.settings
        seen, joint = by_agent(played.observation), played.joint
        draw, before = by_agent(played.draw), by_agent(played.log_prob)
        with torch.no_grad():
            value = self.critic(joint).view(-1, *played.reward.shape[:2]).movedim(0, 2)
            advantage = generalised_advantage(played.reward, value, given.discount, given.trace)
            target = by_agent(advantage + value)
            advantage = standardised(by_agent(advantage), 1)
            self.critic.hear(target)
        for _ in range(given.epochs):
            raw = self.actor(seen)
            ratio = torch.exp(self.head.log_prob(raw, draw) - before)
            gain = clipped_surrogate(ratio, advantage, given.clip).mean(1)
            entropy = self.head.entropy(raw).mean(1)
            self.optimizer.zero_grad()
            # Each network's gradient by itself: what it needs is then still in the cache.
            torch.autograd.backward((-gain - given.entropy * entropy).sum())
            error = self.critic.loss(joint, target)
            torch.autograd.backward(error.sum())
            clip_each(self.actor.parameters(), given.most)
            self.optimizer.step()
        return {
            "return": played.returns().mean(0),
            "cost": played.cost.mean((0, 1)),
            "entropy": entropy.detach(),
            "value_error": error.detach(),
        }
