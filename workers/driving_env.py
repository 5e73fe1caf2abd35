"""Driving worlds as a PettingZoo parallel environment: one scene at a time, an action for every driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from pettingzoo import ParallelEnv
from torch import Tensor

from ..scenarios.driving.kinematics import HIGHEST
from ..scenarios.driving.observation import Observer, Sight
from ..scenarios.driving.scene import Kind, Scene
from ..scenarios.driving.world import Others, World, WorldState
from ..scenarios.errors import InputError

REACHED = 2.0  # metres from its goal within which a driver is there
PENALTY = 10.0  # for who collides or leaves the road
Reward = Callable[[World, WorldState, WorldState], Tensor]


def progress(world: World, before: WorldState, after: WorldState) -> Tensor:
    """`[worlds, agents]`: metres nearer to the goal, less `PENALTY` for who collides or leaves the road."""
    wrong = (world.nearest(after) < 0) | (world.off_road(after) > 0)
    far = [(world.goals - state.agents[..., :2]).norm(dim=-1) for state in (before, after)]
    return far[0] - far[1] - PENALTY * wrong


class DrivingEnv(ParallelEnv):  # type: ignore[misc]  # it comes without types
    """Drivers are named by the ids of their scene; who walks, and who is not there at the beginning, keeps to the log.

    A driver is terminated when it reaches its goal, collides or leaves the road with a corner, and is gone then; all are
    truncated when the scene ends. `infos` say which it was. Observations are those of `Observer`, side by side; actions are
    acceleration (m/s²) and steering angle (radians).

    Args:
        scene: in which is driven.
        drivers: ids; by default all vehicles and cyclists that move in the scene and are there at its beginning.
        others: what those do who are not driven.
        sight: what a driver sees.
        reward: of all agents; `progress`, or another.

    Raises:
        InputError: naming the scene.
    """

    metadata = {"name": "throng_driving_v0", "render_modes": []}  # noqa: RUF012  (PettingZoo's way)
    render_mode = None

    def __init__(
        self,
        scene: Scene,
        drivers: Sequence[str] | None = None,
        others: Others = "idm",
        sight: Sight | None = None,
        reward: Reward = progress,
    ) -> None:
        begin = min(scene.history, scene.steps) - 1
        driven = drivable(scene, begin) if drivers is None else _named(scene, drivers)
        if not driven.any():
            raise InputError(f"scene {scene.name!r}: nobody who drives is there in step {begin}")
        self._world = World([scene], [driven], others=others)
        self._observer = Observer(self._world, sight)
        self._reward = reward
        self._index = {scene.ids[i]: int(i) for i in np.flatnonzero(driven)}
        self.possible_agents = list(self._index)
        self.agents: list[str] = []
        self._states: list[WorldState] = []
        size = self._observer.observe([self._world.reset()]).flat().shape[-1]
        self._seen = Box(-np.inf, np.inf, (size,), np.float32)
        self._done = Box(-np.array(HIGHEST, np.float32), np.array(HIGHEST, np.float32))

    def observation_space(self, agent: str) -> Box:
        return self._seen

    def action_space(self, agent: str) -> Box:
        return self._done

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, dict[str, Any]]]:
        """The beginning of the scene; nothing is drawn, so that `seed` makes no difference."""
        self.agents = list(self.possible_agents)
        past = min(self._observer.sight.past - 1, self._world.back)
        self._states = [self._world.logged(step) for step in range(-past, 1)]
        return self._observations(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, NDArray[np.float32]]) -> tuple[Any, Any, Any, Any, Any]:
        before = self._states[-1]
        asked = torch.zeros(*before.present.shape, 3)
        for agent in self.agents:
            asked[0, self._index[agent], :2] = torch.as_tensor(np.clip(actions[agent], self._done.low, self._done.high))
        with torch.no_grad():
            after = self._world.step(before, asked)
            rewards = self._reward(self._world, before, after)[0]
            collided = self._world.nearest(after)[0] < 0
            off_road = self._world.off_road(after)[0] > 0
            reached = (self._world.goals - after.agents[..., :2]).norm(dim=-1)[0] < REACHED
        over = collided | off_road | reached
        self._states = [*self._states[1 - self._observer.sight.past :], after]
        observations = self._observations()
        ends = after.step == self._world.horizon
        at = {agent: self._index[agent] for agent in self.agents}
        infos = {
            agent: {"collided": bool(collided[i]), "off_road": bool(off_road[i]), "reached": bool(reached[i])}
            for agent, i in at.items()
        }
        terminated = {agent: bool(over[i]) for agent, i in at.items()}
        paid = {agent: float(rewards[i]) for agent, i in at.items()}
        gone = torch.zeros_like(after.present)
        gone[0, [i for agent, i in at.items() if terminated[agent]]] = True
        self._states[-1] = replace(after, present=after.present & ~gone)
        self.agents = [] if ends else [agent for agent in at if not terminated[agent]]
        return observations, paid, terminated, dict.fromkeys(at, ends), infos

    def _observations(self) -> dict[str, NDArray[np.float32]]:
        with torch.no_grad():
            seen = self._observer.observe(self._states).flat()[0].numpy()
        return {agent: seen[self._index[agent]] for agent in self.agents}


def drivable(scene: Scene, begin: int) -> NDArray[np.bool_]:
    """`[agents]`: vehicles and cyclists that are there in step `begin` and move in what follows."""
    drives = np.isin(scene.kind, (Kind.VEHICLE, Kind.CYCLIST)) & scene.valid[:, begin]
    way = np.where(scene.valid[:, begin:, None], scene.tracks[:, begin:, :2] - scene.tracks[:, begin, None, :2], 0.0)
    return drives & (np.linalg.norm(way, axis=2).max(axis=1) > REACHED)


def _named(scene: Scene, drivers: Sequence[str]) -> NDArray[np.bool_]:
    unknown = [one for one in drivers if one not in scene.ids]
    if unknown:
        raise InputError(f"scene {scene.name!r} has no agent {unknown[0]!r}; it has {', '.join(scene.ids[:5])}, …")
    driven = np.isin(scene.ids, list(drivers))
    walks = [one for one in np.flatnonzero(driven) if scene.kind[one] == Kind.PEDESTRIAN]
    if walks:
        raise InputError(f"scene {scene.name!r}: {scene.ids[walks[0]]} walks; only who drives can be driven")
    return driven
