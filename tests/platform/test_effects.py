"""Intervals of effects: by hand, against their promise, and where there is nothing to tell."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from throng.platform.effects import effect


@pytest.mark.parametrize(
    ("members", "seeds", "between", "within"),
    [(5, 4, 1.0, 1.0), (5, 4, 0.0, 1.0), (5, 4, 1.0, 0.1), (10, 2, 0.5, 1.0), (3, 1, 1.0, 0.5), (1, 6, 0.0, 1.0)],
)
def test_intervals_hold_the_effect_of_one_more_explanation_as_often_as_they_say(
    members: int, seeds: int, between: float, within: float
) -> None:
    """4,000 studies of a known effect: 90 % intervals hold it in about 90 % of them (never far less)."""
    rng = np.random.default_rng(members + seeds)
    studies = 4000
    explanations = 2.0 + between * rng.standard_normal((members + 1, 1, studies))
    change = explanations[:-1] + within * rng.standard_normal((members, seeds, studies))
    before = rng.standard_normal((members, seeds, studies))
    found = effect(before, before + change)
    held = np.mean((found.low <= explanations[-1, 0]) & (explanations[-1, 0] <= found.high))
    # Generous where explanations hardly differ, or one seed cannot tell them from chance.
    assert 0.87 <= held <= (0.94 if between and seeds > 1 else 0.995)
    if members > 1 and seeds > 1:
        assert np.sqrt(np.mean(found.sd_seeds**2)) == pytest.approx(within, rel=0.05)


def test_spread_is_split_into_its_sources() -> None:
    rng = np.random.default_rng(0)
    change = 0.7 * rng.standard_normal((200, 1, 1)) + 0.3 * rng.standard_normal((200, 50, 1))
    found = effect(np.zeros_like(change), change)
    assert found.sd_members == pytest.approx(0.7, rel=0.1)
    assert found.sd_seeds == pytest.approx(0.3, rel=0.05)


def test_one_explanation_has_the_interval_of_a_t_test() -> None:
    change = np.array([[1.0, 2.0, 4.0, 5.0]])
    found = effect(np.zeros((1, 4)), change)
    low, high = stats.t.interval(0.9, 3, 3.0, stats.sem(change[0]))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.clear
    assert not effect(np.zeros((1, 4)), change - 3).clear


def test_a_change_that_never_varies_is_certain_and_no_change_is_none() -> None:
    before = np.random.default_rng(0).random((3, 2, 4))
    same = effect(before, before)
    assert not same.clear.any()
    np.testing.assert_array_equal(same.change, 0)
    np.testing.assert_array_equal(same.low, 0)


def test_one_simulation_tells_no_spread_and_closed_roads_no_change() -> None:
    found = effect(np.zeros((1, 1, 2)), np.array([[[1.0, np.nan]]]))
    assert np.isnan(found.low).all()
    assert np.isnan(found.sd_seeds).all() and np.isnan(found.sd_members).all()
    assert not found.clear.any()
    row = effect(np.zeros((1, 1)), np.ones((1, 1))).row()
    assert (row["change"], row["low"], row["excludes_zero"]) == (1.0, None, False)
    closed = effect(np.zeros((2, 2)), np.full((2, 2), np.nan))
    assert np.isnan(closed.change)
