"""Driving games on Ray actors: they play, learn from what was played, and look for better responses.

Every call is a pure function of its arguments: a learner is told all that it has learnt, and tells what it knows after.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..policies.driving.world_model import WorldModel
from ..policies.marl.actors import Learner
from ..policies.marl.algorithms import ALGORITHMS, restore, state_of
from ..policies.marl.driving import DrivingTerms
from ..policies.marl.exploitability import ResponseBudget, best_response, own_sums, restricted_gaps
from ..policies.marl.game import Played, play
from ..policies.marl.imagined import ImaginedGame
from ..scenarios.driving.scene import Scene

Arrays = Mapping[str, NDArray[Any]]
Prices = NDArray[np.float32] | None  # `[agents]` multipliers; None: values are those of rewards
ACTOR = "actor."  # before the names of the actors' weights in a learner's state


@dataclass(frozen=True, eq=False)
class GameSpec:
    """A scene, who is driven in it, and what learns to drive them."""

    model: WorldModel
    scene: Scene
    drivers: tuple[int, ...]  # indices of the scene's agents
    terms: DrivingTerms
    horizon: int | None
    most: int
    algorithm: str  # a key of `ALGORITHMS`
    settings: Any  # of the algorithm
    seed: int

    def game(self) -> ImaginedGame:
        return ImaginedGame(self.model, self.scene, self.drivers, self.terms, self.horizon, self.most)


class GameWorker:
    """Plays and learns; the same on an actor and without one."""

    def __init__(self, spec: GameSpec) -> None:
        torch.set_num_threads(1)
        self.game = spec.game()
        self._learner: Learner = ALGORITHMS[spec.algorithm].made(self.game, spec.settings, spec.seed)

    def process(self) -> int:
        """Answers when the actor can work."""
        return os.getpid()

    def first(self) -> Arrays:
        """What a learner knows in the beginning."""
        return _arrays(state_of(self._learner))

    def play(self, actor: Arrays, seed: int, rollouts: int) -> Arrays:
        """Plays `rollouts` games; the fields of `Played`.

        Args:
            actor: weights, see `actor_of`.
        """
        self._take(actor)
        played = play(
            self.game, self._learner.act, self._learner.head.action, rollouts, torch.Generator().manual_seed(seed)
        )
        told = {one.name: getattr(played, one.name) for one in fields(Played)}
        return _arrays({name: one for name, one in told.items() if one is not None})

    def learn(self, state: Arrays, *parts: Arrays) -> tuple[Arrays, Arrays]:
        """What the learner knows after games, and numbers of each agent, `[agents]`.

        Args:
            state: what it knew.
            parts: what was played.
        """
        restore(self._learner, _tensors(state))
        told = {name: torch.cat([_tensors(part)[name] for part in parts], dim=1) for name in parts[0]}
        found = self._learner.update(Played(**told))
        return _arrays(state_of(self._learner)), _arrays(found)

    def compare(self, actor: Arrays, part: int, budget: ResponseBudget, seed: int) -> Arrays:
        """Sums of `reward` and `cost` in some of the games that evaluate best responses, see `own_sums`."""
        self._take(actor)
        reward, cost = own_sums(self.game, self._learner, budget, seed, part)
        return _arrays({"reward": reward, "cost": cost})

    def respond(self, actor: Arrays, agent: int, budget: ResponseBudget, seed: int, prices: Prices) -> float:
        """See `best_response`."""
        self._take(actor)
        return best_response(self.game, self._learner, agent, budget, seed, _tensor(prices))

    def restrict(self, actor: Arrays, agent: int, rollouts: int, seed: int, prices: Sequence[Prices]) -> list[float]:
        """What an agent's best mode gains by each of several prices, see `restricted_gaps`."""
        self._take(actor)
        found = restricted_gaps(self.game, self._learner, rollouts, seed, [_tensor(one) for one in prices], [agent])
        return [float(one.gap) for one in found]

    @torch.no_grad()
    def drive(self, actor: Arrays, seed: int, rollouts: int) -> Arrays:
        """Generated futures: `tracks` `[rollouts, agents there, frames, 4]`, who of the agents is `there`, and `cost`."""
        self._take(actor)
        game, random = self.game, torch.Generator().manual_seed(seed)
        state = game.begin(rollouts, random)
        tracks, costs = [state.imagined.batch.agents[:, :, -1:]], []
        for _ in range(game.horizon):
            draw, _ = self._learner.act(game.see(state), random)
            state, outcome = game.step(state, self._learner.head.action(draw))
            tracks.append(state.imagined.batch.agents[:, :, 1:])
            costs.append(outcome.cost)
        return _arrays(
            {
                "tracks": torch.cat(tracks, dim=2),
                "there": state.imagined.batch.there[0, :, -1],
                "cost": torch.stack(costs),
            }
        )

    def _take(self, actor: Arrays) -> None:
        self._learner.actor.load_state_dict(_tensors(actor))


def actor_of(state: Arrays) -> Arrays:
    """The actors' weights of a learner's state."""
    return {name.removeprefix(ACTOR): one for name, one in state.items() if name.startswith(ACTOR)}


def _tensor(prices: Prices) -> torch.Tensor | None:
    return None if prices is None else torch.from_numpy(np.array(prices))


def _arrays(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    return {name: one.detach().cpu().numpy() for name, one in tensors.items()}


def _tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    """Copies: what comes from Ray's object store must not be written to."""
    return {name: torch.from_numpy(np.array(one)) for name, one in arrays.items()}
