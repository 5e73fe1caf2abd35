"""What a sweep found: a table, all figures as JSON, and a picture of parallel coordinates."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..platform.compare import write_result
from ..platform.figures import INK, MUTED
from .experiments import ERROR, Objective, objective
from .spec import Range, Spec, Value
from .sweep import Plan, Trial

TICKS = 5  # labels on the axis of a range


def ranked(plan: Plan) -> list[Trial]:
    """Finished trials, best first; then the stopped, by what they had come to; then the failed."""
    order = {"finished": 0, "stopped": 1, "failed": 2, "begun": 3}
    return sorted(plan.trials, key=lambda trial: (order[trial.state], trial.error, trial.number))


def judged_by(spec: Spec) -> Objective:
    """What the sweep's trials are judged by."""
    return objective(spec.config(spec.corners()[0]))


def headings(spec: Spec) -> list[str]:
    by = judged_by(spec)
    return ["trial", by.name, *([by.beside] if by.beside else []), by.spent, "", *spec.space]


def cells(trial: Trial, spec: Spec) -> list[str]:
    """A row of the table, under `headings`."""

    def number(value: float | None) -> str:
        return f"{value:.3f}" if value is not None and math.isfinite(value) else "–"

    by = judged_by(spec)
    beside = [number(trial.sd if by == ERROR else trial.estimate)] if by.beside else []
    values = [shown(trial.point[key]) for key in spec.space]
    return [f"{trial.number:03d}", number(trial.error), *beside, f"{trial.simulations:.0f}", trial.state, *values]


def shown(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def explained(spec: Spec) -> str:
    """What the table's columns mean."""
    return (
        f"{judged_by(spec).about} Trials share the seed, and single runs scatter: run the best few again with other seeds "
        "before you believe them."
    )


def write(plan: Plan, command: str) -> Path:
    """Writes NAME.md, NAME.json and NAME.png into the sweep's folder; returns the table's path."""
    rows = ranked(plan)
    table = [headings(plan.spec), *(cells(trial, plan.spec) for trial in rows)]
    data = {"command": command, "trials": [asdict(trial) for trial in rows]}
    return write_result(plan.folder, plan.spec.name, command, explained(plan.spec), table, parallel(plan), data)


def parallel(plan: Plan) -> Figure:
    """Each trial a line over the settings and its error: finished ones by colour, the best bold, stopped ones grey.

    Stopped trials of which no error is known end at the last setting.
    """
    spec = plan.spec
    drawn = [trial for trial in reversed(ranked(plan)) if trial.state in ("finished", "stopped")]
    finished = [trial for trial in drawn if trial.state == "finished"]
    errors = [trial.error for trial in drawn if math.isfinite(trial.error)]
    low, high = min(errors), max(errors)
    span = high - low or 1.0
    shade = Normalize(low, max(trial.error for trial in finished)) if finished else Normalize(low, high)
    colours = colormaps["viridis"]
    figure = Figure(figsize=(max(6.0, 1.9 * (len(spec.space) + 1)), 5.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    across = np.arange(len(spec.space) + 1)
    label = {
        "fontsize": 7,
        "color": INK,
        "va": "center",
        "path_effects": [withStroke(linewidth=2.5, foreground="white")],
    }
    for trial in drawn:
        heights = [_height(axis, trial.point[key]) for key, axis in spec.space.items()]
        heights += [(trial.error - low) / span] if math.isfinite(trial.error) else []
        best = finished and trial is finished[-1]
        line = {"color": colours(shade(trial.error)), "linewidth": 3.0 if best else 1.4, "alpha": 0.95}
        if trial.state == "stopped":
            line = {"color": MUTED, "linewidth": 0.8, "alpha": 0.5}
        axes.plot(across[: len(heights)], heights, **line)  # type: ignore[arg-type]
    for x, axis in enumerate(spec.space.values()):
        axes.axvline(x, color=INK, linewidth=0.8)
        marks = [axis.at(i / (TICKS - 1)) for i in range(TICKS)] if isinstance(axis, Range) else list(axis)
        for mark in marks:
            axes.text(x + 0.03, _height(axis, mark), shown(mark), **label)  # type: ignore[arg-type]
    axes.axvline(across[-1], color=INK, linewidth=0.8)
    for share in np.linspace(0, 1, TICKS):
        axes.text(across[-1] + 0.03, share, f"{low + share * span:.3f}", **label)  # type: ignore[arg-type]
    axes.set_xticks(across, [*(key.replace(".", ".\n") for key in spec.space), judged_by(spec).name], fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.1, across[-1] + 0.35)
    axes.spines[:].set_visible(False)
    axes.set_title(
        f"{spec.name}: {len(finished)} finished trials, {len(drawn) - len(finished)} stopped early", fontsize=10
    )
    return figure


def _height(axis: Range | list[Value], value: Value) -> float:
    """Where a value lies on its axis, 0 to 1."""
    if isinstance(axis, Range):
        assert isinstance(value, int | float)
        return axis.share(value)
    return axis.index(value) / max(1, len(axis) - 1)
