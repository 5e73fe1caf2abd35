"""Games so small that it can be told exactly how far their players are from an equilibrium."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .game import Outcome, Seen


class TableState(NamedTuple):
    state: Tensor  # [rollouts] which
    moment: int


class TableGame:
    """Two players, finitely many states and choices; both see the state and the moment, one-hot.

    Args:
        payoff: `[states, choices, choices, 2]` of the choices of the first and of the second.
        following: `[states, choices, choices]` the next state.
        first: the state with which games begin.
        horizon: moments.
    """

    agents = 2

    def __init__(self, payoff: Tensor, following: Tensor, first: int, horizon: int) -> None:
        self.payoff, self.following, self.first, self.horizon = payoff.double(), following, first, horizon
        self.states, self.choices = payoff.shape[:2]
        self.numbers = self.states + horizon

    def begin(self, rollouts: int, generator: torch.Generator) -> TableState:
        return TableState(torch.full((rollouts,), self.first), 0)

    def see(self, state: TableState) -> Seen:
        """The magnet is the uniform distribution."""
        told = self._told(state.state, state.moment)
        shown = told[:, None].expand(-1, self.agents, -1)
        return Seen(shown, torch.zeros(*shown.shape[:2], self.choices))

    def step(self, state: TableState, action: Tensor) -> tuple[TableState, Outcome]:
        one, other = action.argmax(-1).unbind(-1)
        reward = self.payoff[state.state, one, other].float()
        after = TableState(self.following[state.state, one, other], state.moment + 1)
        return after, Outcome(reward, torch.zeros_like(reward))

    def everything(self) -> Tensor:
        """`[horizon, states, numbers]` all that can be seen."""
        states = torch.arange(self.states)
        return torch.stack([self._told(states, moment) for moment in range(self.horizon)])

    def gaps(self, policy: Tensor) -> Tensor:
        """`[2]`: what each player could gain by another policy while the other keeps to theirs (Definition 1), exactly.

        Args:
            policy: `[horizon, states, 2, choices]` probabilities.
        """
        policy = policy.double()
        value = torch.zeros(self.states, 2, dtype=torch.float64)
        best = torch.zeros(self.states, 2, dtype=torch.float64)
        for moment in reversed(range(self.horizon)):
            one, other = policy[moment].unbind(1)
            joint = one[:, :, None] * other[:, None, :]
            value = (joint[..., None] * (self.payoff + value[self.following])).sum((1, 2))
            ahead = self.payoff + best[self.following]
            first = (ahead[..., 0] * other[:, None, :]).sum(2).amax(1)
            second = (ahead[..., 1] * one[:, :, None]).sum(1).amax(1)
            best = torch.stack([first, second], dim=-1)
        return (best - value)[self.first]

    def _told(self, state: Tensor, moment: int) -> Tensor:
        when = torch.full_like(state, moment)
        return torch.cat([one_hot(state, self.states), one_hot(when, self.horizon)], dim=-1).float()


def matrix_game(payoff: Tensor) -> TableGame:
    """One moment of payoffs `[choices, choices, 2]`."""
    return TableGame(payoff[None], torch.zeros(1, *payoff.shape[:2], dtype=torch.long), 0, 1)


def biased_rock_paper_scissors() -> TableGame:
    """Zero-sum; the only equilibrium plays the three choices with different probabilities."""
    gain = torch.tensor([[0.0, -1.0, 3.0], [1.0, 0.0, -2.0], [-3.0, 2.0, 0.0]])
    return matrix_game(torch.stack([gain, -gain], dim=-1))


def inspection() -> TableGame:
    """A driver keeps to the rules or speeds, the police look or do not; general-sum, without a pure equilibrium."""
    driver = torch.tensor([[0.0, 0.0], [-4.0, 2.0]])
    police = torch.tensor([[-1.0, 0.0], [1.0, -3.0]])
    return matrix_game(torch.stack([driver, police], dim=-1))


CELLS = 7  # of either way to the merge
STEPS = (0, 1, 2)  # cells that a car may go in a moment


def merge(horizon: int = 6) -> TableGame:
    """Two cars on two ways that become one: 49 states, three speeds.

    The first wants through and alone: it gains by cells that it goes, and loses by going into the merge's zone (the last
    three cells of both ways) beside the other. The second gains by being there beside it, and by moving little. So whichever
    gap the one chooses for certain, the other closes or opens it: no equilibrium is pure.
    """
    cell = torch.arange(CELLS)
    step = torch.tensor(STEPS)
    shape = (CELLS, CELLS, len(STEPS), len(STEPS))
    one, other = (cell[:, None, None, None]).expand(shape), (cell[None, :, None, None]).expand(shape)
    go, come = step[None, None, :, None].expand(shape), step[None, None, None, :].expand(shape)
    there, here = (one + go).clamp_max(CELLS - 1), (other + come).clamp_max(CELLS - 1)
    beside = ((there == here) & (there >= CELLS - 3) & (there > one)).float()
    first = 0.2 * (there - one) - 3.0 * beside
    second = 3.0 * beside - 0.2 * (here - other)
    payoff = torch.stack([first, second], dim=-1).flatten(0, 1)
    return TableGame(payoff, (there * CELLS + here).flatten(0, 1), 0, horizon)
