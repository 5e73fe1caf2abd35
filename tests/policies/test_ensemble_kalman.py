"""Ensemble Kalman steps against the closed form of the linear problem."""

from __future__ import annotations

import numpy as np
from throng.policies.ensemble_kalman import EnsembleKalman


def _linear(seed: int = 0, samples: int = 400, d: int = 12, cells: int = 30) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    jacobian = rng.standard_normal((cells, d))
    z = rng.standard_normal((samples, d))
    return z, z @ jacobian.T + 3.0, jacobian


def test_on_a_linear_map_one_step_undoes_the_residual() -> None:
    """With more samples than dimensions and no damping the regression is exact: J step = residual."""
    z, values, jacobian = _linear()
    kalman = EnsembleKalman(z.astype(np.float32), values.astype(np.float32), np.zeros(len(z), np.int64))
    wanted = np.random.default_rng(1).standard_normal((5, z.shape[1]))
    step = kalman.step((wanted @ jacobian.T).astype(np.float32), np.full(5, 1e-9))
    np.testing.assert_allclose(step, wanted, atol=2e-3)


def test_the_step_is_the_kalman_gain_of_the_samples() -> None:
    """Against C_zx (C_xx + damping I)^-1 residual, with the covariances written out."""
    z, values, _ = _linear(seed=2, samples=25, d=6, cells=9)
    zc, xc = z - z.mean(axis=0), values - values.mean(axis=0)
    noise = 0.3 * np.square(xc).sum() / len(z)
    residual = np.random.default_rng(3).standard_normal((4, 9))
    expected = np.linalg.solve(xc.T @ xc + noise * np.eye(9), residual.T).T @ (xc.T @ zc)
    kalman = EnsembleKalman(z.astype(np.float32), values.astype(np.float32), np.zeros(25, np.int64))
    step = kalman.step(residual.astype(np.float32), np.full(4, 0.3))
    np.testing.assert_allclose(step, expected, rtol=2e-3, atol=2e-4)


def test_a_rung_with_another_level_does_not_mislead() -> None:
    """Half of the samples from a rung whose series lie 50 higher: the same steps as if all were from one."""
    z, values, jacobian = _linear(seed=4)
    rung = (np.arange(len(z)) % 2).astype(np.int64)
    shifted = EnsembleKalman(z.astype(np.float32), (values + 50.0 * rung[:, None]).astype(np.float32), rung)
    step = shifted.step(jacobian[:, :1].T.astype(np.float32), np.full(1, 1e-9))
    np.testing.assert_allclose(step[0], np.eye(z.shape[1])[0], atol=5e-3)


def test_more_damping_makes_smaller_steps() -> None:
    z, values, _ = _linear(seed=5)
    kalman = EnsembleKalman(z.astype(np.float32), values.astype(np.float32), np.zeros(len(z), np.int64))
    residual = np.repeat(np.random.default_rng(6).standard_normal((1, values.shape[1])), 6, axis=0)
    lengths = np.linalg.norm(kalman.step(residual.astype(np.float32), 10.0 ** np.arange(-3.0, 3.0)), axis=1)
    assert (np.diff(lengths) < 0).all()


def test_it_does_not_change_what_it_is_given_and_takes_many_more_dimensions_than_samples() -> None:
    rng = np.random.default_rng(7)
    z, values = rng.standard_normal((20, 5000), dtype=np.float32), rng.standard_normal((20, 40), dtype=np.float32)
    before = z.copy(), values.copy()
    step = EnsembleKalman(z, values, np.zeros(20, np.int64)).step(values[:3], np.full(3, 0.1))
    assert step.shape == (3, 5000)
    np.testing.assert_array_equal(z, before[0])
    np.testing.assert_array_equal(values, before[1])
    assert np.linalg.matrix_rank(np.vstack([step, z - z.mean(axis=0)]), tol=1e-2) == 19  # in the span of the samples
