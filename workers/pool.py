"""Learner shards and SUMO rollouts as one pool: preferences or routes in, simulated traffic out.

With Ray, a fleet of learners turns latents into routes (kept in the object store) and a fleet of rollout actors simulates
them; with `rollouts=0` the same plain classes run in this process, which is what one debugs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
from numpy.typing import NDArray

from ..policies.problem import Problem
from .fleet import Failure, Fleet, Rules
from .member import Question
from .pipeline import LearnerActor, Pipeline, RolloutActor, World
from .placement import MEMORY, Reservation, learners_for, rollout_options
from .simulator import Job, Replan, Simulator
from .sumo import Rollout

Array = NDArray[np.float32]
_JEMALLOC = Path(ray.__file__).parent / "core" / "libjemalloc.so"
# Environment of a rollout actor. SUMO allocates all the time and all over its heap: with the allocator that Ray brings, in
# pages of 2 MiB, its steps take a tenth less than with the C library's. Empty where Ray brings none.
ALLOCATOR = {"LD_PRELOAD": str(_JEMALLOC), "MALLOC_CONF": "thp:always,metadata_thp:auto"} if _JEMALLOC.exists() else {}
# Of an actor that rolls out a world model: its tensors of megabytes come and go, and are not to be given back in between.
TENSOR_ALLOCATOR = ALLOCATOR and {**ALLOCATOR, "MALLOC_CONF": ALLOCATOR["MALLOC_CONF"] + ",dirty_decay_ms:-1"}
ROOM_EVERY = 30.0  # seconds without any learner, or the reward service, until a rollout worker makes room
FLOWS_AT_ONCE = 8  # candidates screened in one call: alone, one would be mostly messages


class Pool(Protocol):
    """Runs simulations and screens candidates."""

    @property
    def restarts(self) -> int:
        """Workers replaced so far."""

    def add(self, world: str, problem: Problem) -> None:
        """Lets jobs be simulated in another problem: on an edited network, for example."""

    def simulate(self, jobs: Iterable[Job]) -> Iterator[tuple[str, Rollout | Failure]]: ...

    def flows(self, candidates: Iterable[tuple[Array, Array]]) -> list[Array]:
        """Expected vehicles entering each road per minute, `[roads, minutes]`, for pairs of latent and traffic state."""

    def close(self) -> None: ...


class LocalPool:
    """Everything in this process, one simulation at a time."""

    restarts = 0

    def __init__(self, problem: Problem, replan: Replan, deadline: float) -> None:
        self._way = (replan, deadline)
        self._simulators = {"": Simulator(problem, replan, deadline)}

    def add(self, world: str, problem: Problem) -> None:
        if world not in self._simulators:
            self._simulators[world] = Simulator(problem, *self._way)

    def simulate(self, jobs: Iterable[Job]) -> Iterator[tuple[str, Rollout | Failure]]:
        for job in jobs:
            simulator = self._simulators[job.world]
            try:
                routes = None
                if job.z is not None and job.queue is not None:
                    routes = simulator.learner().routes(job.z, job.queue)
                yield job.key, simulator.simulate(job, routes)
            except RuntimeError as error:
                yield job.key, Failure(str(error))

    def flows(self, candidates: Iterable[tuple[Array, Array]]) -> list[Array]:
        return self._simulators[""].flows(list(candidates))

    def close(self) -> None:
        for simulator in self._simulators.values():
            simulator.close()


class RayPool:
    """A fleet of learners and a fleet of rollout actors on Ray.

    Args:
        rules: of rollouts and learners; the deadline is one simulation's.
        room: how many rollout actors there shall be, asked before simulations begin.
        learners: how many; by default as many as exact ones have to be for the rollouts that there are at first.
        reward_device: of the reward service, whose room is reserved with the learners'.
        memory: MiB that Ray reserves for each actor.
        pulse: called several times a second while results are waited for, with the fleet that waits.
    """

    def __init__(
        self,
        problem: Problem,
        replan: Replan,
        rules: Rules,
        room: Callable[[], int],
        learners: int | None = None,
        reward_device: str = "cpu",
        memory: int = MEMORY,
        pulse: Callable[[Fleet], None] = lambda _: None,
    ) -> None:
        shared = ray.put(problem)  # by the driver, the owner of everything
        learners = learners or learners_for(room())
        device = problem.learner.device
        self.reservation = Reservation([device] * learners + [reward_device], memory)
        rollout_class = ray.remote(RolloutActor)
        learner_class = ray.remote(LearnerActor)

        def rollout() -> Any:
            options = rollout_class.options(**rollout_options(memory), runtime_env={"env_vars": ALLOCATOR})
            return options.remote(shared, replan, rules.deadline)

        def learner() -> Any:
            return learner_class.options(**self.reservation.options(device)).remote(shared)

        def alive() -> Question:
            return "process", ()

        self._worlds: dict[str, World | None] = {"": None}
        self._room = room
        self._pulse = pulse
        self._made_room = 0.0
        # A simulation's own deadline comes first; the fleet's is for processes that no longer answer at all.
        longer = replace(rules, deadline=1.5 * rules.deadline + 60.0)
        self.rollouts = Fleet("rollout worker", rollout, room(), longer, alive, "close", pulse=self.pulse)
        inbox = self.rollouts.inbox
        self.learners = Fleet("learner", learner, learners, longer, alive, inbox=inbox, pulse=self.pulse)
        self._pipeline = Pipeline(self.learners, self.rollouts, self._worlds)

    def pulse(self, fleet: Fleet) -> None:
        """What fleets call while they wait.

        Rollout workers make room for learners and the reward service: where a node was lost they may hold all that is left.
        Now and then one of them leaves, and those that wait for room themselves, who would take its place. They come back
        with the next simulations.
        """
        self._pulse(fleet)
        if fleet is self.rollouts:
            return
        self.rollouts.tend()
        waiting, age = fleet.waiting()
        now = time.monotonic()
        if waiting == len(fleet) and min(age, now - self._made_room) >= ROOM_EVERY:
            self._made_room = now
            homeless, _ = self.rollouts.waiting()
            self.rollouts.resize(max(1, len(self.rollouts) - homeless - 1))

    @property
    def restarts(self) -> int:
        return self.rollouts.restarts + self.learners.restarts

    def add(self, world: str, problem: Problem) -> None:
        if world not in self._worlds:
            self._worlds[world] = World(world, ray.put(problem))

    def simulate(self, jobs: Iterable[Job]) -> Iterator[tuple[str, Rollout | Failure]]:
        self.rollouts.resize(self._room())
        yield from self._pipeline.simulate(jobs)

    def flows(self, candidates: Iterable[tuple[Array, Array]]) -> list[Array]:
        # By the rollout actors: nothing is simulated while candidates are screened.
        source = iter(candidates)
        batches = iter(lambda: list(islice(source, FLOWS_AT_ONCE)), [])
        found: dict[Any, list[Array]] = {}
        for key, flows in self.rollouts.run("flows", ((i, (batch,)) for i, batch in enumerate(batches))):
            if isinstance(flows, Failure):
                raise RuntimeError(f"screening failed: {flows.error}")
            found[key] = flows
        return [flow for i in range(len(found)) for flow in found[i]]

    def close(self) -> None:
        self.rollouts.close()
        self.learners.close()
        self.reservation.release()
