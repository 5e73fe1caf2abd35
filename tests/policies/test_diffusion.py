"""The diffusion model against distributions known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.typing import NDArray
from throng.policies.diffusion import OUTERMOST, DiffusionModel, DiffusionSettings, Schedule, TokenDenoiser

Array = NDArray[np.float32]
SMALL = DiffusionSettings(width=48, updates=20, batch=64)
TRAINED = DiffusionSettings(width=64, updates=700, batch=256, learning_rate=2e-3, prior_share=0.0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _nothing(samples: int, size: int = 2) -> Array:
    return np.zeros((samples, size), np.float32)


def _normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_the_schedule_is_the_product_of_what_each_step_keeps() -> None:
    """Eqs. 3-5: abar_t = prod (1 - beta_s), from 1 at t = 0 to little at K."""
    settings = DiffusionSettings()
    abar = Schedule(settings).abar.numpy()
    kept = 1.0
    assert abar[0] == 1.0
    for t in range(1, settings.steps + 1):
        beta = settings.beta_first + (settings.beta_last - settings.beta_first) * (t - 1) / (settings.steps - 1)
        kept *= 1 - beta
        assert abar[t] == pytest.approx(kept, rel=1e-12)
    assert len(abar) == settings.steps + 1
    assert abar[-1] < 0.02


def test_the_step_for_a_share_of_signal_is_the_nearest_one() -> None:
    schedule = Schedule(DiffusionSettings())
    abar = schedule.abar.tolist()
    for kept in (0.99, 0.95, 0.7, 0.5, 0.1, 0.0):
        assert schedule.step_for(kept) == min(range(len(abar)), key=lambda t: abs(abar[t] - kept))
    assert schedule.step_for(1.0) == 0
    assert schedule.step_for(0.0) == 50


@pytest.mark.parametrize("shape", [(3,), (6, 2)])
def test_an_untrained_model_samples_the_prior(shape: tuple[int, ...]) -> None:
    """The first population is a draw from N(0, I): Kolmogorov and Smirnov must not tell them apart."""
    trips = _normal(9, 6, 5) if len(shape) == 2 else None
    model = DiffusionModel(shape, 2, SMALL, trips)
    z = model.sample(_normal(1, 6000, 2), seed=1)
    assert z.shape == (6000, *shape)
    assert z.dtype == np.float32
    flat = z.reshape(6000, -1)
    size = flat.shape[1]
    for column in flat.T:
        assert scipy.stats.kstest(column, "norm").pvalue > 1e-3 / size
    np.testing.assert_allclose(np.cov(flat.T), np.eye(size), atol=0.08)
    # All entries together: 18,000 or more squares, whose mean has an s.d. of sqrt(2 / n).
    assert np.square(flat).mean() == pytest.approx(1.0, abs=4 * np.sqrt(2 / flat.size) + 0.001)


def test_untrained_mutations_keep_the_prior() -> None:
    """A population that loses a tenth of its variance with every mutation has collapsed after a few generations."""
    model = DiffusionModel((4,), 2, SMALL)
    z = _normal(2, 5000, 4)
    for generation in range(12):
        z = model.mutate(z, _nothing(5000), 0.9, generation)
    assert np.square(z).mean() == pytest.approx(1.0, abs=4 * np.sqrt(2 / z.size) + 12 * 0.001)


def test_keeping_everything_returns_the_parents() -> None:
    """Bit for bit, and not the same memory: a child must not change its parent."""
    model = DiffusionModel((5,), 2, SMALL)
    parents = _normal(3, 8, 5)
    children = model.mutate(parents, _nothing(8), 1.0, 0)
    np.testing.assert_array_equal(children, parents)
    assert not np.shares_memory(children, parents)


def test_the_more_is_kept_the_more_a_child_resembles_its_parent() -> None:
    """With the exact denoiser of N(0, I) both ways keep sqrt(abar): the correlation of parent and child is abar."""
    model = DiffusionModel((6,), 2, SMALL)
    parents = _normal(4, 3000, 6)
    before = -1.0
    for kept in (0.0, 0.2, 0.5, 0.8, 0.95):
        children = model.mutate(parents, _nothing(3000), kept, 7)
        correlation = np.corrcoef(parents.ravel(), children.ravel())[0, 1]
        exact = float(model.schedule.abar[model.schedule.step_for(kept)])
        assert correlation == pytest.approx(exact, abs=0.03)
        assert correlation > before
        before = correlation


def _mixture(seed: int, samples: int) -> tuple[Array, NDArray[np.bool_]]:
    """Two clouds of s.d. 0.3 at (-1, 0.5) and (1, 0.5)."""
    rng = np.random.default_rng(seed)
    right = rng.random(samples) < 0.5
    z = 0.3 * rng.standard_normal((samples, 2)) + np.column_stack([np.where(right, 1.0, -1.0), np.full(samples, 0.5)])
    return z.astype(np.float32), right


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_training_learns_the_weighted_distribution(share: float) -> None:
    """Weights that give one cloud nine tenths must make nine of ten draws; without them each gets half (Eq. 9)."""
    z, right = _mixture(5, 600)
    weight = np.where(right, share / right.sum(), (1 - share) / (~right).sum())
    model = DiffusionModel((2,), 2, TRAINED, seed=1)
    model.train(z, _nothing(600), weight, seed=2)
    drawn = model.sample(_nothing(3000), seed=3)
    assert (drawn[:, 0] > 0).mean() == pytest.approx(share, abs=0.08)
    mean = (weight[:, None] * z).sum(axis=0)
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=0.15)
    spread = np.sqrt((weight[:, None] * (z - mean) ** 2).sum(axis=0))
    np.testing.assert_allclose(drawn.std(axis=0), spread, rtol=0.2)


def test_training_learns_what_the_condition_says() -> None:
    """p(R | tau): were the condition lost, both traffic states would get the same mixture of both rewards."""
    z, right = _mixture(6, 600)
    condition = np.where(right[:, None], [1.0, 0.0], [-1.0, 0.0]).astype(np.float32)
    model = DiffusionModel((2,), 2, TRAINED)
    model.train(z, condition, np.ones(600), seed=4)
    for side in (1.0, -1.0):
        drawn = model.sample(np.tile(np.array([[side, 0.0]], np.float32), (800, 1)), seed=5)
        np.testing.assert_allclose(drawn.mean(axis=0), [side, 0.5], atol=0.15)


def test_a_trained_model_pulls_children_towards_what_it_has_learnt() -> None:
    """Truncated denoising is directed: parents off the data end nearer to it than they began, and not all in one place."""
    rng = np.random.default_rng(7)
    z = (0.2 * rng.standard_normal((400, 2)) + [1.5, -1.0]).astype(np.float32)
    model = DiffusionModel((2,), 2, TRAINED)
    model.train(z, _nothing(400), np.ones(400), seed=6)
    parents = (0.2 * rng.standard_normal((500, 2)) + [0.5, 0.0]).astype(np.float32)
    children = model.mutate(parents, _nothing(500), 0.5, seed=7)
    goal = np.array([1.5, -1.0])
    assert np.linalg.norm(children.mean(axis=0) - goal) < 0.5 * np.linalg.norm(parents.mean(axis=0) - goal)
    assert children.std(axis=0).min() > 0.1


def test_each_child_may_keep_its_own_share() -> None:
    """A child that keeps all is its parent, bit for bit, whatever the others do."""
    model = DiffusionModel((3,), 2, SMALL)
    parents = _normal(4, 2000, 3)
    kept = np.repeat([1.0, 0.9, 0.3], [500, 500, 1000])
    children = model.mutate(parents, _nothing(2000), kept, 3)
    np.testing.assert_array_equal(children[:500], parents[:500])
    moved = np.square(children - parents).mean(axis=1)
    assert 0 < moved[500:1000].mean() < 0.5 * moved[1000:].mean()


@pytest.mark.parametrize("shape", [(4,), (7, 3)])
def test_no_draw_runs_away(shape: tuple[int, ...]) -> None:
    """A network far from what it was trained on may say anything; latents stay where rewards are finite."""
    trips = None if len(shape) == 1 else _normal(2, shape[0], 5)
    model = DiffusionModel(shape, 2, DiffusionSettings(width=16), trips)
    with torch.no_grad():
        for parameter in model.average.parameters():
            parameter += 50 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    parents, condition = _normal(0, 9, *shape), _normal(1, 9, 2)
    for drawn in (model.sample(condition, 3), model.mutate(parents, condition, 0.5, 4)):
        assert np.abs(drawn).max() <= OUTERMOST


@pytest.mark.parametrize("shape", [(4,), (7, 3)])
def test_blocks_change_nothing(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are denoised at once, each sample gets the same noise and its own condition and step."""
    trips = None if len(shape) == 1 else _normal(2, shape[0], 5)
    model = DiffusionModel(shape, 2, DiffusionSettings(width=16, updates=5), trips)
    parents, condition = _normal(0, 9, *shape), _normal(1, 9, 2)
    model.train(parents, condition, np.ones(9), 0)
    kept = np.linspace(0.1, 1.0, 9)
    at_once = model.sample(condition, 3), model.mutate(parents, condition, kept, 4)
    monkeypatch.setattr("throng.policies.diffusion.BLOCK", 2 * int(np.prod(shape)))
    in_blocks = model.sample(condition, 3), model.mutate(parents, condition, kept, 4)
    for one, other in zip(at_once, in_blocks, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_fresh_draws_in_every_batch_keep_the_prior_in_reach() -> None:
    """With prior_share = 1 the data are ignored: the model must go on sampling N(0, I)."""
    model = DiffusionModel((2,), 2, DiffusionSettings(width=48, updates=150, batch=128, prior_share=1.0))
    model.train(np.full((50, 2), 3.0, np.float32), _nothing(50), np.ones(50), seed=0)
    drawn = model.sample(_nothing(3000), seed=1)
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=0.12)
    np.testing.assert_allclose(drawn.std(axis=0), 1, atol=0.12)


@pytest.mark.parametrize("shape", [(4,), (7, 3)])
def test_a_restored_model_trains_on_as_if_nothing_had_happened(shape: tuple[int, ...]) -> None:
    """Bit for bit: the optimiser's moments belong to the state, and using a state must not change it."""
    trips = _normal(10, 7, 5) if len(shape) == 2 else None
    z, condition, weight = _normal(8, 30, *shape), _normal(11, 30, 2), np.random.default_rng(12).random(30)

    def fresh(seed: int) -> DiffusionModel:
        return DiffusionModel(shape, 2, SMALL, trips, seed)

    first = fresh(0)
    first.train(z, condition, weight, seed=1)
    saved = first.state()
    kept = {name: tensor.clone() for name, tensor in saved.items()}
    loss = first.train(z, condition, weight, seed=2)
    for _ in range(2):  # a state can be used twice
        second = fresh(99)
        second.load_state(saved)
        assert second.train(z, condition, weight, seed=2) == loss
        for name, tensor in first.state().items():
            assert torch.equal(second.state()[name], tensor), name
        np.testing.assert_array_equal(second.sample(condition, 3), first.sample(condition, 3))
    assert all(torch.equal(saved[name], tensor) for name, tensor in kept.items())


def test_an_untrained_state_can_be_restored() -> None:
    """A run can stop before its first training."""
    model = DiffusionModel((3,), 2, SMALL, seed=1)
    other = DiffusionModel((3,), 2, SMALL, seed=2)
    other.load_state(model.state())
    z = _normal(0, 10, 3)
    assert other.train(z, _nothing(10), np.ones(10), 5) == model.train(z, _nothing(10), np.ones(10), 5)


def test_a_call_depends_on_its_seed_and_nothing_else() -> None:
    """Another process, another order of calls, or a draw elsewhere must not change a run."""
    z, condition = _normal(13, 20, 3), _normal(14, 20, 2)

    def run(disturb: bool) -> list[Array]:
        if disturb:
            torch.manual_seed(123)
            np.random.default_rng(0)
        model = DiffusionModel((3,), 2, SMALL, seed=5)
        if disturb:
            torch.randn(10)
            model.sample(condition, 77)
        model.train(z, condition, np.ones(20), seed=6)
        return [model.sample(condition, 7), model.mutate(z, condition, 0.5, 8), model.sample(condition, 8)]

    quiet, disturbed = run(False), run(True)
    for a, b in zip(quiet, disturbed, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(quiet[0], quiet[2])


def test_making_a_model_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(4)
    expected = torch.randn(3)
    torch.manual_seed(4)
    DiffusionModel((3,), 2, SMALL, seed=5)
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize("weight", [[0.0, 0.0], [1.0, float("nan")], [1.0, -1.0], [1.0, float("inf")], [2.0, -0.5]])
def test_weights_that_mean_nothing_are_refused(weight: list[float]) -> None:
    """A failed simulation's NaN would otherwise poison the network for the rest of the run."""
    model = DiffusionModel((2,), 2, SMALL)
    before = model.state()
    with pytest.raises(ValueError, match="weights"):
        model.train(_normal(0, 2, 2), _nothing(2), np.array(weight), seed=0)
    assert all(torch.equal(model.state()[name], tensor) for name, tensor in before.items())


def test_latents_that_are_not_finite_are_reported() -> None:
    model = DiffusionModel((2,), 2, SMALL)
    with pytest.raises(ValueError, match="not finite"):
        model.train(np.full((4, 2), np.nan, np.float32), _nothing(4), np.ones(4), seed=0)


def _shaken_tokens(vehicles: int, seed: int) -> TokenDenoiser:
    """A token network whose last layer is not zero, so that it says something."""
    torch.manual_seed(seed)
    network = TokenDenoiser(3, 2, 16, torch.randn(vehicles, 5, generator=torch.Generator().manual_seed(seed)))
    for parameter in network.out.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def test_tokens_have_no_order() -> None:
    """Vehicles permuted together with their trips: the noise is permuted likewise. No vehicle has a weight of its own."""
    network = _shaken_tokens(9, 0)
    z, t, condition = torch.randn(4, 9, 3), torch.tensor([1.0, 5.0, 20.0, 50.0]), torch.randn(4, 2)
    order = torch.randperm(9)
    with torch.no_grad():
        plain = network(z, t, condition)
        network.trips = network.trips[order]
        permuted = network(z[:, order], t, condition)
    torch.testing.assert_close(permuted, plain[:, order], atol=1e-5, rtol=1e-5)
    assert plain.std() > 0.01


def test_one_token_network_serves_any_number_of_vehicles() -> None:
    """The weights of 9 vehicles fit 13, and a doubled population, seen twice, is answered twice alike (mean pooling)."""
    small, large = _shaken_tokens(9, 0), _shaken_tokens(18, 1)
    weights = {name: value for name, value in small.state_dict().items() if name != "trips"}
    large.load_state_dict(weights, strict=False)
    large.trips = torch.cat([small.trips, small.trips])
    z, t, condition = torch.randn(2, 9, 3), torch.tensor([3.0, 30.0]), torch.randn(2, 2)
    with torch.no_grad():
        once = small(z, t, condition)
        twice = large(torch.cat([z, z], dim=1), t, condition)
    torch.testing.assert_close(twice, torch.cat([once, once], dim=1), atol=1e-5, rtol=1e-5)
