"""RLlib's PPO in the place of our learners: the same scene, games, fleet settings, ledger and evaluation.

RLlib keeps actors and learner in step by itself: of `workers` it heeds `rollouts` (its env runners: as many as divide the
games of an episode), `address`, `restarts` and `deadline`. What it has learnt is committed as tensors, like what ours learn,
not as one of RLlib's checkpoints, which are pickles. A run that was stopped goes on from them with other draws; and draws
are others with another number of env runners.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.algorithms.algorithm import Algorithm

from ..cluster.session import cpus, session
from ..workers.fleet import FleetError
from ..workers.games import ACTOR, Arrays, GameSpec
from ..workers.placement import rollouts_on
from ..workers.rllib_ppo import actors_of, built, games_of, known_by, ppo, remind
from .finetuning_config import FineTuningConfig
from .seeds import child_seed

KNOWN = "rllib."  # before the names of what RLlib's learner has learnt
PATIENCE = 60.0  # seconds in which lost env runners are to be back


class RllibCrew:
    """See `finetuning.Crew`: it learns an episode at a time, and plays the games for it at once.

    Args:
        done: episodes that were played before.
        runners: Ray actors that play; 0: this process.
    """

    def __init__(self, config: FineTuningConfig, spec: GameSpec, done: int, runners: int) -> None:
        given = config.workers
        self._names = tuple(spec.scene.ids[agent] for agent in spec.drivers)
        self._config = ppo(
            ray.put(spec), self._names, spec.game().horizon, spec.settings, config.training.rollouts, runners,
            child_seed(config.seed, "rllib", done), given.restarts, given.deadline,
        )  # fmt: skip
        self._algorithm: Algorithm | None = None

    def each(self, method: str, calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Nothing is known at first, and all games are played in `learn`."""
        if method == "first":
            yield 0, {}

    def learn(self, state: Arrays, parts: Sequence[Arrays]) -> tuple[Arrays, Arrays]:
        if self._algorithm is None:
            self._algorithm = built(self._config)
            if state:
                told = {name.removeprefix(KNOWN): one for name, one in state.items() if name.startswith(KNOWN)}
                remind(self._algorithm, {name: torch.from_numpy(np.array(one)) for name, one in told.items()})
        returns, costs = self._played(self._algorithm)
        known = known_by(self._algorithm)
        after = {ACTOR + name: one.numpy() for name, one in actors_of(known, self._names).items()}
        after |= {KNOWN + name: one.numpy() for name, one in known.items()}
        return after, {"return": returns, "cost": costs}

    def close(self) -> None:
        if self._algorithm is not None:
            self._algorithm.stop()

    def _played(self, algorithm: Algorithm) -> Any:
        """Returns and costs of an episode; RLlib skips one when no actor is left, and restarts those that were lost."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                result = algorithm.train()
            except ray.exceptions.RayError as error:  # of an actor that is not to be restarted
                raise FleetError(f"RLlib's env runners failed: {error}") from error
            with contextlib.suppress(KeyError):
                return games_of(result, self._names)
            if time.monotonic() > end:
                raise FleetError("RLlib's env runners play no games any more: too many were lost (workers.restarts)")


@contextlib.contextmanager
def rllib_crew(config: FineTuningConfig, spec: GameSpec, done: int) -> Iterator[RllibCrew]:
    """RLlib on Ray, as `finetuning.crew`; `workers.rollouts: 0` plays in this process, but RLlib wants a Ray all the same."""
    given = config.workers
    most = cpus() if given.rollouts is None else given.rollouts
    with session(given.address, most + 1) as there:
        wanted = rollouts_on(there(), 1) if given.rollouts is None else given.rollouts
        crew = RllibCrew(config, spec, done, dividing(config.training.rollouts, wanted))
        try:
            yield crew
        finally:
            if ray.is_initialized():
                crew.close()


def dividing(games: int, most: int) -> int:
    """The most env runners, at most `most`, that play the same number of an episode's games; 0 stays 0."""
    return max((n for n in range(1, most + 1) if games % n == 0), default=0)
