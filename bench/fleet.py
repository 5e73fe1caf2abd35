"""The driver of a fleet: how much of what its workers could do is lost to it as they become many.

A thousand processes do not fit on one machine, so the workers only sleep: each host process is many of them, every one of
which does one call after the other, as an actor does. What they are sent and send back has the sizes of the town's. Then once
more with learners, one for sixteen workers, which answer at once and whose routes nobody fetches: they double the messages.
"""

from __future__ import annotations

import asyncio
import pickle
import time
from typing import Any

import numpy as np
import ray
from measure import Result
from throng.cluster.session import session
from throng.scenarios.macro import Macro
from throng.workers.fleet import Fleet, Rules
from throng.workers.pipeline import Pipeline
from throng.workers.placement import learners_for
from throng.workers.simulator import Job
from throng.workers.sumo import Rollout

HOSTS = 2  # processes that the workers share
SECONDS = 1.0  # that a simulation sleeps
ROUNDS = 60  # simulations of each worker
ROUTES = 1557 * 20  # numbers: the roads of all vehicles
QUEUES = (114, 30)  # roads, minutes
LATENT = (9, 16)


class Host:
    """Many workers that sleep, each with one call at a time, and some of the learners."""

    def __init__(self) -> None:
        self._busy: dict[int, asyncio.Lock] = {}
        self._answer = Rollout(
            Macro(np.zeros(QUEUES, np.float32)), 0, "micro", False, 1557, 0, 0, 0, 30, SECONDS, SECONDS
        )
        self._routes = np.zeros(ROUTES, np.int32)

    async def simulate(self, seat: int, message: bytes, learnt: Any, world: None) -> list[Rollout]:
        jobs = pickle.loads(message)
        async with self._busy.setdefault(seat, asyncio.Lock()):
            await asyncio.sleep(SECONDS * len(jobs))
        return [self._answer] * len(jobs)

    @ray.method(num_returns=2)
    async def routes(self, seat: int, message: bytes, world: None) -> tuple[None, Any]:
        return None, self._routes

    async def process(self, seat: int) -> int:
        return seat


class Seat:
    """One of a host's workers or learners, as a fleet takes an actor."""

    def __init__(self, host: Any, number: int) -> None:
        self._host = host
        self._number = number
        self._actor_id = host._actor_id

    def __getattr__(self, method: str) -> Any:
        asked = getattr(self._host, method)

        class Method:
            remote = staticmethod(lambda *arguments: asked.remote(self._number, *arguments))

        return Method


def workers(quick: bool) -> list[Result]:
    """Simulations done against those that so many workers could have done, from the first job to the last result."""
    sizes = (1, 100) if quick else (1, 10, 100, 1000)
    rounds = 3 if quick else ROUNDS
    with session("local", HOSTS):
        routed = {size: _kept(size, rounds, learn=False) for size in sizes}
        learnt = _kept(sizes[-1], rounds, learn=True)
    largest = sizes[-1]
    parts = [f"{size}: {kept:.3f}, driver at {100 * share:.0f} % of a core" for size, (kept, share) in routed.items()]
    parts.append(f"{largest} with learners: {learnt[0]:.3f}, driver at {100 * learnt[1]:.0f} %")
    about = f"{largest} workers of {SECONDS:.0f} s, of what they could do"
    return [Result(about, routed[largest][0], 0.95, "higher", f"{rounds} rounds; {'; '.join(parts)}")]


def _kept(size: int, rounds: int, learn: bool) -> tuple[float, float]:
    """The share of what `size` workers could do that they did, and that of a core which the driver took meanwhile."""
    hosts = [ray.remote(Host).options(num_cpus=0, max_concurrency=4 * size).remote() for _ in range(HOSTS)]
    numbers = iter(range(10**9))

    def create() -> Seat:
        number = next(numbers)
        return Seat(hosts[number % HOSTS], number)

    rules = Rules(600.0)
    rollouts = Fleet("sleeper", create, size, rules, lambda: ("process", ()))
    learners = Fleet("learner", create, learners_for(size), rules, lambda: ("process", ()), inbox=rollouts.inbox)
    pipeline = Pipeline(learners, rollouts, {"": None})
    z, queue = np.zeros(LATENT, np.float32), np.zeros(QUEUES, np.float32)
    jobs = [
        Job(f"g001-micro-i{i:05d}", 0, z=z if learn else None, queue=queue, routes=None if learn else ("A0B0",))
        for i in range(rounds * size)
    ]
    assert sum(1 for _ in pipeline.simulate(jobs[:size])) == size  # all are there
    began, cpu = time.perf_counter(), time.process_time()
    assert sum(1 for _ in pipeline.simulate(jobs)) == len(jobs)
    wall = time.perf_counter() - began
    share = (time.process_time() - cpu) / wall
    for host in hosts:
        ray.kill(host)
    return rounds * SECONDS / wall, share
