"""Compiled steps of the learners against what they stand for."""

import pytest
import torch
from throng.policies.marl.kernels import norm_relu, quantile_loss
from torch.nn.functional import layer_norm


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norm_and_relu_are_pytorchs_and_so_are_their_gradients(dtype: torch.dtype) -> None:
    x = (5 + 3 * numbers(4, 3, 37)).to(dtype).transpose(0, 1).requires_grad_()
    weight, bias = (numbers(3, 1, 37, seed=k).to(dtype).requires_grad_() for k in (1, 2))
    found, plain = norm_relu(x, weight, bias), torch.relu(layer_norm(x, (37,)) * weight + bias)
    pull = numbers(3, 4, 37, seed=3).to(dtype)
    assert 0 < int((plain == 0).sum()) < plain.numel()
    for one, other in zip(
        (found, *torch.autograd.grad(found, (x, weight, bias), pull)),
        (plain, *torch.autograd.grad(plain, (x, weight, bias), pull)),
        strict=True,
    ):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    given = tuple(
        one.requires_grad_() for one in (numbers(2, 3, 6), numbers(2, 1, 6, seed=1), numbers(2, 1, 6, seed=2))
    )
    assert torch.autograd.gradcheck(norm_relu, given)
    quantiles, target = (2 * numbers(4, 8)).requires_grad_(), 3 * numbers(4, 5, seed=1)
    assert torch.autograd.gradcheck(lambda q: quantile_loss(q, target), (quantiles,))


def test_what_is_switched_off_has_no_gradient() -> None:
    x = numbers(1, 4, 8).requires_grad_()
    weight, bias = (torch.zeros(1, 1, 8, dtype=x.dtype, requires_grad=True) for _ in range(2))
    # All outputs are 0, at the bend, where PyTorch's derivative is 0, too.
    assert all((one == 0).all() for one in torch.autograd.grad(norm_relu(x, weight, bias).sum(), (x, weight, bias)))


def test_what_is_not_a_number_is_not_hidden() -> None:
    x = numbers(1, 3, 8)
    x[0, 1, 2] = torch.nan
    weight, bias = torch.ones(1, 1, 8, dtype=x.dtype), torch.zeros(1, 1, 8, dtype=x.dtype)
    assert norm_relu(x, weight, bias).isnan().any(-1).tolist() == [[False, True, False]]
    quantiles, target = numbers(3, 8), numbers(3, 8, seed=1)
    target[2, 5] = torch.nan
    assert quantile_loss(quantiles, target).isnan().tolist() == [False, False, True]


def test_the_quantile_loss_is_that_of_all_pairs() -> None:
    quantiles, target = (2 * numbers(7, 5, 16)).requires_grad_(), 3 * numbers(7, 5, 12, seed=1)
    off = target[..., None, :] - quantiles[..., None]
    level = ((torch.arange(16) + 0.5) / 16)[:, None]
    huber = torch.where(off.abs() <= 1, 0.5 * off.square(), off.abs() - 0.5)
    plain = ((level - (off < 0).double()).abs() * huber).mean(-1).sum(-1)
    found = quantile_loss(quantiles, target)
    assert torch.allclose(found, plain)
    weight = numbers(7, 5, seed=2)
    one, other = (torch.autograd.grad((loss * weight).sum(), quantiles)[0] for loss in (found, plain))
    assert torch.allclose(one, other)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, weight = numbers(3, 4, 8), torch.ones(2, 1, 8, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="size"):
        norm_relu(x, weight, weight)
    with pytest.raises(RuntimeError, match="size"):
        norm_relu(x, weight[:1, :, :7], weight[:1, :, :7])
    with pytest.raises(RuntimeError, match="size"):
        quantile_loss(numbers(3, 4, 8), numbers(2, 4, 8))


def test_they_run_where_numbers_are_not_in_the_processors_memory() -> None:
    x, weight = torch.empty(2, 3, 8, device="meta"), torch.empty(2, 1, 8, device="meta")
    assert norm_relu(x, weight, weight).shape == x.shape
    assert quantile_loss(x, torch.empty(2, 3, 5, device="meta")).shape == (2, 3)
