"""The conditional GAN against distributions known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.typing import NDArray
from throng.policies.critic import TokenCritic
from throng.policies.generator import GeneratorModel, GeneratorSettings

Array = NDArray[np.float32]
SMALL = GeneratorSettings(width=48, updates=15, batch=64)
TRAINED = GeneratorSettings(width=64, updates=700, batch=128, prior_share=0.0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _nothing(samples: int, size: int = 2) -> Array:
    return np.zeros((samples, size), np.float32)


def _normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def _model(shape: tuple[int, ...], settings: GeneratorSettings = SMALL, seed: int = 0) -> GeneratorModel:
    trips = _normal(9, shape[0], 5) if len(shape) == 2 else None
    return GeneratorModel(shape, 2, settings, trips, seed)


@pytest.mark.parametrize("shape", [(3,), (6, 2)])
def test_an_untrained_model_samples_the_prior(shape: tuple[int, ...]) -> None:
    """The first population is a draw from N(0, I), whatever the condition: it is its own noise."""
    z, noise = _model(shape).sample(_normal(1, 6000, 2), seed=1)
    assert z.shape == noise.shape == (6000, *shape)
    assert z.dtype == noise.dtype == np.float32
    np.testing.assert_array_equal(z, noise)
    flat = z.reshape(6000, -1)
    for column in flat.T:
        assert scipy.stats.kstest(column, "norm").pvalue > 1e-3 / flat.shape[1]
    np.testing.assert_allclose(np.cov(flat.T), np.eye(flat.shape[1]), atol=0.08)


def _mixture(seed: int, samples: int) -> tuple[Array, NDArray[np.bool_]]:
    """Two clouds of s.d. 0.3 at (-1, 0.5) and (1, 0.5)."""
    rng = np.random.default_rng(seed)
    right = rng.random(samples) < 0.5
    z = 0.3 * rng.standard_normal((samples, 2)) + np.column_stack([np.where(right, 1.0, -1.0), np.full(samples, 0.5)])
    return z.astype(np.float32), right


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_training_learns_the_weighted_distribution(share: float) -> None:
    """Weights that give one cloud four fifths must make four of five draws; without them each gets half (Eq. 9)."""
    z, right = _mixture(5, 600)
    weight = np.where(right, share / right.sum(), (1 - share) / (~right).sum())
    model = _model((2,), TRAINED, seed=1)
    model.train(z, _nothing(600), weight, seed=2)
    drawn, _ = model.sample(_nothing(3000), seed=3)
    assert (drawn[:, 0] > 0).mean() == pytest.approx(share, abs=0.1)
    mean = (weight[:, None] * z).sum(axis=0)
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=0.2)
    spread = np.sqrt((weight[:, None] * (z - mean) ** 2).sum(axis=0))
    np.testing.assert_allclose(drawn.std(axis=0), spread, rtol=0.35)


def test_training_learns_what_the_condition_says() -> None:
    """Weighted and conditional: in each traffic state one cloud weighs nine times the other, and not the same one.

    Were the condition lost, both states would get the same mixture; were the weights, each would get it in equal shares.
    """
    z, right = _mixture(6, 800)
    first = np.arange(800) < 400  # the traffic state of each sample
    condition = np.where(first[:, None], [1.0, 0.0], [-1.0, 0.0]).astype(np.float32)
    weight = np.where(first == right, 0.9, 0.1)
    model = _model((2,), TRAINED)
    model.train(z, condition, weight, seed=4)
    for side in (1.0, -1.0):
        drawn, _ = model.sample(np.tile(np.array([[side, 0.0]], np.float32), (1500, 1)), seed=5)
        mine = first == (side > 0)
        expected = (weight[mine, None] * z[mine]).sum(axis=0) / weight[mine].sum()
        np.testing.assert_allclose(drawn.mean(axis=0), expected, atol=0.2)
        assert (drawn[:, 0] * side > 0).mean() == pytest.approx(0.9, abs=0.1)


def test_tokens_learn_what_their_trip_says() -> None:
    """One network for all vehicles: who starts in the west gets -1, who starts in the east gets 1."""
    vehicles = 80
    trips = np.zeros((vehicles, 5), np.float32)
    trips[:, 0] = np.where(np.arange(vehicles) % 2, 1.0, -1.0)
    z = (0.3 * _normal(1, 60, vehicles, 1) + trips[None, :, :1]).astype(np.float32)
    settings = GeneratorSettings(width=32, updates=300, batch=32, prior_share=0.0)
    model = GeneratorModel((vehicles, 1), 2, settings, trips)
    model.train(z, _nothing(60), np.ones(60), seed=2)
    drawn, _ = model.sample(_nothing(50), seed=3)
    for side in (1.0, -1.0):
        assert drawn[:, trips[:, 0] == side].mean() == pytest.approx(side, abs=0.2)


@pytest.mark.parametrize("shape", [(5,), (7, 3)])
def test_keeping_everything_returns_the_parents(shape: tuple[int, ...]) -> None:
    """Bit for bit, after training too, as long as the weights stay."""
    model, condition = _model(shape), _normal(2, 8, 2)
    model.train(_normal(8, 30, *shape), _normal(11, 30, 2), np.ones(30), seed=1)
    parents, noise = model.sample(condition, 3)
    assert not np.array_equal(parents, noise)  # it has learnt something
    children, moved = model.mutate(noise, condition, 1.0, 4)
    np.testing.assert_array_equal(children, parents)
    np.testing.assert_array_equal(moved, noise)
    assert not np.shares_memory(moved, noise)
    np.testing.assert_array_equal(model.generate(noise, condition), parents)


def test_the_more_is_kept_the_more_a_child_resembles_its_parent() -> None:
    """n' = sqrt(a) n + sqrt(1 - a) eps has correlation sqrt(a) with n, and the variance of n (Eq. 10)."""
    model = _model((6,))
    noise = _normal(4, 3000, 6)
    for kept in (0.0, 0.2, 0.5, 0.8, 0.95):
        children, moved = model.mutate(noise, _nothing(3000), kept, 7)
        np.testing.assert_array_equal(children, moved)  # untrained
        assert np.corrcoef(noise.ravel(), moved.ravel())[0, 1] == pytest.approx(np.sqrt(kept), abs=0.03)
        assert moved.var() == pytest.approx(1.0, abs=0.04)


def test_mutations_of_mutations_keep_the_prior() -> None:
    model = _model((4,))
    noise = _normal(2, 5000, 4)
    for generation in range(12):
        _, noise = model.mutate(noise, _nothing(5000), 0.9, generation)
    assert np.square(noise).mean() == pytest.approx(1.0, abs=4 * np.sqrt(2 / noise.size))


def test_a_trained_model_makes_children_of_what_it_has_learnt() -> None:
    """Children lie on the data, not where their noise lies."""
    z = (0.2 * _normal(7, 400, 2) + [1.5, -1.0]).astype(np.float32)
    model = _model((2,), TRAINED)
    model.train(z, _nothing(400), np.ones(400), seed=6)
    children, _ = model.mutate(_normal(8, 500, 2), _nothing(500), 0.5, seed=7)
    np.testing.assert_allclose(children.mean(axis=0), [1.5, -1.0], atol=0.15)
    np.testing.assert_allclose(children.std(axis=0), 0.2, atol=0.1)


def test_fresh_draws_in_every_batch_keep_the_prior_in_reach() -> None:
    """With prior_share = 1 the data are ignored: the model must go on sampling N(0, I)."""
    model = _model((2,), GeneratorSettings(width=48, updates=150, batch=128, prior_share=1.0))
    model.train(np.full((50, 2), 3.0, np.float32), _nothing(50), np.ones(50), seed=0)
    drawn, _ = model.sample(_nothing(3000), seed=1)
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=0.2)
    np.testing.assert_allclose(drawn.std(axis=0), 1, atol=0.2)


@pytest.mark.parametrize("shape", [(4,), (7, 3)])
def test_a_restored_model_trains_on_as_if_nothing_had_happened(shape: tuple[int, ...]) -> None:
    """Bit for bit: both optimisers' moments belong to the state, and using a state must not change it."""
    z, condition, weight = _normal(8, 30, *shape), _normal(11, 30, 2), np.random.default_rng(12).random(30)
    first = _model(shape)
    first.train(z, condition, weight, seed=1)
    saved = first.state()
    kept = {name: tensor.clone() for name, tensor in saved.items()}
    loss = first.train(z, condition, weight, seed=2)
    for _ in range(2):  # a state can be used twice
        second = _model(shape, seed=99)
        second.load_state(saved)
        assert second.train(z, condition, weight, seed=2) == loss
        for name, tensor in first.state().items():
            assert torch.equal(second.state()[name], tensor), name
        np.testing.assert_array_equal(second.sample(condition, 3), first.sample(condition, 3))
    assert all(torch.equal(saved[name], tensor) for name, tensor in kept.items())


def test_an_untrained_state_can_be_restored() -> None:
    """A run can stop before its first training."""
    model, other = _model((3,), seed=1), _model((3,), seed=2)
    other.load_state(model.state())
    z = _normal(0, 10, 3)
    assert other.train(z, _nothing(10), np.ones(10), 5) == model.train(z, _nothing(10), np.ones(10), 5)


def test_a_call_depends_on_its_seed_and_nothing_else() -> None:
    """Another process, another order of calls, or a draw elsewhere must not change a run."""
    z, condition = _normal(13, 20, 3), _normal(14, 20, 2)

    def run(disturb: bool) -> list[Array]:
        if disturb:
            torch.manual_seed(123)
        model = _model((3,), seed=5)
        if disturb:
            torch.randn(10)
            model.sample(condition, 77)
        model.train(z, condition, np.ones(20), seed=6)
        return [*model.sample(condition, 7), *model.mutate(z, condition, 0.5, 8), *model.sample(condition, 8)]

    quiet, disturbed = run(False), run(True)
    for a, b in zip(quiet, disturbed, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(quiet[0], quiet[4])


def test_making_a_model_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(4)
    expected = torch.randn(3)
    torch.manual_seed(4)
    _model((3,), seed=5)
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize("weight", [[0.0, 0.0], [1.0, float("nan")], [1.0, -1.0], [1.0, float("inf")]])
def test_weights_that_mean_nothing_are_refused(weight: list[float]) -> None:
    model = _model((2,))
    before = model.state()
    with pytest.raises(ValueError, match="weights"):
        model.train(_normal(0, 2, 2), _nothing(2), np.array(weight), seed=0)
    assert all(torch.equal(model.state()[name], tensor) for name, tensor in before.items())


def test_latents_that_are_not_finite_are_reported() -> None:
    with pytest.raises(ValueError, match="not finite"):
        _model((2,)).train(np.full((4, 2), np.nan, np.float32), _nothing(4), np.ones(4), seed=0)


def test_a_critic_of_tokens_knows_no_order() -> None:
    """Vehicles permuted together with their trips are as real as before; with other trips they are not the same."""
    torch.manual_seed(0)
    critic = TokenCritic(3, 2, 16, torch.randn(9, 5))
    z, condition, order = torch.randn(4, 9, 3), torch.randn(4, 2), torch.randperm(9)
    with torch.no_grad():
        plain, some = critic(z, condition), critic(z[:, order], condition, order)
        moved = critic(z[:, order], condition)
    assert plain.shape == (4,)
    torch.testing.assert_close(some, plain, atol=1e-5, rtol=1e-5)
    assert (moved - plain).abs().max() > 1e-4
