"""The report of a what-if: the page and pictures of a run's report, with before and after for observed and simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .check import TELEPORTS
from .effects import Effect
from .report import ReportData, format_number, write_report
from .report_words import Section, Words
from .whatif import TOTALS, WhatIf

SHOWN = 20  # roads in the chart of changes
WORDS = Words(
    first="before",
    second="after",
    sample="simulations",
    missing="closed, or not there",
    roads="most changed",
    effects="Roads that change most",
    effects_text=(
        "Change of the mean queue, after − before. Dot: mean over explanations and seeds; bar: 90 % interval of the "
        "expected change for one more explanation that fits as well."
    ),
    no_effects="No road is on both networks.",
    effects_title="Change of the mean queue, 90 % interval",
    effect="vehicles, after − before",
    lower="shorter queue",
    higher="longer queue",
    dot="mean",
    row="road",
)


def write(result: WhatIf, directory: Path) -> Path:
    """Writes `report.html` and `figures/*.png`; returns the path of the former."""
    return write_report(_data(result), directory)


def _data(result: WhatIf) -> ReportData:
    case, edited, roads = result.case, result.edited, result.roads
    old, new = case.scenario.network, edited.scenario.network
    where = [(old, old.index[road]) if road in old.index else (new, new.index[road]) for road in result.road_ids]
    before = result.before.reshape(-1, *result.before.shape[2:])
    after = result.after.reshape(-1, *result.after.shape[2:])
    changed = [i for i in np.argsort(-np.nan_to_num(np.abs(roads.change), nan=-1.0)) if np.isfinite(roads.change[i])]
    sides = {"low": roads.low, "high": roads.high}
    return ReportData(
        title=f"What if: {', '.join(result.edits.words())} ({case.config.name})",
        summary=_facts(result),
        road_ids=result.road_ids,
        shapes=[net.shapes[row] for net, row in where],
        lanes=np.array([net.lanes[row] for net, row in where]),
        kind="queue",
        unit="vehicles",
        observed=before.mean(axis=0),
        simulated=after,
        prior=None,
        lcc=None,
        history={},
        levels=[],
        preferences=[
            {"feature": result.road_ids[i], "mean": float(roads.change[i])}
            | {key: float(side[i] if np.isfinite(side[i]) else roads.change[i]) for key, side in sides.items()}
            for i in changed[:SHOWN]
        ],
        evaluation=[],
        notes=_notes(result),
        config=case.config.to_yaml(),
        words=WORDS,
        baseline=before,
        marks=edited.marks,
        rank=np.abs(roads.change),
        sections=[_road_table(result, changed), _sureness(result), *_moved(result)],
    )


def _facts(result: WhatIf) -> list[tuple[str, str]]:
    facts = []
    for name in ("total queue", "travel time, arrived", "time under way, all"):
        one, unit = result.totals[name], "s" if "time" in name else "vehicles"
        facts.append((f"{name}: before → after", f"{_cell(one.before)} → {_cell(one.after)} {unit}"))
        facts.append((f"{name}: change", f"{_change(one)} {unit}"))
    arrived = result.totals["arrived"]
    vehicles = [len(result.case.scenario.demand), len(result.edited.scenario.demand)]
    shares = [f"{100 * float(x) / n:.1f} %" for x, n in zip((arrived.before, arrived.after), vehicles, strict=True)]
    teleports = result.totals["teleports"]
    return [
        *facts,
        ("arrived in the window", f"{shares[0]} of {vehicles[0]:,} → {shares[1]} of {vehicles[1]:,}"),
        ("start or end moved", f"{len(result.edited.moved):,} vehicles"),
        ("teleports each", f"{_cell(teleports.before)} → {_cell(teleports.after)}"),
    ]


def _cell(value: Any) -> str:
    return format_number(float(value))


def _signed(value: Any) -> str:
    return ("+" if float(value) > 0 else "") + _cell(value)


def _interval(low: Any, high: Any) -> str:
    return f"{_signed(low)} to {_signed(high)}" if np.isfinite(low) else "–"


def _change(one: Effect) -> str:
    return _signed(one.change) + (f" ({_interval(one.low, one.high)})" if np.isfinite(one.low) else "")


def _road_table(result: WhatIf, changed: list[Any]) -> Section:
    roads = result.roads
    rows = [
        [
            result.road_ids[i], result.edited.marks.get(result.road_ids[i], ""), _cell(roads.before[i]),
            _cell(roads.after[i]), _signed(roads.change[i]), _interval(roads.low[i], roads.high[i]),
            "yes" if roads.clear[i] else "no",
        ]
        for i in changed
    ]  # fmt: skip
    by_chance = 0.1 * len(changed)
    return Section(
        "Every road",
        f"Mean queue over {result.before.shape[-1]} minutes, vehicles. The intervals of {int(roads.clear.sum())} of "
        f"{len(changed)} roads exclude zero; where nothing changed, about {by_chance:.0f} would by chance.",
        ("road", "edit", "before", "after", "change", "90 % interval", "excludes zero"),
        rows,
        folded=f"All {len(rows)} roads on both networks, most changed first",
    )


def _sureness(result: WhatIf) -> Section:
    members, seeds = result.before.shape[:2]
    fit, models = result.fit, result.models
    r2 = float(np.mean([one.r2.mean() for one in models.members[:members]]))
    held = float(np.mean([one.r2_held_out.mean() for one in models.members[:members]]))
    recovery = (
        "The reward models are the latents themselves, without loss."
        if r2 > 0.9999
        else f"The reward models reproduce a share R² = {r2:.2f} of the learnt rewards' variance (mean over vehicles; "
        f"{held:.2f} on connections that the fit did not see); the rest does not transfer and is missing on both sides."
    )
    rows = [
        [
            name, TOTALS[name], _cell(one.before), _cell(one.after), _signed(one.change),
            _interval(one.low, one.high),
            "yes" if one.clear else "no", _cell(one.sd_seeds), _cell(one.sd_members),
        ]
        for name, one in result.totals.items()
    ]  # fmt: skip
    return Section(
        "How sure",
        f"{members} accepted explanations × {seeds} seeds, simulated before and after with the same seeds. Spread of the "
        "change is split into that between seeds of one explanation (chance, which more seeds average out) and that "
        "between explanations (what the observations leave open). "
        f"The run reproduces what was observed with an error of {_cell(fit['run'])} {result.unit} (floor "
        f"{_cell(fit['floor'])}), these simulations before the edit with {_cell(fit['before'])}. {recovery}",
        (
            "quantity", "unit", "before", "after", "change", "90 % interval", "excludes zero", "s.d. seeds",
            "s.d. explanations",
        ),
        rows,
    )  # fmt: skip


def _moved(result: WhatIf) -> list[Section]:
    moved = result.edited.moved
    text = (
        "Every vehicle can still get from its origin to its destination."
        if not moved
        else f"{len(moved):,} of {len(result.edited.scenario.demand):,} vehicles lost their origin, their destination, or "
        "the way between them. Each starts or ends on the nearest road from which, or to which, there is a way (straight "
        "line between the middles of the roads). The table is in moved.parquet too."
    )
    rows = [
        [one.vehicle, one.why, " → ".join(one.origin[: 1 + (one.origin[0] != one.origin[1])]),
         " → ".join(one.destination[: 1 + (one.destination[0] != one.destination[1])]), f"{one.metres:.0f}"]
        for one in moved
    ]  # fmt: skip
    head = ("vehicle", "why", "origin", "destination", "moved, m")
    return [Section("Vehicles that had to move", text, head, rows, folded=f"All {len(rows):,}")]


def _notes(result: WhatIf) -> list[str]:
    notes = [
        "Preferences of single drivers are not identified by an aggregate series: many sets of drivers explain the same "
        "queues. That is why several accepted explanations are simulated, and why the intervals hold their spread.",
        "Drivers keep what they want, their origins, destinations and departures; they do not give up trips or change "
        "their time. They learn routes again at the traffic that they expected before, changed by what the edit changed.",
        "Signal programs stay as they are. A closed turn keeps its green and its lanes.",
        *result.edited.notes,
    ]
    if len(result.before) == 1:
        notes.append("One explanation only: the intervals hold chance, not what the observations leave open.")
    if result.totals["teleports"].after > TELEPORTS * len(result.edited.scenario.demand):
        notes.append("Gridlock after the edit: SUMO teleports many vehicles, and queues mean little.")
    return notes
