"""PPO's update of one agent as the public TrafficGamer code does it (its MAPPO), written anew, for comparison.

Each agent has networks and an optimiser of its own, of PyTorch's layers as they come. It puts together what all agents saw,
now and next, out of every rollout's moments, values both, goes back over the moments one by one for its advantages, and then
makes its passes. What is slow there for no reason (tensors and arrays mixed) is left out, and so are logs and its errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from throng.policies.marl.game import Played
from throng.policies.marl.mappo import MappoSettings
from torch import Tensor, nn
from torch.distributions import Laplace
from torch.nn.functional import elu, mse_loss


@dataclass(frozen=True)
class Rollout:
    """Moments of one rollout: of each agent a list of `[numbers]`."""

    seen: list[list[Tensor]]
    next_seen: list[list[Tensor]]
    action: list[list[Tensor]]
    reward: list[list[Tensor]]
    done: list[Tensor]


def rollouts_of(played: Played) -> list[Rollout]:
    """What was played, as the public code keeps it."""
    moments, rollouts, agents = played.reward.shape
    found = []
    for one in range(rollouts):
        seen, action, reward = (
            [list(part[:, one, agent].clone()) for agent in range(agents)]
            for part in (played.observation, played.draw, played.reward[..., None])
        )
        after = [own[1:] + own[-1:] for own in seen]
        found.append(Rollout(seen, after, action, reward, list((torch.arange(moments) == moments - 1).float())))
    return found


class PublicAgent:
    """One agent's actor and critic.

    Args:
        agents: how many there are.
        numbers: of an agent's observation.
    """

    def __init__(self, agents: int, numbers: int, settings: MappoSettings) -> None:
        self.settings = settings
        self.actor, self.critic = (
            nn.Sequential(
                nn.Linear(inputs, settings.hidden),
                nn.LayerNorm(settings.hidden),
                nn.ReLU(inplace=True),
                nn.Linear(settings.hidden, outputs),
            )
            for inputs, outputs in ((numbers, 4), (agents * numbers, 1))
        )
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self.actor.parameters(), "lr": settings.actor_rate},
                {"params": self.critic.parameters(), "lr": settings.critic_rate},
            ]
        )

    def policy(self, seen: Tensor) -> Laplace:
        """Of observations `[n, numbers]`."""
        mean, wide = self.actor(seen).chunk(2, -1)
        return Laplace(mean, elu(wide) + 1.1)

    def update(self, rollouts: list[Rollout], agent: int) -> None:
        """One PPO update of the agent of this number."""
        given = self.settings
        joint, joint_next = (
            torch.stack([torch.cat(one) for part in parts for one in zip(*part, strict=True)])
            for parts in ([one.seen for one in rollouts], [one.next_seen for one in rollouts])
        )
        seen, action, reward = (
            torch.stack([moment for part in parts for moment in part[agent]])
            for parts in (
                [one.seen for one in rollouts],
                [one.action for one in rollouts],
                [one.reward for one in rollouts],
            )
        )
        done = torch.stack([moment for one in rollouts for moment in one.done])[:, None]
        with torch.no_grad():
            value = self.critic(joint)
            error = reward + given.discount * self.critic(joint_next) * (1 - done) - value
            advantage = self._advantage(error, done)
            target = value + advantage
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            before = self.policy(seen).log_prob(action)
        for _ in range(given.epochs):
            policy = self.policy(seen)
            ratio = torch.exp(policy.log_prob(action) - before)
            gain = torch.min(ratio * advantage, ratio.clamp(1 - given.clip, 1 + given.clip) * advantage)
            loss = 0.5 * mse_loss(self.critic(joint), target) - gain.mean() - given.entropy * policy.entropy().mean()
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.actor.parameters(), given.most)
            self.optimizer.step()

    def _advantage(self, error: Tensor, done: Tensor) -> Tensor:
        """`[n, 1]`, moment by moment."""
        carried, found = torch.zeros(1), []
        for moment in reversed(range(len(error))):
            carried = error[moment] + self.settings.discount * self.settings.trace * (1 - done[moment]) * carried
            found.append(carried)
        return torch.stack(found[::-1])
