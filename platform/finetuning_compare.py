"""Fine-tuners side by side on one scene, over seeds and a grid of settings: `throng compare` of a case with `system:`.

Every (seed, fine-tuner, values of what varies) is an ordinary run below the folder,
`seed0/trafficgamer-terms.distance_limit=3-algorithm.confidence=0`: it can be gone on with and looked at like any other.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from ..policies.marl.algorithms import ALGORITHMS
from ..scenarios.errors import InputError
from .compare import write_result
from .config import read_yaml, settings_of, validated
from .finetuning import BLOCK, run
from .finetuning_config import RLLIB, FineTuningConfig
from .finetuning_scores import BASELINES, DISTANCES, Axis, Score, ratios, score, summarise, trends
from .store import RunStore

ABOUT = {
    "mappo": "fine-tuning: PPO for every agent with a critic that sees what all see, TrafficGamer's baseline",
    "trafficgamer": "fine-tuning: PPO towards a coarse correlated equilibrium, under a constraint on distances",
    "masac": "fine-tuning: soft actor-critic for every agent, CCE-MASAC's baseline",
    "cce-masac": "fine-tuning: soft actor-critic towards a coarse correlated equilibrium",
    RLLIB: "fine-tuning: RLlib's PPO with MAPPO's actors and settings",
}
OPTIONS = {"seed": "--seeds", "system": "--methods", "name": "--out"}  # settings that these have in their hands
MOST = 2  # settings that vary


@dataclass(frozen=True)
class Planned:
    """One run that is asked for."""

    method: str
    cell: dict[str, str]  # values of what varies, by key
    seed: int
    config: FineTuningConfig
    left_out: tuple[str, ...]  # settings of `algorithm` that other fine-tuners have and this one has not

    @property
    def label(self) -> str:
        return "-".join([self.method, *(f"{key}={value}" for key, value in self.cell.items())])

    @property
    def run(self) -> str:
        """Its folder, below that of all."""
        return f"seed{self.seed}/{self.label}"


def chosen(text: str | None, system: str) -> list[str]:
    """Fine-tuners of a comma-separated list (None: the case's own system and its baseline).

    Raises:
        InputError: a name is unknown, or given twice.
    """
    if text is None:
        if system not in ABOUT:
            raise InputError(f"system: no fine-tuner {system!r}; known: {', '.join(ABOUT)}")
        return [system, *([BASELINES[system]] if system in BASELINES else [])]
    names = text.split(",")
    for name in names:
        if name not in ABOUT:
            raise InputError(f"--methods: the case is a fine-tuning; no fine-tuner {name!r}; known: {', '.join(ABOUT)}")
        if names.count(name) > 1:
            raise InputError(f"--methods: {name} is given twice")
    return names


def axes_of(given: Sequence[str]) -> list[Axis]:
    """What `--vary` asks for.

    Raises:
        InputError: not `KEY=VALUE,VALUE,…`, the same again, or too much.
    """
    axes: list[Axis] = []
    for one in given:
        key, _, text = one.partition("=")
        values = tuple(value.strip() for value in text.split(","))
        if not key or len(values) < 2 or not all(re.fullmatch(r"[\w.+-]+", value) for value in values):
            raise InputError(
                f"--vary {one}: expected KEY=VALUE,VALUE,… with at least two values of letters, digits, '.', '_', '+' and "
                "'-', e.g. --vary terms.distance_limit=3,7,11"
            )
        if len({yaml.safe_load(value) for value in values}) < len(values):
            raise InputError(f"--vary {one}: a value is given twice")
        if key in OPTIONS:
            raise InputError(f"--vary {one}: use {OPTIONS[key]}")
        if key in (axis.key for axis in axes):
            raise InputError(f"--vary {one}: {key} is given twice")
        axes.append(Axis(key, values))
    if len(axes) > MOST:
        raise InputError(f"--vary: at most {MOST} settings may vary at once, not {len(axes)}")
    return axes


def planned(
    path: Path | None, overrides: list[str], methods: list[str], axes: list[Axis], seeds: list[int]
) -> list[Planned]:
    """All runs, their settings checked.

    Settings of `algorithm` go to the fine-tuners that have them. One that neither a compared fine-tuner nor the case's own
    system has is an error, and so is one that varies and that a compared fine-tuner has not.

    Raises:
        InputError: naming the setting.
    """
    for axis, method in itertools.product(axes, methods):
        group, _, name = axis.key.partition(".")
        if group == "algorithm" and name not in _settings(method):
            raise InputError(
                f"--vary {axis.key}: {method} has no such setting; it has {', '.join(_settings(method))}. Leave it out of "
                "--methods, or vary something else"
            )
    # The case as it is: what is wrong with it is said before what is wrong with a part of it.
    own = settings_of(path, overrides, {}).get("system")
    known = {name for method in {own, *methods} if method in ABOUT for name in _settings(method)}
    found = []
    for seed in seeds:
        for method in methods:
            for values in itertools.product(*(axis.values for axis in axes)):
                cell = {axis.key: value for axis, value in zip(axes, values, strict=True)}
                sets = [f"{key}={value}" for key, value in ({**cell, "seed": seed, "system": method}).items()]
                data = settings_of(path, [*overrides, *sets], {})
                given = data.get("algorithm")
                left_out = []
                if isinstance(given, dict):
                    left_out = [name for name in given if name in known and name not in _settings(method)]
                    data["algorithm"] = {name: value for name, value in given.items() if name not in left_out}
                config = validated(FineTuningConfig, data, path)
                found.append(Planned(method, cell, seed, config, tuple(left_out)))
    return found


def _settings(method: str) -> list[str]:
    return [one.name for one in fields(ALGORITHMS["mappo" if method == RLLIB else method].settings)]


def compare(runs: list[Planned], out: Path, console: Console) -> list[Score]:
    """Does all runs below `out`, those finished excepted; returns what they came to.

    Raises:
        InputError: bad inputs, or a folder that holds something else.
    """
    for method, left_out in {one.method: one.left_out for one in runs}.items():
        if left_out:
            console.print(
                f"{method}: without algorithm.{', algorithm.'.join(left_out)}, which it has not", highlight=False
            )
    scores = []
    for number, one in enumerate(runs, 1):
        directory = out / one.run
        there = _there(directory)
        if there is None or not _finished(directory, there, one.config):
            console.print(f"run {number} of {len(runs)}: {one.label}, seed {one.seed}", highlight=False)
            # What is measured may change without training again; only a resumed run writes down that it has.
            measured_anew = there is not None and _training(there) == _training(one.config)
            run(one.config, directory, measured_anew, console)
        scores.append(score(one.method, one.cell, one.seed, out, one.run))
    return scores


def _there(directory: Path) -> FineTuningConfig | None:
    """Of the run in a folder; None: there is none, or one of another kind."""
    path = directory / "config.yaml"
    data = read_yaml(path) if path.exists() else {}
    return validated(FineTuningConfig, data, path) if "system" in data else None


def _training(config: FineTuningConfig) -> dict[str, Any]:
    """What decides what is learnt."""
    return config.model_dump(exclude={"evaluation", "workers"})


def _finished(directory: Path, there: FineTuningConfig, config: FineTuningConfig) -> bool:
    """Where it ran changes no result."""
    store = RunStore.open(directory)
    done = store.manifest().get("episodes", 0) >= config.training.episodes
    return done and store.read_json("evaluation.json") is not None and (
        there.model_copy(update={"workers": config.workers}) == config
    )  # fmt: skip


# Measures of a run, and how a table shows them: heading and format.
MEASURES = {
    "return": ("return", ".2f"),
    "gap": ("CCE-gap", ".3f"),
    "restricted": ("restricted", ".3f"),
    "gap_less_cost": ("less cost", ".3f"),
    "crashes": ("crash", ".2f"),
    "spacing_m": ("spacing", ".2f"),
    "least_spacing_m": ("least", ".2f"),
    "speed_m_s": ("speed", ".2f"),
    "cost": ("cost", ".3f"),
    "multiplier": ("multiplier", ".4f"),
    "seconds": ("s/episode", ".2f"),
}
SPREAD = ("return", "gap", "restricted")  # shown with their standard deviation over seeds
LEARNT = ("return", "gap", "restricted", "gap_less_cost")
DRIVING = ("crashes", "spacing_m", "least_spacing_m", "speed_m_s", "cost", "multiplier")


def headings(axes: list[Axis]) -> list[list[str]]:
    """Of three tables: what was learnt, how that drives, and how it lies to the record."""
    first = ["fine-tuner", *(axis.name for axis in axes)]
    return [
        [*first, "runs", *(MEASURES[name][0] for name in LEARNT)],
        [*first, *(MEASURES[name][0] for name in DRIVING)],
        [*first, *(f"{quantity}: KL, H, W1" for quantity in DISTANCES), MEASURES["seconds"][0]],
    ]


def cells(row: dict[str, Any], axes: list[Axis]) -> list[list[str]]:
    """A row of each of the tables, under `headings`."""
    values = row["values"]

    def number(name: str, digits: str | None = None) -> str:
        one = values.get(name, {"mean": None, "sd": None})
        if one["mean"] is None:
            return "–"
        digits = digits or MEASURES[name][1]
        spread = f" ± {one['sd']:{digits}}" if name in SPREAD and one["sd"] is not None else ""
        return f"{one['mean']:{digits}}{spread}"

    first = [row["method"], *(row["cell"].get(axis.key, "–") for axis in axes)]
    apart = [", ".join(number(f"{quantity}_{key}", ".3f") for key in keys) for quantity, keys in DISTANCES.items()]
    apart = ["–" if set(one) <= set("–, ") else one for one in apart]
    runs = str(row["runs"]) if row["runs"] else "–"
    return [
        [*first, runs, *map(number, LEARNT)],
        [*first, *map(number, DRIVING)],
        [*first, *apart, number("seconds")],
    ]


EXPLAINED = (
    f"Means over runs (± s.d. over seeds). return: of a game, last {BLOCK} episodes; CCE-gap: in reward, by best responses, "
    "mean of drivers, as is restricted: among the world model's modes; less cost: CCE-gap in reward less multipliers times "
    "cost; crash: share of drivers whose box overlaps another's; spacing: m, from a driver to the nearest other, mean over "
    "time; least: a future's least spacing; speed: m/s; cost: share of moments with another driver nearer than the limit; "
    "multiplier: mean over training; KL (nats), H (Hellinger) and W1 (m/s "
    "and m): speeds and spacings against the record; s/episode: as they passed."
)


def told(scores: list[Score], axes: list[Axis]) -> list[str]:
    """What follows from the table, a line each."""
    lines = []
    of = "seeds" if len(axes) == 1 else "pairs of a seed and the other's value"
    for one in ratios(scores):
        what = "CCE-gap" if one["measure"] == "gap" else "restricted gap"
        lines.append(
            f"{what}, {one['method']} / {one['baseline']}: {one['ratio']:.3f} (ratio of means); below 1 in "
            f"{one['below']} of {one['pairs']} pairs of runs"
        )
    for one in trends(scores, axes):
        heading, digits = MEASURES[one["measure"]]
        ratio = "" if one["ratio"] is None else f", ratio {one['ratio']:.2f}"
        way = "rises" if one["last"] >= one["first"] else "falls"
        lines.append(
            f"{one['method']}, {one['key']} from {one['from']} to {one['to']}: {heading} {one['first']:{digits}} to "
            f"{one['last']:{digits}}{ratio}; {way} at every step in {one[way]} of {one['of']} {of}"
        )
    return lines


def write(out: Path, name: str, command: str, scores: list[Score], axes: list[Axis]) -> Path:
    """Writes NAME.json, NAME.md and pictures to `out`; returns the table's path."""
    from .finetuning_pictures import pictures

    rows = summarise(scores)
    data = {
        "command": command, "vary": [asdict(axis) for axis in axes], "scores": [asdict(one) for one in scores],
        "rows": rows, "ratios": ratios(scores), "trends": trends(scores, axes),
    }  # fmt: skip
    first = 1 + len(axes)  # columns that all tables begin with
    shown = [headings(axes), *(cells(row, axes) for row in rows)]
    table = [own + driving[first:] + record[first:] for own, driving, record in shown]
    text = "\n\n".join([EXPLAINED, "\n".join(f"- {line}" for line in told(scores, axes))]).strip()
    (_, main), *more = pictures(out, scores, rows, axes).items()
    return write_result(out, name, command, text, table, main, data, dict(more))
