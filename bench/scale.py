"""Large populations and large cases: memory of the driver, growth of a generation's time."""

from __future__ import annotations

import gc
import math
import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measure import Cost, Result, here, plain_sumo
from numpy.typing import NDArray
from rollouts import options
from search import DEADLINE, silent
from throng.platform.case import load_case
from throng.platform.experiment import _commit
from throng.platform.search import Search
from throng.platform.simulations import Simulations
from throng.platform.store import RunStore
from throng.platform.target import Target
from throng.policies.diffusion import DiffusionSettings
from throng.scenarios.macro import Macro
from throng.workers.pool import LocalPool
from throng.workers.reward import Proposal, RewardClient
from throng.workers.simulator import Job
from throng.workers.sumo import Rollout
from town import configuration, town

Array = NDArray[np.float32]
TOWNS = (1557, 2758, 4423)
MIB = 2**20


class Pretended:
    """A pool and a reward service that answer at once, with arrays of the right shapes and random contents.

    What the driver keeps of an answer depends on its shape alone.
    """

    restarts = 0
    tensors: dict[str, Any] | None = None

    def __init__(self, roads: int, minutes: int, latent: tuple[int, ...]) -> None:
        self._macro, self._minutes, self._latent = (roads, minutes), minutes, latent
        self._rng = np.random.default_rng(0)

    def simulate(self, jobs: Iterable[Job]) -> Iterator[tuple[str, Rollout]]:
        for job in jobs:
            queue = 20 * self._rng.random(self._macro, np.float32)
            about = (job.seed, job.fidelity, job.quiet)
            yield job.key, Rollout(Macro(queue), *about, 0, 0, 0, 0, self._minutes, 0.0, 0.0)

    def flows(self, candidates: Iterable[tuple[Array, Array]]) -> list[Array]:
        return [20 * self._rng.random(self._macro, np.float32) for _ in candidates]

    def fit_encoder(self, queues: Array) -> None: ...

    def train(self, z: Array, queues: Array, weight: NDArray[np.float64], seed: int) -> Callable[[], float]:
        return lambda: 0.0

    def sample(self, queues: Array, seed: int) -> Proposal:
        return Proposal(self._rng.standard_normal((len(queues), *self._latent), dtype=np.float32))

    def mutate(self, genes: Array, queues: Array, kept: float, seed: int) -> Proposal:
        return Proposal(genes + self._rng.standard_normal(genes.shape, dtype=np.float32))


def memory(quick: bool) -> list[Result]:
    """What the driver's memory grows by when it searches with 500 individuals of 4,423 vehicles."""
    individuals = 40 if quick else 500
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        grown = fresh.submit(_search_memory, individuals).result()
    state = (
        f"{individuals} individuals of 4423 vehicles; {grown['remembered']:.0f} remembered with the replay; "
        f"resident set above an empty search's, after a commit: {grown['resident']:.0f} MiB"
    )
    peak = (
        f"at its highest while it screens and judges {grown['screening']:.0f} MiB, "
        f"while it commits {grown['commit']:.0f} MiB"
    )
    highest = max(grown["screening"], grown["commit"])
    return [
        Result("driver: state and ledger, GiB", grown["resident"] / 1024, 1.0, "lower", state),
        Result("driver: peak of a generation, GiB", highest / 1024, 1.0, "lower", peak),
    ]


def _search_memory(individuals: int) -> dict[str, float]:
    """Fills the replay as a run does, then looks at one more generation; MiB. For a fresh process."""
    config = configuration(4423, population=individuals, budget=1e9)
    with tempfile.TemporaryDirectory(prefix="throng-bench-") as name, silent() as progress:
        case = load_case(config, Path(name) / "town")
        network, minutes = case.scenario.network, case.scenario.minutes
        shape = case.problem.preference_model().shape
        pretended: Any = Pretended(network.road_count, minutes, shape)
        reference = np.zeros((network.road_count, minutes), np.float32)
        search = Search(
            config.search, 0, Target("queue", reference, network), reference, len(case.scenario.demand),
            shape, Simulations(pretended, None, progress), pretended, progress, math.nan,
        )  # fmt: skip
        store = RunStore.create(Path(name) / "run", config)
        start = _memory("VmRSS")
        search.settings = config.search.model_copy(update={"screen": 1})
        for _ in range(config.search.replay):
            search.generation()
        search.settings = config.search
        _forget_peak()
        search.generation()
        screening = _memory("VmHWM") - start
        _forget_peak()
        _commit(search, store)
        commit = _memory("VmHWM") - start
        store.close()
        gc.collect()
        remembered = {one.id for group in (*search.state.replay, search.state.population) for one in group}
        return {
            "resident": _memory("VmRSS") - start,
            "screening": screening,
            "commit": commit,
            "remembered": float(len(remembered)),
        }


def _memory(field: str) -> float:
    """A memory figure of this process, MiB: VmRSS now, VmHWM at its highest since `_forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def _forget_peak() -> None:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def growth(quick: bool) -> list[Result]:
    """Whether a generation grows faster than SUMO itself from one town to the next larger one."""
    towns = TOWNS[:2] if quick else TOWNS
    plain = {n: options(town(n), town(n).shortest, f"shortest-{n}") for n in towns}
    ours: dict[int, list[Cost]] = {n: [] for n in towns}
    theirs: dict[int, list[Cost]] = {n: [] for n in towns}
    for _ in range(2):
        for n in towns:
            theirs[n].append(plain_sumo(plain[n]))
    for n in towns:
        ours[n].append(here(_first_generation(n)))
        for m in towns:
            theirs[m].append(plain_sumo(plain[m]))
    results = []
    for small, large in pairwise(towns):
        generation = ours[large][0].cpu / ours[small][0].cpu
        simulation = median(b.cpu / a.cpu for a, b in zip(theirs[small], theirs[large], strict=True))
        detail = (
            f"CPU of one generation (population 4, micro, in process) grows by {generation:.2f}, of plain "
            f"sumo on shortest paths by {simulation:.2f} (median of {len(theirs[small])} pairs)"
        )
        name = f"growth {small} to {large} / SUMO's"
        results.append(Result(name, generation / simulation, 1.1, "lower", detail))
    return results


def _first_generation(vehicles: int) -> Callable[[], None]:
    home = town(vehicles)
    scenario, problem = home.case.scenario, home.case.problem
    config = configuration(vehicles, ladder="[micro]", population=4, elites=1)
    shape = home.learner.model.shape
    pool = LocalPool(problem, "pretrip", DEADLINE)
    reward = RewardClient(shape, None, DiffusionSettings(), 0, remote=False)
    target = Target("queue", home.queue, scenario.network)
    progress = silent()
    search = Search(
        config.search, 0, target, home.queue, len(scenario.demand), shape, Simulations(pool, None, progress),
        reward, progress, math.nan,
    )  # fmt: skip
    return search.generation
