"""What a finished run says: the learnt preferences, the exported reward models, and the data of its report."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file

from ..policies.features import FEATURES, MEANING, STATIC, static_features
from ..policies.preferences import PreferenceModel
from ..policies.reward_model import RewardModels, load_rewards, recover, require_network
from ..scenarios.errors import InputError
from ..scenarios.truths import STRUCTURED, structured_mean
from .case import Case
from .experiment import Solution
from .report import ReportData
from .store import RunStore, write_atomic

ENSEMBLE_FILE = "rewards_ensemble.parquet"
NOTES = [
    "Preferences of single drivers are not identified by an aggregate series: many sets of drivers explain the same "
    "queues. Read the population's preferences, and the interval over the accepted explanations, not single vehicles.",
    "Origins, destinations, departures and signal programs are taken as known and are not estimated.",
    "Errors of the best policies come from seeds that the search never used.",
]


def reward_models(case: Case, model: PreferenceModel, solution: Solution) -> RewardModels:
    """The recovered reward models of all accepted explanations."""
    network = case.scenario.network
    phi = static_features(network, case.problem.scaler)
    return RewardModels(
        case.scenario.demand.ids,
        [recover(model, z, phi) for z in solution.z],
        solution.estimate,
        case.problem.scaler,
        case.problem.navigator(model).bias_scale,
        network.hash,
        case.config.latent.kind,
        solution.digest,
    )


def preferences(case: Case, model: PreferenceModel, solution: Solution) -> list[dict[str, Any]]:
    """Population mean of every feature's weight: mean and 5-95 % range over the ensemble of accepted explanations."""
    phi = static_features(case.scenario.network, case.problem.scaler)
    means = np.stack([recover(model, z, phi).weights.mean(axis=0) for z in solution.z])
    low, high = np.quantile(means, [0.05, 0.95], axis=0)
    given = case.config.target
    truth = None
    if case.observed is None and given.truth in STRUCTURED:
        truth = structured_mean(len(FEATURES), given.truth_seed)
    phi = phi[case.scenario.network.allowed]
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
    """Writes the reward models: `rewards.parquet`, the best explanation's with the route of every vehicle, and
    `rewards_ensemble.parquet`, those of all accepted explanations, which `load_rewards` reads.

    `r(s, a) = unit * sum_f weight_f * feature_f(s, a)`; features, scaler and the network's hash are in the metadata.

    Raises:
        InputError: the network is not the one of the models that were exported before.
    """
    network, demand = case.scenario.network, case.scenario.demand
    models = reward_models(case, model, solution)
    known: RewardModels | None = None
    ensemble = store.directory / ENSEMBLE_FILE
    with contextlib.suppress(InputError):  # not there yet, or damaged: it is written now
        before = load_rewards(ensemble)
        if before.solution == models.solution:
            known = before
    if known is not None:
        require_network(known, network, ensemble)
    routes = case.problem.navigator(model).routes(model.decode(solution.z[0]), solution.tau[0])
    ids = np.asarray(network.road_ids, dtype=object)
    columns: dict[str, Any] = {
        "vehicle": list(demand.ids),
        "depart": demand.depart,
        "origin": ids[demand.origin].tolist(),
        "destination": ids[demand.destination].tolist(),
        "route": [ids[routes.route(i)].tolist() for i in range(len(routes))],
    }
    table = pa.table(columns | models.columns(0)).replace_schema_metadata(models.metadata())
    write_atomic(store.directory / "rewards.parquet", lambda path: pq.write_table(table, path))
    write_atomic(ensemble, lambda path: pq.write_table(models.table(), path))


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
