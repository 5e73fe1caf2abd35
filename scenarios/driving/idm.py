"""The intelligent driver model (Treiber, Hennecke and Helbing, 2000) along the ways that agents went."""

from __future__ import annotations

import torch
from torch import Tensor

from .geometry import leader

ACCELERATION, COMFORT = 1.5, 2.0  # m/s²: at most, and of comfortable braking
HARDEST = 8.0  # m/s² of braking at most
HEADWAY, STANDSTILL = 1.5, 2.0  # seconds and metres to keep
PARKED = 0.5  # m/s: who was never seen to drive as fast stays where it is
BEYOND = 200.0  # metres straight on where a log ends


class Idm:
    """Keeps to the logged way of each agent, wanting its highest logged speed.

    Args:
        log: `[scenes, agents, steps, 4]`.
        seen: `[scenes, agents, steps]`.
        scene: `[worlds]`.
    """

    def __init__(self, log: Tensor, seen: Tensor, scene: Tensor) -> None:
        steps = log.shape[2]
        # Where an agent is not seen, the way stands still at where it was seen last (before that: first).
        order = torch.arange(steps, device=log.device)
        last = torch.where(seen, order, -1).cummax(-1).values
        first = seen.long().argmax(-1, keepdim=True)
        at = torch.where(last < 0, first, last)[..., None]
        way = torch.take_along_dim(log, at.expand(*at.shape[:-1], 4), dim=2)
        yaw = way[:, :, -1:, 2]
        end = way[:, :, -1:, :2] + BEYOND * torch.cat([torch.cos(yaw), torch.sin(yaw)], -1)[:, :, None]
        points = torch.cat([way[..., :2], end], dim=2)
        lengths = (points[:, :, 1:] - points[:, :, :-1]).norm(dim=-1)
        along = torch.cat([torch.zeros_like(lengths[..., :1]), lengths.cumsum(-1)], dim=-1)
        self._points, self._along = points[scene], along[scene].contiguous()
        self._yaw = torch.cat([way[..., 2], way[:, :, -1:, 2]], dim=-1)[scene]
        self._wanted = torch.where(seen, log[..., 3], 0.0).amax(-1)[scene]

    def step(self, agents: Tensor, present: Tensor, size: Tensor, beyond: Tensor, step: float) -> Tensor:
        """The next `[worlds, agents, 4]` of everybody, as if nobody else decided.

        Args:
            beyond: `[worlds, agents]` metres of the centre beyond the stop of a red light; negative: before it.
        """
        speed = agents[..., 3].clamp_min(0.0)
        gap, closing = leader(agents, present, size)
        # A red light is a car that stands behind the stop; who is over it with the front drives on.
        stop = -beyond - size[..., 0] / 2 + STANDSTILL
        waits = (stop > 0) & (stop < gap)
        gap, closing = torch.where(waits, stop, gap), torch.where(waits, speed, closing)
        wish = STANDSTILL + (speed * HEADWAY + speed * closing / (2 * (ACCELERATION * COMFORT) ** 0.5)).clamp_min(0.0)
        free = (speed / self._wanted.clamp_min(PARKED)) ** 4
        rate = ACCELERATION * (1 - free - (wish / gap.clamp_min(0.1)).square())
        after = (speed + rate.clamp_min(-HARDEST) * step).clamp_min(0.0)
        moved = self._ahead(self._place(agents) + (speed + after) / 2 * step, after)
        return torch.where((self._wanted < PARKED)[..., None], agents, moved)

    def _place(self, agents: Tensor) -> Tensor:
        """`[worlds, agents]` metres along the way of the point nearest to the agent."""
        start, way = self._points[:, :, :-1], self._points[:, :, 1:] - self._points[:, :, :-1]
        length = way.square().sum(-1).clamp_min(1e-9)
        to = agents[..., None, :2] - start
        share = ((to * way).sum(-1) / length).clamp(0.0, 1.0)
        which = (to - share[..., None] * way).square().sum(-1).argmin(-1, keepdim=True)
        along = self._along[..., :-1] + share * length.sqrt()
        return torch.take_along_dim(along, which, -1).squeeze(-1)

    def _ahead(self, place: Tensor, speed: Tensor) -> Tensor:
        """States at places along the ways."""
        most = self._along.shape[-1] - 1
        index = torch.searchsorted(self._along, place[..., None].contiguous(), right=True).clamp(1, most)

        def at(table: Tensor, where: Tensor) -> Tensor:
            return torch.take_along_dim(table, where, -1).squeeze(-1)

        low, high = at(self._along, index - 1), at(self._along, index)
        share = ((place - low) / (high - low).clamp_min(1e-6)).clamp(0.0, 1.0)
        x, y = (
            at(self._points[..., k], index - 1) * (1 - share) + at(self._points[..., k], index) * share
            for k in range(2)
        )
        before, turn = at(self._yaw, index - 1), at(self._yaw, index) - at(self._yaw, index - 1)
        yaw = before + share * torch.atan2(torch.sin(turn), torch.cos(turn))
        return torch.stack([x, y, yaw, speed], dim=-1)
