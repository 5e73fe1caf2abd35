"""Games of several agents over a few moments, many of them side by side, and what is remembered of playing them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Seen(NamedTuple):
    """What agents see in a moment of `[rollouts, agents]`."""

    observation: Tensor  # [rollouts, agents, numbers]
    magnet: Tensor  # [rollouts, agents, ...] what a head's `magnet_log_prob` takes


class Outcome(NamedTuple):
    """What a moment brought to `[rollouts, agents]`."""

    reward: Tensor
    cost: Tensor  # of a constraint: 1 where it is broken


class Game(Protocol):
    """Batched over rollouts; all end after `horizon` moments. States are the game's own."""

    agents: int
    numbers: int  # of an observation
    horizon: int

    def begin(self, rollouts: int, generator: torch.Generator) -> Any:
        """The first state."""

    def see(self, state: Any) -> Seen:
        """What agents see."""

    def step(self, state: Any, action: Tensor) -> tuple[Any, Outcome]:
        """The next state, of actions `[rollouts, agents, actions]`."""


@dataclass(frozen=True, eq=False)
class Played:
    """Rollouts from the beginning to the end: `[moments, rollouts, agents, ...]`."""

    observation: Tensor
    draw: Tensor  # of the head, see `heads`
    log_prob: Tensor  # of draws, as they were drawn
    magnet: Tensor
    reward: Tensor
    cost: Tensor
    blocks: Tensor | None = (
        None  # [moments, rollouts, agents, agents * numbers]: `joint`, where every agent plays by itself
    )

    @property
    def joint(self) -> Tensor:
        """`[moments * rollouts, agents * numbers]`: in each moment what all agents see in it, one after the other.

        Of each agent, `[agents, moments * rollouts, agents * numbers]`, where every agent plays games of its own.
        """
        return self.together(self.observation if self.blocks is None else self.blocks)

    def together(self, values: Tensor) -> Tensor:
        """Rows, as `joint` has them, of some moments or rollouts of what it is made of."""
        return values.flatten(2).flatten(0, 1) if self.blocks is None else by_agent(values)

    def returns(self) -> Tensor:
        """`[rollouts, agents]` sums of rewards."""
        return self.reward.sum(0)


# (what is seen, generator) -> draws [rollouts, agents, drawn] and their log-probabilities [rollouts, agents]
Act = Callable[[Seen, torch.Generator], tuple[Tensor, Tensor]]


@torch.no_grad()
def play(
    game: Game, act: Act, action: Callable[[Tensor], Tensor], rollouts: int, generator: torch.Generator,
    dice: torch.Generator | None = None,
) -> Played:  # fmt: skip
    """Plays `rollouts` games to the end.

    Args:
        action: of draws, see `heads.Head.action`.
        generator: of the game's beginnings.
        dice: of the actors' draws; by default the same one. Two generators make two policies play the same games.
    """
    dice = dice or generator
    state = game.begin(rollouts, generator)
    moments = []
    for _ in range(game.horizon):
        seen = game.see(state)
        draw, log_prob = act(seen, dice)
        state, outcome = game.step(state, action(draw))
        moments.append((seen.observation, draw, log_prob, seen.magnet, outcome.reward, outcome.cost))
    return Played(*(torch.stack(part) for part in zip(*moments, strict=True)))


def by_agent(values: Tensor) -> Tensor:
    """`[agents, moments * rollouts, ...]` of `[moments, rollouts, agents, ...]`."""
    return values.movedim(2, 0).flatten(1, 2)


@dataclass(frozen=True, eq=False)
class Transitions:
    """Moments one by one, `[agents, n, ...]`; joint ones as `Played.joint`."""

    now: Tensor  # observations
    joint: Tensor
    magnet: Tensor
    action: Tensor
    reward: Tensor
    after: Tensor  # observations of the next moment
    joint_after: Tensor
    magnet_after: Tensor
    goes_on: Tensor  # 0 of last moments, otherwise 1

    @staticmethod
    def of(played: Played, action: Tensor, reward: Tensor, rows: Tensor) -> Transitions:
        """Of some rollouts.

        Args:
            action, reward: `[moments, rollouts, agents, ...]`.
            rows: `[n]` which rollouts.
        """
        seen, magnet = played.observation[:, rows], played.magnet[:, rows]
        told = seen if played.blocks is None else played.blocks[:, rows]

        def following(values: Tensor) -> Tensor:  # what follows the last moment does not matter: it stands for itself
            return torch.cat([values[1:], values[-1:]])

        later, later_magnet = following(seen), following(magnet)
        told_later = later if played.blocks is None else following(told)
        goes_on = torch.ones_like(reward[:, rows])
        goes_on[-1] = 0.0
        return Transitions(
            by_agent(seen), played.together(told), by_agent(magnet), by_agent(action[:, rows]),
            by_agent(reward[:, rows]), by_agent(later), played.together(told_later), by_agent(later_magnet),
            by_agent(goes_on),
        )  # fmt: skip
