"""Driving worlds on Ray actors: drives copies of scenes by a policy, and returns a table of what happened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..scenarios.driving.observation import Observation, Observer, Sight
from ..scenarios.driving.scene import Scene
from ..scenarios.driving.world import Others, World, WorldState
from .fleet import Failure, Fleet, Rules
from .member import Question
from .placement import MEMORY, rollout_options

Weights = Mapping[str, NDArray[Any]]
UNDONE = float("nan")  # actions of who is not driven, and of the last moment


class DrivingPolicy(Protocol):
    """What drives: a torch module, or anything else with these two methods."""

    def act(self, seen: Observation, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Actions `[worlds, agents, 3]` as `World.step` takes them, and their log-probabilities `[worlds, agents]`."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Takes weights."""


@dataclass(frozen=True)
class Drive:
    """What is driven, and how."""

    scenes: tuple[Scene, ...]
    controlled: tuple[NDArray[np.bool_], ...]  # [agents] of each scene
    policy: Callable[[], DrivingPolicy]  # makes one
    rollouts: int = 1  # of each scene at a time
    others: Others = "idm"
    sight: Sight | None = None
    steps: int | None = None  # by default as long as the shortest log
    observations: bool = False  # whether the table has what drivers saw


class WorldRollout:
    """Drives; the same on an actor and without one.

    Args:
        drive: scenes with the same time step.

    Raises:
        InputError: naming the scene.
    """

    def __init__(self, drive: Drive) -> None:
        torch.set_num_threads(1)
        self._drive = drive
        self._world = World(drive.scenes, drive.controlled, drive.rollouts, drive.others)
        self._observer = Observer(self._world, drive.sight)
        self._policy = drive.policy()

    def process(self) -> None:
        """Answers when the actor can work."""

    @torch.no_grad()
    def drive(self, weights: Weights | None, seed: int) -> pa.Table:
        """One rollout of all worlds: a row for every agent that is there, in every moment.

        Args:
            weights: of the policy; None: as they are.
            seed: of its draws.

        Returns:
            Columns `scene`, `rollout`, `agent`, `step` (from 0, the beginning), `x`, `y` (metres), `yaw` (radians), `speed`
            (m/s), `driven` (whether by the policy), the action taken then (`acceleration`, m/s², and `steering`, radians; of
            who walks what x and y change by; NaN of others and in the last moment), its `log_probability`, `nearest`,
            `off_road`, `red_light` (metres, as `World` says) and `time_to_collision` (s); with `observations`, `seen`.
        """
        if weights is not None:
            self._policy.load_state_dict({name: torch.as_tensor(np.array(one)) for name, one in weights.items()})
        generator = torch.Generator().manual_seed(seed)
        world = self._world
        past = min(self._observer.sight.past - 1, world.back)
        states = [world.logged(step) for step in range(-past, 1)]
        steps = world.horizon if self._drive.steps is None else min(self._drive.steps, world.horizon)
        moments = []
        for step in range(steps + 1):
            seen = self._observer.observe(states)
            action, log_probability = self._policy.act(seen, generator)
            done = world.controlled & states[-1].present & (step < steps)
            moments.append(self._columns(states[-1], action, log_probability, done, seen))
            if step < steps:
                states = [*states[1 - self._observer.sight.past :], world.step(states[-1], action)]
        return pa.concat_tables(moments)

    def _columns(
        self, state: WorldState, action: Tensor, log_probability: Tensor, done: Tensor, seen: Observation
    ) -> pa.Table:
        world, there = self._world, state.present
        worlds, agents = torch.nonzero(there, as_tuple=True)
        undone = torch.full_like(log_probability, UNDONE)
        columns: dict[str, Any] = {
            "scene": world.scene[worlds].to(torch.int32),
            "rollout": (worlds % world.rollouts).to(torch.int32),
            "agent": agents.to(torch.int32),
            "step": torch.full_like(worlds, state.step, dtype=torch.int32),
            **{name: state.agents[..., k][there] for k, name in enumerate(("x", "y", "yaw", "speed"))},
            "driven": world.controlled[there],
            "acceleration": torch.where(done, action[..., 0], undone)[there],
            "steering": torch.where(done, action[..., 1], undone)[there],
            "log_probability": torch.where(done, log_probability, undone)[there],
            "nearest": world.nearest(state)[there],
            "off_road": world.off_road(state)[there],
            "red_light": world.red_light(state)[there],
            "time_to_collision": world.time_to_collision(state)[there],
        }
        made = {name: pa.array(column.numpy()) for name, column in columns.items()}
        if self._drive.observations:
            numbers = seen.flat()[there].numpy()
            made["seen"] = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), numbers.shape[1])
        return pa.table(made)


class WorldFleet:
    """`size` actors that drive the same scenes, and survive the loss of some of them.

    Args:
        drive: what they drive; kept once in Ray's object store.
        rules: of a rollout.
        memory: MiB that Ray reserves for each actor.
    """

    def __init__(self, drive: Drive, size: int, rules: Rules, memory: int = MEMORY) -> None:
        shared = ray.put(drive)
        actor = ray.remote(WorldRollout).options(**rollout_options(memory))

        def alive() -> Question:
            return "process", ()

        self._fleet = Fleet("world worker", lambda: actor.remote(shared), size, rules, alive)

    @property
    def restarts(self) -> int:
        """Of actors that were lost."""
        return self._fleet.restarts

    def drive(self, weights: Weights | None, seeds: Iterable[int]) -> Iterator[tuple[int, pa.Table | Failure]]:
        """A table for each seed, as they come; the weights go to the object store once."""
        shared = ray.put(weights)
        for seed, table in self._fleet.run("drive", ((seed, (shared, seed)) for seed in seeds)):
            yield cast(int, seed), table

    def close(self) -> None:
        self._fleet.close()


def weights_of(state_dict: Mapping[str, Tensor]) -> Weights:
    """Arrays that travel without a copy."""
    return {name: one.detach().cpu().numpy() for name, one in state_dict.items()}
