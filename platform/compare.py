"""Methods side by side on one case, at equal budget: `throng compare`.

Every (truth, seed, method) is an ordinary run below the folder, `truth0-seed1/cma`: it can be reported, evaluated and
resumed like any other. Floors and nulls are simulated by the first run of a (truth, seed) and taken over by the others
(draws from the prior by those with the same prior).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from ..scenarios.errors import InputError
from .config import Config, load_config
from .experiment import run
from .figures import INK, MUTED, spread
from .methods import OWN, PEERS, REFERENCES, Method
from .peer_run import run_peer
from .peers import DoesNotApply
from .store import RunStore, write_atomic

# Colours that stand apart for the colour-blind (Okabe and Ito), then dashed again.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


@dataclass(frozen=True)
class Score:
    """What one run ended with; errors in the target's unit, on seeds the search never used."""

    method: str
    truth: int
    seed: int
    rmse: float
    rmse_sd: float
    gap: float  # (error - floor) / (prior - floor)
    simulations: float  # micro-equivalent
    seconds: float  # of the search
    curve: tuple[tuple[float, float], ...]  # (simulations, error of the best so far) by generation
    references: dict[str, float]  # floors and nulls
    unit: str


def compare(
    path: Path | None, overrides: list[str], methods: list[Method], truths: list[int], seeds: list[int], out: Path,
    console: Console,
) -> list[Score]:  # fmt: skip
    """Runs every method for every truth and seed, those finished excepted; returns all scores.

    A peer that does not apply to the case is left out, and the reason shown.

    Raises:
        InputError: bad inputs, or a folder that holds something else.
    """
    plan = list(_plan(path, overrides, methods, truths, seeds, out))  # all settings are checked before the first run
    scores = []
    first: dict[Path, Path] = {}
    for number, (method, truth, seed, config, directory) in enumerate(plan, 1):
        if not _finished(directory, config):
            console.print(f"run {number} of {len(plan)}: {method.name}, truth {truth}, seed {seed}", highlight=False)
            sibling = first.get(directory.parent)
            try:
                if method in PEERS:
                    run_peer(method.name, config, directory, console, sibling)
                else:
                    run(config, directory, resume=False, console=console, sibling=sibling)
            except DoesNotApply as reason:
                console.print(f"{method.name} left out: {reason}", highlight=False)
                continue
        first.setdefault(directory.parent, directory)
        scores.append(_score(method.name, truth, seed, directory))
    if not scores:
        raise InputError("--methods: none of them applies to this case; the reasons are above")
    return scores


def _plan(
    path: Path | None, overrides: list[str], methods: list[Method], truths: list[int], seeds: list[int], out: Path
) -> Iterator[tuple[Method, int, int, Config, Path]]:
    for truth in truths:
        for seed in seeds:
            for method in methods:
                given = [*overrides, f"target.truth_seed={truth}", f"seed={seed}"]
                base = load_config(path, given)
                if base.target.observed is not None and len(truths) > 1:
                    raise InputError("--truths: the case has an observed table, so there is one truth only")
                # A profile brings its own size of search: the budget compared at is the case's.
                size = {
                    name: getattr(base.search, name) for name in ("population", "budget", "generations", "patience")
                }
                sizes = [f"search.{name}={value}" for name, value in size.items()]
                config = load_config(path, [*sizes, *given, *method.settings], method.profile)
                # The hidden drivers must not change with the method.
                drivers = {
                    "navigation": base.target.navigation or base.navigation,
                    "learner": base.target.learner or base.learner,
                }
                config = config.model_copy(update={"target": config.target.model_copy(update=drivers)})
                yield method, truth, seed, config, out / f"truth{truth}-seed{seed}" / method.name


def _finished(directory: Path, config: Config) -> bool:
    if not (directory / "evaluation.json").exists():
        return False
    there = RunStore.open(directory).config()
    return there.model_copy(update={"workers": config.workers}) == config  # where it ran changes no result


def _score(method: str, truth: int, seed: int, directory: Path) -> Score:
    store = RunStore.open(directory)
    evaluation, result = store.read_json("evaluation.json"), store.read_json("result.json")
    assert evaluation is not None
    assert result is not None
    own, *others = evaluation["rows"]
    rows = {row["method"]: row for row in others}
    history = store.manifest().get("history", [])  # peers have none
    best = np.minimum.accumulate([row["best"] for row in history])
    curve = [(row["simulations"], float(error)) for row, error in zip(history, best, strict=True)]
    return Score(
        method, truth, seed, own["rmse"], own["rmse_sd"], own["gap"], result["spent"],
        result.get("seconds", 0.0) + sum(row.get("seconds", 0.0) for row in history),
        tuple(curve) or ((result["spent"], own["rmse"]),),
        {name: rows[row]["rmse"] for name, row in REFERENCES.items() if row in rows},
        evaluation["unit"],
    )  # fmt: skip


def summarise(scores: list[Score]) -> list[dict[str, Any]]:
    """One row per method, best first, then floors and nulls: median, range and spread over (truth, seed)."""
    rows = []
    own = {(one.truth, one.seed): one.rmse for one in scores if one.method == OWN}
    for method in dict.fromkeys(one.method for one in scores):
        mine = [one for one in scores if one.method == method]
        ratios = [one.rmse / own[one.truth, one.seed] for one in mine if (one.truth, one.seed) in own]
        rows.append(
            {
                "method": method,
                **_spread([one.rmse for one in mine]),
                "gap": float(np.median([one.gap for one in mine])),
                "to_own": float(np.median(ratios)) if ratios else None,
                "simulations": float(np.mean([one.simulations for one in mine])),
                "seconds": float(np.mean([one.seconds for one in mine])),
            }
        )
    rows.sort(key=lambda row: row["median"])  # type: ignore[arg-type, return-value]
    for name in REFERENCES:
        # Once per (truth, seed); the prior is each method's own, that of the first is shown.
        known = {(one.truth, one.seed): one.references[name] for one in reversed(scores) if name in one.references}
        if known:
            empty = {"gap": None, "to_own": None, "simulations": None, "seconds": None}
            rows.append({"method": name, **_spread(list(known.values())), **empty})
    return rows


def _spread(errors: list[float]) -> dict[str, float]:
    sd = float(np.std(errors, ddof=1)) if len(errors) > 1 else float("nan")
    return {
        "runs": len(errors), "median": float(np.median(errors)), "mean": float(np.mean(errors)), "sd": sd,
        "high": max(errors),
    }  # fmt: skip


HEADINGS = ("method", "runs", "median", "mean ± s.d.", "worst", "gap", "÷ own", "sims", "seconds")


EXPLAINED = (
    "RMSE in {unit} over the runs, on seeds no search used. gap: (error - floor) / (prior - floor), median; "
    "÷ own: to masdiff on the same truth and seed, median; sims: micro-equivalent simulations; seconds: of the search, as "
    "they passed."
)


def explained(scores: list[Score]) -> str:
    """What the table's columns mean."""
    return EXPLAINED.format(unit=scores[0].unit)


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table, under HEADINGS."""

    def number(value: float | None, digits: int = 3) -> str:
        return "–" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"

    return [
        row["method"], str(row["runs"]), number(row["median"]), f"{number(row['mean'])} ± {number(row['sd'])}",
        number(row["high"]), number(row["gap"]), number(row["to_own"]),
        number(row["simulations"], 1), number(row["seconds"], 0),
    ]  # fmt: skip


def write(out: Path, name: str, command: str, scores: list[Score], rows: list[dict[str, Any]]) -> Path:
    """Writes NAME.json, NAME.md and NAME.png, the curves, to `out`; returns the table's path."""
    data = {"command": command, "scores": [asdict(one) for one in scores], "rows": rows}
    table = [HEADINGS, *(cells(row) for row in rows)]
    return write_result(out, name, command, explained(scores), table, curves(scores), data)


def write_result(
    out: Path, name: str, command: str, text: str, table: Sequence[Sequence[str]], figure: Figure, data: dict[str, Any],
    more: Mapping[str, Figure] | None = None,
) -> Path:  # fmt: skip
    """Writes a study's outcome as NAME.json, NAME.md and NAME.png to `out`; `table` begins with its headings.

    Args:
        more: further pictures, NAME-KEY.png.
    """
    figures = {name: figure, **{f"{name}-{key}": one for key, one in (more or {}).items()}}
    head, *body = (f"| {' | '.join(row)} |" for row in table)
    parts = [
        f"### {name}",
        f"`{command}`",
        text,
        "\n".join([head, "|" + "---|" * len(table[0]), *body]),
        *(f"![{one}]({one}.png)" for one in figures),
    ]
    RunStore(out).write_json(f"{name}.json", data)
    write_atomic(out / f"{name}.md", lambda path: path.write_text("\n\n".join(parts) + "\n"))
    for one, drawn in figures.items():
        write_atomic(out / f"{one}.png", lambda path, drawn=drawn: drawn.savefig(path, format="png"))  # type: ignore[misc]
    return out / f"{name}.md"


def curves(scores: list[Score]) -> Figure:
    """Error of the best so far against simulations used: median over runs, and their range.

    Of several truths, which differ in level: the error as a share of what lies between prior and seed floor, those of the
    first method for all.
    """
    ends = ("seed-floor", "prior")
    shares = len({one.truth for one in scores}) > 1 and all(end in one.references for one in scores for end in ends)
    first = {(one.truth, one.seed): one.references for one in reversed(scores)}

    def level(one: Score, error: Any) -> Any:
        floor, prior = (first[one.truth, one.seed][end] for end in ends) if shares else (0.0, 1.0)
        return (error - floor) / (prior - floor)

    figure = Figure(figsize=(9.5, 5.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    end = max(one.curve[-1][0] for one in scores)
    grid = np.linspace(0, end, 200)
    for i, method in enumerate(dict.fromkeys(one.method for one in scores)):
        steps = []
        for one in scores:
            if one.method == method:
                x, y = np.array(one.curve).T
                at = np.searchsorted(x, grid, side="right") - 1
                steps.append(np.where(at >= 0, level(one, y[np.maximum(at, 0)]), np.nan))
        stacked = np.stack(steps)
        shown = ~np.isnan(stacked).any(axis=0)
        colour, dash = COLOURS[i % len(COLOURS)], "-" if i < len(COLOURS) else "--"
        axes.plot(
            grid[shown], np.median(stacked[:, shown], axis=0), dash, drawstyle="steps-post", color=colour, linewidth=1.8,
            label=method, marker="o", markevery=[-1], markersize=4, clip_on=False,  # all there is of one generation
        )  # fmt: skip
        if len(steps) > 1:
            axes.fill_between(
                grid[shown], stacked[:, shown].min(axis=0), stacked[:, shown].max(axis=0), step="post", color=colour,
                alpha=0.1, linewidth=0,
            )  # fmt: skip
    known = {
        name: float(np.median([level(one, one.references[name]) for one in scores if name in one.references]))
        for name in REFERENCES
        if name != "prior" and any(name in one.references for one in scores)
    }
    for error in known.values():
        axes.axhline(error, color=MUTED, linewidth=0.9, linestyle=(0, (5, 3)))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    heights = spread(list(known.values()), [0.035 * (high - low)] * len(known), low, high)
    for name, error, y in zip(known, known.values(), heights, strict=True):
        axes.annotate(
            name, (end, error), (end * 1.03, y), va="center", fontsize=8, color=MUTED, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 0},
        )  # fmt: skip
    axes.set_xlabel("simulations used (micro-equivalents)", color=INK)
    label = (
        "gap of the best so far: 1 is the prior, 0 the seed floor"
        if shares
        else f"error of the best so far, {scores[0].unit}"
    )
    axes.set_ylabel(label, color=INK)
    axes.set_xlim(0, end)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, ncols=7, loc="outside lower center")
    return figure
