"""Steps of a learner that PyTorch makes as many passes over memory, as one: a third to a tenth of their time on a processor.

Their results are those of the formulas, which is what runs where tensors lie elsewhere.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import layer_norm

EPSILON = 1e-5  # beside a variance, as in PyTorch
KAPPA = 1.0  # within which the quantile loss is quadratic
# Sums may be reordered; what is not finite is still seen.
LOOSE = {"reassoc", "contract", "arcp", "nsz"}


def norm_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`relu(layer_norm(x) * weight + bias)`, `[agents, n, numbers]`.

    Args:
        x: `[agents, n, numbers]`.
        weight, bias: `[agents, 1, numbers]`.
    """
    if x.is_cpu:
        weight, bias = (one.expand(len(x), 1, x.shape[2]) for one in (weight, bias))  # compiled, nobody checks shapes
        return _NormRelu.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return torch.relu(layer_norm(x, x.shape[-1:], eps=EPSILON) * weight + bias)


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        mean, scale = x.new_empty(2, *x.shape[:2])
        _norm_relu(*_arrays(x, weight[:, 0], bias[:, 0], out, mean, scale))
        ctx.save_for_backward(x, weight, bias, mean, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, bias, mean, scale = ctx.saved_tensors
        by_x, (by_weight, by_bias) = torch.empty_like(x), weight.new_zeros(2, *weight.shape)
        arrays = _arrays(gradient.contiguous(), x, weight[:, 0], bias[:, 0], mean, scale)
        _norm_relu_backward(*arrays, *_arrays(by_x, by_weight[:, 0], by_bias[:, 0]))
        return by_x, by_weight, by_bias


def quantile_loss(quantiles: Tensor, target: Tensor) -> Tensor:
    """Quantile regression with Huber's loss (TrafficGamer, Eq. 19), `[...]`: a sum over quantiles, a mean over targets.

    Args:
        quantiles: `[..., n]`, of (1/2, 3/2, …) / n.
        target: `[..., m]` equally likely samples.
    """
    if quantiles.is_cpu:
        target = target.expand(*quantiles.shape[:-1], -1)
        return _QuantileLoss.apply(quantiles, target)  # type: ignore[no-untyped-call]
    n = quantiles.shape[-1]
    level = ((torch.arange(n, device=quantiles.device, dtype=quantiles.dtype) + 0.5) / n)[:, None]
    off = target[..., None, :] - quantiles[..., None]
    near = off.clamp(-KAPPA, KAPPA)
    return (torch.where(off > 0, level, 1 - level) * near * (off - near / 2)).mean(-1).sum(-1)


class _QuantileLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, quantiles: Tensor, target: Tensor) -> Tensor:
        loss = quantiles.new_empty(quantiles.shape[:-1])
        pull = torch.empty_like(quantiles, memory_format=torch.contiguous_format)
        rows = (one.contiguous().view(-1, one.shape[-1]) for one in (quantiles, target, pull))
        _quantile_loss(*_arrays(*rows, loss.view(-1)))
        ctx.save_for_backward(pull)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (pull,) = ctx.saved_tensors
        return -pull * gradient[..., None], None


def _arrays(*tensors: Tensor) -> list[Any]:
    return [one.detach().numpy() for one in tensors]


@numba.njit(cache=True, fastmath=LOOSE, nogil=True)
def _norm_relu(x, weight, bias, out, mean, scale):  # type: ignore[no-untyped-def]
    agents, n, numbers = x.shape
    zero, one, many, epsilon = x.dtype.type(0), x.dtype.type(1), x.dtype.type(numbers), x.dtype.type(EPSILON)
    for a in range(agents):
        for i in range(n):
            total = square = zero
            for k in range(numbers):
                total += x[a, i, k]
            middle = total / many
            for k in range(numbers):
                off = x[a, i, k] - middle
                square += off * off
            narrow = one / np.sqrt(square / many + epsilon)
            mean[a, i], scale[a, i] = middle, narrow
            for k in range(numbers):
                y = (x[a, i, k] - middle) * narrow * weight[a, k] + bias[a, k]
                out[a, i, k] = zero if y < zero else y


@numba.njit(cache=True, fastmath=LOOSE, nogil=True)
def _norm_relu_backward(gradient, x, weight, bias, mean, scale, by_x, by_weight, by_bias):  # type: ignore[no-untyped-def]
    agents, n, numbers = x.shape
    zero, many = x.dtype.type(0), x.dtype.type(numbers)
    normed, pulled = np.empty(numbers, x.dtype), np.empty(numbers, x.dtype)
    for a in range(agents):
        for i in range(n):
            middle, narrow = mean[a, i], scale[a, i]
            total = along = zero
            for k in range(numbers):
                h = (x[a, i, k] - middle) * narrow
                g = zero if h * weight[a, k] + bias[a, k] <= zero else gradient[a, i, k]
                by_weight[a, k] += g * h
                by_bias[a, k] += g
                g *= weight[a, k]
                normed[k], pulled[k] = h, g
                total += g
                along += g * h
            total /= many
            along /= many
            for k in range(numbers):
                by_x[a, i, k] = narrow * (pulled[k] - total - normed[k] * along)


@numba.njit(cache=True, fastmath=LOOSE, nogil=True)
def _quantile_loss(quantiles, target, pull, loss):  # type: ignore[no-untyped-def]
    rows, n = quantiles.shape
    m = target.shape[1]
    number = quantiles.dtype.type
    zero, one, half, kappa = number(0), number(1), number(0.5), number(KAPPA)
    for i in range(rows):
        total = zero
        for j in range(n):
            above = number((j + 0.5) / n)
            q, part, along = quantiles[i, j], zero, zero
            for k in range(m):
                off = target[i, k] - q
                near = min(max(off, -kappa), kappa)
                pulled = (above if off > zero else one - above) * near
                part += pulled * (off - half * near)
                along += pulled
            total += part
            pull[i, j] = along / number(m)
        loss[i] = total / number(m)
