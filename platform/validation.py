"""Would a what-if be right? Drivers learnt from the queues of hidden ones meet the same edit as those (MASDiff, RQ2).

For every hidden truth and search seed, Throng learns from the traffic before the edit alone. Then the edit is made, and what
it predicts is compared with what the hidden drivers do, over roads that stay open: the level (correlation over roads and
minutes) and, harder, the change of each road's mean queue, because streets and trips alone explain much of the level.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console

from ..policies.features import static_features
from ..policies.reward_model import recover
from ..scenarios.edited import Edited, apply_edits
from ..scenarios.edits import Edits
from ..scenarios.errors import InputError
from ..scenarios.truths import STRUCTURED
from . import nulls
from .case import Case, load_case
from .compare import compare, write_result
from .config import load_config
from .counterfactual import Counterfactual, by_weights, hidden, simulate
from .experiment import Solution
from .figures import INK, MODEL, MUTED, SECOND
from .methods import METHODS, OWN
from .progress import Progress
from .seeds import child_seed
from .store import RunStore
from .workbench import workbench

Array = NDArray[np.float32]
TABLE = "table"
TRUTH, CEILING, POPULATION = "truth", "ceiling", "true population, others in it"
NAME, BEST, PRIOR, DRAWS = "throng", "throng, best alone", "prior draw", "prior, mean of draws"
MEMBERS = 5  # explanations whose mean is the answer, populations, and draws from the prior


@dataclass(frozen=True)
class Scores:
    """How well the effect of an edit was predicted, for one hidden truth and search seed."""

    predictor: str
    truth: int
    seed: int
    level: float  # correlation of queues after the edit over roads and minutes
    change: float  # correlation of the change of mean queues over the roads that stay open
    change_all: float  # the same with closed roads, whose queues go to zero whatever is predicted
    error: float  # root mean squared error of that change over the roads that stay open, vehicles


@dataclass(frozen=True, eq=False)
class Prediction:
    """Mean queues over seeds on the rows of the network before the edit."""

    before: Array  # [roads, minutes]
    after: Array  # [roads, minutes]; zero on roads that are closed


@dataclass(frozen=True, eq=False)
class Validation:
    """What was edited, and how all predictors did."""

    edits: Edits
    removed: int  # connections that the edit takes away
    scores: list[Scores]
    first: dict[str, tuple[Array, Array]]  # of the first truth and seed: predictor -> (true, predicted) change by road


def validate(
    path: Path | None,
    overrides: list[str],
    edits: Edits,
    truths: list[int],
    seeds: list[int],
    simulations: int,
    out: Path,
    console: Console,
) -> Validation:
    """Learns for every truth and seed (finished searches below `out` are taken), makes the edit, and scores.

    Args:
        simulations: seeds of every before and every after.

    Raises:
        InputError: no hidden drivers, or wrong edits, before any simulation.
    """
    if edits.empty:
        raise InputError("no edit given; `throng validate --help` lists them, e.g. --close ROAD")
    config = load_config(path, overrides)
    if config.target.observed is not None or config.target.truth == "published":
        raise InputError(
            f"{config.name}: what drivers who really exist would do under an edit is not known; validate with hidden ones: "
            "--set target.observed=null --set target.truth=structured"
        )
    with tempfile.TemporaryDirectory(prefix="throng-") as scratch:
        case = load_case(config, Path(scratch))
        edited = apply_edits(case.scenario, edits, Path(scratch) / "edited", child_seed(config.seed, "demand scale"))
        removed = _removed(case, edited)
    compare(path, overrides, [METHODS[OWN], METHODS[TABLE]], truths, seeds, out, console)
    scores: list[Scores] = []
    first: dict[str, tuple[Array, Array]] = {}
    with Progress(console) as progress:
        for truth in truths:
            for seed in seeds:
                folder = out / f"truth{truth}-seed{seed}"
                progress.phase(f"truth {truth}, seed {seed}")
                pairs, closed = _predictions(folder, edits, simulations, progress)
                true = pairs.pop(TRUTH)
                scores += [_score(name, truth, seed, true, one, closed) for name, one in pairs.items()]
                first = first or {name: _changes(true, one, closed) for name, one in pairs.items()}
    return Validation(edits, removed, scores, first)


def _removed(case: Case, edited: Edited) -> int:
    """Connections of the network that the edited one lacks."""
    network = edited.scenario.network
    start, end = edited.kept[network.connections[network.allowed]].T
    kept = case.scenario.network.find_connections(start, end)
    return int(case.scenario.network.allowed.sum() - (kept >= 0).sum())


def _predictions(
    folder: Path, edits: Edits, simulations: int, progress: Progress
) -> tuple[dict[str, Prediction], NDArray[np.bool_]]:
    """Traffic before and after the edit of the hidden drivers and of all predictors; which roads are closed."""
    store = RunStore.open(folder / OWN)
    config = store.config()
    solution = Solution.load(folder / OWN / "solution.safetensors")
    with tempfile.TemporaryDirectory(prefix="throng-") as scratch:
        case = load_case(config, Path(scratch) / "case")
        table_case = load_case(RunStore.open(folder / TABLE).config(), Path(scratch) / "table")
        edited = apply_edits(case.scenario, edits, Path(scratch) / "edited", child_seed(config.seed, "demand scale"))
        model, phi = case.problem.preference_model(), static_features(case.scenario.network, case.problem.scaler)
        with workbench(config, store, progress, case) as bench:
            progress.phase(f"what if, {folder.name}")
            count = MEMBERS if case.config.target.truth in STRUCTURED else 0  # has a population to draw others from
            learnt = zip(solution.z[:MEMBERS], solution.tau[:MEMBERS], strict=True)
            table = nulls.literal(table_case, Solution.load(folder / TABLE / "solution.safetensors"))
            alone = [nulls.shortest(bench), nulls.fastest(bench), nulls.static(bench), table]
            groups = {
                TRUTH: [hidden(bench, "truth")],
                CEILING: [hidden(bench)],  # the same people, other seeds
                POPULATION: [hidden(bench, individuals=i + 1) for i in range(count)],
                NAME: [by_weights(f"{i}", recover(model, z, phi).weights, tau) for i, (z, tau) in enumerate(learnt)],
                PRIOR: nulls.prior(bench, model, phi, MEMBERS),
                **{one.name: [one] for one in alone},
            }
            everybody = [one for group in groups.values() for one in group]
            bias_scale = case.problem.navigator(model).bias_scale
            found = iter(simulate(bench, edited, everybody, simulations, bias_scale, progress))
    roads = case.scenario.network.road_count
    means = {name: [_mean(next(found), edited, roads) for _ in group] for name, group in groups.items()}
    named: dict[str, Prediction] = {}
    for name, several in means.items():
        named |= {f"{PRIOR} {i}": one for i, one in enumerate(several)} if name == PRIOR else {}
        named |= {DRAWS if name == PRIOR else name: _average(several)} if several else {}
        named |= {BEST: several[0]} if name == NAME else {}
    closed = np.ones(case.scenario.network.road_count, bool)
    closed[edited.kept[edited.kept >= 0]] = False
    return named, closed


def _mean(pair: Counterfactual, edited: Edited, roads: int) -> Prediction:
    before, after = (side.mean(axis=0) for side in pair.queues)
    there = np.zeros((roads, before.shape[1]), np.float32)
    kept = edited.kept >= 0
    there[edited.kept[kept]] = after[kept]
    return Prediction(before, there)


def _average(several: Sequence[Prediction]) -> Prediction:
    return Prediction(*(np.mean([getattr(one, side) for one in several], axis=0) for side in ("before", "after")))


def _changes(true: Prediction, predicted: Prediction, closed: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Change of each road's mean queue, of roads that stay open: true, and as predicted."""
    return tuple((one.after - one.before).mean(axis=1)[~closed] for one in (true, predicted))


def _score(
    name: str, truth: int, seed: int, true: Prediction, predicted: Prediction, closed: NDArray[np.bool_]
) -> Scores:
    real, guess = _changes(true, predicted, closed)
    everywhere = _changes(true, predicted, np.zeros_like(closed))
    return Scores(
        name, truth, seed,
        _correlation(true.after[~closed].ravel(), predicted.after[~closed].ravel()),
        _correlation(real, guess),
        _correlation(*everywhere),
        float(np.sqrt(np.mean(np.square(real - guess)))),
    )  # fmt: skip


def _correlation(a: Array, b: Array) -> float:
    """Pearson's; 0 where one of them does not vary: it tells nothing of the other."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


@dataclass(frozen=True)
class Row:
    """One predictor over all truths and seeds."""

    predictor: str
    level: tuple[float, float]  # mean, s.d.
    change: tuple[float, float]
    of_ceiling: tuple[float, float]  # change as a share of the ceiling's on the same truth and seed: mean, least
    change_all: tuple[float, float]
    error: tuple[float, float]
    beaten: str  # in how many (truth, seed) throng's change correlates better


def summarise(scores: list[Scores]) -> list[Row]:
    """A row for each predictor, in their order; draws from the prior are one predictor, of which the mean is scored."""
    by_case: dict[str, dict[tuple[int, int], list[Scores]]] = {}
    for one in scores:
        name = PRIOR if one.predictor.startswith(PRIOR) else one.predictor
        by_case.setdefault(name, {}).setdefault((one.truth, one.seed), []).append(one)

    def values(name: str, column: str) -> NDArray[np.float64]:
        return np.array([np.mean([getattr(one, column) for one in several]) for several in by_case[name].values()])

    def spread(name: str, column: str) -> tuple[float, float]:
        return _spread(values(name, column))

    own, ceiling = values(NAME, "change"), values(CEILING, "change")
    rows = []
    for name in by_case:
        change = values(name, "change")
        share = change / ceiling
        better = "–" if name in (NAME, CEILING, POPULATION, BEST) else f"{int((own > change).sum())} of {own.size}"
        rows.append(
            Row(
                name, spread(name, "level"), _spread(change), (float(share.mean()), float(share.min())),
                spread(name, "change_all"), spread(name, "error"), better,
            )
        )  # fmt: skip
    return rows


def _spread(several: NDArray[np.float64]) -> tuple[float, float]:
    return float(several.mean()), float(several.std(ddof=1)) if several.size > 1 else float("nan")


HEADINGS = ("predictor", "level", "change", "÷ ceiling", "all roads", "RMSE", "throng ahead")


def cells(row: Row, spread: bool = True) -> list[str]:
    """A row of the table, under HEADINGS."""

    def pair(values: tuple[float, float]) -> str:
        mean, sd = values
        return f"{mean:.3f}" + (f" ± {sd:.3f}" if spread and np.isfinite(sd) else "")

    return [
        row.predictor, pair(row.level), pair(row.change),
        f"{row.of_ceiling[0]:.3f}" + (f" (least {row.of_ceiling[1]:.3f})" if spread else ""),
        pair(row.change_all), pair(row.error), row.beaten,
    ]  # fmt: skip


def explained(result: Validation, simulations: int) -> str:
    """What the table's columns mean."""
    runs = len({(one.truth, one.seed) for one in result.scores})
    return (
        f"{', '.join(result.edits.words())}: {result.removed} connections fewer. Means ± s.d. over {runs} hidden truths and "
        f"search seeds, {simulations} simulations each before and after. level: correlation of queues after the edit over "
        "roads and minutes; change: correlation of the change of each road's mean queue, roads that stay open; ÷ ceiling: "
        "that as a share of what the hidden drivers themselves reach under other seeds; true population, others in it: mean "
        f"of {MEMBERS} draws of other people, all that an aggregate teaches by distribution; all roads: change with those "
        "that are closed, whose queues go whatever is predicted; RMSE: of the change, vehicles; throng: mean of "
        f"{MEMBERS} explanations; throng ahead: of (truth, seed), by change."
    )


def write(out: Path, name: str, command: str, result: Validation, rows: list[Row], simulations: int) -> Path:
    """Writes NAME.json, NAME.md and NAME.png to `out`; returns the table's path."""
    data = {
        "command": command, "edits": result.edits.words(), "removed": result.removed,
        "scores": [asdict(one) for one in result.scores], "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    table = [HEADINGS, *(cells(row) for row in rows)]
    return write_result(out, name, command, explained(result, simulations), table, draw(result), data)


def draw(result: Validation) -> Figure:
    """Every predictor's correlations, and the changes of one truth and seed: true against predicted."""
    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    dots, own, null = figure.subplots(1, 3, width_ratios=[1.5, 1, 1])
    names = [row.predictor for row in summarise(result.scores)]
    for y, name in enumerate(reversed(names)):
        several = [one.change for one in result.scores if one.predictor == name or one.predictor.startswith(f"{name} ")]
        colour = MODEL if name == NAME else MUTED
        dots.plot(several, [y] * len(several), "o", color=colour, markersize=4, alpha=0.6, markeredgewidth=0)
        dots.plot([np.mean(several)], [y], "|", color=colour, markersize=16, markeredgewidth=2)
    dots.set_yticks(range(len(names)), list(reversed(names)))
    dots.set_xlabel("correlation of the change, roads that stay open", color=INK)
    first = result.scores[0]
    rest = [row for row in summarise(result.scores) if row.beaten != "–" and row.predictor in result.first]
    best = max(rest, key=lambda row: row.change[0]).predictor
    reach = max(float(np.abs(result.first[name]).max()) for name in (NAME, best)) * 1.08
    for axes, name, colour in ((own, NAME, MODEL), (null, best, SECOND)):
        true, predicted = result.first[name]
        axes.axline((0, 0), slope=1, color=MUTED, linewidth=0.8)
        axes.plot(true, predicted, "o", color=colour, markersize=3.5, alpha=0.7, markeredgewidth=0)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        axes.set_title(f"{name}, truth {first.truth}, seed {first.seed}\nchange of mean queues, vehicles", fontsize=9)
        axes.set_xlabel("true", color=INK)
    own.set_ylabel("predicted", color=INK)
    for axes in (dots, own, null):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
