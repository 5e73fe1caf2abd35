"""The report of a run: one HTML file that opens offline, and the same pictures as PNG.

`ReportData` is everything a report shows, with what follows from it (totals, scales, the most congested
roads); `write_report` fills `report.html`, the template beside this file, and lets `figures` draw the PNGs.
What is words or a table is written here and escaped here; what is a picture travels as one JSON object and is
drawn by the page's own script, which never turns a string of the data into markup.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import figures
from .report_words import OF_A_RUN, Section, Words

TOP = 50  # roads in the heat map, as in MASDiff's Figs 7-9
_EVALUATION = {  # key of a row of `throng evaluate` -> heading; {unit} is filled in
    "rmse": "RMSE, {unit}",
    "rmse_sd": "s.d. over seeds",
    "mae": "MAE, {unit}",
    "road_rmse": "RMSE of road means, {unit}",
    "top50_corr": "correlation, top 50 roads",
    "gap": "noise-normalised gap",
    "seeds": "seeds",
}


@dataclass(frozen=True, eq=False)
class ReportData:
    """What a report shows: m roads, T minutes. NaN in a macro series: nothing was measured there.

    With a `baseline`, both sides are simulated: a what-if. Its maps show means over time, and it has no search to show.
    """

    title: str  # "town: 45 junctions, 114 roads, 1,557 vehicles, 30 minutes"
    summary: list[tuple[str, str]]  # key facts: label, value
    road_ids: list[str]  # [m]
    shapes: list[NDArray[Any]]  # [m] of [points, 2] metres
    lanes: NDArray[Any]  # [m]
    kind: str  # "queue", "speed" or "count"
    unit: str  # "vehicles", "m/s", "vehicles/min"
    observed: NDArray[Any]  # [m, T] X*
    simulated: NDArray[Any]  # [seeds, m, T] X of the best policies on fresh seeds
    prior: NDArray[Any] | None  # [m, T] traffic of the prior's mean, for reference
    lcc: tuple[NDArray[Any], NDArray[Any]] | None  # largest functional cluster: X* [T], X [seeds, T]
    history: dict[str, NDArray[Any]]  # generation, simulations (cumulative, micro-equivalent),
    # best (re-evaluated, so far), best_sd, median (of the population), ess, latent_sd
    levels: list[tuple[str, float, float]]  # reference lines of the error: name, mean, s.d.
    preferences: list[dict[str, Any]]  # feature, mean, low, high (90 % over the ensemble), truth or None
    evaluation: list[dict[str, Any]]  # rows of `throng evaluate`: method and the keys of `_EVALUATION`
    notes: list[str]  # limits, printed at the end
    config: str  # YAML
    words: Words = OF_A_RUN
    baseline: NDArray[Any] | None = None  # [seeds, m, T] simulations of which `observed` is the mean
    marks: dict[str, str] = field(default_factory=dict)  # roads to mark on the maps, and why
    rank: NDArray[Any] | None = None  # [m] roads are listed by it, largest first; None: by congestion
    sections: Sequence[Section] = ()

    def __post_init__(self) -> None:
        roads, given, lcc = len(self.road_ids), self.observed.shape, self.lcc
        if self.observed.ndim != 2 or len(self.observed) != roads or not self.observed.size:
            raise ValueError(f"observed has shape {given}, expected [{roads} roads, minutes >= 1]")
        expected = {"simulated": self.simulated.shape[1:]}
        if self.baseline is not None:
            expected["baseline"] = self.baseline.shape[1:]
        if self.prior is not None:
            expected["prior"] = self.prior.shape
        for name, shape in expected.items():
            if shape != given:
                raise ValueError(f"{name} has {shape} roads and minutes, observed has {given}")
        if self.simulated.ndim != 3 or not len(self.simulated):
            raise ValueError(f"simulated has shape {self.simulated.shape}, expected [seeds, roads, minutes]")
        if len(self.shapes) != roads or len(self.lanes) != roads:
            raise ValueError(f"{len(self.shapes)} shapes and {len(self.lanes)} lane counts for {roads} roads")
        if len({len(column) for column in self.history.values()}) > 1:
            lengths = {name: len(column) for name, column in self.history.items()}
            raise ValueError(f"the columns of history differ in length: {lengths}")
        if lcc is not None and not len(lcc[0]) == lcc[1].shape[-1] == self.minutes:
            raise ValueError(f"lcc has {len(lcc[0])} and {lcc[1].shape[-1]} minutes, not {self.minutes}")

    @property
    def minutes(self) -> int:
        return int(self.observed.shape[1])

    @property
    def seeds(self) -> int:
        return len(self.simulated)

    @property
    def low_is_bad(self) -> bool:
        """Speeds: the colour scale is turned round and the congested roads are the slow ones."""
        return self.kind == "speed"

    @property
    def worst(self) -> str:
        """What the first roads of `order` are called."""
        return self.words.roads or {"speed": "slowest", "count": "busiest"}.get(self.kind, "most congested")

    @cached_property
    def counted(self) -> NDArray[np.bool_]:
        """[m, T] cells that totals count: the observed ones; all of a what-if, and where only the cluster was observed."""
        known = ~np.isnan(self.observed)
        return known if known.any() and self.baseline is None else np.ones_like(known)

    @property
    def scope(self) -> str:
        """The roads that totals count, in words."""
        return "all roads" if self.counted.all() else "the observed roads"

    @property
    def error_unit(self) -> str:
        """That of the errors: a share where only the cluster was observed."""
        return self.unit if np.isfinite(self.observed).any() or self.lcc is None else "share of all roads"

    @cached_property
    def mean(self) -> NDArray[Any]:
        """[m, T] mean of the simulations over their seeds."""
        return reduce_known(np.nanmean, self.simulated, 0)

    @cached_property
    def difference(self) -> NDArray[Any]:
        """[m, T] simulated minus observed; NaN where either is missing."""
        return np.asarray(self.mean - self.observed)

    def total(self, series: NDArray[Any]) -> NDArray[Any]:
        """[..., m, T] -> [..., T]: sum over the roads (mean of speeds), only over cells that were observed.

        The same cells count on both sides, so that a gap in the observations is not taken for less traffic.
        """
        shared = np.where(self.counted, series, np.nan)
        return reduce_known(np.nanmean if self.low_is_bad else _known_sum, shared, -2)

    @cached_property
    def total_observed(self) -> NDArray[Any]:
        """[T]"""
        return self.total(self.observed)

    @cached_property
    def total_simulated(self) -> NDArray[Any]:
        """[seeds, T]"""
        return self.total(self.simulated)

    @cached_property
    def order(self) -> NDArray[Any]:
        """[m] roads from the most to the least congested in the observations, then those never observed.

        In the simulations, where only the cluster was observed.
        """
        if self.rank is not None:
            return np.argsort(-np.nan_to_num(self.rank, nan=-np.inf), kind="stable")
        seen = np.isfinite(self.observed).any()
        load = reduce_known(np.nanmean, self.observed if seen else self.mean, 1)
        return np.argsort(load if self.low_is_bad else -load, kind="stable")

    @property
    def top(self) -> NDArray[Any]:
        """[<= 50] the most congested roads."""
        return self.order[:TOP]

    @cached_property
    def peak(self) -> int:
        """The minute with the largest total (the lowest mean speed), from 0."""
        for total in (self.total_observed, self.total_simulated.mean(axis=0)):
            if np.isfinite(total).any():
                return int(np.nanargmin(total) if self.low_is_bad else np.nanargmax(total))
        return 0

    @property
    def over_time(self) -> bool:
        """Whether maps begin with means over time: single minutes of a what-if are mostly chance."""
        return self.baseline is not None

    def on_map(self, values: NDArray[Any]) -> NDArray[Any]:
        """[m] what of [m, T] a picture of the network shows."""
        return reduce_known(np.nanmean, values, 1) if self.over_time else values[:, self.peak]

    @property
    def when(self) -> str:
        """The time of `on_map`, in words."""
        return "mean over time" if self.over_time else f"minute {self.peak + 1}"

    @cached_property
    def mean_limits(self) -> tuple[tuple[float, bool], tuple[float, bool]]:
        """`limit` and `difference_limit` of means over time."""
        means = [reduce_known(np.nanmean, series, 1) for series in (self.observed, self.mean, self.difference)]
        return _upper_end(means[:2]), _upper_end([np.abs(means[2])])

    @cached_property
    def limit(self) -> tuple[float, bool]:
        """Upper end of the colour scale of X and X*, and whether larger values exist."""
        return _upper_end([self.observed, self.mean])

    @cached_property
    def difference_limit(self) -> tuple[float, bool]:
        """Upper end of the (symmetric) colour scale of the difference, and whether larger values exist."""
        return _upper_end([np.abs(self.difference)])


def write_report(data: ReportData, directory: Path) -> Path:
    """Writes `report.html` and `figures/*.png` into `directory`; returns the path of the former.

    Everything is drawn into a hidden folder first and then renamed into place, the page last: whatever fails
    while drawing leaves the report that was there as it was.
    """
    target = directory / "figures"
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".report-") as staging:
        pictures = figures.draw(data, Path(staging))
        page = Path(staging) / "report.html"
        page.write_text(render(data), encoding="utf-8")
        for picture in pictures:
            picture.replace(target / picture.name)
        page.replace(directory / page.name)
    return directory / "report.html"


def render(data: ReportData) -> str:
    """The page. Placeholders are filled in one pass, so that `{{...}}` inside the data stays what it is."""
    words = data.words
    parts = {
        "title": html.escape(data.title),
        "worst": html.escape(data.worst),
        "facts": "".join(
            f"<div><dt>{html.escape(label)}</dt><dd>{html.escape(value)}</dd></div>" for label, value in data.summary
        ),
        "effects_heading": html.escape(words.effects),
        "effects_text": html.escape(words.effects_text),
        "preferences": _preference_table(data),
        "sections": "".join(_section(f"h-more{i}", one) for i, one in enumerate(data.sections)),
        "levels": _level_table(data),
        "evaluation": _evaluation_table(data),
        "notes": "".join(f"<li>{html.escape(note)}</li>" for note in data.notes or ["None were noted."]),
        "config": html.escape(data.config),
        "data": embed(payload(data)),
    }
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    if data.baseline is not None:
        template = re.sub(r"<!-- of a run -->.*?<!-- end -->", "", template, flags=re.DOTALL)
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def payload(data: ReportData) -> dict[str, Any]:
    """What the page's script draws, as JSON values. Numbers keep four digits of their array's largest."""
    origin = np.min([shape.min(axis=0) for shape in data.shapes], axis=0)
    spread = data.seeds > 1
    extremes = (np.nanmin, np.nanmax)
    result: dict[str, Any] = {
        "title": data.title,
        "kind": data.kind,
        "unit": data.unit,
        "errorUnit": data.error_unit,
        "seeds": data.seeds,
        "minutes": data.minutes,
        "ids": data.road_ids,
        "lanes": numbers(data.lanes),
        "shapes": [  # x, y, x, y, ... in decimetres
            np.round((shape - origin).ravel() * 10).astype(int).tolist() for shape in data.shapes
        ],
        "observed": numbers(data.observed),
        "range0": _range(data.baseline),
        "words": dataclasses.asdict(data.words),
        "marks": {str(row): data.marks[road] for row, road in enumerate(data.road_ids) if road in data.marks},
        "overTime": data.over_time,
        "meanLimits": data.mean_limits,
        "mean": numbers(data.mean),
        "range": [numbers(reduce_known(f, data.simulated, 0)) for f in extremes] if spread else None,
        "prior": None if data.prior is None else numbers(data.prior),
        "total": {
            "observed": numbers(data.total_observed),
            "mean": numbers(data.total_simulated.mean(axis=0)),
            "range0": _range(None if data.baseline is None else data.total(data.baseline)),
            "range": [numbers(f(data.total_simulated, axis=0)) for f in (np.min, np.max)] if spread else None,
            "prior": None if data.prior is None else numbers(data.total(data.prior)),
        },
        "lcc": None,
        "scope": data.scope,
        "top": data.top.tolist(),
        "order": data.order.tolist(),
        "peak": data.peak,
        "limit": data.limit,
        "differenceLimit": data.difference_limit,
        "sequential": {theme: figures.hexes(figures.sequential(data, theme)) for theme in figures.THEMES},
        "diverging": {theme: figures.hexes(figures.diverging(theme)) for theme in figures.THEMES},
        "history": {name: numbers(column) for name, column in data.history.items()},
        "levels": [[name, _finite(mean), _finite(sd)] for name, mean, sd in data.levels],
        "preferences": [
            {"feature": str(row["feature"])} | {key: _finite(row.get(key)) for key in ("mean", "low", "high", "truth")}
            for row in data.preferences
        ],
    }
    if data.lcc is not None:
        seeds = data.lcc[1]
        result["lcc"] = {
            "observed": numbers(data.lcc[0]),
            "mean": numbers(reduce_known(np.nanmean, seeds, 0)),
            "range": [numbers(reduce_known(f, seeds, 0)) for f in extremes] if len(seeds) > 1 else None,
        }
    return result


def _range(series: NDArray[Any] | None) -> list[Any] | None:
    """Least and largest over the first axis, where there is more than one simulation."""
    if series is None or len(series) < 2:
        return None
    return [numbers(reduce_known(f, series, 0)) for f in (np.nanmin, np.nanmax)]


def embed(value: Any) -> str:
    """JSON that may stand inside a script element whatever its strings contain."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII: U+2028 is escaped as well
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def numbers(values: NDArray[Any]) -> Any:
    """Nested lists: four digits of the largest magnitude, whole numbers as integers, not finite as None."""
    values = np.asarray(values, dtype=float)
    values = np.where(np.isfinite(values), values, np.nan)
    largest = np.nanmax(np.abs(values), initial=1e-12) if not np.isnan(values).all() else 1.0
    rounded = np.round(values, max(0, 3 - math.floor(math.log10(largest))))

    def plain(item: Any) -> Any:
        if isinstance(item, list):
            return [plain(inner) for inner in item]
        if math.isnan(item):
            return None
        return int(item) if item == int(item) else item

    return plain(rounded.tolist())


def reduce_known(function: Callable[..., Any], values: NDArray[Any], axis: int) -> NDArray[Any]:
    """A nan-reduction whose result is NaN, without a warning, where every value is NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(function(np.asarray(values, dtype=float), axis=axis))


def _known_sum(values: NDArray[Any], axis: int) -> NDArray[Any]:
    return np.where(np.isnan(values).all(axis=axis), np.nan, np.nansum(values, axis=axis))


def _upper_end(arrays: Sequence[NDArray[Any]]) -> tuple[float, bool]:
    """A round number near the 98th percentile of what is above zero: one queue must not bleach the rest."""
    values = np.concatenate([array[np.isfinite(array) & (array > 0)].ravel() for array in arrays])
    if not values.size:
        return 1.0, False
    level = float(np.percentile(values, 98))
    unit = 10.0 ** math.floor(math.log10(level))
    end = next(step * unit for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * unit >= level * (1 - 1e-9))
    return end, bool(values.max() > end)


def _preference_table(data: ReportData) -> str:
    keys = ["mean", "low", "high"]
    if any(row.get("truth") is not None for row in data.preferences) or data.baseline is None:
        keys.append("truth")
    rows = [[str(row["feature"])] + [format_number(row.get(key)) for key in keys] for row in data.preferences]
    return _folded("The same in numbers", [data.words.row, "mean", "5 %", "95 %", "truth"][: len(keys) + 1], rows)


def _level_table(data: ReportData) -> str:
    rows = [[name, format_number(mean), format_number(sd)] for name, mean, sd in data.levels]
    return _folded("Reference levels in numbers", ["reference", f"mean error, {data.error_unit}", "s.d."], rows)


def _section(name: str, section: Section) -> str:
    table = _table(section.head, section.rows) if section.rows else ""
    if section.folded and section.rows:
        table = _folded(html.escape(section.folded), section.head, section.rows)
    return (
        f'<section aria-labelledby="{name}"><h2 id="{name}">{html.escape(section.heading)}</h2>'
        f"<p>{html.escape(section.text)}</p>{table}</section>"
    )


def _folded(summary: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"<details><summary>{summary}</summary>{_table(head, rows)}</details>" if rows else ""


def _evaluation_table(data: ReportData) -> str:
    if not data.evaluation:
        return "<p>No evaluation was run.</p>"
    keys = [key for key in _EVALUATION if any(row.get(key) is not None for row in data.evaluation)]
    head = ["method"] + [_EVALUATION[key].format(unit=data.error_unit) for key in keys]
    rows = [[str(row["method"])] + [format_number(row.get(key)) for key in keys] for row in data.evaluation]
    return _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    columns = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def format_number(value: float | None) -> str:
    """Three significant digits with a real minus sign; integers in full; a dash for what is not there."""
    if value is None or not math.isfinite(value):
        return "–"
    digits = 0 if isinstance(value, int) or not value else 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{min(4, max(0, digits))}f}".replace("-", "−")
