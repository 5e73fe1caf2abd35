"""The pictures of a report as PNG files, drawn without pyplot and its global state.

Colours are shared with the page: a perceptually uniform ramp whose far end stands out from the background
(reversed on dark ones), and a blue-orange one, safe for the colour-blind, for differences.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .report import ReportData
    from .report_words import Words

THEMES = ("light", "dark")
INK, MUTED, FAINT = "#1d2126", "#5c636b", "#d9dce0"
MODEL, SECOND, MISSING, EDIT = "#0a66b0", "#b4530a", "#b4b8bd", "#e0559f"
DPI = 150
WIDTH = 13.2  # inches, of the pictures with three panels
_DIVERGING = {
    "light": ["#0b4a8f", "#3f87c4", "#a9cbe6", "#f1f0ee", "#f2bf8f", "#d9772b", "#8f3d05"],
    "dark": ["#a5d8ff", "#4c9fe0", "#245a8c", "#2d3034", "#87501c", "#df8433", "#ffd09a"],
}


def sequential(data: ReportData, theme: str) -> Colormap:
    """From no congestion (close to the background) to the worst."""
    ends = (0.99, 0.12) if theme == "light" else (0.17, 0.97)
    ramp = ListedColormap(matplotlib.colormaps["magma"](np.linspace(*ends, 256)))
    return ramp.reversed() if data.low_is_bad else ramp


def diverging(theme: str) -> Colormap:
    return LinearSegmentedColormap.from_list("difference", _DIVERGING[theme])


def hexes(ramp: Colormap, count: int = 65) -> list[str]:
    return [to_hex(colour) for colour in ramp(np.linspace(0, 1, count))]


def draw(data: ReportData, folder: Path) -> list[Path]:
    """Draws the pictures into `folder`; returns their paths."""
    pictures = {"network": _network(data), "curves": _curves(data), "heatmap": _heatmap(data)}
    if data.baseline is None:
        pictures |= {"error": _error(data), "preferences": _preferences(data)}
    else:
        pictures["changes"] = _preferences(data)
    paths = []
    for name, figure in pictures.items():
        path = folder / f"{name}.png"
        figure.savefig(path)
        paths.append(path)
    return paths


def spread(centres: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Moves labels as little as needed so that none overlaps its neighbour and all lie in [low, high].

    Groups of touching labels are merged and centred on the mean of what they point at; order is kept.
    """
    groups: list[tuple[list[int], float]] = []  # members from below, lower edge
    for index in sorted(range(len(centres)), key=lambda i: centres[i]):
        members, start = [index], 0.0
        while True:
            height = sum(heights[i] for i in members)
            below = np.cumsum([0.0] + [heights[i] for i in members[:-1]])
            wish = float(np.mean([centres[i] - heights[i] / 2 - b for i, b in zip(members, below, strict=True)]))
            start = max(low, min(wish, high - height))
            if not groups or start >= groups[-1][1] + sum(heights[i] for i in groups[-1][0]) - 1e-9:
                break
            members = groups.pop()[0] + members
        groups.append((members, start))
    result = [0.0] * len(centres)
    for members, start in groups:
        for i in members:
            result[i] = start + heights[i] / 2
            start += heights[i]
    return result


def beside(shape: NDArray[Any], distance: float) -> NDArray[Any]:
    """[points, 2] the polyline moved `distance` to its right, corners kept within twice that."""
    keep = np.append(True, (np.diff(shape, axis=0) != 0).any(axis=1))
    shape = np.asarray(shape, dtype=float)[keep]
    if len(shape) < 2:
        return shape
    step = np.diff(shape, axis=0)
    normal = np.stack([step[:, 1], -step[:, 0]], axis=1) / np.linalg.norm(step, axis=1, keepdims=True)
    corner = np.concatenate([normal[:1], normal[:-1] + normal[1:], normal[-1:]])
    corner[1:-1] /= np.maximum(0.5, np.sum(corner[1:-1] ** 2, axis=1, keepdims=True) / 2)
    return shape + distance * corner


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def _plain(axes: Axes, title: str, xlabel: str = "", ylabel: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK)
    axes.set_xlabel(xlabel, fontsize=9.5, color=INK)
    axes.set_ylabel(ylabel, fontsize=9.5, color=INK)
    axes.tick_params(labelsize=8.5, color=FAINT, labelcolor=MUTED)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)


def _literal(text: str) -> str:
    """A dollar sign is no formula: ids and names are other people's."""
    return text.replace("$", r"\$")


def _sentence(figure: Figure, text: str) -> Figure:
    figure.text(0.5, 0.5, textwrap.fill(text, 70), ha="center", va="center", fontsize=11, color=MUTED)
    return figure


def _panels(data: ReportData, over_time: bool) -> list[tuple[str, NDArray[Any], Colormap, Normalize, str, str]]:
    """Title, [m, T], ramp, scale, label and `extend` of the colour bar: observed, simulated, difference."""
    (end, more), (widest, beyond) = data.mean_limits if over_time else (data.limit, data.difference_limit)
    words = data.words
    first, second, difference = (_capital(name) for name in (words.first, words.second, words.difference))
    ramp, scale = sequential(data, "light"), Normalize(0, end)
    of = f"mean of {data.seeds} {words.sample}" if data.seeds > 1 else "1 seed"
    label, extend = f"{data.kind}, {data.unit}", "max" if more else "neither"
    return [
        (first if data.baseline is None else f"{first}, {of}", data.observed, ramp, scale, label, extend),
        (f"{second}, {of}", data.mean, ramp, scale, label, extend),
        (
            difference,
            data.difference,
            diverging("light"),
            Normalize(-widest, widest),
            f"difference, {data.unit}",
            "both" if beyond else "neither",
        ),
    ]


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]


def _network(data: ReportData) -> Figure:
    points = np.concatenate(data.shapes)
    low, high = points.min(axis=0), points.max(axis=0)
    size = np.maximum(high - low, 1e-6)
    panel = WIDTH / 3 - 0.25
    tall = panel * float(np.clip(size[1] / size[0], 0.4, 1.4))
    figure = _figure(WIDTH, tall + 1.2)
    metres = float(max(size[0] / panel, size[1] / tall)) / 72 * 1.06  # per point
    density = np.clip(11 * np.sqrt(panel * tall / len(data.shapes)), 0.8, 2.0)
    widths = density * (0.5 + 0.65 * np.clip(np.nan_to_num(data.lanes), 1, 5))
    lines = [beside(s, (w / 2 + 0.35) * metres) for s, w in zip(data.shapes, widths, strict=True)]
    marked = [line for line, road in zip(lines, data.road_ids, strict=True) if road in data.marks]
    panels = zip(figure.subplots(1, 3), _panels(data, data.over_time), strict=True)
    for axes, (title, values, ramp, scale, label, extend) in panels:
        now = data.on_map(values)
        known = np.isfinite(now)
        sign = -1 if data.low_is_bad and values is not data.difference else 1  # the worst are drawn last
        order = np.argsort(np.where(known, sign * np.abs(now), -np.inf), kind="stable")
        if marked:
            axes.add_collection(LineCollection(marked, colors=EDIT, linewidths=6.0, capstyle="round"))
        axes.add_collection(LineCollection(lines, colors=MISSING, linewidths=np.where(known, widths + 0.7, 0.8)))
        roads = [i for i in order if known[i]]
        axes.add_collection(
            LineCollection(
                [lines[i] for i in roads],
                colors=ramp(scale(now[roads])),
                linewidths=widths[roads],
                capstyle="butt",
            )
        )
        axes.set_aspect("equal")
        axes.set_xlim(low[0] - 0.02 * size.max(), high[0] + 0.02 * size.max())
        axes.set_ylim(low[1] - 0.02 * size.max(), high[1] + 0.02 * size.max())
        _plain(axes, f"{title}, {data.when}")
        axes.set_axis_off()
        _colour_bar(figure, axes, ramp, scale, label, extend)
    notes = [f"thick pink: edited ({'; '.join(sorted(set(data.marks.values()))[:4])})"] if marked else []
    if np.isnan(data.on_map(data.difference)).any():
        notes.append(f"thin grey: {data.words.missing}" + ("" if data.over_time else " in this minute"))
    if notes:
        figure.supxlabel(_literal(_capital("; ".join(notes))), fontsize=8.5, color=MUTED)
    return figure


def _colour_bar(figure: Figure, axes: Axes, ramp: Colormap, scale: Normalize, label: str, extend: str) -> None:
    source = matplotlib.cm.ScalarMappable(scale, ramp)
    bar = figure.colorbar(
        source,
        ax=axes,
        orientation="horizontal",
        fraction=0.045,
        pad=0.03,
        shrink=0.8,
        aspect=34,
        extend=extend,
    )
    bar.set_label(label, fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8.5, color=FAINT, labelcolor=MUTED)
    bar.outline.set_edgecolor(FAINT)


def _series(
    axes: Axes,
    words: Words,
    observed: NDArray[Any],
    simulated: NDArray[Any],
    prior: NDArray[Any] | None,
    baseline: NDArray[Any] | None = None,
) -> None:
    """One macro curve: observed [T], simulated [seeds, T] as mean and range, the prior's [T]; what is behind observed."""
    minute = np.arange(1, len(observed) + 1)
    mark = "o" if len(observed) == 1 else None
    if prior is not None:
        axes.plot(minute, prior, color=MUTED, linewidth=1.3, linestyle=(0, (4, 3)), marker=mark, label="prior mean")
    if baseline is not None and len(baseline) > 1:
        axes.fill_between(
            minute, baseline.min(axis=0), baseline.max(axis=0), color=INK, alpha=0.13, linewidth=0,
            label=f"{words.first}, range of {len(baseline)} {words.sample}",
        )  # fmt: skip
    if len(simulated) > 1:
        axes.fill_between(
            minute, simulated.min(axis=0), simulated.max(axis=0), color=MODEL, alpha=0.22, linewidth=0,
            label=f"{words.second}, range of {len(simulated)} {words.sample}",
        )  # fmt: skip
    axes.plot(minute, simulated.mean(axis=0), color=MODEL, linewidth=1.9, marker=mark, label=f"{words.second}, mean")
    axes.plot(minute, observed, color=INK, linewidth=1.9, marker=mark, label=words.first)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(*((1, len(minute)) if len(minute) > 1 else (0.5, 1.5)))
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _curves(data: ReportData) -> Figure:
    figure = _figure(WIDTH if data.lcc else WIDTH * 0.62, 4.2)
    panels = figure.subplots(1, 2 if data.lcc else 1, squeeze=False)[0]
    prior = None if data.prior is None else data.total(data.prior)
    baseline = None if data.baseline is None else data.total(data.baseline)
    _series(panels[0], data.words, data.total_observed, data.total_simulated, prior, baseline)
    what = "Mean" if data.low_is_bad else "Total"
    _plain(panels[0], f"{what} {data.kind} of {data.scope}", "minute", f"{data.kind}, {data.unit}")
    panels[0].set_ylim(bottom=0)
    if data.lcc:
        _series(panels[1], data.words, data.lcc[0], data.lcc[1], None)
        _plain(panels[1], "Largest functional cluster", "minute", "share of all roads")
        panels[1].set_ylim(0, 1.02)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _error(data: ReportData) -> Figure:
    figure = _figure(WIDTH * 0.72, 5.0)
    history = {name: np.asarray(column, dtype=float) for name, column in data.history.items()}
    best = history.get("best")
    if best is None or not len(best):
        return _sentence(figure, "No generation has been evaluated yet.")
    axes = figure.subplots()
    x = history["simulations"]
    mark = "o" if len(x) <= 40 else None
    ends: list[tuple[str, float, str]] = []
    for name, mean, sd in data.levels:
        axes.axhline(mean, color=MUTED, linewidth=1.1, linestyle=(0, (5, 3)))
        if np.isfinite(sd) and sd > 0:
            axes.axhspan(mean - sd, mean + sd, color=MUTED, alpha=0.11, linewidth=0)
        ends.append((f"{name} {mean:#.3g}", mean, MUTED))
    median, spread_of_best = history.get("median"), history.get("best_sd")
    if median is not None:
        axes.plot(x, median, color=SECOND, linewidth=1.5, marker=mark, markersize=3)
        ends.append((f"median estimate {median[-1]:#.3g}", float(median[-1]), SECOND))
    if spread_of_best is not None:
        axes.fill_between(x, best - spread_of_best, best + spread_of_best, color=MODEL, alpha=0.2, linewidth=0)
    axes.plot(x, best, color=MODEL, linewidth=2.2, marker=mark, markersize=3.5)
    ends.append((f"best so far {best[-1]:#.3g}", float(best[-1]), MODEL))
    _plain(
        axes,
        "Error against simulations",
        "simulations so far (micro-equivalents)",
        f"error, {data.error_unit}",
    )
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, max(float(np.nanmax(x)), 1.0) * 1.02)
    ends = [end for end in ends if np.isfinite(end[1])]
    texts = [textwrap.wrap(text, 32) for text, _, _ in ends]
    top = axes.get_ylim()[1]
    per_line = top / (4.1 * 72 / 12)  # an axis of about 4.1 inches, 12 points a line
    places = spread([y for _, y, _ in ends], [per_line * (len(t) + 0.15) for t in texts], 0, top)
    at = axes.get_yaxis_transform()
    for text, (_, y, colour), place in zip(texts, ends, places, strict=True):
        axes.plot([1.0, 1.03], [y, place], transform=at, color=colour, linewidth=0.7, clip_on=False)
        axes.text(
            1.035, place, _literal("\n".join(text)), transform=offset_copy(at, figure, 2, 0, units="points"),
            va="center", fontsize=9, color=colour,
        )  # fmt: skip
    return figure


def _preferences(data: ReportData) -> Figure:
    rows = sorted(data.preferences, key=lambda row: -abs(row["mean"]))
    if not rows:
        return _sentence(
            _figure(WIDTH * 0.62, 1.6),
            data.words.no_effects,
        )
    figure = _figure(WIDTH * 0.62, 1.5 + 0.34 * len(rows))
    axes = figure.subplots()
    place = np.arange(len(rows))
    truths = [(i, row["truth"]) for i, row in enumerate(rows) if row.get("truth") is not None]
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.hlines(place, [r["low"] for r in rows], [r["high"] for r in rows], color=MODEL, linewidth=3, alpha=0.45)
    axes.plot([r["mean"] for r in rows], place, "o", color=MODEL, markersize=6.5, label=data.words.dot)
    if truths:
        axes.plot(
            [value for _, value in truths], [i for i, _ in truths], "D",
            markerfacecolor="none", markeredgewidth=1.6, color=SECOND, markersize=7.5, label="truth",
        )  # fmt: skip
    axes.set_yticks(place, [_literal(textwrap.fill(str(row["feature"]), 34)) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    reach = max(abs(value) for row in rows for value in (row["low"], row["high"], row["mean"], row.get("truth") or 0))
    axes.set_xlim(-1.08 * (reach or 1), 1.08 * (reach or 1))
    _plain(axes, "", f"← {data.words.lower}     {data.words.effect}     {data.words.higher} →")
    axes.set_title(data.words.effects_title, loc="left", fontsize=10.5, fontweight="bold", color=INK)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _heatmap(data: ReportData) -> Figure:
    count = len(data.top)
    figure = _figure(WIDTH, 1.6 + 0.125 * max(count, 12))
    all_axes = figure.subplots(1, 3, sharey=True)
    extent = (0.5, data.minutes + 0.5, count + 0.5, 0.5)
    for axes, (title, values, ramp, scale, label, extend) in zip(all_axes, _panels(data, False), strict=True):
        axes.set_facecolor(MISSING)
        axes.imshow(values[data.top], cmap=ramp, norm=scale, aspect="auto", interpolation="nearest", extent=extent)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _plain(axes, title, "minute")
        _colour_bar(figure, axes, ramp, scale, label, extend)
    names = [textwrap.shorten(data.road_ids[i], 200) for i in data.top]
    names = [name if len(name) <= 22 else f"{name[:10]}…{name[-11:]}" for name in names]
    all_axes[0].set_yticks(np.arange(1, count + 1), [_literal(name) for name in names])
    all_axes[0].tick_params(axis="y", labelsize=6.5, length=0)
    all_axes[0].set_ylabel(f"the {count} {data.worst} roads, from the top", fontsize=9.5, color=INK)
    return figure
