"""Pictures of compared fine-tunings: curves of the training, gaps, and a grid of two settings as scenes and as numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..scenarios.driving.draw import ENVIRONMENT, LINE_STYLES, boxes
from ..scenarios.driving.files import read_scenes
from ..scenarios.driving.scene import Scene, X, Y
from .compare import COLOURS
from .figures import INK, MUTED
from .finetuning_scores import Axis, Score

CURVES = {"return": "return of a game", "cost": "share of moments too near", "multiplier": "multiplier"}
GAP = "CCE-gap in reward"
HEATED = {"spacing_m": "spacing, m", "speed_m_s": "speed, m/s", "multiplier": "mean multiplier", "gap": GAP}
MARGIN = 8.0  # metres around what is driven
SLIM = 0.6  # a scene is drawn at least so wide for its height, and so high for its width


@dataclass(frozen=True)
class Line:
    """Runs that differ in their seeds only."""

    label: str
    colour: Any
    scores: list[Score]


def pictures(out: Path, scores: list[Score], rows: list[dict[str, Any]], axes: list[Axis]) -> dict[str, Figure]:
    """By what their names end with: curves first; of each fine-tuner over two settings, a grid of scenes and of numbers."""
    methods = list(dict.fromkeys(one.method for one in scores))
    if len(axes) < 2:
        return {"curves": _curves(_columns(scores, methods, axes), axes)}
    found = {}
    for method in methods:
        own = f"{method}-" if len(methods) > 1 else ""
        mine = [one for one in scores if one.method == method]
        found[f"{own}curves"] = _curves(_columns(mine, [method], axes), axes)
        found[f"{own}scenes"] = _scenes(out, mine, axes)
        found[f"{own}grid"] = _grid([row for row in rows if row["method"] == method], axes)
    return found


def _columns(scores: list[Score], methods: list[str], axes: list[Axis]) -> dict[str, list[Line]]:
    """Panels from left to right, and the lines in each: values of the first setting, or fine-tuners, if nothing varies."""

    def lines(of: dict[str, list[Score]], colours: Sequence[Any]) -> list[Line]:
        return [Line(label, colour, mine) for (label, mine), colour in zip(of.items(), colours, strict=False)]

    if not axes:
        return {"": lines({name: [one for one in scores if one.method == name] for name in methods}, COLOURS)}
    first = axes[0]
    shades = list(colormaps["viridis"](np.linspace(0.0, 0.85, len(first.values))))

    def of(keep: Callable[[Score], bool]) -> list[Line]:
        return lines(
            {
                f"{first.name} = {value}": [one for one in scores if keep(one) and one.cell[first.key] == value]
                for value in first.values
            },
            shades,
        )

    if len(axes) == 1:
        return {name: of(lambda one, name=name: one.method == name) for name in methods}  # type: ignore[misc]
    second = axes[1]
    return {
        f"{second.name} = {value}": of(lambda one, value=value: one.cell[second.key] == value)  # type: ignore[misc]
        for value in second.values
    }


def _curves(columns: dict[str, list[Line]], axes: list[Axis]) -> Figure:
    """Return, cost, multiplier and gaps: a row of panels each, or all in one block where there is one column."""
    every = [one for lines in columns.values() for line in lines for one in line.scores]
    shown = [name for name in CURVES if any(name in one.curves for one in every)]
    gaps = any(one.measures["gap"] is not None for one in every)
    count = len(shown) + gaps
    if len(columns) == 1:
        across = 2 if count in (2, 4) else count
        figure = Figure(figsize=(9.6, 3.4 * (count // across) + 0.3), dpi=150, layout="constrained")
        panels = np.atleast_1d(figure.subplots(count // across, across)).reshape(-1, 1)
        figure.suptitle(next(iter(columns)), fontsize=10, color=INK)
    else:
        figure = Figure(figsize=(max(8.0, 3.1 * len(columns) + 0.8), 2.3 * count + 0.8), dpi=150, layout="constrained")
        panels = figure.subplots(count, len(columns), sharey="row", squeeze=False)
    for column, (title, lines) in enumerate(columns.items()):
        for panel, name in zip(panels[:, column], shown, strict=False):
            if any(name in one.curves for line in lines for one in line.scores):
                _over_episodes(panel, lines, name)
            else:  # a fine-tuner without multipliers
                panel.set_axis_off()
        if gaps:
            _gaps(panels[len(shown), column], lines)
        if len(columns) > 1:
            panels[0, column].set_title(title, fontsize=9, color=INK)
        for panel, label in zip(panels[:, column], [*(CURVES[name] for name in shown), *[GAP] * gaps], strict=True):
            if column == 0:
                panel.set_ylabel(label, fontsize=9, color=INK)
            panel.tick_params(labelsize=8)
            panel.spines[["top", "right"]].set_visible(False)
    keys = [Line2D([], [], color=line.colour, linewidth=2, label=line.label) for line in next(iter(columns.values()))]
    seeds = len({one.seed for one in every})
    _legend(figure, keys, f"mean of {seeds} seeds, and their range" if seeds > 1 else "")
    return figure


def _legend(figure: Figure, keys: Sequence[Any], text: str) -> None:
    """Below all panels, with what is to be known of them."""
    legend = figure.legend(
        handles=keys, frameon=False, fontsize=9, ncols=4, loc="outside lower center", title=text, title_fontsize=8
    )
    legend.get_title().set(color=MUTED, multialignment="center")


def _over_episodes(panel: Axes, lines: list[Line], name: str) -> None:
    """Mean over seeds, and their range."""
    for line in lines:
        known = [one.curves[name] for one in line.scores if name in one.curves]
        if not known:
            continue
        values = np.array([one[: min(map(len, known))] for one in known])
        episodes = np.arange(1, values.shape[1] + 1)
        panel.plot(episodes, values.mean(axis=0), color=line.colour, linewidth=1.3)
        if len(known) > 1:
            low, high = values.min(axis=0), values.max(axis=0)
            panel.fill_between(episodes, low, high, color=line.colour, alpha=0.12, linewidth=0)
    panel.set_xlabel("episode", fontsize=8)
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))


def _gaps(panel: Axes, lines: list[Line]) -> None:
    """Against episodes where they were measured on the way; else as points at the end, with their mean."""
    if any(one.gap_curve for line in lines for one in line.scores):
        for line in lines:
            known = [np.array(one.gap_curve) for one in line.scores if one.gap_curve]
            if not known:
                continue
            episodes, values = known[0][:, 0], np.stack([one[:, 1] for one in known])
            panel.plot(episodes, values.mean(axis=0), color=line.colour, linewidth=1.3, marker="o", markersize=3)
            if len(known) > 1:
                low, high = values.min(axis=0), values.max(axis=0)
                panel.fill_between(episodes, low, high, color=line.colour, alpha=0.12, linewidth=0)
        panel.set_xlabel("episode", fontsize=8)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    else:
        for x, line in enumerate(lines):
            values = np.array([gap for one in line.scores if (gap := one.measures["gap"]) is not None])
            if len(values):
                panel.bar(x, values.mean(), width=0.6, color=line.colour, alpha=0.35)
                panel.plot(np.full(len(values), x), values, "o", color=line.colour, markersize=4)
        panel.set_xticks(range(len(lines)), [line.label.rpartition(" = ")[2] for line in lines])
        panel.set_xlim(-0.6, len(lines) - 0.4)
        panel.set_xlabel(lines[0].label.rpartition(" = ")[0], fontsize=8)
    panel.set_ylim(bottom=0)


def _scenes(out: Path, scores: list[Score], axes: list[Axis]) -> Figure:
    """The first generated scene of the first seed in each cell; the first setting from top to bottom."""
    first, second = axes
    seed = scores[0].seed
    of = {one.where: one for one in scores if one.seed == seed}
    scenes = {
        where: next(iter(read_scenes(out / one.run / "scenes" / "future-0.scene.npz"))) for where, one in of.items()
    }
    left, right, bottom, top = _around(list(scenes.values()))
    width = 2.7 if len(second.values) > 3 else 3.3
    height = width * (top - bottom) / (right - left)
    figure = Figure(
        figsize=(width * len(second.values) + 0.4, (height + 0.3) * len(first.values) + 1.0),
        dpi=150, layout="constrained",
    )  # fmt: skip
    panels = figure.subplots(len(first.values), len(second.values), squeeze=False)
    colours: dict[str, str] = {}
    for i, row in enumerate(first.values):
        for j, column in enumerate(second.values):
            panel, one = panels[i, j], of[row, column]
            _scene(panel, scenes[row, column], colours)
            panel.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
            panel.spines[:].set_color("#c3c8ce")
            panel.set_xlabel(_numbers(one), fontsize=8, color=INK)
            if i == 0:
                panel.set_title(f"{second.name} = {column}", fontsize=10, color=INK)
            if j == 0:
                panel.set_ylabel(f"{first.name} = {row}", fontsize=10, color=INK)
    _scale(panels[0, 0], left, bottom, right)
    keys = [Patch(color=colour, label=name) for name, colour in colours.items()]
    keys.append(Patch(color=ENVIRONMENT, label="driven by the world model"))
    told = f"a generated scene of each (seed {seed}): where drivers began (outlined), their ways, where they ended (filled)"
    _legend(
        figure,
        keys,
        f"{told}\nnumbers: spacing and speed, means of all futures; mean multiplier λ of the training",
    )
    return figure


def _around(scenes: list[Scene]) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of where anybody is driven in any of the scenes; neither too slim nor too flat."""
    seen = np.concatenate(
        [one.tracks[one.focal, one.history - 1 :][one.valid[one.focal, one.history - 1 :]][:, [X, Y]] for one in scenes]
    )
    low, high = seen.min(axis=0) - MARGIN, seen.max(axis=0) + MARGIN
    middle, size = (low + high) / 2, high - low
    size = np.maximum(size, SLIM * size[::-1])
    (left, bottom), (right, top) = middle - size / 2, middle + size / 2
    return float(left), float(right), float(bottom), float(top)


def _scene(panel: Axes, scene: Scene, colours: dict[str, str]) -> None:
    """The map, ways of who is driven with boxes at both ends, and the others at the end."""
    for kind, (colour, width) in LINE_STYLES.items():
        lines = [scene.polyline(line) for line in scene.of_kind(kind)]
        panel.add_collection(LineCollection(lines, colors=colour, linewidths=width))
    for agent in np.argsort(scene.focal, kind="stable"):
        steps = np.flatnonzero(scene.valid[agent])
        steps = steps[steps >= scene.history - 1]
        if not len(steps):
            continue
        way = scene.tracks[agent, steps]
        if not scene.focal[agent]:
            _box(panel, way[-1:], ENVIRONMENT, filled=True)
            continue
        name = scene.ids[agent]
        colour = colours.setdefault(name, COLOURS[len(colours) % len(COLOURS)])
        panel.plot(*way[:, [X, Y]].T, color=colour, linewidth=1.6, zorder=4, solid_capstyle="round")
        _box(panel, way[:1], colour, filled=False)
        _box(panel, way[-1:], colour, filled=True)


def _box(panel: Axes, track: NDArray[np.floating[Any]], colour: str, filled: bool) -> None:
    panel.add_collection(
        PolyCollection(
            list(boxes(track)), facecolors=colour if filled else "white", edgecolors="white" if filled else colour,
            linewidths=0.4 if filled else 1.0, zorder=6 if filled else 5,
        )
    )  # fmt: skip


def _numbers(one: Score) -> str:
    spacing, speed, multiplier = (one.measures[name] for name in ("spacing_m", "speed_m_s", "multiplier"))
    told = [] if spacing is None else [f"spacing {spacing:.1f} m"]
    told.append(f"{speed:.1f} m/s")
    return " · ".join(told if multiplier is None else [*told, f"λ {multiplier:.3f}"])


def _scale(panel: Axes, left: float, bottom: float, right: float) -> None:
    """A bar of a round length in the corner."""
    length = next(one for one in (100, 50, 20, 10, 5) if one <= max(5, 0.4 * (right - left)))
    x, y = left + 0.04 * (right - left), bottom + 0.05 * (right - left)
    panel.plot([x, x + length], [y, y], color=INK, linewidth=1.5, zorder=7)
    panel.text(
        x + length / 2,
        y + 0.015 * (right - left),
        f"{length} m",
        ha="center",
        va="bottom",
        fontsize=7,
        color=INK,
        zorder=9,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )


def _grid(rows: list[dict[str, Any]], axes: list[Axis]) -> Figure:
    """Means over seeds in each cell, the darker the larger."""
    first, second = axes
    shown = [name for name in HEATED if all(row["values"][name]["mean"] is not None for row in rows)]
    across = 2 if len(shown) in (2, 4) else len(shown)
    down = -(-len(shown) // across)
    size = (0.95 * len(second.values) + 1.2, 0.6 * len(first.values) + 1.0)
    figure = Figure(figsize=(size[0] * across, size[1] * down), dpi=150, layout="constrained")
    panels = np.atleast_1d(figure.subplots(down, across)).ravel()
    for panel, name in zip(panels, shown, strict=True):
        means = {tuple(row["cell"].values()): row["values"][name]["mean"] for row in rows}
        table = np.array([[means[one, other] for other in second.values] for one in first.values])
        ramp, span = colormaps["Blues"], float(table.max() - table.min()) or 1.0
        shades = 0.1 + 0.65 * (table - table.min()) / span
        panel.imshow(ramp(shades), aspect="auto")
        for i, j in np.ndindex(table.shape):
            text = f"{table[i, j]:.3f}" if abs(table).max() < 1 else f"{table[i, j]:.2f}"
            panel.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if shades[i, j] > 0.55 else INK)
        panel.set_xticks(range(len(second.values)), second.values)
        panel.set_yticks(range(len(first.values)), first.values)
        panel.set_xlabel(second.name, fontsize=8)
        panel.set_ylabel(first.name, fontsize=8)
        panel.set_title(HEATED[name], fontsize=9, color=INK)
        panel.tick_params(labelsize=8, length=0)
        panel.spines[:].set_visible(False)
    return figure
