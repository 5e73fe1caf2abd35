"""Learner shards and SUMO rollouts as one pool: preferences or routes in, simulated traffic out.

With Ray, a fleet of learners turns latents into routes (kept in the object store) and a fleet of rollout actors simulates
them; with `rollouts=0` the same plain classes run in this process, which is what one debugs.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import ObjectLostError

from ..policies.problem import Problem
from ..policies.screening import road_flows
from ..scenarios.demand import Routes
from .fleet import Failure, Fleet, Rules
from .junction import JunctionControl
from .learner import Learner
from .member import Question
from .placement import MEMORY, Reservation, learners_for, rollout_options
from .sumo import GiveUp, Rollout, SumoRollout
from .sumo_files import Fidelity

Array = NDArray[np.float32]
Replan = Literal["pretrip", "junction"]
_JEMALLOC = Path(ray.__file__).parent / "core" / "libjemalloc.so"
# Environment of a rollout actor. SUMO allocates all the time and all over its heap: with the allocator that Ray brings, in
# pages of 2 MiB, its steps take a tenth less than with the C library's. Empty where Ray brings none.
ALLOCATOR = {"LD_PRELOAD": str(_JEMALLOC), "MALLOC_CONF": "thp:always,metadata_thp:auto"} if _JEMALLOC.exists() else {}
ROOM_EVERY = 30.0  # seconds without any learner, or the reward service, until a rollout worker makes room
FLOWS_AT_ONCE = 8  # candidates screened in one call: alone, one would be mostly messages


@dataclass(frozen=True, eq=False)
class Job:
    """One simulation: of a latent learnt at a traffic state, or of given routes."""

    key: str
    seed: int
    fidelity: Fidelity = "micro"
    quiet: bool = False
    z: Array | None = None
    queue: Array | None = None  # [roads, minutes] the traffic state z is learnt at
    routes: Routes | tuple[str, ...] | None = None
    give_up: GiveUp | None = None
    world: str = ""  # the problem to simulate in, as added to the pool; "": the pool's own


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


class Simulator:
    """Simulates jobs in one process: SUMO, and junction policies where routes are decided live."""

    def __init__(self, problem: Problem, replan: Replan, deadline: float) -> None:
        self._problem = problem
        self._replan = replan
        self._deadline = deadline
        self._rollout = SumoRollout(problem.scenario)
        self._learner: Learner | None = None

    def learner(self) -> Learner:
        if self._learner is None:
            self._learner = Learner(self._problem)
        return self._learner

    def simulate(self, job: Job, routes: Routes | tuple[str, ...] | None) -> Rollout:
        """Runs one job with the routes learnt for it (or the job's own)."""
        chosen = job.routes if routes is None else routes
        control = None
        if self._replan == "junction" and job.z is not None and isinstance(chosen, Routes):
            assert job.queue is not None
            policy = self.learner().junction_policy(job.z, job.queue)
            control = JunctionControl(self._problem.scenario, policy, chosen)
        assert chosen is not None
        return self._rollout.run(chosen, job.seed, job.fidelity, job.quiet, job.give_up, self._deadline, control)

    def flows(self, candidates: list[tuple[Array, Array]]) -> list[Array]:
        """Flows of the vehicles that have learnt from `z` at traffic state `queue`, without a simulation."""
        scenario, learner = self._problem.scenario, self.learner()
        return [road_flows(scenario, learner.routes(z, queue), queue) for z, queue in candidates]

    def close(self) -> None:
        self._rollout.close()


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


@dataclass(frozen=True)
class _World:
    """A problem in the object store; an actor fetches it when it first works on it."""

    name: str
    reference: Any

    def problem(self) -> Problem:
        return ray.get(self.reference)


def _packed(what: Any) -> bytes:
    """Arguments as bytes: Ray's own way with a job takes the driver three times as long, which many workers feel."""
    return pickle.dumps(what, protocol=5)


class _Actor:
    """What a fleet asks of every actor."""

    def process(self) -> int:
        return os.getpid()

    def memory(self) -> int:
        """Bytes resident."""
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _one_thread(problem: Problem) -> None:
    """Keeps torch, where it is needed, to the one processor that an actor has."""
    if problem.learner.kind in ("dqn", "iql"):
        import torch

        torch.set_num_threads(1)


class _LearnerActor(_Actor):
    def __init__(self, problem: Problem) -> None:
        _one_thread(problem)
        self._learners = {"": Learner(problem)}

    @ray.method(num_returns=2)
    def routes(self, packed: bytes, world: _World | None = None) -> tuple[None, Routes]:
        """The routes stay in the object store until a rollout fetches them; the driver only hears that they are there."""
        z, queue = pickle.loads(packed)
        name = "" if world is None else world.name
        if world is not None and name not in self._learners:
            self._learners[name] = Learner(world.problem())
        return None, self._learners[name].routes(z, queue)


def on_cpu(problem: Problem) -> Problem:
    """The problem as an actor without a GPU works on it."""
    return replace(problem, learner=replace(problem.learner, device="cpu"))


class _RolloutActor(_Actor):
    def __init__(self, problem: Problem, replan: Replan, deadline: float) -> None:
        _one_thread(problem)
        self._way = (replan, deadline)
        self._simulators = {"": Simulator(on_cpu(problem), replan, deadline)}

    def simulate(self, packed: bytes, learnt: tuple[Any, ...], world: _World | None = None) -> Rollout:
        """Simulates a job with the routes that `learnt` refers to, if any."""
        job: Job = pickle.loads(packed)
        if world is not None and world.name not in self._simulators:
            self._simulators[world.name] = Simulator(on_cpu(world.problem()), *self._way)
        simulator = self._simulators[job.world]
        routes = None
        try:
            for reference in learnt:
                routes = ray.get(reference)
        except ObjectLostError:  # gone with the node of their learner: learnt again here
            assert job.z is not None
            assert job.queue is not None
            routes = simulator.learner().routes(job.z, job.queue)
        return simulator.simulate(job, routes)

    def flows(self, candidates: list[tuple[Array, Array]]) -> list[Array]:
        return self._simulators[""].flows(candidates)

    def close(self) -> None:
        for simulator in self._simulators.values():
            simulator.close()


def _flaw(rollout: Rollout) -> str:
    """What is wrong with a simulation's result."""
    counts = (rollout.macro.queue, rollout.macro.count)  # a speed may be unknown: nobody drove there
    simulated = [one[:, : rollout.minutes] for one in counts if one is not None]
    return "" if all(np.isfinite(one).all() for one in simulated) else "queues or counts are not finite"


class RayPool:
    """A fleet of learners and a fleet of rollout actors on Ray.

    Args:
        rules: of rollouts and learners; the deadline is one simulation's.
        room: how many rollout actors there shall be, asked before simulations begin.
        learners: how many; by default as many as exact ones have to be for the rollouts that there are at first.
        reward_device: of the reward service, whose room is reserved with the learners'.
        memory: MiB that Ray reserves for a rollout actor.
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
        self.reservation = Reservation([device] * learners + [reward_device])
        rollout_class = ray.remote(_RolloutActor)
        learner_class = ray.remote(_LearnerActor)

        def rollout() -> Any:
            options = rollout_class.options(**rollout_options(memory), runtime_env={"env_vars": ALLOCATOR})
            return options.remote(shared, replan, rules.deadline)

        def learner() -> Any:
            return learner_class.options(**self.reservation.options(device)).remote(shared)

        def alive() -> Question:
            return "process", ()

        self._worlds: dict[str, _World | None] = {"": None}
        self._room = room
        self._pulse = pulse
        self._made_room = 0.0
        # A simulation's own deadline comes first; the fleet's is for processes that no longer answer at all.
        longer = replace(rules, deadline=1.5 * rules.deadline + 60.0)
        self.rollouts = Fleet("rollout worker", rollout, room(), longer, alive, "close", pulse=self.pulse)
        inbox = self.rollouts.inbox
        self.learners = Fleet("learner", learner, learners, longer, alive, inbox=inbox, pulse=self.pulse)

    def pulse(self, fleet: Fleet) -> None:
        """What fleets call while they wait.

        Rollout workers make room for learners and the reward service, one by one: where a node was lost they may hold all
        that is left. They come back with the next simulations.
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
            self._worlds[world] = _World(world, ray.put(problem))

    def simulate(self, jobs: Iterable[Job]) -> Iterator[tuple[str, Rollout | Failure]]:
        """Learns and simulates in a pipeline: a learner works at most a few jobs ahead of the rollouts."""
        self.rollouts.resize(self._room())
        by_key: dict[str, Job] = {}

        def learnt() -> Iterator[tuple[str, tuple[bytes, tuple[Any, ...], _World | None]] | None]:
            given: list[Job] = []

            def to_learn() -> Iterator[tuple[str, tuple[bytes, _World | None]]]:
                for job in jobs:
                    if job.z is None or job.queue is None:
                        given.append(job)
                    else:
                        by_key[job.key] = job
                        yield job.key, (_packed((job.z, job.queue)), self._worlds[job.world])

            for learning in self.learners.run("routes", to_learn(), wait=False, lent=True):
                if learning is None:
                    yield None
                    continue
                key, routes = learning
                if isinstance(routes, Failure):
                    failed.append((str(key), routes))
                else:
                    job = by_key.pop(str(key))
                    # In a tuple: Ray would otherwise wait for it before the call, and fail the call if it is lost.
                    yield job.key, (_packed(job), (routes,), self._worlds[job.world])
            for job in given:
                yield job.key, (_packed(job), (), self._worlds[job.world])

        failed: list[tuple[str, Failure]] = []
        for key, result in self.rollouts.run("simulate", learnt(), check=_flaw):
            yield str(key), result
        yield from failed

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
