"""Games as RLlib environments (`MultiAgentEnv`, new API stack): one game after the other, everybody acts in every moment."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import ray
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from ray.rllib.env.multi_agent_env import MultiAgentEnv

from ..policies.marl.game import Game
from ..scenarios.errors import InputError
from .games import GameSpec

ACTIONS = 2  # numbers of an agent's action: acceleration and curvature, 1 being the highest
Array = NDArray[np.float32]


class GameEnv(MultiAgentEnv):  # type: ignore[misc]  # RLlib's types are left out
    """A `Game`. Observations are what agents see, `[numbers] float32`; actions `[ACTIONS]` from -1 to 1, others are clipped.

    Rewards are the game's; `infos` tell the cost, 1 where the constraint is broken. The horizon is a time limit: all agents
    are truncated there, and RLlib adds what it thinks that the rest is worth.

    Args:
        config: RLlib's `env_config`.

            `game`: a `Game`, a `GameSpec`, or a reference to either in Ray's object store, which a process follows once,
            however many environments it has.
            `names`: of the agents; by default their ids in the scene, or 0, 1, …
            `final`: whether the horizon is the end of the game instead: all agents are terminated there, and nothing is worth
            anything any more. Learners of `policies/marl` take it so.
    """

    metadata = {"name": "throng_game_v0", "render_modes": []}  # noqa: RUF012  (Gymnasium's way)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        given = config["game"]
        self._game, names = _followed(given) if isinstance(given, ray.ObjectRef) else _table(given)
        self._final = bool(config.get("final", False))
        self.possible_agents = list(config.get("names", names))
        self.agents = list(self.possible_agents)
        seen = Box(-np.inf, np.inf, (self._game.numbers,), np.float32)
        self.observation_spaces = dict.fromkeys(self.possible_agents, seen)
        self.action_spaces = dict.fromkeys(self.possible_agents, Box(-1.0, 1.0, (ACTIONS,), np.float32))
        self._random = torch.Generator()
        self._random.seed()
        self._state: Any = None
        self._moment = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, dict[str, Any]]]:
        """The next game; those that follow a seed are the same every time."""
        if seed is not None:
            self._random.manual_seed(seed)
        self._moment = 0
        with torch.no_grad():
            self._state = self._game.begin(1, self._random)
        return self._seen(), {name: {} for name in self.possible_agents}

    def step(self, action_dict: Mapping[str, Any]) -> tuple[Any, Any, Any, Any, Any]:
        """Half a second.

        Raises:
            InputError: naming an agent without an action.
        """
        idle = [name for name in self.possible_agents if name not in action_dict]
        if idle:
            raise InputError(f"agent {idle[0]!r} has no action; everybody acts in every moment")
        told = np.stack([np.asarray(action_dict[name], np.float32) for name in self.possible_agents])
        with torch.no_grad():
            self._state, outcome = self._game.step(self._state, torch.from_numpy(told.clip(-1.0, 1.0))[None])
        self._moment += 1
        over = self._moment == self._game.horizon
        everybody = [*self.possible_agents, "__all__"]
        rewards, costs = outcome.reward[0].tolist(), outcome.cost[0].tolist()
        return (
            self._seen(),
            dict(zip(self.possible_agents, rewards, strict=True)),
            dict.fromkeys(everybody, over and self._final),
            dict.fromkeys(everybody, over and not self._final),
            {name: {"cost": cost} for name, cost in zip(self.possible_agents, costs, strict=True)},
        )

    def _seen(self) -> dict[str, Array]:
        with torch.no_grad():
            seen = self._game.see(self._state).observation[0].numpy()
        return dict(zip(self.possible_agents, seen, strict=True))


def _table(given: Any) -> tuple[Game, tuple[str, ...]]:
    """A game and the names of its agents."""
    if isinstance(given, GameSpec):
        return given.game(), tuple(given.scene.ids[agent] for agent in given.drivers)
    return given, tuple(str(agent) for agent in range(given.agents))


@lru_cache(maxsize=1)
def _followed(given: ray.ObjectRef[Any]) -> tuple[Game, tuple[str, ...]]:
    """Games keep nothing from one to the next, so that environments may share one, and its world model."""
    return _table(ray.get(given))
