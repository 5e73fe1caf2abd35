"""The search as it runs: workers on Ray, a generation's time, individuals per core."""

from __future__ import annotations

import io
import math
import multiprocessing
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from measure import Cost, Pressure, Result, here, in_turns, plain_sumo, ratio
from ray.cluster_utils import Cluster
from rich.console import Console
from rollouts import options
from throng.cluster.session import cpus, session
from throng.platform.experiment import _commit
from throng.platform.progress import Progress
from throng.platform.search import Search
from throng.platform.simulations import Outcome, Simulations
from throng.platform.store import RunStore
from throng.platform.target import Target
from throng.platform.workbench import workbench
from throng.policies.diffusion import DiffusionSettings
from throng.policies.problem import Problem
from throng.workers.fleet import Failure, Rules
from throng.workers.placement import cpus_for
from throng.workers.pool import LocalPool, Pool, RayPool
from throng.workers.reward import RewardClient
from throng.workers.simulator import Job
from town import SEED, configuration, town

WORKERS = 2
NODES = 3
DEADLINE = 600.0  # s


def silent() -> Progress:
    """A progress display that nobody sees."""
    return Progress(Console(file=io.StringIO()))


@dataclass(frozen=True)
class Throughput:
    """How fast a pool simulates."""

    rate: float  # rollouts per second
    inside: float  # seconds in rollouts per second: workers that are at work


def simulate_all(pool: Pool, jobs: list[Job]) -> Throughput:
    """Simulates jobs that have to succeed."""
    began, inside = time.perf_counter(), 0.0
    for key, result in pool.simulate(jobs):
        if isinstance(result, Failure):
            raise RuntimeError(f"simulation {key} failed: {result.error}")
        inside += result.seconds
    wall = time.perf_counter() - began
    return Throughput(len(jobs) / wall, inside / wall)


def ray_workers(quick: bool) -> list[Result]:
    """Rollouts per second of two workers on Ray, against as many processes that know nothing of each other."""
    with session("local", cpus_for(WORKERS, None)):
        return [_workers(quick, WORKERS, f"Ray, {WORKERS} workers / {WORKERS} processes without Ray")]


def nodes(quick: bool) -> list[Result]:
    """Rollouts per second of a worker on each of three local nodes; learners are on the head."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(NODES):
            cluster.add_node(num_cpus=1, labels={"ray.io/market-type": "spot"})
        with session(cluster.address, 0):
            return [_workers(quick, NODES, f"Ray, {NODES} nodes of a worker / a process on every core")]
    finally:
        cluster.shutdown()


def _workers(quick: bool, workers: int, name: str) -> Result:
    """Of the Ray that this process is connected to. Linear is what the cores there are yield without it."""
    home = town(1557)
    problem = home.case.problem
    each = 2 if quick else 8
    jobs = [Job(f"{i}", SEED + i % 4, z=home.z, queue=home.queue) for i in range(each * workers)]
    rounds = 1 if quick else 6
    processes = min(workers, cpus())
    pressure = Pressure()
    pool = RayPool(problem, "pretrip", Rules(DEADLINE), lambda: workers)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, _open_alone, (problem,)) as apart:

        def without_ray(processes: int) -> float:
            """Rollouts per second."""
            began = time.perf_counter()
            for _ in apart.map(_simulate_alone, [jobs[i::workers] for i in range(processes)]):
                pass
            return processes * each / (time.perf_counter() - began)

        simulate_all(pool, jobs[: 2 * workers])
        without_ray(processes)
        without = [without_ray(processes)]
        together: list[Throughput] = []
        alone: list[float] = []
        for _ in range(rounds):
            together.append(simulate_all(pool, jobs))
            alone.append(without_ray(1))
            without.append(without_ray(processes))
    pool.close()
    # Others use this machine, too: each round is compared with what came just before and just after it.
    ratios = [2 * one.rate / (without[i] + without[i + 1]) for i, one in enumerate(together)]
    detail = (
        f"median of {rounds} rounds ({min(ratios):.2f} to {max(ratios):.2f}) of {len(jobs)} rollouts on {workers} workers, "
        f"each against {processes} processes before and after it; of the workers' time, "
        f"{median(one.inside / workers for one in together):.3f} is in rollouts; those {processes} processes at once reach "
        f"{median(without) / (processes * median(alone)):.2f} of {processes} times one; {pressure}"
    )
    return Result(name, median(ratios), 0.85, "higher", detail)


_alone: list[LocalPool] = []  # of a process of `_workers`


def _open_alone(problem: Problem) -> None:
    _alone.append(LocalPool(problem, "pretrip", DEADLINE))


def _simulate_alone(jobs: list[Job]) -> None:
    simulate_all(_alone[0], jobs)


class Recorded(Simulations):
    """Adds up the time spent inside SUMO, and counts the simulations."""

    inside = 0.0  # s
    count = 0

    def stream(self, jobs: Iterable[Job]) -> Iterator[tuple[str, Outcome]]:
        for key, outcome in super().stream(jobs):
            self.inside += outcome.sumo_seconds
            self.count += 1
            yield key, outcome


def generation(quick: bool) -> list[Result]:
    """The share of a generation's wall time in which the workers are inside SUMO; all else is overhead.

    Generation 0 starts the processes and is not counted; those after it screen, train, commit and journal as
    in a run.
    """
    config = configuration(1557, ladder="[micro]", population=4 if quick else 16, budget=1e6)
    config = config.model_copy(update={"workers": config.workers.model_copy(update={"rollouts": WORKERS})})
    shares, counts = [], []
    pressure = Pressure()
    with tempfile.TemporaryDirectory(prefix="throng-bench-") as name:
        store = RunStore.create(Path(name), config)
        case = town(1557).case
        with silent() as progress, workbench(config, store, progress, case) as bench:
            model = case.problem.preference_model()
            reward = RewardClient(model.shape, None, DiffusionSettings(), 0, remote=True)
            recorded = Recorded(bench.simulations.pool, store, progress)
            search = Search(
                config.search, config.seed, bench.target, bench.reference, len(case.scenario.demand),
                model.shape, recorded, reward, progress, math.nan,
            )  # fmt: skip
            for _ in range(2 if quick else 4):
                recorded.inside, recorded.count = 0.0, 0
                began = time.perf_counter()
                search.generation()
                _commit(search, store)
                shares.append(recorded.inside / (WORKERS * (time.perf_counter() - began)))
                counts.append(recorded.count)
            reward.close()
        store.close()
    detail = (
        f"median of generations 1 to {len(shares) - 1}: {', '.join(f'{share:.3f}' for share in shares[1:])} "
        f"(0: {shares[0]:.3f}); population {config.search.population}, {counts[-1]} micro simulations each, "
        f"{WORKERS} workers; {pressure}"
    )
    return [Result("share of a generation inside SUMO", median(shares[1:]), 0.8, "higher", detail)]


def mesoscopic_search(quick: bool) -> list[Result]:
    """Individuals judged per core-second, from latent to error, against plain mesoscopic simulations."""
    home = town(1557)
    scenario = home.case.scenario
    pool = LocalPool(home.case.problem, "pretrip", DEADLINE)
    target = Target("queue", home.queue, scenario.network)
    count = 2 if quick else 8
    jobs = [Job(f"{i}", SEED, "meso", True, home.z, home.queue) for i in range(count)]
    screen = home.case.config.search.screen

    def judged() -> None:
        for _, result in pool.simulate(jobs):
            target.rmse(target.quantity(result.macro))  # type: ignore[union-attr]

    def screened() -> None:
        pool.flows([(home.z, home.queue)] * (screen * count))

    arguments = options(home, home.routes, "meso-quiet", "meso", quiet=True)

    def plain() -> Cost:
        parts = [plain_sumo(arguments) for _ in range(count)]
        return Cost(sum(part.wall for part in parts), sum(part.cpu for part in parts))

    def learnt() -> None:
        for _ in jobs:
            home.learner.routes(home.z, home.queue)

    ways = {"judged": judged, "learnt": learnt, "screened": screened}
    calls = {name: partial(here, way) for name, way in ways.items()}
    costs = in_turns(2 if quick else 7, {"plain": plain, **calls})
    pool.close()
    value = ratio(costs["plain"], costs["judged"])
    paired = [a.cpu / b.cpu for a, b in zip(costs["plain"], costs["judged"], strict=True)]
    detail = (
        f"median of {len(paired)} paired CPU ratios of {count} individuals ({min(paired):.3f} to "
        f"{max(paired):.3f}); decode, learn and route are {ratio(costs['learnt'], costs['judged']):.0%} of "
        f"it; screening {screen} candidates for each adds {ratio(costs['screened'], costs['judged']):.0%}"
    )
    return [Result("mesoscopic individuals / plain sumo --mesosim", value, 0.6, "higher", detail)]
