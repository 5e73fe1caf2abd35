"""The compiled value iteration against closed forms and a float64 one in plain Python."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from throng.policies.value_iteration import BLOCK, state_values, value_iteration
from throng.scenarios.network import RoadNetwork

Networks = Callable[..., RoadNetwork]


def _brute_force(network: RoadNetwork, rewards: NDArray[np.float32], discount: float) -> NDArray[np.float64]:
    """Q* of one vehicle after another: Jacobi sweeps in float64 until nothing changes by 1e-12."""
    source, target = network.connections.T
    q_all = np.empty(rewards.shape)
    for i, r in enumerate(rewards.astype(np.float64)):
        v = np.zeros(network.road_count)
        while True:
            q = r + discount * v[target]
            new = np.zeros(network.road_count)
            for s in range(network.road_count):
                choices = [q[e] for e in range(len(q)) if source[e] == s and network.allowed[e]]
                if choices:
                    new[s] = max(choices)
            change = np.abs(new - v).max(initial=0.0)
            v = new
            if change < 1e-12:
                break
        q_all[i] = r + discount * v[target]
    return q_all


def _solve(
    network: RoadNetwork, rewards: NDArray[np.float32], discount: float, tolerance: float = 1e-4
) -> NDArray[np.float32]:
    to = network.to
    return value_iteration(rewards, network.first, to, network.allowed, discount, tolerance)


@pytest.mark.parametrize("discount", [0.3, 0.8, 0.95])
@pytest.mark.parametrize("seed", [0, 1])
def test_q_is_that_of_brute_force(random_network: Networks, seed: int, discount: float) -> None:
    """A wrong max, a mask that leaks, or vehicles mixed up in a block would show in some cell."""
    rng = np.random.default_rng(seed)
    network = random_network(rng, 9, 22, masked=0.3)
    rewards = rng.standard_normal((BLOCK + 5, network.connection_count)).astype(np.float32)
    np.testing.assert_allclose(_solve(network, rewards, discount), _brute_force(network, rewards, discount), atol=2e-4)


@pytest.mark.parametrize("tolerance", [1.0, 0.1, 1e-3])
def test_the_error_stays_within_the_tolerance(random_network: Networks, tolerance: float) -> None:
    """If the stopping rule forgot 1 / (1 - gamma), the error would be up to 30 times the tolerance here."""
    rng = np.random.default_rng(2)
    network = random_network(rng, 8, 20)
    rewards = rng.standard_normal((7, network.connection_count)).astype(np.float32)
    error = np.abs(_solve(network, rewards, 0.97, tolerance) - _brute_force(network, rewards, 0.97)).max()
    assert error <= tolerance + 1e-5


def test_a_cycle_is_worth_its_geometric_series(hand_made: Networks) -> None:
    """One road after another for ever: r / (1 - gamma); two rewards in turn: (a + gamma b) / (1 - gamma^2)."""
    network = hand_made(4, [(0, 0), (1, 2), (2, 1)])
    q = _solve(network, np.array([[1.5, 2.0, -1.0]], np.float32), 0.9, 1e-5)
    expected = [1.5 / (1 - 0.9), (2.0 - 0.9) / (1 - 0.81), (-1.0 + 0.9 * 2.0) / (1 - 0.81)]
    np.testing.assert_allclose(q[0], expected, rtol=1e-5)


def test_a_dead_end_is_worth_nothing(hand_made: Networks) -> None:
    """Were it worth less, nobody would drive to a destination at the edge of the network."""
    network = hand_made(3, [(0, 1), (0, 2), (2, 1)])
    q = _solve(network, np.array([[-3.0, 1.0, 4.0]], np.float32), 0.5)
    np.testing.assert_allclose(q[0], [-3.0, 1.0 + 0.5 * 4.0, 4.0], atol=1e-5)
    v = state_values(q, network.first, network.allowed)
    np.testing.assert_allclose(v[0], [3.0, 0.0, 4.0], atol=1e-5)


def test_a_masked_connection_has_a_q_that_nobody_counts_on(hand_made: Networks) -> None:
    """A closed turn with a great reward must not draw traffic to the road before it."""
    network = hand_made(3, [(0, 1), (1, 0), (1, 2)])
    masked = network.with_allowed([True, False, True])
    q = _solve(masked, np.array([[1.0, 100.0, 2.0]], np.float32), 0.5, 1e-6)
    np.testing.assert_allclose(q[0], [1.0 + 0.5 * 2.0, 100.0 + 0.5 * 2.0, 2.0], atol=1e-5)
    np.testing.assert_allclose(state_values(q, masked.first, masked.allowed)[0], [2.0, 2.0, 0.0], atol=1e-5)
    closed = network.with_allowed([False, False, False])
    assert not state_values(q, closed.first, closed.allowed).any()


def test_without_a_future_q_is_the_reward(random_network: Networks) -> None:
    """gamma = 0 is the one-step learner of LDM.IMIT."""
    rng = np.random.default_rng(3)
    network = random_network(rng, 6, 14)
    rewards = rng.standard_normal((3, network.connection_count)).astype(np.float32)
    np.testing.assert_array_equal(_solve(network, rewards, 0.0), rewards)


def test_a_vehicle_does_not_depend_on_its_neighbours_in_the_block(random_network: Networks) -> None:
    """Loud neighbours share a block's stopping rule: the quiet vehicle's own error must stay within the tolerance."""
    rng = np.random.default_rng(4)
    network = random_network(rng, 10, 30)
    rewards = rng.standard_normal((3 * BLOCK - 7, network.connection_count)).astype(np.float32)
    rewards[::3] *= 50.0
    alone = np.concatenate([_solve(network, row[None], 0.8) for row in rewards])
    order = rng.permutation(len(rewards))
    together = np.empty_like(alone)
    together[order] = _solve(network, rewards[order], 0.8)
    np.testing.assert_allclose(together, alone, atol=2e-4)
    np.testing.assert_allclose(together, _brute_force(network, rewards, 0.8), atol=2e-4)


@pytest.mark.parametrize(("discount", "scale"), [(0.8, 1000.0), (0.99, 1.0), (0.999, 100.0)])
def test_rewards_beyond_the_resolution_of_float32_do_not_go_round_for_ever(
    hand_made: Networks, discount: float, scale: float
) -> None:
    """On a ring, rounding errors travel with the sweeps and never shrink: the learner once hung here."""
    roads = 50
    network = hand_made(roads, [(s, (s + 1) % roads) for s in range(roads)])
    rewards = (scale * np.random.default_rng(5).standard_normal((64, roads))).astype(np.float32)
    q = _solve(network, rewards, discount)
    powers = discount ** np.arange(roads)
    exact = np.stack([np.roll(rewards, -s, axis=1) @ powers for s in range(roads)], axis=1) / (1 - discount**roads)
    np.testing.assert_allclose(q, exact, atol=1e-5 * np.abs(exact).max() / (1 - discount))


def test_what_cannot_be_learnt_is_refused(hand_made: Networks) -> None:
    """NaN would spread to every road without a word, gamma = 1 has no fixed point."""
    network = hand_made(2, [(0, 1), (1, 0)])
    fine = np.zeros((1, 2), np.float32)
    for discount in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="discount"):
            _solve(network, fine, discount)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="finite"):
            _solve(network, np.array([[0.0, bad]], np.float32), 0.8)


def test_no_vehicles_and_no_roads_are_no_problem(hand_made: Networks) -> None:
    assert _solve(hand_made(2, [(0, 1)]), np.zeros((0, 1), np.float32), 0.8).shape == (0, 1)
    assert _solve(hand_made(2, []), np.zeros((3, 0), np.float32), 0.8).shape == (3, 0)
