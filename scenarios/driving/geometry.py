"""Distances between boxes: exact, batched, differentiable.

The Minkowski difference of two rectangles is an octagon, symmetric about its centre, whose edges have the directions of the
rectangles' own. So its boundary is met by looking at four edges, those which face the origin, and nothing has to be sorted.
"""

from __future__ import annotations

import torch
from torch import Tensor


def box_distance(one: Tensor, other: Tensor, size: Tensor, other_size: Tensor) -> Tensor:
    """Signed distance of rectangles, metres: of their nearest points, or minus the least way that parts them.

    MRIC, Eq. 45 to 47, with the minus of 46 before its minimum.

    Args:
        one, other: `[..., 3]` or more: x, y and direction of the centres; broadcast against each other.
        size, other_size: `[..., 2]` length and width.

    Returns:
        `[...]`. Where boxes touch it is 0; its gradient exists wherever the nearest points are unique.
    """
    between = other[..., :2] - one[..., :2]
    cos_one, sin_one = torch.cos(one[..., 2]), torch.sin(one[..., 2])
    cos_other, sin_other = torch.cos(other[..., 2]), torch.sin(other[..., 2])
    x, y = between.unbind(-1)
    # The way between the centres as each of the two sees it, and how the second is turned to the first.
    px, py = x * cos_one + y * sin_one, y * cos_one - x * sin_one
    qx, qy = x * cos_other + y * sin_other, y * cos_other - x * sin_other
    cos = cos_one * cos_other + sin_one * sin_other
    sin = cos_one * sin_other - sin_one * cos_other
    a, b = (size / 2).unbind(-1)
    c, d = (other_size / 2).unbind(-1)
    sign_cos, sign_sin = _sign(cos), _sign(sin)
    abs_cos, abs_sin = cos * sign_cos, sin * sign_sin
    # Along a box's side: how far the octagon's edge is moved by the sides of the other box.
    c_sin, d_cos, c_cos, d_sin = c * abs_sin, d * abs_cos, c * abs_cos, d * abs_sin
    a_sin, b_cos, a_cos, b_sin = a * abs_sin, b * abs_cos, a * abs_cos, b * abs_sin
    turn = sign_cos * sign_sin
    sides = (
        # across the edge, how far out it is; along it, where its middle is, and half its length
        (px, a + c_cos + d_sin, py, turn * (c_sin - d_cos), b),
        (py, b + c_sin + d_cos, px, turn * (c_cos - d_sin), a),
        (qx, c + a_cos + b_sin, qy, turn * (b_cos - a_sin), d),
        (qy, d + a_sin + b_cos, qx, turn * (b_sin - a_cos), c),
    )
    deepest, nearest = None, None
    for across, out, along, middle, half in sides:
        front = across.abs() - out
        beyond = ((along - _sign(across) * middle).abs() - half).clamp_min(0.0)
        squared = front.square() + beyond.square()
        deepest = front if deepest is None else torch.maximum(deepest, front)
        nearest = squared if nearest is None else torch.minimum(nearest, squared)
    assert deepest is not None
    assert nearest is not None
    outside = deepest > 0
    # The square root has no gradient at 0, and `where` hands on both branches' gradients.
    apart = torch.where(outside, nearest, torch.ones_like(nearest)).clamp_min(1e-20).sqrt()
    return torch.where(outside, apart, deepest)


def _sign(value: Tensor) -> Tensor:
    """1 or -1, never 0."""
    return torch.where(value >= 0, 1.0, -1.0).to(value.dtype)


def corners(boxes: Tensor, size: Tensor) -> Tensor:
    """`[..., 4, 2]` of boxes `[..., 3]` (x, y, direction), counter-clockwise from the front left one."""
    half = size / 2
    signs = torch.tensor([(1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0), (1.0, -1.0)], dtype=boxes.dtype, device=boxes.device)
    x, y = (half[..., None, :] * signs).unbind(-1)
    cos, sin = torch.cos(boxes[..., 2, None]), torch.sin(boxes[..., 2, None])
    return boxes[..., None, :2] + torch.stack([x * cos - y * sin, x * sin + y * cos], dim=-1)
