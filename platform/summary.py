"""What a finished run says: the learnt preferences, the exported reward models, and the data of its report."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.torch import load_file

from ..policies.features import FEATURES, MEANING, STATIC, static_features
from ..policies.preferences import UNIT, HierarchicalPreferences, PreferenceModel
from ..scenarios.errors import InputError
from ..scenarios.truths import STRUCTURED, structured_mean
from .case import Case
from .experiment import Solution
from .report import ReportData
from .store import RunStore, write_atomic

NOTES = [
    "Preferences of single drivers are not identified by an aggregate series: many sets of drivers explain the same "
    "queues. Read the population's preferences, and the interval over the accepted explanations, not single vehicles.",
    "Origins, destinations, departures and signal programs are taken as known and are not estimated.",
    "Errors of the best policies come from seeds that the search never used.",
]


def feature_weights(case: Case, model: PreferenceModel, z: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights `[vehicles, features]` of g(features of s, a), per s.d. of a feature.

    Exact for `hier`; for `token` and `table` the least-squares fit on the features (MASDiff, recovery of R_k).
    """
    if isinstance(model, HierarchicalPreferences):
        return model.weights(z)
    rewards = model.decode(z)
    phi = static_features(case.scenario.network, case.problem.scaler).astype(np.float64)
    static = np.linalg.lstsq(phi, rewards.static.T.astype(np.float64), rcond=1e-6)[0].T
    return (np.column_stack([static, rewards.queue_weight]) / UNIT).astype(np.float32)


def preferences(case: Case, model: PreferenceModel, solution: Solution) -> list[dict[str, Any]]:
    """Population mean of every feature's weight: mean and 5-95 % range over the ensemble of accepted explanations."""
    means = np.stack([feature_weights(case, model, z).mean(axis=0) for z in solution.z])
    low, high = np.quantile(means, [0.05, 0.95], axis=0)
    given = case.config.target
    truth = None
    if case.observed is None and given.truth in STRUCTURED:
        truth = structured_mean(len(FEATURES), given.truth_seed)
    phi = static_features(case.scenario.network, case.problem.scaler)[case.scenario.network.allowed]
    rows = []
    for i, name in enumerate(FEATURES):
        if i < len(STATIC) and np.ptp(phi[:, i]) < 1e-6:
            continue  # constant on this network: nothing could be learnt of it
        rows.append(
            {
                "feature": name,
                "meaning": MEANING[name],
                "mean": float(means[:, i].mean()),
                "low": float(low[i]),
                "high": float(high[i]),
                "truth": None if truth is None else float(truth[i]),
            }
        )
    return rows


def export_rewards(store: RunStore, case: Case, model: PreferenceModel, solution: Solution) -> None:
    """Writes `rewards.parquet`: the explicit reward model and the route of every vehicle (best explanation).

    `r(s, a) = unit * sum_f weight_f * feature_f(s, a)`; features, scaler and the network's hash are in the metadata.
    """
    network, demand = case.scenario.network, case.scenario.demand
    weights = feature_weights(case, model, solution.z[0])
    routes = case.problem.navigator(model).routes(model.decode(solution.z[0]), solution.tau[0])
    ids = np.asarray(network.road_ids, dtype=object)
    columns: dict[str, Any] = {
        "vehicle": list(demand.ids),
        "depart": demand.depart,
        "origin": ids[demand.origin].tolist(),
        "destination": ids[demand.destination].tolist(),
        "route": [ids[routes.route(i)].tolist() for i in range(len(routes))],
    }
    columns |= {f"weight_{name}": weights[:, i] for i, name in enumerate(FEATURES)}
    metadata = {"network_hash": network.hash, "unit": repr(float(UNIT)), "latent": case.config.latent.kind}
    metadata |= {f"scaler_{key}": repr(value) for key, value in case.problem.scaler.to_dict().items()}
    table = pa.table(columns).replace_schema_metadata(metadata)
    write_atomic(store.directory / "rewards.parquet", lambda path: pq.write_table(table, path))


def report_data(store: RunStore, case: Case) -> ReportData:
    """Gathers a finished run's report.

    Raises:
        InputError: the run has no result yet.
    """
    result, evaluation = store.read_json("result.json"), store.read_json("evaluation.json")
    if result is None or evaluation is None:
        raise InputError(
            f"{store.directory}: the run is not finished; go on with the same `throng run` command, then report"
        )
    model = case.problem.preference_model()
    solution = Solution.load(store.directory / "solution.safetensors")
    arrays = {k: v.numpy() for k, v in load_file(store.directory / "evaluation.safetensors").items()}
    network, config = case.scenario.network, case.config
    shape = (network.road_count, case.scenario.minutes)
    by_road = arrays["observed"].ndim == 2
    lcc = None if by_road else (arrays["observed"], arrays["simulated"])
    rows = evaluation["rows"]
    own, prior = rows[0], next(row for row in rows if row["method"] == "prior mean")
    unit = evaluation["unit"]
    share = 1.0 - own["gap"]
    history = store.manifest()["history"]
    summary = [
        ("error on fresh seeds", f"{own['rmse']:.3f} ± {own['rmse_sd']:.3f} {unit}"),
        ("noise floor", f"{evaluation['floor']:.3f} ({evaluation['floor_is']})"),
        ("before learning", f"{prior['rmse']:.3f}"),
        ("way from prior to floor", "–" if not math.isfinite(share) else f"{100 * share:.0f} %"),
        ("search", f"{result['spent']:.0f} micro-equivalent simulations, {result['generations']} generations"),
        ("evaluation", f"{evaluation['seeds']} fresh seeds, {evaluation['teleports']:.1f} teleports each"),
    ]
    title = (
        f"{config.name}: {network.junction_count} junctions, {network.road_count} roads, "
        f"{len(case.scenario.demand):,} vehicles, {case.scenario.minutes} minutes"
    )
    return ReportData(
        title=title,
        summary=summary,
        road_ids=list(network.road_ids),
        shapes=list(network.shapes),
        lanes=network.lanes,
        kind=evaluation["kind"] if by_road else "queue",
        unit=unit if by_road else "vehicles",
        observed=arrays["observed"] if by_road else np.full(shape, np.nan, np.float32),
        simulated=arrays["simulated"] if by_road else arrays["queues"],
        prior=arrays.get("prior") if by_road else None,
        lcc=lcc,
        history={name: np.array([row[name] for row in history]) for name in history[0]},
        levels=[(row["method"], row["rmse"], row["rmse_sd"]) for row in rows[1:]],
        preferences=preferences(case, model, solution),
        evaluation=rows,
        notes=NOTES,
        config=config.to_yaml(),
    )
