"""Traffic states as short vectors: scikit-like facts about principal components, without scikit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.spatial.distance
from numpy.typing import NDArray
from throng.policies.traffic_encoder import BLOCKS, TrafficEncoder

Array = NDArray[np.float32]


def _queues(seed: int, samples: int, roads: int = 20, minutes: int = 30) -> Array:
    return np.random.default_rng(seed).gamma(1.0, 3.0, (samples, roads, minutes)).astype(np.float32)


def _states(queues: Array) -> NDArray[np.float64]:
    """log(1 + queue), averaged over six blocks of minutes, flat; block by block by hand."""
    minutes = queues.shape[2]
    cuts = [minutes * k // BLOCKS for k in range(BLOCKS + 1)]
    logs = np.log1p(queues.astype(np.float64))
    return np.stack([logs[:, :, a:b].mean(axis=2) for a, b in itertools.pairwise(cuts)], axis=2).reshape(
        len(queues), -1
    )


def test_codes_are_white() -> None:
    """Mean zero, unit variance, uncorrelated over the samples: conditions of one size for the network."""
    queues = _queues(0, 200)
    codes = TrafficEncoder.fit(queues, 8).encode(queues)
    assert codes.shape == (200, 8)
    assert codes.dtype == np.float32
    np.testing.assert_allclose(codes.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(codes.T), np.eye(8), atol=0.02)  # a few codes are clipped


def test_with_all_components_codes_keep_all_distances() -> None:
    """Whitened by the sample covariance, distances are Mahalanobis's, which scipy computes another way."""
    queues = _queues(1, 7)
    codes = TrafficEncoder.fit(queues, 6).encode(queues)
    states = _states(queues)
    inverse = np.linalg.pinv(np.cov(states.T), rcond=1e-9)
    expected = scipy.spatial.distance.pdist(states, "mahalanobis", VI=inverse)
    np.testing.assert_allclose(scipy.spatial.distance.pdist(codes), expected, rtol=1e-3)


def test_the_first_component_is_what_varies_most() -> None:
    """One hidden strength drives all queues: the first code must follow it."""
    rng = np.random.default_rng(2)
    strength = rng.standard_normal(60)
    pattern = rng.uniform(0.5, 1.5, (15, 30))
    queues = np.expm1(2.0 + 0.3 * strength[:, None, None] * pattern + 0.01 * rng.standard_normal((60, 15, 30)))
    codes = TrafficEncoder.fit(queues.astype(np.float32), 4).encode(queues.astype(np.float32))
    assert abs(np.corrcoef(codes[:, 0], strength)[0, 1]) > 0.99


def test_directions_beyond_the_rank_are_silent() -> None:
    """Five samples span four directions; noise blown up to unit variance in the others would be learnt as traffic."""
    queues = _queues(3, 5)
    codes = TrafficEncoder.fit(queues, 16).encode(_queues(4, 9))
    assert (np.abs(codes[:, :4]).max(axis=0) > 0).all()
    assert not codes[:, 4:].any()


@pytest.mark.parametrize("samples", [1, 3, 7, 24])
def test_equal_samples_say_nothing(samples: int) -> None:
    """Rounding errors of the mean must not become a direction."""
    queues = np.repeat(_queues(5, 1), samples, axis=0)
    encoder = TrafficEncoder.fit(queues, 16)
    assert not encoder.encode(queues).any()
    assert not encoder.encode(_queues(6, 2)).any()


def test_codes_are_bounded() -> None:
    """A gridlock unlike anything seen must not leave the range the network was trained on."""
    encoder = TrafficEncoder.fit(_queues(7, 50), 6)
    codes = encoder.encode(np.full((1, 20, 30), 500.0, np.float32))
    assert np.abs(codes).max() == 4.0


def test_what_was_not_simulated_counts_as_empty() -> None:
    """A run that was given up has NaN for its last minutes; NaN in the condition would poison the training."""
    encoder = TrafficEncoder.fit(_queues(8, 30), 6)
    broken = _queues(9, 2)
    broken[:, :, 20:] = np.nan
    np.testing.assert_array_equal(encoder.encode(broken), encoder.encode(np.nan_to_num(broken)))


@pytest.mark.parametrize("minutes", [1, 4, 6, 7])
def test_short_horizons_have_a_block_per_minute_or_more(minutes: int) -> None:
    queues = _queues(10, 12, minutes=minutes)
    encoder = TrafficEncoder.fit(queues, 3)
    assert encoder.components.shape == (20 * min(minutes, BLOCKS), 3)
    assert np.isfinite(encoder.encode(queues)).all()


def test_time_within_the_horizon_counts() -> None:
    """A morning queue and an evening queue of one length are different states."""
    queues = np.zeros((2, 4, 30), np.float32)
    queues[0, 1, :10] = queues[1, 1, 20:] = 9.0
    codes = TrafficEncoder.fit(queues, 2).encode(queues)
    assert abs(codes[0, 0] - codes[1, 0]) > 1.0
