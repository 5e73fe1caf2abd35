"""`throng whatif`: the traffic of a finished run's drivers after roads, turns, speed limits or demand have changed."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console

from ..policies.reward_model import RewardModels, load_rewards, require_network
from ..scenarios.edited import Edited, apply_edits
from ..scenarios.edits import Edits
from ..scenarios.errors import InputError
from .case import Case, load_case
from .counterfactual import Counterfactual, ensemble, simulate
from .effects import Effect, effect
from .experiment import Solution
from .progress import Progress
from .seeds import child_seed
from .simulations import Outcome
from .store import RunStore, write_atomic
from .summary import ENSEMBLE_FILE
from .workbench import workbench

Array = NDArray[np.float32]
Number = Callable[[Outcome], float]


@dataclass(frozen=True, eq=False)
class WhatIf:
    """A finished what-if: what its report and its files are made of."""

    case: Case
    edits: Edits
    edited: Edited
    models: RewardModels
    road_ids: list[str]  # of both networks, [roads] sorted
    before: Array  # [members, seeds, roads, minutes] queues; NaN where a road is not there, or closed
    after: Array
    roads: Effect  # [roads] of the mean queue over time
    totals: dict[str, Effect]  # name -> scalar
    fit: dict[str, float]  # errors against the observed series: of the run, of its floor, of `before`
    unit: str  # of these errors
    seeds: int


# Scalar effects: name -> unit
TOTALS = {
    "total queue": "vehicles, mean over minutes",
    "travel time, arrived": "seconds, mean over those who arrived",
    "time under way, all": "seconds in the window, mean over all vehicles",
    "arrived": "vehicles",
    "teleports": "per simulation",
}


def what_if(run: Path, edits: Edits, name: str | None, seeds: int, members: int, console: Console) -> Path:
    """Simulates an edit with the drivers of a finished run and writes the report; returns the report's path.

    Everything goes to RUN/whatif/NAME; simulations are journaled in the run, so that an interrupted what-if goes on.

    Raises:
        InputError: the run is not finished or its network has changed, or the edits are wrong, before any simulation.
    """
    from .whatif_report import write

    if edits.empty:
        raise InputError("no edit given; `throng whatif --help` lists them, e.g. --close ROAD")
    store = RunStore.open(run)
    path, evaluation = store.directory / "solution.safetensors", store.read_json("evaluation.json")
    if not path.exists() or evaluation is None:
        raise InputError(f"{run}: the run is not finished; go on with the same `throng run` command first")
    directory = run / "whatif" / (name or edits.name())
    asked = json.loads(json.dumps(dataclasses.asdict(edits), default=str))
    _require_same(directory, asked)
    with tempfile.TemporaryDirectory(prefix="throng-") as scratch:
        case = load_case(store.config(), Path(scratch))
        solution = Solution.load(path)
        models = _models(store, case, solution)
        draft = Path(scratch) / "edited"
        edited = apply_edits(case.scenario, edits, draft, child_seed(case.config.seed, "demand scale"))
        directory.mkdir(parents=True, exist_ok=True)
        edited = _kept(edited, draft, directory)
        write_atomic(directory / "edits.json", lambda p: p.write_text(json.dumps(asked, indent=1)))
        with Progress(console) as progress, workbench(case.config, store, progress, case) as bench:
            progress.phase("what if")
            drivers = ensemble(models, solution, members)
            pairs = simulate(bench, edited, drivers, seeds, models.bias_scale, progress)
            result = _result(case, edits, edited, models, pairs, seeds, evaluation)
            errors = [bench.target.rmse(bench.target.quantity(o.macro)) for p in pairs for o in p.before if o.macro]
            result.fit["before"] = float(np.mean(errors))
        _write_tables(result, directory)
        return write(result, directory)


def _require_same(directory: Path, asked: dict[str, Any]) -> None:
    path = directory / "edits.json"
    if path.exists() and json.loads(path.read_text()) != asked:
        raise InputError(f"{directory}: holds another what-if (see {path.name} there); choose another --name")


def _kept(edited: Edited, draft: Path, directory: Path) -> Edited:
    """With the edited network beside the results: to look at, and where workers on other machines may read it."""
    network = edited.scenario.network
    if network.path.parent != draft:  # no road was edited, or the user's own file is the edit
        return edited
    path = directory / network.path.name
    write_atomic(path, lambda temporary: shutil.copyfile(network.path, temporary))
    scenario = dataclasses.replace(edited.scenario, network=dataclasses.replace(network, path=path))
    return dataclasses.replace(edited, scenario=scenario)


def _models(store: RunStore, case: Case, solution: Solution) -> RewardModels:
    path = store.directory / ENSEMBLE_FILE
    models = load_rewards(path)
    require_network(models, case.scenario.network, path)
    if models.solution != solution.digest:
        raise InputError(f"{path}: of an earlier result of this run; `throng report {store.directory}` writes it anew")
    if models.vehicles != case.scenario.demand.ids:
        raise InputError(
            f"{path}: not of the vehicles in the run's demand files; restore the files the run was made with"
        )
    return models


def _result(
    case: Case,
    edits: Edits,
    edited: Edited,
    models: RewardModels,
    pairs: list[Counterfactual],
    seeds: int,
    evaluation: dict[str, Any],
) -> WhatIf:
    old, new = case.scenario.network, edited.scenario.network
    ids = sorted({*old.road_ids, *new.road_ids})
    sides = [np.stack(side) for side in zip(*(pair.queues for pair in pairs), strict=True)]
    before, after = (_onto(ids, net.road_ids, side) for net, side in zip((old, new), sides, strict=True))
    outcomes = [[pair.before for pair in pairs], [pair.after for pair in pairs]]
    depart = [scenario.demand.depart for scenario in (case.scenario, edited.scenario)]
    numbers: dict[str, list[Number]] = {
        "total queue": [_total_queue] * 2,
        "travel time, arrived": [_travel_time] * 2,
        "time under way, all": [_under_way(departures, case.scenario.end) for departures in depart],
        "arrived": [_arrived] * 2,
        "teleports": [_teleports] * 2,
    }
    totals = {
        name: effect(_each(outcomes[0], first), _each(outcomes[1], second)) for name, (first, second) in numbers.items()
    }
    fit = {"run": evaluation["rows"][0]["rmse"], "floor": evaluation["floor"]}
    roads = effect(before.mean(axis=-1), after.mean(axis=-1))
    return WhatIf(
        case, edits, edited, models, ids, before, after, roads, totals, fit, evaluation["unit"], seeds
    )  # fmt: skip


def _onto(ids: list[str], rows: tuple[str, ...], queues: Array) -> Array:
    """[members, seeds, roads, minutes] on the rows of `ids`."""
    index = {road: row for row, road in enumerate(ids)}
    out = np.full((*queues.shape[:2], len(ids), queues.shape[3]), np.nan, np.float32)
    out[:, :, [index[road] for road in rows]] = queues
    return out


def _each(side: list[list[Outcome]], number: Number) -> NDArray[np.float64]:
    """[members, seeds]"""
    return np.array([[number(outcome) for outcome in seeds] for seeds in side], np.float64)


def _total_queue(outcome: Outcome) -> float:
    assert outcome.macro is not None
    return float(outcome.macro.queue.sum(axis=0).mean())


def _travel_time(outcome: Outcome) -> float:
    assert outcome.travel_time is not None
    arrived = np.isfinite(outcome.travel_time)
    return float(outcome.travel_time[arrived].mean()) if arrived.any() else float("nan")


def _under_way(depart: NDArray[np.float64], end: float) -> Number:
    def number(outcome: Outcome) -> float:
        assert outcome.travel_time is not None
        return float(np.where(np.isfinite(outcome.travel_time), outcome.travel_time, end - depart).mean())

    return number


def _arrived(outcome: Outcome) -> float:
    assert outcome.travel_time is not None
    return float(np.isfinite(outcome.travel_time).sum())


def _teleports(outcome: Outcome) -> float:
    return float(outcome.teleports)


def _write_tables(result: WhatIf, directory: Path) -> None:
    """`whatif.json`, and Parquet of roads, roads by minute, and moved vehicles: the numbers of the report."""
    roads, edited = result.roads, result.edited
    table = {"road": result.road_ids, "edit": [edited.marks.get(road, "") for road in result.road_ids]}
    columns = ("before", "after", "change", "low", "high", "sd_seeds", "sd_members")
    table |= {name: getattr(roads, name) for name in columns}
    minutes = result.before.shape[-1]
    series = {
        "road": np.repeat(result.road_ids, minutes),
        "minute": np.tile(np.arange(minutes), len(result.road_ids)),
        "before": result.before.mean(axis=(0, 1)).ravel(),
        "after": result.after.mean(axis=(0, 1)).ravel(),
    }
    moved = [
        {
            "vehicle": one.vehicle, "why": one.why, "origin": one.origin[0], "destination": one.destination[0],
            "new_origin": one.origin[1], "new_destination": one.destination[1], "metres": one.metres,
        }
        for one in edited.moved
    ]  # fmt: skip
    kinds = [
        (name, pa.string()) for name in ("vehicle", "why", "origin", "destination", "new_origin", "new_destination")
    ]
    parts = {
        "roads.parquet": pa.table(table | {"excludes_zero": roads.clear}),
        "series.parquet": pa.table(series),
        "moved.parquet": pa.Table.from_pylist(moved, pa.schema([*kinds, ("metres", pa.float64())])),
    }
    for name, part in parts.items():
        write_atomic(directory / name, lambda path, part=part: pq.write_table(part, path))  # type: ignore[misc]
    known = np.isfinite(roads.change)
    summary = {
        "edits": result.edits.words(),
        "seeds": result.seeds,
        "ensemble": len(result.before),
        "vehicles": {"before": len(result.case.scenario.demand), "after": len(edited.scenario.demand)},
        "moved": len(edited.moved),
        "effects": {name: one.row() | {"unit": TOTALS[name]} for name, one in result.totals.items()},
        "roads": {"compared": int(known.sum()), "excluding_zero": int(roads.clear.sum())},
        "fit": result.fit | {"unit": result.unit},
        "recovery": {
            "latent": result.models.latent,
            "r2": float(np.mean([one.r2.mean() for one in result.models.members])),
            "r2_held_out": float(np.mean([one.r2_held_out.mean() for one in result.models.members])),
        },
        "notes": edited.notes,
    }
    text = json.dumps(summary, indent=1)
    write_atomic(directory / "whatif.json", lambda path: path.write_text(text))
