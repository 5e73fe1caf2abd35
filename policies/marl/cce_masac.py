"""CCE-MASAC: soft actor-critic towards a coarse correlated equilibrium, pulled to what the world model says.

Each agent raises its reward and a bonus for what it rarely sees, less the divergence of its policy from the magnet's and from
its own of before the update, and keeps some entropy (the supplement's Eq. 12 and 14, which are TrafficGamer's Eq. 14 and 15
with a soft critic; the objectives themselves are in the main paper and are rebuilt from there).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .actors import Learner
from .critics import TwinCritic, polyak
from .game import Played, Transitions, by_agent
from .heads import Head
from .networks import StackedMlp, clip_each
from .ranges import Count, NotNegative, Positive, Share
from .terms import Running, rarity_bonus


@dataclass(frozen=True)
class CceMasacSettings:
    """Defaults are those of the supplement (Table 1)."""

    discount: Share = 0.99
    epochs: Count = 10  # passes over all rollouts of an update
    batch: Count = 8  # rollouts of a gradient step
    polyak: Share = 0.005
    temperature: Positive = 0.005  # in the beginning, of rewards with standard deviation 1
    entropy: float | None = None  # that the temperature is to hold; by default minus the numbers of an action
    magnet: NotNegative = 0.05  # eta_1: weight of the divergence from the magnet
    proximal: NotNegative = 0.05  # 1 / eta_2: weight of the divergence from the policy before the update
    bonus: NotNegative = 0.1  # c of TrafficGamer's Eq. 11
    actor_rate: NotNegative = 5e-5
    critic_rate: NotNegative = 1e-4
    temperature_rate: NotNegative = 5e-5
    most: Positive = 0.5  # norm of an actor's and of a critic's gradient
    hidden: Count = 128


class CceMasac(Learner):
    """Actors, twin critics, their targets and temperatures of all agents, and their optimisers.

    Args:
        numbers: of an agent's observation.
        joint: numbers of what all see together; by default that of these agents.
    """

    updates: Tensor  # how many there were

    def __init__(
        self, agents: int, numbers: int, head: Head, settings: CceMasacSettings, seed: int, joint: int | None = None
    ) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.head, self.settings, self.seed = head, settings, seed
        self.actor = StackedMlp(agents, numbers, head.outputs, random, settings.hidden, last_gain=0.01)
        self.before = copy.deepcopy(self.actor).requires_grad_(False)
        self.critics = TwinCritic(agents, joint or agents * numbers, random, settings.hidden, head.actions)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.full((agents, 1), settings.temperature).log())
        self.rewards = Running(agents)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(self.actor.parameters()), "lr": settings.actor_rate},
                {"params": list(self.critics.parameters()), "lr": settings.critic_rate},
                {"params": [self.log_temperature], "lr": settings.temperature_rate, "weight_decay": 0.0},
            ],
            fused=True,
        )

    def update(self, played: Played) -> dict[str, Tensor]:
        given, random = self.settings, self._dice()
        self.before.load_state_dict(self.actor.state_dict())
        self.rewards.hear(played.reward)
        bonus = rarity_bonus(by_agent(played.observation), given.bonus, self.seed)
        moments, rollouts, agents = played.reward.shape
        # What is rarely seen pays when it is come to: the bonus of a moment is that of the next one.
        bonus = bonus.view(agents, moments, rollouts).movedim(0, 2)
        reward = self.rewards.standardised(played.reward) + torch.cat([bonus[1:], torch.zeros_like(bonus[:1])])
        action = self.head.action(played.draw)
        for _ in range(given.epochs):
            for rows in torch.split(torch.randperm(rollouts, generator=random), given.batch):
                told = self._step(Transitions.of(played, action, reward, rows), random)
        return {
            "return": played.returns().mean(0),
            "cost": played.cost.mean((0, 1)),
            "temperature": self.log_temperature.detach().exp()[:, 0],
            **told,
        }

    def _dice(self) -> torch.Generator:
        """Of the draws of one update; another one for each."""
        self.updates += 1
        return torch.Generator().manual_seed(2**20 * self.seed + int(self.updates))

    def _step(self, seen: Transitions, random: torch.Generator) -> dict[str, Tensor]:
        given = self.settings
        temperature = self.log_temperature.detach().exp()
        with torch.no_grad():
            after = self.targets.features(seen.joint_after)
            later, _ = self._value(self.targets, after, seen.after, seen.magnet_after, temperature, random)
            target = seen.reward + given.discount * seen.goes_on * later
        looked = self.critics.features(seen.joint)
        found = self.critics.values(looked, seen.action)
        critic_loss = torch.stack([(one - target).square().mean(1) for one in found]).sum(0)
        looked = [one.detach() for one in looked]
        self.critics.requires_grad_(False)
        value, entropy = self._value(self.critics, looked, seen.now, seen.magnet, temperature, random)
        self.critics.requires_grad_(True)
        wanted = -float(self.head.actions) if given.entropy is None else given.entropy
        warmer = self.log_temperature.exp()[:, 0] * (entropy.detach() - wanted)
        self.optimizer.zero_grad()
        torch.autograd.backward((critic_loss - value.mean(1) + warmer).sum())
        clip_each(self.actor.parameters(), given.most)
        self.critics.clip(given.most)
        self.optimizer.step()
        polyak(self.targets, self.critics, given.polyak)
        return {"entropy": entropy.detach(), "value_error": critic_loss.detach()}

    def _value(
        self,
        critics: TwinCritic,
        looked: list[Tensor],
        seen: Tensor,
        magnet: Tensor,
        temperature: Tensor,
        random: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Values `[agents, n]` of the actors' policies less their divergences, and their mean entropies `[agents]`."""
        given = self.settings
        raw, before = self.actor(seen), self.before(seen)
        draws, weights = self.head.weighed(raw, random)
        value = entropy = torch.zeros_like(weights[0])
        for draw, weight in zip(draws, weights, strict=True):
            action = self.head.action(draw)
            least = torch.minimum(*critics.values(looked, action))
            log_prob = self.head.log_prob(raw, draw)
            pulled = given.magnet * (log_prob - self.head.magnet_log_prob(magnet, draw))
            held = given.proximal * (log_prob - self.head.log_prob(before, draw))
            value = value + weight * (least - temperature * log_prob - pulled - held)
            entropy = entropy - weight * log_prob
        return value, entropy.mean(1)
