"""Guided diffusion on a toy whose errors are known: distance from a goal that depends on the traffic state."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.typing import NDArray
from throng.policies import guidance
from throng.policies.diffusion import DiffusionSettings
from throng.policies.guidance import GuidedModel, ProxyGuidedModel, goodness

Array = NDArray[np.float32]
SMALL = DiffusionSettings(width=32, updates=10, batch=64)
TRAINED = DiffusionSettings(width=64, updates=600, batch=256, learning_rate=2e-3)
GOAL = 2.5  # on the axis that the condition names: where few draws from the prior come


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def _error(z: Array, condition: Array) -> NDArray[np.float64]:
    """Distance from the goal of each traffic state, and a floor that nothing gets below, as queues have."""
    goal = np.column_stack([GOAL * condition[:, 0], np.zeros(len(z))])
    return 0.7 + np.linalg.norm(z - goal, axis=1).astype(np.float64)


@pytest.fixture(scope="module")
def toy() -> tuple[Array, Array, NDArray[np.float64]]:
    """Draws from the prior in two traffic states, +1 and -1, as a first population is."""
    z = _normal(1, 800, 2)
    condition = np.where(np.arange(800)[:, None] % 2, 1.0, -1.0).astype(np.float32)
    return z, condition, _error(z, condition)


@pytest.fixture(scope="module", params=[GuidedModel, ProxyGuidedModel])
def trained(request: pytest.FixtureRequest, toy: tuple[Array, Array, NDArray[np.float64]]) -> GuidedModel:
    model: GuidedModel = request.param((2,), 1, TRAINED)
    model.train(*toy, seed=2)
    return model


@pytest.mark.parametrize("state", [1.0, -1.0])
def test_guided_draws_have_low_errors(
    trained: GuidedModel, toy: tuple[Array, Array, NDArray[np.float64]], state: float
) -> None:
    """In each traffic state towards its own goal, far below the prior they learnt from, and not all in one place."""
    z, condition, error = toy
    asked = np.full((500, 1), state, np.float32)
    drawn = trained.sample(asked, seed=3)
    prior = error[condition[:, 0] == state]
    assert _error(drawn, asked).mean() < np.quantile(prior, 0.1)
    # Guidance of 2 overshoots what it is led to, as it must: p_told^3 / p_untold^2 lies further out than p_told.
    best = (z * condition)[goodness(error) > 0.9][:, 0].mean()
    assert best < state * drawn[:, 0].mean() < 2 * GOAL
    assert abs(drawn[:, 1].mean()) < 0.4
    assert drawn.std(axis=0).min() > 0.05
    elsewhere = _error(drawn, -asked)  # judged in the other state they are bad
    assert elsewhere.mean() > prior.mean()


def test_without_guidance_the_best_error_alone_decides(
    toy: tuple[Array, Array, NDArray[np.float64]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """w = 0 leaves p(z | state, best error): the draws are where the best samples of that state are."""
    z, condition, error = toy
    model = GuidedModel((2,), 1, TRAINED)
    model.train(z, condition, error, seed=2)
    monkeypatch.setattr(guidance, "GUIDANCE", 0.0)
    for state in (1.0, -1.0):
        best = z[(condition[:, 0] == state) & (goodness(error) > 0.9)].mean(axis=0)
        drawn = model.sample(np.full((500, 1), state, np.float32), seed=3)
        np.testing.assert_allclose(drawn.mean(axis=0), best, atol=0.45)


def test_an_untrained_model_samples_the_prior() -> None:
    """Guided or not: told and untold predict the same then."""
    for kind in (GuidedModel, ProxyGuidedModel):
        drawn = kind((3,), 1, SMALL).sample(np.zeros((4000, 1), np.float32), seed=1)
        for column in drawn.T:
            assert scipy.stats.kstest(column, "norm").pvalue > 1e-3 / 3


def test_without_a_difference_in_errors_there_is_nowhere_to_lead() -> None:
    """All equally good: the draws are those of the data, told or not."""
    z = (0.4 * _normal(4, 500, 2) + [1.0, -0.5]).astype(np.float32)
    condition = np.zeros((500, 1), np.float32)
    model = GuidedModel((2,), 1, TRAINED)
    model.train(z, condition, np.ones(500), seed=5)
    drawn = model.sample(condition, seed=6)
    np.testing.assert_allclose(drawn.mean(axis=0), [1.0, -0.5], atol=0.2)


def test_the_proxy_knows_errors_it_was_not_shown(toy: tuple[Array, Array, NDArray[np.float64]]) -> None:
    """Against the toy's exact errors, on fresh latents in both states; in their unit, not a rank."""
    model = ProxyGuidedModel((2,), 1, TRAINED)
    model.train(*toy, seed=2)
    z = _normal(9, 400, 2)
    condition = np.where(np.arange(400)[:, None] % 2, 1.0, -1.0).astype(np.float32)
    known = np.minimum(_error(z, condition), np.percentile(toy[2], 90))
    guessed = model.predict(z, condition)
    assert np.sqrt(np.mean((guessed - known) ** 2)) < 0.25 * known.std()


def test_goodness_is_equation_8_without_the_worst_tenth() -> None:
    error = np.array([3.0, 1.0, 2.0, *np.linspace(1.0, 3.0, 17), 500.0])
    good = goodness(error)
    np.testing.assert_allclose(good[:3], [0.0, 1.0, 0.5], atol=0.03)
    assert good[-1] == good.min() == 0.0
    np.testing.assert_array_equal(goodness(np.full(4, 2.0)), 1.0)


def test_a_failed_simulation_is_refused() -> None:
    for kind in (GuidedModel, ProxyGuidedModel):
        with pytest.raises(ValueError, match="finite"):
            kind((2,), 1, SMALL).train(_normal(0, 3, 2), _normal(1, 3, 1), np.array([1.0, np.nan, 2.0]), seed=0)


@pytest.mark.parametrize("kind", [GuidedModel, ProxyGuidedModel])
@pytest.mark.parametrize("shape", [(4,), (7, 3)])
def test_a_restored_model_goes_on_as_if_nothing_had_happened(kind: type[GuidedModel], shape: tuple[int, ...]) -> None:
    trips = _normal(10, 7, 5) if len(shape) == 2 else None
    z, condition, error = _normal(8, 30, *shape), _normal(11, 30, 2), np.random.default_rng(12).random(30)
    first = kind(shape, 2, SMALL, trips, 0)
    first.train(z, condition, error, seed=1)
    saved = first.state()
    kept = {name: tensor.clone() for name, tensor in saved.items()}
    drawn = first.sample(condition, 3)
    assert drawn.shape == z.shape
    second = kind(shape, 2, SMALL, trips, 99)
    second.load_state(saved)
    np.testing.assert_array_equal(second.sample(condition, 3), drawn)
    if isinstance(first, ProxyGuidedModel) and isinstance(second, ProxyGuidedModel):
        np.testing.assert_array_equal(second.predict(z, condition), first.predict(z, condition))
    assert second.train(z, condition, error, seed=2) == first.train(z, condition, error, seed=2)
    np.testing.assert_array_equal(second.sample(condition, 4), first.sample(condition, 4))
    assert all(torch.equal(saved[name], tensor) for name, tensor in kept.items())


def test_a_call_depends_on_its_seed_and_nothing_else() -> None:
    z, condition, error = _normal(13, 20, 3), _normal(14, 20, 1), np.random.default_rng(15).random(20)
    found = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        model = ProxyGuidedModel((3,), 1, SMALL, seed=5)
        model.train(z, condition, error, seed=6)
        found.append((model.sample(condition, 7), model.predict(z, condition), model.sample(condition, 8)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(found[0][0], found[0][2])
