"""Reward models: recovered without loss where that can be, honest about the loss elsewhere, and the same after a file."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from throng.policies.features import FEATURES, STATIC, fit_scaler, static_features
from throng.policies.policy import Navigation
from throng.policies.preferences import HierarchicalPreferences, Rewards, TokenPreferences
from throng.policies.problem import LatentSettings, Problem
from throng.policies.reward_model import (
    Recovered,
    RewardModels,
    TransferProblem,
    WeightPreferences,
    load_rewards,
    recover,
    require_network,
)
from throng.scenarios.errors import InputError
from throng.scenarios.scenario import Scenario

Array = NDArray[np.float32]


def problem(town: Scenario, **latent: object) -> Problem:
    return Problem(town, fit_scaler(town.network), LatentSettings(**latent), Navigation())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def phi(town: Scenario) -> Array:
    return static_features(town.network, fit_scaler(town.network))


def draw(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_hierarchical_rewards_are_reproduced_exactly(town: Scenario, phi: Array) -> None:
    model = problem(town).preference_model()
    z = draw(model.shape)
    found = recover(model, z, phi)
    rewards, again = model.decode(z), WeightPreferences(phi, len(town.demand)).decode(found.weights)
    np.testing.assert_array_equal(again.static, rewards.static)
    np.testing.assert_array_equal(again.queue_weight, rewards.queue_weight)
    assert found.r2.min() > 0.99999


def test_a_taste_for_single_connections_does_not_transfer_and_r2_says_so(town: Scenario, phi: Array) -> None:
    model = problem(town, connection_taste=9).preference_model()
    z = draw(model.shape)
    found = recover(model, z, phi)
    rewards = model.decode(z).static.astype(float)
    assert isinstance(model, HierarchicalPreferences)
    taste = model.taste_basis @ model.split(z)[3]  # one for all
    np.testing.assert_allclose(found.r2, 1 - np.square(taste).mean() / rewards.var(axis=1), atol=1e-3)
    assert found.r2.max() < 0.95


def test_tokens_within_the_features_are_recovered_and_others_in_part(town: Scenario, phi: Array) -> None:
    """A token basis begins with the features: one of that size is in their span, a larger one is not."""
    rank = int(np.linalg.matrix_rank(phi))
    inside = TokenPreferences(town.network, phi, 50, rank)
    found = recover(inside, draw(inside.shape), phi)
    assert found.r2.min() > 0.999
    assert found.r2_held_out.min() > 0.99
    larger = TokenPreferences(town.network, phi, 50, rank + 20)
    assert recover(larger, draw(larger.shape), phi).r2.mean() < 0.7


@pytest.mark.parametrize("kind", ["hier", "token"])
def test_vehicles_are_recovered_chunk_by_chunk(
    town: Scenario, phi: Array, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A city's table of rewards is never held at once."""
    model = problem(town).preference_model() if kind == "hier" else TokenPreferences(town.network, phi, 50, 30)
    z = draw(model.shape)
    whole = recover(model, z, phi)
    monkeypatch.setattr("throng.policies.policy.CHUNK", 7)
    seen: list[int] = []
    take = Rewards.take
    monkeypatch.setattr(Rewards, "take", lambda self, rows: seen.append(rows.stop - rows.start) or take(self, rows))
    parts = recover(model, z, phi)
    assert max(seen) == 7
    for one in fields(Recovered):
        np.testing.assert_allclose(getattr(parts, one.name), getattr(whole, one.name), rtol=1e-5, atol=1e-5)


def test_an_iid_table_has_no_more_in_it_than_chance(town: Scenario, phi: Array) -> None:
    """k regressors explain a share of about k / E of noise, and nothing of what they did not see."""
    table = TokenPreferences(town.network, phi, 400, None)
    found = recover(table, draw(table.shape), phi)
    rank, connections = int(np.linalg.matrix_rank(phi)), len(phi)
    assert found.r2.mean() == pytest.approx(rank / connections, abs=0.01)
    assert found.r2_held_out.mean() < 0


def models(town: Scenario, phi: Array, members: int = 3) -> RewardModels:
    given = problem(town)
    model = given.preference_model()
    found = [recover(model, draw(model.shape, i), phi) for i in range(members)]
    scale = given.navigator(model).bias_scale
    estimate = np.linspace(0.9, 1.1, members)
    return RewardModels(
        town.demand.ids, found, estimate, given.scaler, scale, town.network.hash, "hier", "0123abcd"
    )  # fmt: skip


def test_a_file_gives_back_what_was_written(town: Scenario, phi: Array, tmp_path: Path) -> None:
    before = models(town, phi)
    path = tmp_path / "rewards_ensemble.parquet"
    pq.write_table(before.table(), path)
    after = load_rewards(path)
    assert after.vehicles == before.vehicles
    assert (after.bias_scale, after.latent, after.solution) == (before.bias_scale, "hier", "0123abcd")
    np.testing.assert_array_equal(after.estimate, before.estimate)
    for name in ("mean", "scale", "centre"):
        np.testing.assert_array_equal(getattr(after.scaler, name), getattr(before.scaler, name))
    assert len(after.members) == 3
    for one, other in zip(after.members, before.members, strict=True):
        np.testing.assert_array_equal(one.weights, other.weights)
        np.testing.assert_array_equal(one.r2, other.r2)
    require_network(after, town.network, path)
    with pytest.raises(InputError, match=r"not the network that .* was learnt on"):
        require_network(after, replace(town.network, speed=town.network.speed * 2), path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("unit", "2.0", "unit 2.0"),
        ("scaler_features", json.dumps([*FEATURES[:-1], "mood"]), "mood"),
        ("estimate", "[1.0, 2.0]", "not of the same vehicles"),
        ("network_hash", None, "network_hash"),
        ("bias_scale", "nonsense", "Expecting value"),
    ],
)
def test_files_of_another_making_are_refused(
    town: Scenario, phi: Array, tmp_path: Path, key: str, value: str | None, said: str
) -> None:
    table = models(town, phi).table()
    metadata = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    metadata = {k: v for k, v in (metadata | {key: value}).items() if v is not None}
    path = tmp_path / "r.parquet"
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(InputError, match=rf"r\.parquet.*{said}.*throng report"):
        load_rewards(path)


def test_missing_and_damaged_files_are_named(town: Scenario, phi: Array, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.parquet: no such file; `throng report RUN` writes it"):
        load_rewards(tmp_path / "none.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(InputError, match=r"torn\.parquet: cannot be read"):
        load_rewards(tmp_path / "torn.parquet")
    path = tmp_path / "short.parquet"
    pq.write_table(models(town, phi).table().drop_columns(["weight_queue"]), path)
    with pytest.raises(InputError, match="weight_queue"):
        load_rewards(path)


def test_on_the_network_they_were_learnt_on_models_give_the_same_routes(town: Scenario, phi: Array) -> None:
    """Transfer must add nothing of its own: same weights, same constant of lambda, same queues, same routes."""
    given = problem(town)
    model = given.preference_model()
    navigator = given.navigator(model)
    z = draw(model.shape, 3)
    queue = np.random.default_rng(1).poisson(2, (town.network.road_count, 5)).astype(np.float32)
    moved = TransferProblem(
        town, given.scaler, given.latent, given.navigation, bias_scale=models(town, phi).bias_scale
    )  # fmt: skip
    other = moved.preference_model()
    weights = recover(model, z, phi).weights
    routes, again = (
        navigator.routes(model.decode(z), queue),
        moved.navigator(other).routes(other.decode(weights), queue),
    )
    np.testing.assert_array_equal(routes.roads, again.roads)
    np.testing.assert_array_equal(routes.offsets, again.offsets)


def test_weights_are_read_back_from_rewards(town: Scenario, phi: Array) -> None:
    varied = phi + 0.1 * draw(phi.shape)  # of full rank, whatever the town is like
    model = WeightPreferences(varied, 20)
    weights = draw((20, len(FEATURES)))
    np.testing.assert_allclose(model.encode(model.decode(weights)), weights, atol=1e-3)
    assert model.shape == (20, len(STATIC) + 1)
