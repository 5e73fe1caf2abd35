"""The genetic operators against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from throng.platform.evolution import (
    WEIGHTS,
    WINSOR,
    effective_sample_size,
    kept_signal,
    linear_weights,
    rank_weights,
    roulette,
)


def test_linear_weights_are_equation_8() -> None:
    """`1 - (rho - min) / (max - min)`, the worst tenth clipped together: errors 0..10 have their 90th percentile at 9."""
    errors = np.arange(11.0)
    expected = [1 - error / 9 for error in range(10)] + [0.0]
    np.testing.assert_allclose(linear_weights(errors), expected, atol=1e-12)
    np.testing.assert_allclose(linear_weights(errors[::-1]), expected[::-1], atol=1e-12)


def test_one_gridlock_does_not_set_the_scale() -> None:
    """Unclipped, an error of 1000 among errors of 1 to 2 would make all the others' weights equal to 0.1 %."""
    errors = np.append(np.linspace(1, 2, 20), 1000.0)
    weights = linear_weights(errors)
    assert weights[0] == 1.0
    assert weights[-1] == 0.0
    assert weights[10] == pytest.approx(1 - (errors[10] - 1) / (np.quantile(errors, WINSOR) - 1))
    assert weights[10] < 0.6


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_weights_are_fair_to_equals(name: str) -> None:
    """Equal errors, equal weights; all equal: no division by zero and everybody has a chance; one alone too."""
    weigh = WEIGHTS[name]
    all_equal = weigh(np.full(6, 1.3))
    assert (all_equal > 0).all()
    assert np.ptp(all_equal) < 1e-12
    tied = weigh(np.array([2.0, 1.0, 3.0, 1.0, 2.0, 5.0]))
    assert tied[0] == tied[4]
    assert tied[1] == tied[3]
    assert weigh(np.array([0.7])) == pytest.approx([1.0])


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_a_smaller_error_never_weighs_less(name: str) -> None:
    """The paper's text says "higher rho is better" of the flipped error: a wrong sign would breed the worst."""
    rng = np.random.default_rng(0)
    for size in (2, 3, 10, 25):
        errors = rng.gamma(2.0, 1.0, size)
        weights = WEIGHTS[name](errors)
        assert (weights >= 0).all()
        assert (np.diff(weights[np.argsort(errors)]) <= 1e-12).all()
        assert weights.argmax() == errors.argmin()
        order = rng.permutation(size)
        np.testing.assert_allclose(WEIGHTS[name](errors[order]), weights[order])


def test_rank_weights_are_those_of_cma_es() -> None:
    """Hansen's log(mu + 1/2) - log(i) for the better half, normalised; only the order of errors counts."""
    errors = np.array([0.3, 9.0, 0.1, 2.0, 0.2, 5.0, 1.0, 7.0])
    raw = [max(0.0, math.log(4.5) - math.log(i)) for i in range(1, 9)]
    expected = np.zeros(8)
    expected[np.argsort(errors)] = np.array(raw) / sum(raw)
    np.testing.assert_allclose(rank_weights(errors), expected)
    np.testing.assert_allclose(rank_weights(np.exp(3 * errors)), expected)
    assert rank_weights(errors).sum() == pytest.approx(1.0)
    assert (rank_weights(errors) > 0).sum() == 4


def test_tied_ranks_share() -> None:
    """Two best of four: each gets the mean of the first and second rank's weight."""
    first, second = math.log(2.5), math.log(2.5) - math.log(2)
    share = (first + second) / 2 / (first + second)
    np.testing.assert_allclose(rank_weights(np.array([1.0, 4.0, 1.0, 3.0])), [share, 0, share, 0])


def test_roulette_draws_in_proportion() -> None:
    """Lipowski and Lipowska's acceptance must be a roulette: chi-square against w / sum(w); zero is never drawn."""
    weights = np.array([0.0, 0.1, 3.0, 1.0, 0.0, 0.4, 2.5])
    drawn = roulette(weights, 20_000, np.random.default_rng(1))
    counts = np.bincount(drawn, minlength=7)
    positive = weights > 0
    assert counts[~positive].sum() == 0
    expected = 20_000 * weights[positive] / weights.sum()
    assert scipy.stats.chisquare(counts[positive], expected).pvalue > 1e-3


def test_roulette_does_not_care_for_the_scale_or_the_order_of_draws() -> None:
    """Eq. 8's gamma cancels; every position in the result has the same distribution."""
    weights = np.array([1.0, 2.0, 5.0])
    one = roulette(weights, 3000, np.random.default_rng(2))
    scaled = roulette(64 * weights, 3000, np.random.default_rng(2))  # a power of two: the same floats
    np.testing.assert_array_equal(one, scaled)
    counts = np.bincount(
        np.concatenate([roulette(weights, 3, np.random.default_rng(s)) for s in range(2000)]), minlength=3
    )
    assert scipy.stats.chisquare(counts, 6000 * weights / 8).pvalue > 1e-3


@pytest.mark.parametrize("count", [0, 1, 7])
def test_roulette_returns_as_many_as_asked(count: int) -> None:
    drawn = roulette(np.array([0.0, 0.0, 1e-300, 0.0]), count, np.random.default_rng(3))
    assert drawn.tolist() == [2] * count


@pytest.mark.parametrize("weights", [[0.0, 0.0], [float("nan"), 1.0]])
def test_a_roulette_without_a_winner_is_refused(weights: list[float]) -> None:
    """It would turn for ever."""
    with pytest.raises(ValueError, match="positive weight"):
        roulette(np.array(weights), 1, np.random.default_rng(4))


def test_effective_sample_size_counts_equal_samples() -> None:
    assert effective_sample_size(np.ones(12)) == pytest.approx(12)
    assert effective_sample_size(np.array([5.0, 0, 0])) == pytest.approx(1)
    assert effective_sample_size(np.array([3.0, 3.0, 0, 0])) == pytest.approx(2)
    assert effective_sample_size(np.array([1.0, 2.0])) == pytest.approx(9 / 5)


def test_mutation_is_annealed_between_its_ends() -> None:
    """Beyond the ends (a budget overdrawn by the last generation) it stays at them: abar above 1 means nothing."""
    assert kept_signal(0.5, 0.95, 0.0) == 0.5
    assert kept_signal(0.5, 0.95, 1.0) == pytest.approx(0.95)
    assert kept_signal(0.5, 0.95, 0.5) == pytest.approx(0.725)
    assert kept_signal(0.5, 0.95, 1.3) == pytest.approx(0.95)
    assert kept_signal(0.5, 0.95, -0.1) == 0.5
