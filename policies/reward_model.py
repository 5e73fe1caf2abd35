"""Reward models as data: recovered from a latent, carried in a file, and put to work on a changed network.

MASDiff recovers r = g(s, a) for every vehicle from the rewards of the best latent. Here g is linear in features that any
network has (`features.py`), so that new and redirected connections get rewards too:

    r_i(s, a) = unit * sum over f of weight_f[i] * feature_f(s, a)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..scenarios.errors import InputError
from ..scenarios.network import RoadNetwork
from .features import FEATURES, FeatureScaler, static_features
from .policy import Navigator, chunks
from .preferences import UNIT, Array, HierarchicalPreferences, PreferenceModel, Rewards, rewards_of_weights
from .problem import Problem

HELD_OUT = 0.2  # of the connections: those on which a fit is judged that did not see them


@dataclass(frozen=True, eq=False)
class Recovered:
    """The explicit reward models of one latent."""

    weights: Array  # [vehicles, features], per s.d. of a feature
    r2: Array  # [vehicles] share of the rewards' variance over the connections that they reproduce
    r2_held_out: Array  # [vehicles] the same on connections that a fit did not see; `hier` fits nothing


def recover(model: PreferenceModel, z: Array, phi: Array, seed: int = 0) -> Recovered:
    """Feature weights of every vehicle for a latent (MASDiff, recovery of R_k).

    Exact for `hier`, whose weights they are, but for its tastes for single connections, which no feature carries. For
    `token` and `table` the least-squares fit of the rewards on the features `phi [connections, static]`.
    """
    rewards = model.decode(z)
    seen = np.random.default_rng(seed).permutation(len(phi)) >= round(HELD_OUT * len(phi))
    weights = model.weights(z) if isinstance(model, HierarchicalPreferences) else None
    parts = [
        _recover(rewards.take(rows), phi, seen, None if weights is None else weights[rows])
        for rows in chunks(len(rewards.queue_weight), len(phi))
    ]
    return Recovered(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(Recovered)))


def _recover(rewards: Rewards, phi: Array, seen: NDArray[np.bool_], weights: Array | None) -> Recovered:
    """Of some vehicles, whose weights may be known."""
    table = rewards.static.astype(np.float64)
    if weights is not None:
        r2 = _r2(table, rewards_of_weights(weights, phi).static)
        return Recovered(weights, r2, r2)
    basis = phi.astype(np.float64)
    part = _fit(basis[seen], table[:, seen])
    static = _fit(basis, table)
    weights = (np.column_stack([static, rewards.queue_weight]) / UNIT).astype(np.float32)
    return Recovered(weights, _r2(table, static @ basis.T), _r2(table[:, ~seen], part @ basis[~seen].T))


def _fit(basis: NDArray[np.float64], table: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.lstsq(basis, table.T, rcond=1e-6)[0].T)


def _r2(table: NDArray[np.floating[Any]], fitted: NDArray[np.floating[Any]]) -> Array:
    """[vehicles]; 1 where the rewards do not vary and are met."""
    left = np.square(table - fitted).sum(axis=1)
    there = np.square(table - table.mean(axis=1, keepdims=True)).sum(axis=1)
    return (1.0 - left / np.maximum(there, 1e-12)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class RewardModels:
    """An ensemble of accepted explanations: the preferences of all vehicles in each, and what is needed to use them."""

    vehicles: tuple[str, ...]  # [vehicles]
    members: list[Recovered]  # best first
    estimate: NDArray[np.float64]  # [members] error that the search estimated
    scaler: FeatureScaler
    bias_scale: float  # s.d. of Q for a driver drawn from the prior: what makes lambda metres (see Navigator)
    network_hash: str  # of the network they were learnt on
    latent: str  # "hier", "token" or "table"
    solution: str  # digest of the search's result that they were recovered from

    def metadata(self) -> dict[str, str]:
        facts: dict[str, Any] = {
            "network_hash": self.network_hash,
            "unit": float(UNIT),
            "latent": self.latent,
            "solution": self.solution,
            "bias_scale": self.bias_scale,
            "estimate": self.estimate.tolist(),
        }
        facts |= {f"scaler_{key}": value for key, value in self.scaler.to_dict().items()}
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}

    def columns(self, member: int) -> dict[str, Any]:
        """One explanation's columns: `weight_…`, `r2`, `r2_held_out`."""
        one = self.members[member]
        weights = {f"weight_{name}": one.weights[:, i] for i, name in enumerate(FEATURES)}
        return weights | {"r2": one.r2, "r2_held_out": one.r2_held_out}

    def table(self) -> pa.Table:
        """All explanations one below the other: `member` (0 the best), `vehicle`, and the columns."""
        parts = [
            pa.table(
                {"member": np.full(len(self.vehicles), i, np.int32), "vehicle": list(self.vehicles)} | self.columns(i)
            )
            for i in range(len(self.members))
        ]
        return pa.concat_tables(parts).replace_schema_metadata(self.metadata())


def load_rewards(path: Path) -> RewardModels:
    """Reads what `RewardModels.table` was written as (`rewards_ensemble.parquet`).

    Raises:
        InputError: no such file, or not one of this version's reward models.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; `throng report RUN` writes it") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({error}); `throng report RUN` writes it anew") from error
    raw = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    try:
        unit = json.loads(raw["unit"])
        if not np.isclose(unit, UNIT, rtol=1e-9):
            raise ValueError(f"unit {unit}, this version's is {UNIT}")
        facts = {key: json.loads(raw[key]) for key in ("bias_scale", "estimate")}
        scaler = FeatureScaler.from_dict(
            {key: json.loads(raw[f"scaler_{key}"]) for key in ("features", "mean", "scale", "centre")}
        )
        names = table.column("vehicle").to_pylist()
        count = max(1, len(facts["estimate"]))
        size = len(names) // count
        if size * count != len(names) or names != names[:size] * count:
            raise ValueError("its members are not of the same vehicles")
        weights = np.column_stack([table.column(f"weight_{name}").to_numpy() for name in FEATURES]).astype(np.float32)
        quality = [table.column(name).to_numpy().astype(np.float32) for name in ("r2", "r2_held_out")]
        if not np.isfinite(weights).all():
            raise ValueError("a weight is not finite")
        names_of = (raw["network_hash"], raw["latent"], raw["solution"])
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: not reward models that this version can use ({error}); `throng report RUN` writes them anew"
        ) from error
    rows = [slice(i * size, (i + 1) * size) for i in range(count)]
    members = [Recovered(weights[part], quality[0][part], quality[1][part]) for part in rows]
    estimate = np.asarray(facts["estimate"], np.float64)
    return RewardModels(tuple(names[:size]), members, estimate, scaler, float(facts["bias_scale"]), *names_of)


class WeightPreferences:
    """The preference model whose latent is the feature weights themselves, `[vehicles, features]`."""

    def __init__(self, phi: Array, vehicles: int) -> None:
        self.phi = phi
        self._vehicles = vehicles

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._vehicles, len(FEATURES))

    def decode(self, z: Array) -> Rewards:
        return rewards_of_weights(z, self.phi)

    def encode(self, rewards: Rewards) -> Array:
        """Exact where no feature is a combination of others on this network."""
        static = _fit(self.phi.astype(np.float64), rewards.static.astype(np.float64))
        return (np.column_stack([static, rewards.queue_weight]) / UNIT).astype(np.float32)


@dataclass(frozen=True, eq=False)
class TransferProblem(Problem):
    """A scenario driven by recovered reward models: a latent is the weights of all its vehicles.

    What makes lambda metres is that of the network on which the models were learnt: an edit changes roads, not people.
    """

    bias_scale: float = 1.0

    def preference_model(self) -> PreferenceModel:
        phi = static_features(self.scenario.network, self.scaler)
        return WeightPreferences(phi, len(self.scenario.demand))

    def navigator(self, model: PreferenceModel) -> Navigator:
        scenario = self.scenario
        return Navigator(
            scenario.network, scenario.demand, scenario.begin, self.navigation, self.learner, self.bias_scale
        )


def require_network(models: RewardModels, network: RoadNetwork, path: Path) -> None:
    """Raises InputError if the network is not the one that the models were learnt on."""
    if models.network_hash != network.hash:
        raise InputError(
            f"{network.path}: not the network that {path} was learnt on (hash {network.hash[:12]} instead of "
            f"{models.network_hash[:12]}); restore that network, and give an edited one with --net"
        )
