"""Corrections of cheap simulations: means, slopes, errors on the scale of full simulations, checkpoints, memory."""

from __future__ import annotations

import numpy as np
import pytest
from throng.policies import fidelity
from throng.policies.fidelity import FEWEST, Correction

TARGET = np.zeros((3, 2), np.float32)


def test_the_mean_difference_is_shrunk_while_pairs_are_few() -> None:
    """Times n / (n + 2): one lucky pair must not shift everybody by its whole noise."""
    cheap, gap = np.full((3, 2), 5.0, np.float32), np.array([[1, -2], [0, 4], [8, 0]], np.float32)
    correction = Correction()
    np.testing.assert_array_equal(correction.apply(cheap), cheap)
    assert correction.error(0.7) == pytest.approx(0.7)
    for pairs in range(1, FEWEST):
        correction.add(cheap + pairs, cheap + pairs + gap, TARGET)
        np.testing.assert_allclose(correction.apply(cheap), cheap + gap * pairs / (pairs + 2), rtol=1e-6)


def _pairs(count: int, noise: float, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Full series deviate from their mean half as much again as cheap ones, and by noise."""
    cheap = rng.normal(3, 1, (count, 3, 2)).astype(np.float32)
    better = 4 + 1.5 * (cheap - 3) + noise * rng.standard_normal((count, 3, 2))
    return list(zip(cheap, better.astype(np.float32), strict=True))


def test_slopes_are_learnt_and_generalise() -> None:
    rng = np.random.default_rng(0)
    pairs = _pairs(120, 0.1, rng)
    correction = Correction()
    means = []
    for i, (cheap, better) in enumerate(pairs):
        if i >= 100:
            means.append([np.square(correction.apply(cheap) - better).mean(), np.square(cheap + 1 - better).mean()])
        correction.add(cheap, better, TARGET)
    learnt, mean_alone = np.mean(means, axis=0)
    assert learnt < 0.35 * mean_alone


def test_it_applies_to_many_series_at_once() -> None:
    correction = Correction()
    rng = np.random.default_rng(1)
    for cheap, better in _pairs(FEWEST + 3, 0.1, rng):
        correction.add(cheap, better, TARGET)
    several = rng.random((5, 3, 2), dtype=np.float32)
    one_by_one = np.stack([correction.apply(one) for one in several])
    np.testing.assert_allclose(correction.apply(several), one_by_one, rtol=1e-5, atol=1e-6)


def test_errors_are_on_the_scale_of_full_simulations() -> None:
    """A corrected series lacks the noise of a seed, so its error is smaller than what a full simulation will show."""
    rng = np.random.default_rng(2)
    correction, seen = Correction(), []
    for cheap, better in _pairs(400, 0.8, rng):
        raw = float(np.sqrt(np.square(correction.apply(cheap) - TARGET).mean()))
        seen.append((raw**2, correction.error(raw) ** 2, float(np.square(better - TARGET).mean())))
        correction.add(cheap, better, TARGET)
    raw, estimated, true = np.array(seen[100:]).mean(axis=0)
    assert raw < true - 0.3
    assert estimated == pytest.approx(true, abs=0.1)


def test_errors_that_were_too_large_are_scaled() -> None:
    """Where cheap simulations err more than full ones, no error becomes zero, and none overtakes another."""
    correction = Correction()
    for level in range(1, 6):
        full = np.full(TARGET.shape, level, np.float32)
        correction.add(full * 8 + np.float32(9 * (level % 2)), full, TARGET)
    raw = np.array([0.1, 0.5, 2.0])
    errors = np.array([correction.error(one) for one in raw])
    np.testing.assert_allclose(errors / raw, errors[0] / raw[0])
    assert 0 < errors[0] / raw[0] < 1


def test_a_checkpoint_restores_it() -> None:
    """Also before there is any pair; and what is restored goes on alike."""
    rng = np.random.default_rng(5)
    for count in (0, 3, FEWEST + 4):
        correction, again = Correction(), Correction()
        for cheap, better in _pairs(count, 0.1, rng):
            correction.add(cheap, better, TARGET)
        again.load(correction.tensors())
        cheap, better = _pairs(1, 0.1, rng)[0]
        for one in (correction, again):
            one.add(cheap, better, TARGET)
        np.testing.assert_array_equal(again.apply(cheap + 1), correction.apply(cheap + 1))
        assert again.error(0.5) == correction.error(0.5)


def test_old_pairs_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "PAIR_BYTES", 8 * TARGET.size * 12)
    correction = Correction()
    cheap = np.full((3, 2), 5.0, np.float32)
    for gap in [9.0] * 20 + [1.0] * 12:
        correction.add(cheap, cheap + gap, TARGET)
    np.testing.assert_allclose(correction.apply(cheap), cheap + 12 / 14, rtol=1e-5)
