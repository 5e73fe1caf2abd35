"""Learners and rollouts at work at once: routes go from one to the other by way of the object store, never the driver's.

A message carries one job, as a rule. Where simulations are so quick and workers so many that the driver would be busy with
messages alone, each carries several: fewer towards the end, so that all workers end at about the same time.
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby, islice
from operator import length_hint
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import ObjectLostError

from ..policies.problem import Problem
from ..scenarios.demand import Routes
from .fleet import Failure, Fleet
from .learner import Learner
from .simulator import Job, Replan, Simulator
from .sumo import Rollout

Array = NDArray[np.float32]
MESSAGES = 200.0  # a second to learners and as many to rollouts: half of what a driver manages, which has more to do


@dataclass(frozen=True)
class World:
    """A problem in the object store; an actor fetches it when it first works on it."""

    name: str
    reference: Any

    def problem(self) -> Problem:
        return ray.get(self.reference)


def packed(what: Any) -> bytes:
    """Arguments as bytes: Ray's own way with a job takes the driver three times as long, which many workers feel."""
    return pickle.dumps(what, protocol=5)


def _on_cpu(problem: Problem) -> Problem:
    """The problem as an actor without a GPU works on it."""
    return replace(problem, learner=replace(problem.learner, device="cpu"))


def _one_thread(problem: Problem) -> None:
    """Keeps torch, where it is needed, to the one processor that an actor has."""
    if problem.learner.kind in ("dqn", "iql"):
        import torch

        torch.set_num_threads(1)


class Actor:
    """What a fleet asks of every actor."""

    def process(self) -> int:
        return os.getpid()

    def memory(self) -> int:
        """Bytes resident."""
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class LearnerActor(Actor):
    def __init__(self, problem: Problem) -> None:
        _one_thread(problem)
        self._learners = {"": Learner(problem)}

    @ray.method(num_returns=2)
    def routes(self, message: bytes, world: World | None = None) -> tuple[None, list[Routes]]:
        """Routes for pairs of latent and traffic state.

        They stay in the object store until a rollout fetches them; the driver only hears that they are there.
        """
        pairs: list[tuple[Array, Array]] = pickle.loads(message)
        name = "" if world is None else world.name
        if world is not None and name not in self._learners:
            self._learners[name] = Learner(world.problem())
        return None, [self._learners[name].routes(z, queue) for z, queue in pairs]


class RolloutActor(Actor):
    def __init__(self, problem: Problem, replan: Replan, deadline: float) -> None:
        _one_thread(problem)
        self._way = (replan, deadline)
        self._simulators = {"": Simulator(_on_cpu(problem), replan, deadline)}

    def simulate(self, message: bytes, learnt: tuple[Any, ...], world: World | None = None) -> list[Rollout]:
        """Simulates jobs of one world, with the routes that `learnt` refers to, if any."""
        jobs: list[Job] = pickle.loads(message)
        name = "" if world is None else world.name
        if world is not None and name not in self._simulators:
            self._simulators[name] = Simulator(_on_cpu(world.problem()), *self._way)
        simulator = self._simulators[name]
        routes: list[Routes | None] = [None] * len(jobs)
        try:
            for reference in learnt:
                routes = ray.get(reference)
        except ObjectLostError:  # gone with the node of their learner: learnt again here
            for i, job in enumerate(jobs):
                assert job.z is not None
                assert job.queue is not None
                routes[i] = simulator.learner().routes(job.z, job.queue)
        return [simulator.simulate(job, one) for job, one in zip(jobs, routes, strict=True)]

    def flows(self, candidates: list[tuple[Array, Array]]) -> list[Array]:
        return self._simulators[""].flows(candidates)

    def close(self) -> None:
        for simulator in self._simulators.values():
            simulator.close()


def _flaw(rollouts: list[Rollout]) -> str:
    """What is wrong with the results of simulations."""
    for rollout in rollouts:
        counts = (rollout.macro.queue, rollout.macro.count)  # a speed may be unknown: nobody drove there
        simulated = [one[:, : rollout.minutes] for one in counts if one is not None]
        if not all(np.isfinite(one).all() for one in simulated):
            return "queues or counts are not finite"
    return ""


@dataclass(frozen=True, eq=False)
class _Message:
    """Jobs of one world that go together, all with routes that have to be learnt or none: the key of their calls."""

    jobs: list[Job]

    def __str__(self) -> str:
        more = len(self.jobs) - 1
        return f"{self.jobs[0].key} and {more} more" if more else self.jobs[0].key


class Pipeline:
    """Learns and simulates jobs; a learner works at most a few messages ahead of the rollouts.

    Args:
        learners, rollouts: fleets of the actors above, the first with the inbox of the second.
        worlds: by the names that jobs give.
    """

    def __init__(self, learners: Fleet, rollouts: Fleet, worlds: Mapping[str, World | None]) -> None:
        self._learners = learners
        self._rollouts = rollouts
        self._worlds = worlds
        self._seconds = math.inf  # of a simulation, lately

    def simulate(self, jobs: Iterable[Job]) -> Iterator[tuple[str, Rollout | Failure]]:
        """Results by key, in the order in which they come."""
        yield from self._simulate(self._messages(jobs))

    def _simulate(self, messages: Iterable[_Message]) -> Iterator[tuple[str, Rollout | Failure]]:
        failed: list[Job] = []
        for message, result in self._answers(messages):
            if not isinstance(result, Failure):
                for job, rollout in zip(message.jobs, result, strict=True):
                    before = rollout.seconds if math.isinf(self._seconds) else self._seconds
                    self._seconds = 0.9 * before + 0.1 * rollout.seconds
                    yield job.key, rollout
            elif len(message.jobs) == 1:
                yield message.jobs[0].key, result
            else:  # each by itself shows which of them it was
                failed += message.jobs
        if failed:
            yield from self._simulate(_Message([job]) for job in failed)

    def _messages(self, jobs: Iterable[Job]) -> Iterator[_Message]:
        """Drawn lazily."""
        left, workers = length_hint(jobs), len(self._rollouts)
        for _, alike in groupby(jobs, key=lambda job: (job.world, job.learns)):
            while together := list(islice(alike, max(1, min(self._at_once(workers), left // workers)))):
                left -= len(together)
                yield _Message(together)

    def _at_once(self, workers: int) -> int:
        """How many jobs a message to one of so many workers takes, if there are enough of them."""
        return math.ceil(workers / (MESSAGES * max(self._seconds, 1e-3)))

    def _answers(self, messages: Iterable[_Message]) -> Iterator[tuple[_Message, list[Rollout] | Failure]]:
        refused: list[tuple[_Message, Failure]] = []

        def world(message: _Message) -> World | None:
            return self._worlds[message.jobs[0].world]

        def learnt() -> Iterator[tuple[_Message, tuple[bytes, tuple[Any, ...], World | None]] | None]:
            given: list[_Message] = []

            def to_learn() -> Iterator[tuple[_Message, tuple[bytes, World | None]]]:
                for message in messages:
                    if message.jobs[0].learns:
                        yield message, (packed([(job.z, job.queue) for job in message.jobs]), world(message))
                    else:
                        given.append(message)

            for learning in self._learners.run("routes", to_learn(), wait=False, lent=True):
                if learning is None:
                    yield None
                    continue
                message, routes = learning
                assert isinstance(message, _Message)
                if isinstance(routes, Failure):
                    refused.append((message, routes))
                else:
                    # In a tuple: Ray would otherwise wait for it before the call, and fail the call if it is lost.
                    yield message, (packed(message.jobs), (routes,), world(message))
            for message in given:
                yield message, (packed(message.jobs), (), world(message))

        for message, result in self._rollouts.run("simulate", learnt(), check=_flaw, count=len):
            assert isinstance(message, _Message)
            yield message, result
        yield from refused
