"""Latents and rewards: exact there and back, centred effects, orthonormal bases."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from throng.policies.features import FEATURES, STATIC, fit_scaler, static_features
from throng.policies.preferences import (
    HierarchicalPreferences,
    PreferenceModel,
    Rewards,
    TokenPreferences,
    connection_basis,
    od_groups,
)
from throng.scenarios.demand import Demand
from throng.scenarios.network import RoadNetwork
from throng.scenarios.scenario import Scenario

Array = NDArray[np.float32]
MODELS = ["hier-1", "hier-6", "hier-6-taste", "hier-singletons", "token", "table"]


@pytest.fixture(scope="module")
def phi(town: Scenario) -> Array:
    return static_features(town.network, fit_scaler(town.network))


@pytest.fixture(scope="module")
def models(town: Scenario, phi: Array) -> dict[str, PreferenceModel]:
    network, demand, n = town.network, town.demand, len(town.demand)
    six = od_groups(network, demand, 6)
    lonely = six.copy()
    lonely[7] = 6  # a group of one vehicle: its code is zero
    return {
        "hier-1": HierarchicalPreferences(network, phi, np.zeros(n, np.int32)),
        "hier-6": HierarchicalPreferences(network, phi, six),
        "hier-6-taste": HierarchicalPreferences(network, phi, six, connection_taste=9),
        "hier-singletons": HierarchicalPreferences(network, phi, lonely),
        "token": TokenPreferences(network, phi, n, 16),
        "table": TokenPreferences(network, phi, n, None),
    }


def _draw(model: PreferenceModel, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(model.shape, dtype=np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_a_latent_is_read_back_from_its_rewards(models: dict[str, PreferenceModel], name: str) -> None:
    """If two latents meant the same rewards, or one part leaked into another, evolution would steer nothing."""
    model = models[name]
    for seed in range(5):
        z = _draw(model, seed)
        rewards = model.decode(z)
        assert rewards.static.dtype == rewards.queue_weight.dtype == np.float32
        np.testing.assert_allclose(model.encode(rewards), z, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_encoding_any_rewards_is_a_projection(models: dict[str, PreferenceModel], town: Scenario, name: str) -> None:
    """Rewards outside the model are brought into it once; a second time must change nothing."""
    model, rng = models[name], np.random.default_rng(0)
    shape = (len(town.demand), town.network.connection_count)
    given = Rewards(rng.standard_normal(shape, dtype=np.float32), rng.standard_normal(shape[0], dtype=np.float32))
    once = model.decode(model.encode(given))
    twice = model.decode(model.encode(once))
    np.testing.assert_allclose(twice.static, once.static, atol=1e-4)
    np.testing.assert_allclose(twice.queue_weight, once.queue_weight, atol=1e-4)


def test_the_token_projection_is_orthogonal(town: Scenario, phi: Array) -> None:
    """What is left over has nothing in the basis; the table keeps everything."""
    n, e = len(town.demand), town.network.connection_count
    static = np.random.default_rng(1).standard_normal((n, e), dtype=np.float32)
    rewards = Rewards(static, np.zeros(n, np.float32))
    token = TokenPreferences(town.network, phi, n, 20)
    assert token.basis is not None
    rest = static - token.decode(token.encode(rewards)).static
    np.testing.assert_allclose(rest @ token.basis, 0, atol=1e-4)
    table = TokenPreferences(town.network, phi, n, None)
    np.testing.assert_array_equal(table.decode(table.encode(rewards)).static, static)


def test_a_token_speaks_for_its_vehicle_alone(models: dict[str, PreferenceModel]) -> None:
    model = models["token"]
    z = _draw(model, 0)
    other = z.copy()
    other[3] += 1.0
    before, after = model.decode(z), model.decode(other)
    moved = (before.static != after.static).any(axis=1) | (before.queue_weight != after.queue_weight)
    assert np.flatnonzero(moved).tolist() == [3]


def test_group_effects_are_centred_over_vehicles(models: dict[str, PreferenceModel]) -> None:
    """Were they not, mu would not be the population mean, and mu and U could trade places."""
    model = models["hier-6"]
    assert isinstance(model, HierarchicalPreferences)
    z = _draw(model, 2)
    mu, u, sigma, _ = model.split(z)
    sizes = np.bincount(model.groups)
    np.testing.assert_allclose(sizes @ u, 0, atol=1e-4)
    weights = model.weights(z)
    np.testing.assert_allclose(weights.mean(axis=0), mu, atol=1e-4)
    for group in range(6):
        np.testing.assert_allclose(weights[model.groups == group].mean(axis=0), mu + u[group], atol=1e-4)
    rest = weights - mu - u[model.groups]
    np.testing.assert_allclose(rest.std(axis=0), sigma, rtol=1e-4)
    np.testing.assert_allclose(model.contrasts.T @ model.contrasts, np.eye(5), atol=1e-12)


@pytest.mark.parametrize("name", ["hier-1", "hier-6", "token", "table"])
def test_rewards_of_the_prior_have_about_unit_variance(
    models: dict[str, PreferenceModel], town: Scenario, name: str
) -> None:
    """lambda is in metres per s.d. only if one s.d. of a driver's rewards over connections is about one."""
    model, allowed = models[name], town.network.allowed
    draws = 10 if name in ("token", "table") else 150
    squares = [np.square(model.decode(_draw(model, seed)).static[:, allowed]).mean() for seed in range(draws)]
    assert np.mean(squares) == pytest.approx(1.0, abs=0.2)


def test_constant_features_are_read_back_as_zero(hand_made: Callable[..., RoadNetwork]) -> None:
    """One lane everywhere, no signal: a taste for them cannot be seen in rewards, nor turn into infinity."""
    rng = np.random.default_rng(3)
    pairs = [(a, (a + k) % 12) for a in range(12) for k in (1, 5)]
    turn = rng.integers(0, 3, len(pairs))
    network = hand_made(12, pairs, turn=turn, length=rng.uniform(50, 300, 12), end_xy=rng.uniform(0, 900, (12, 2)))
    phi = static_features(network, fit_scaler(network))
    model = HierarchicalPreferences(network, phi, rng.integers(0, 3, 40).astype(np.int32))
    z = _draw(model, 4)
    read = model.encode(model.decode(z))
    unseen = [FEATURES.index(name) for name in ("arterial", "speed", "signal")]
    mask = np.zeros((4, len(FEATURES)), bool)  # mu, two contrasts, log sigma
    mask[:, unseen] = True
    np.testing.assert_allclose(read[mask.ravel()], 0, atol=1e-4)
    np.testing.assert_allclose(read[~mask.ravel()], z[~mask.ravel()], atol=1e-4)


def test_without_individuals_their_spread_is_read_back_as_zero(town: Scenario, phi: Array) -> None:
    """One vehicle per group: its own code and its group's effect are one thing, the spread means nothing."""
    model = HierarchicalPreferences(town.network, phi, np.arange(4, dtype=np.int32))
    z = _draw(model, 5)
    read = model.encode(model.decode(z))
    f = len(FEATURES)
    np.testing.assert_allclose(read[: 4 * f], z[: 4 * f], atol=1e-4)
    assert not read[4 * f :].any()


def test_basis_columns_are_orthonormal_and_begin_with_the_features(town: Scenario, phi: Array) -> None:
    """The encoder is the decoder's transpose: with columns that are not orthonormal, reading back goes wrong."""
    network, e = town.network, town.network.connection_count
    for size in (1, len(STATIC), 40, e):
        basis = connection_basis(network, phi, size)
        assert basis.shape == (e, size)
        np.testing.assert_allclose(basis.T @ basis, np.eye(size), atol=1e-5)
    first = basis[:, : len(STATIC)]
    np.testing.assert_allclose(first @ (first.T @ phi), phi, atol=1e-4)


def test_the_smoothest_pattern_is_the_constant_one(town: Scenario, phi: Array) -> None:
    """The Laplacian of a connected graph has the constant vector in its kernel: it must come right after the features."""
    basis = connection_basis(town.network, phi, len(STATIC) + 1).astype(np.float64)
    one = np.ones(town.network.connection_count)
    np.testing.assert_allclose(basis @ (basis.T @ one), one, atol=1e-4)


def test_a_city_has_an_orthonormal_basis_too(hand_made: Callable[..., RoadNetwork]) -> None:
    """Beyond 2000 connections another eigensolver is used; it must give the same answer every time."""
    rng = np.random.default_rng(6)
    roads = 800
    pairs = {(a, (a + k) % roads) for a in range(roads) for k in (1, 7, 31)}
    network = hand_made(
        roads, sorted(pairs), length=rng.uniform(50, 300, roads), end_xy=rng.uniform(0, 9000, (roads, 2))
    )
    phi = static_features(network, fit_scaler(network))
    basis = connection_basis(network, phi, 12)
    np.testing.assert_allclose(basis.T @ basis, np.eye(12), atol=1e-5)
    np.testing.assert_array_equal(connection_basis(network, phi, 12), basis)
    rank = np.linalg.matrix_rank(phi)
    one = np.ones(len(phi))
    smooth = basis[:, : rank + 1].astype(np.float64)
    np.testing.assert_allclose(smooth @ (smooth.T @ one), one, atol=1e-3)


def test_a_basis_larger_than_the_network_is_refused(hand_made: Callable[..., RoadNetwork]) -> None:
    network = hand_made(3, [(0, 1), (1, 2)])
    for size in (0, 3):
        with pytest.raises(ValueError, match=r"1\.\.2"):
            connection_basis(network, np.zeros((2, 1), np.float32), size)


def test_groups_are_occupied_and_the_same_every_time(town: Scenario) -> None:
    """An empty group would be a latent that does nothing; other groups after a restart, another problem."""
    network, demand = town.network, town.demand
    trips = demand.origin.astype(np.int64) * network.road_count + demand.destination
    for count in (1, 2, 8, 40):
        groups = od_groups(network, demand, count, seed=3)
        assert np.array_equal(np.unique(groups), np.arange(groups.max() + 1))
        assert groups.max() < count
        assert np.array_equal(groups, od_groups(network, demand, count, seed=3))
        for trip in np.unique(trips):
            assert len(set(groups[trips == trip])) == 1, "one trip, two groups"


def test_fewer_trips_than_groups(hand_made: Callable[..., RoadNetwork], make_demand: Callable[..., Demand]) -> None:
    """Three distinct trips make three groups, one makes one; asking for more is no error."""
    network = hand_made(4, [(0, 1), (1, 2), (2, 3)], end_xy=[[0, 0], [100, 0], [200, 0], [300, 0]])
    three = od_groups(network, make_demand([0, 0, 1, 0, 2], [3, 3, 3, 2, 3]), 10)
    assert three[0] == three[1]
    assert len(set(three.tolist())) <= 4
    assert np.array_equal(np.unique(three), np.arange(three.max() + 1))
    assert od_groups(network, make_demand([0, 0], [3, 3]), 5).tolist() == [0, 0]
    assert od_groups(network, make_demand([0], [3]), 5).tolist() == [0]
