"""Distances between boxes, and from the edges of the road: exact, batched, differentiable.

The Minkowski difference of two rectangles is an octagon, symmetric about its centre, whose edges have the directions of the
rectangles' own. So its boundary is met by looking at four edges, those which face the origin, and nothing has to be sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .line_index import CELL, LineIndex

FAR = 1e3  # metres: the distance from nobody
CLEARANCE = 0.3  # metres beside an agent that are in its way, too
LATEST = 5.0  # seconds beyond which nobody asks when two collide (as the Sim Agents challenge)


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


def leader(agents: Tensor, present: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Gap to the nearest agent ahead (metres, bumper to bumper) and how fast it closes (m/s); `FAR` and 0 without one.

    Ahead is who lies within an agent's own width straight on, whichever way it looks.

    Args:
        agents: `[worlds, agents, 4]` x, y, direction and speed.
        present: `[worlds, agents]` bool.
        size: `[worlds, agents, 2]` length and width.
    """
    x, y, yaw, speed = agents.unbind(-1)
    dx, dy = x[:, None, :] - x[:, :, None], y[:, None, :] - y[:, :, None]
    cos, sin = torch.cos(yaw)[..., None], torch.sin(yaw)[..., None]
    ahead, aside = dx * cos + dy * sin, (dy * cos - dx * sin).abs()
    length, width = size.unbind(-1)
    gap = ahead - (length[:, None, :] + length[:, :, None]) / 2
    reach = (width[:, None, :] + width[:, :, None]) / 2 + CLEARANCE
    inside = (aside < reach) & (ahead > 0) & present[:, None, :] & present[:, :, None]
    gap = torch.where(inside, gap, torch.full_like(gap, FAR))
    nearest, which = gap.min(-1)
    facing = torch.cos(torch.take_along_dim(yaw[:, None, :].expand_as(gap), which[..., None], -1).squeeze(-1) - yaw)
    theirs = torch.take_along_dim(speed[:, None, :].expand_as(gap), which[..., None], -1).squeeze(-1) * facing
    return nearest, torch.where(nearest < FAR, speed - theirs, torch.zeros_like(speed))


def time_to_collision(agents: Tensor, present: Tensor, size: Tensor) -> Tensor:
    """`[worlds, agents]` seconds until an agent meets who is ahead of it if both keep their speeds; at most `LATEST`."""
    gap, closing = leader(agents, present, size)
    closes = closing > 1e-3
    return torch.where(closes, gap.clamp_min(0.0) / torch.where(closes, closing, 1.0), LATEST).clamp_max(LATEST)


class DirectedLines:
    """Signed distances from directed lines of several scenes: from the edges of roads, or the middles of lanes.

    Args:
        indices: of each scene.
        dtype, device: of the points that will be asked for.
    """

    def __init__(
        self, indices: Sequence[LineIndex], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        def joined(name: str) -> Tensor:
            return torch.as_tensor(np.concatenate([getattr(one, name) for one in indices]), dtype=dtype, device=device)

        def each(rows: list[Any], dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(np.array(rows), dtype=dtype, device=device)

        along = joined("along")
        # Of each segment: start, direction, its squared length, and the normals at both ends.
        self._segments = torch.cat(
            [
                joined("start"),
                along,
                along.square().sum(-1, keepdim=True),
                joined("start_normal"),
                joined("end_normal"),
            ],
            -1,
        )
        self._columns = [column.contiguous() for column in self._segments[:, :5].unbind(-1)]
        first = np.cumsum([0] + [len(one.start) for one in indices])
        most = max(one.candidates.shape[1] for one in indices)
        padded = [
            np.pad(one.candidates, ((0, 0), (0, most - one.candidates.shape[1])), mode="edge") + first[i]
            for i, one in enumerate(indices)
        ]
        self._candidates = torch.as_tensor(np.concatenate(padded), dtype=torch.long, device=device)
        self._low = each([one.low for one in indices], dtype)
        self._cells = each([one.cells for one in indices], torch.long)
        self._first_cell = each(np.cumsum([0] + [len(one.candidates) for one in indices])[:-1].tolist(), torch.long)

    def distance(self, points: Tensor, scene: Tensor) -> Tensor:
        """Metres from the nearest line: positive on its right (off the road), negative on its left.

        Args:
            points: `[batch, ..., 2]`.
            scene: `[batch]`, which scene each belongs to.

        Returns:
            `[batch, ...]`. Exact within the grid; of points outside it, the distance to what may be nearest to its border.
        """
        nearest, share = self._nearest(points, scene)
        to = points - nearest[..., :2]
        along, length = nearest[..., 2:4], nearest[..., 4].sqrt()
        across = (along[..., 1] * to[..., 0] - along[..., 0] * to[..., 1]) / length
        apart = to - share[..., None] * along
        normal = torch.where((share < 0.5)[..., None], nearest[..., 5:7], nearest[..., 7:9])
        right = (apart * normal).sum(-1) < 0
        at_end = (share <= 0.0) | (share >= 1.0)
        off = torch.where(at_end, apart.square().sum(-1), torch.ones_like(length)).clamp_min(1e-20).sqrt()
        return torch.where(at_end, torch.where(right, off, -off), across)

    def direction(self, points: Tensor, scene: Tensor) -> Tensor:
        """`[batch, ...]` radians: where the nearest line leads."""
        nearest, _ = self._nearest(points, scene)
        return torch.atan2(nearest[..., 3], nearest[..., 2])

    @torch.no_grad()
    def _nearest(self, points: Tensor, scene: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest segment `[batch, ..., 9]`, and at which share of it its nearest point is."""
        shape = (-1, *[1] * (points.dim() - 2))
        cells = self._cells[scene].view(*shape, 2)
        place = torch.div(points - self._low[scene].view(*shape, 2), CELL, rounding_mode="floor").long()
        place = torch.minimum(place.clamp_min(0), cells - 1)
        cell = self._first_cell[scene].view(shape) + place[..., 0] * cells[..., 1] + place[..., 1]
        some = self._candidates.index_select(0, cell.flatten())  # [points, candidates]
        flat = some.flatten()
        start_x, start_y, along_x, along_y, squared = (
            column.index_select(0, flat).view(some.shape) for column in self._columns
        )
        to_x, to_y = (points.reshape(-1, 2)[:, k, None] for k in (0, 1))
        to_x, to_y = to_x - start_x, to_y - start_y
        share = (to_x * along_x).addcmul_(to_y, along_y).div_(squared).clamp_(0.0, 1.0)
        to_x.addcmul_(share, along_x, value=-1)
        to_y.addcmul_(share, along_y, value=-1)
        which = to_x.square_().addcmul_(to_y, to_y).argmin(-1, keepdim=True)
        nearest = self._segments.index_select(0, some.gather(-1, which).flatten())
        return nearest.view(*points.shape[:-1], 9), share.gather(-1, which).view(points.shape[:-1])

    def box_distance(self, boxes: Tensor, size: Tensor, scene: Tensor) -> Tensor:
        """Of the corner that is furthest out, metres (MRIC, Eq. 49 and 50): positive as soon as a box leaves the road.

        Args:
            boxes: `[batch, ..., 3]` x, y and direction.
            size: `[batch, ..., 2]` length and width.
            scene: `[batch]`.
        """
        return self.distance(corners(boxes, size), scene).amax(-1)
