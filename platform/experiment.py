"""The main job from configuration to result: `run`, and `evaluate` on its result."""

from __future__ import annotations

import math
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file, save
from tensorboardX import SummaryWriter

from ..policies.diffusion import DiffusionSettings
from ..policies.preferences import PreferenceModel
from ..scenarios.macro import noise_gap
from ..workers.pool import RayPool
from ..workers.reward import ModelName, RewardClient
from ..workers.simulator import Job
from . import references as refs
from .case import load_case
from .checkpoint import load_search, save_search
from .config import Config
from .evolution import Individual
from .progress import Progress
from .proposals import CmaEs, Guided, Prior, Source
from .references import Reference
from .search import Search
from .simulations import Outcome
from .store import RunStore
from .workbench import Workbench, workbench

Array = NDArray[np.float32]
ENSEMBLE = 10  # accepted latents that stand for what is not identified
ACCEPTED = 1.05  # times the lowest estimated error: about how well errors are estimated


@dataclass(frozen=True, eq=False)
class Solution:
    """What a search found: an ensemble of accepted latents with the traffic states they were learnt at.

    The first is the best; the others are accepted explanations in the order in which they add something new.
    """

    z: Array  # [ensemble, *latent]
    tau: Array  # [ensemble, roads, minutes]
    estimate: NDArray[np.float64]  # [ensemble] error

    @property
    def digest(self) -> str:
        """Names the best explanation: its simulations must not be taken for another's."""
        return f"{zlib.crc32(self.z[0].tobytes() + self.tau[0].tobytes()):08x}"

    def save(self, store: RunStore) -> None:
        tensors = {"z": self.z, "tau": self.tau, "estimate": self.estimate}
        flat = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()}
        store.write("solution.safetensors", lambda path: path.write_bytes(save(flat)))

    @classmethod
    def load(cls, path: Path) -> Solution:
        return cls(**{name: value.numpy() for name, value in load_file(path).items()})


def run(
    config: Config,
    directory: Path,
    resume: bool,
    console: Console,
    sibling: Path | None = None,
    heard: Callable[[dict[str, float]], None] = lambda _: None,
) -> RunStore:
    """Runs the search to its end (or on from where it stopped) and evaluates the result; returns the store, closed.

    `sibling` is a run of another method on the same case, truth and seed, whose floors and nulls are taken over. `heard` is
    told of every generation when it has been committed, and of the last one when a run goes on: a row of its history.

    Raises:
        InputError: bad inputs or a directory in use, before any simulation.
        FleetError: more workers were lost than the configuration allows.
    """
    with opened(config, directory, resume, console, sibling) as (bench, store, known, progress):
        solution = _search(bench, store, known, progress, heard)
        evaluate(bench, store, known, solution, config.report.seeds, progress)
    return store


@contextmanager
def opened(
    config: Config, directory: Path, resume: bool, console: Console, sibling: Path | None
) -> Iterator[tuple[Workbench, RunStore, dict[str, Reference], Progress]]:
    """A run's case loaded and its folder locked, workers started, floors and nulls measured; all closed at the end."""
    with tempfile.TemporaryDirectory(prefix="throng-") as scratch:
        case = load_case(config, Path(scratch))
        store = RunStore.create(directory, config, extend=resume)
        try:
            if sibling is not None:
                refs.take_over(store, sibling)
            with Progress(console) as progress, workbench(config, store, progress, case) as bench:
                progress.phase("floors and nulls")
                known = refs.measure(bench, case.problem.preference_model(), config.report.reference_seeds)
                yield bench, store, known, progress
        finally:
            store.close()


def _search(
    bench: Workbench,
    store: RunStore,
    known: dict[str, Reference],
    progress: Progress,
    heard: Callable[[dict[str, float]], None],
) -> Solution:
    case = bench.case
    config, model = case.config, case.problem.preference_model()
    reward = _reward_service(bench, model)
    try:
        floor = known[refs.SEED_FLOOR].mean if refs.SEED_FLOOR in known else math.nan
        vehicles = len(case.scenario.demand)
        search = Search(
            config.search, config.seed, bench.target, bench.reference, vehicles, model.shape, bench.simulations,
            reward, progress, floor, _source(bench, model, reward),
        )  # fmt: skip
        facts = store.manifest()
        if facts["generation"] >= 0:
            load_search(search, store.checkpoint(), facts)
            heard(search.state.history[-1])
        progress.phase("searching", share=search.ladder.spent / config.search.budget)
        writer = SummaryWriter(str(store.directory))
        while not search.finished:
            search.generation()
            _commit(search, store)
            for name, value in search.state.history[-1].items():
                if math.isfinite(value):
                    writer.add_scalar(name, value, search.state.generation)
            writer.flush()
            bench.simulations.telemetry.generation(search.state.history[-1])
            heard(search.state.history[-1])
        writer.close()
        search.conclude()
        solution = _solution(search)
        solution.save(store)
        row = search.best()
        store.write_json(
            "result.json",
            {
                "spent": search.ladder.spent,
                "simulations": search.ladder.counts,
                "generations": search.state.generation,
                "best_id": row.id,
                "best_samples": row.samples,
                "restarts": bench.simulations.pool.restarts + (reward.restarts if reward else 0),
                "finished": time.time(),
            },
        )
    finally:
        if reward is not None:
            reward.close()
    return solution


def _reward_service(bench: Workbench, model: PreferenceModel) -> RewardClient | None:
    """The generator of candidates; None where nothing is learnt."""
    case = bench.case
    if case.config.search.proposals in ("random", "cma"):
        return None
    trips = case.problem.trips() if len(model.shape) == 2 else None
    pool = bench.simulations.pool
    search, device = case.config.search, case.config.diffusion.device
    kind: ModelName = search.generator
    if search.proposals in ("guided", "proxy"):
        kind = search.proposals
    given_to = (model.shape, trips, diffusion_settings(case.config), bench.seed("diffusion"))
    if isinstance(pool, RayPool):
        options = partial(pool.reservation.options, device)
        return RewardClient(*given_to, remote=True, kind=kind, device=device, options=options, pulse=pool.pulse)
    return RewardClient(*given_to, remote=False, kind=kind, device=device)


def diffusion_settings(config: Config) -> DiffusionSettings:
    """The sizes of the model that the reward service holds."""
    given = config.diffusion
    return DiffusionSettings(
        steps=given.steps,
        width=given.width,
        learning_rate=given.learning_rate,
        updates=given.updates,
        batch=given.batch,
        prior_share=given.prior_share,
    )


def _source(bench: Workbench, model: PreferenceModel, reward: RewardClient | None) -> Source | None:
    """Where candidates come from, if not from evolution."""
    given = bench.case.config.search
    if given.proposals == "random":
        return Prior(model.shape)
    if given.proposals == "cma":
        return CmaEs(model.shape, given.population, bench.seed("cma"))
    if given.proposals in ("guided", "proxy"):
        assert reward is not None
        return Guided(reward, given.replay)
    return None


def _commit(search: Search, store: RunStore) -> None:
    tensors, facts = save_search(search)
    elite = {one.id for one in search.state.elites}
    rows = [
        {
            "id": one.id,
            "generation": one.generation,
            "operator": one.operator,
            "parent": one.parent,
            "estimate": one.estimate,
            "error_meso": one.error.get("meso"),
            "error_quiet": one.error.get("quiet"),
            "error_micro": one.error.get("micro"),
            "samples": one.samples,
            "seeds": one.seeds,
            "elite": one.id in elite,
            "genome": one.z.ravel(),
        }
        for one in [*search.born, *(e for e in search.state.elites if e.generation < search.state.generation - 1)]
    ]
    store.commit(search.state.generation - 1, rows, search.ladder.traffic, tensors, facts)


def _solution(search: Search) -> Solution:
    """The best individual, and unlike it as well as each other the other accepted ones that the search remembers."""
    state = search.state
    everybody: dict[int, Individual] = {}
    for group in (state.population, state.elites, *state.replay):
        everybody |= {one.id: one for one in group if math.isfinite(one.estimate)}
    best = search.best()
    others = sorted((one for one in everybody.values() if one is not best), key=lambda one: (one.estimate, one.id))
    z = np.stack([one.z.ravel() for one in (best, *others)])
    rows = diverse(z, np.array([one.estimate for one in (best, *others)]), ENSEMBLE)
    chosen = [(best, *others)[row] for row in rows]
    return Solution(
        np.stack([one.z for one in chosen]),
        np.stack([one.tau for one in chosen]).astype(np.float32),
        np.array([one.estimate for one in chosen]),
    )


def diverse(z: NDArray[np.float32], estimate: NDArray[np.float64], count: int) -> list[int]:
    """Rows of `count` explanations that fit and differ, from latents `[candidates, d]` by estimated error; first row 0.

    Accepted is who is estimated to be at most `ACCEPTED` times as wrong as the best; each one chosen is the accepted one
    farthest from those chosen before. Where fewer are accepted, the next best follow. The best by estimate alone would be
    children of one parent, who agree on all that the observations leave open.
    """
    accepted = [row for row in np.flatnonzero(estimate <= ACCEPTED * estimate.min()).tolist() if row]
    chosen = [0]
    while accepted and len(chosen) < count:
        apart = [min(float(np.square(z[row] - z[other]).sum()) for other in chosen) for row in accepted]
        chosen.append(accepted.pop(int(np.argmax(apart))))
    rest = [row for row in range(len(z)) if row not in chosen]
    return [*chosen, *rest[: count - len(chosen)]]


def evaluate(
    bench: Workbench,
    store: RunStore,
    known: dict[str, Reference],
    solution: Solution,
    seeds: int,
    progress: Progress,
) -> dict[str, Any]:
    """Re-simulates the best policies on seeds no search has seen, beside the floors and nulls; writes evaluation.json.

    For an observed target without a known truth the floor is sqrt(2) times the spread between seeds of the best policies:
    what two runs of the same drivers differ by.
    """
    progress.phase("evaluating")
    best = {"z": solution.z[0], "queue": solution.tau[0]}
    jobs = [Job(f"evaluate-{solution.digest}-{i}", bench.seed("evaluate", i), **best) for i in range(seeds)]
    return judge(bench, store, "throng", bench.must(jobs), known)


def judge(
    bench: Workbench, store: RunStore, name: str, outcomes: list[Outcome], known: dict[str, Reference]
) -> dict[str, Any]:
    """Writes evaluation.json and its tensors for simulations on fresh seeds, one outcome each, beside floors and nulls."""
    quantities = np.stack([bench.target.quantity(one.macro) for one in outcomes if one.macro is not None])
    scores = [bench.target.scores(one) for one in quantities]
    own = Reference(name, scores)
    if refs.SEED_FLOOR in known:
        floor, floor_is = known[refs.SEED_FLOOR].mean, "truth, other seeds"
    else:
        floor = float(np.sqrt(2.0 * np.nanmean(np.nanvar(quantities, axis=0, ddof=1))))
        floor_is = "sqrt(2) x spread of the best policies between seeds"
    prior = known[refs.PRIOR].mean
    rows = [_row(reference, floor, prior) for reference in [own, *known.values()]]
    result = {
        "seeds": len(outcomes),
        "unit": bench.target.unit,
        "kind": bench.target.kind,
        "floor": floor,
        "floor_is": floor_is,
        "rows": rows,
        "teleports": float(np.mean([one.teleports for one in outcomes])),
        "still_driving": float(np.mean([one.running + one.waiting for one in outcomes])),
    }
    arrays = {"simulated": quantities, "observed": bench.target.values}
    if not bench.target.by_road:
        arrays["queues"] = np.stack([one.macro.queue for one in outcomes if one.macro is not None])
    if known[refs.PRIOR].quantity_mean is not None:
        arrays["prior"] = known[refs.PRIOR].quantity_mean
    tensors = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in arrays.items()}
    store.write("evaluation.safetensors", lambda path: path.write_bytes(save(tensors)))
    store.write_json("evaluation.json", result)
    return result


def _row(reference: Reference, floor: float, prior: float) -> dict[str, Any]:
    names = ("mae", "road_rmse", "top50_corr")
    means = {name: float(np.mean([s[name] for s in reference.scores])) for name in names if name in reference.scores[0]}
    return {
        "method": reference.name,
        "rmse": reference.mean,
        "rmse_sd": reference.sd,
        "seeds": len(reference.errors),
        "gap": noise_gap(reference.mean, floor, prior),
        **means,
    }
