"""The driver of a fleet: how much of what its workers could do is lost to it as they become many.

A thousand processes do not fit on one machine, so the workers only sleep: each host process is many of them, every one of
which does one call after the other, as an actor does. What they are sent and send back has the sizes of the town's: a job
with its traffic state, the reference of learnt routes (which nobody fetches here), and queues.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import ray
from measure import Result
from throng.cluster.session import session
from throng.workers.fleet import Fleet, Rules
from throng.workers.pool import Job, _packed

HOSTS = 2  # processes that the workers share
SECONDS = 1.0  # that a call sleeps
ROUNDS = 20  # calls of each worker
ROUTES = 1557 * 20  # numbers: the roads of all vehicles
QUEUES = (114, 30)  # roads, minutes
LATENT = (9, 16)


class Host:
    """Many workers that sleep, each with one call at a time."""

    def __init__(self) -> None:
        self._busy: dict[int, asyncio.Lock] = {}
        self._answer = np.zeros(QUEUES, np.float32)

    async def work(self, seat: int, job: bytes, lent: Any, world: None) -> Any:
        async with self._busy.setdefault(seat, asyncio.Lock()):
            await asyncio.sleep(SECONDS)
        return self._answer

    async def process(self, seat: int) -> int:
        return seat


class Seat:
    """One of a host's workers, as a fleet takes an actor."""

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
    """Calls done against those that so many workers could have done in the time, from the first call to the last answer."""
    sizes = (1, 100) if quick else (1, 10, 100, 1000)
    kept: dict[int, float] = {}
    share: dict[int, float] = {}
    with session("local", HOSTS):
        for size in sizes:
            hosts = [ray.remote(Host).options(num_cpus=0, max_concurrency=4 * size).remote() for _ in range(HOSTS)]
            numbers = iter(range(10**9))

            def create(hosts: list[Any] = hosts, numbers: Any = numbers) -> Seat:
                number = next(numbers)
                return Seat(hosts[number % HOSTS], number)

            fleet = Fleet("sleeper", create, size, Rules(600.0), lambda: ("process", ()))
            routes = ray.put(np.zeros(ROUTES, np.int32))
            job = Job("g001-micro-i00001", 0, z=np.zeros(LATENT, np.float32), queue=np.zeros(QUEUES, np.float32))

            def call(number: int, job: Job = job, routes: Any = routes) -> tuple[int, tuple[Any, ...]]:
                return number, (_packed(job), (routes,), None)

            list(fleet.run("work", map(call, range(size))))  # all are there
            rounds = 3 if quick else ROUNDS
            began, cpu = time.perf_counter(), time.process_time()
            done = sum(1 for _ in fleet.run("work", map(call, range(rounds * size))))
            wall = time.perf_counter() - began
            assert done == rounds * size
            kept[size] = rounds * SECONDS / wall
            share[size] = (time.process_time() - cpu) / wall
            for host in hosts:
                ray.kill(host)
    largest = sizes[-1]
    detail = "; ".join(f"{size}: {kept[size]:.3f}, driver at {100 * share[size]:.0f} % of a core" for size in sizes)
    about = f"{largest} workers of {SECONDS:.0f} s, of what they could do"
    return [Result(about, kept[largest], 0.95, "higher", f"{rounds} rounds; {detail}")]
