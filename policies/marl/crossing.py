"""A miniature: four cars that come to a crossing from its four sides, and want straight on.

Six seconds in moments of half a second, with the rewards and the actions of recorded scenes (TrafficGamer), without a world
model: what takes minutes there takes seconds here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .driving import DrivingTerms, driven, paid
from .game import Outcome, Seen

CARS = 4
SIDE = 2.0  # metres of a lane's middle from that of the road
WIDE = 2.0  # metres on either side of a lane's middle that are road
FROM, SPEED = (18.0, 30.0), (6.0, 10.0)  # metres before the crossing's middle and m/s in the beginning
BEYOND = 25.0  # metres behind the crossing's middle that cars want to be
MOMENTS = 12
NEAR = 20.0  # metres that are about 1 in observations


class CrossingState(NamedTuple):
    """Of `[rollouts, CARS]`."""

    cars: Tensor  # [rollouts, CARS, 4] x, y, direction, speed
    moment: int


class Crossing:
    """See `game.Game`.

    Args:
        terms: what driving pays.
    """

    agents = CARS
    numbers = 6 + 5 * (CARS - 1)
    horizon = MOMENTS

    def __init__(self, terms: DrivingTerms) -> None:
        self.terms = terms
        yaw = torch.arange(CARS) * torch.pi / 2
        self.ahead = torch.stack([torch.cos(yaw), torch.sin(yaw)], dim=-1)  # [CARS, 2]
        self.left = torch.stack([-torch.sin(yaw), torch.cos(yaw)], dim=-1)
        self.yaw = yaw
        self.goals = BEYOND * self.ahead - SIDE * self.left

    def begin(self, rollouts: int, generator: torch.Generator) -> CrossingState:
        random = torch.rand(2, rollouts, CARS, generator=generator)
        off = FROM[0] + (FROM[1] - FROM[0]) * random[0]
        speed = SPEED[0] + (SPEED[1] - SPEED[0]) * random[1]
        xy = -off[..., None] * self.ahead - SIDE * self.left
        cars = torch.cat([xy, self.yaw.expand(rollouts, -1)[..., None], speed[..., None]], dim=-1)
        return CrossingState(cars, 0)

    def see(self, state: CrossingState) -> Seen:
        """The own place, direction and speed along its lane, and the others' in its frame; the magnet keeps its speed."""
        cars = state.cars
        xy, yaw, speed = cars[..., :2], cars[..., 2], cars[..., 3]
        turned = yaw - self.yaw
        own = torch.stack(
            [
                (xy * self.ahead).sum(-1) / NEAR, (xy * self.left).sum(-1) + SIDE, torch.cos(turned), torch.sin(turned),
                speed / 10, torch.full_like(speed, state.moment / MOMENTS),
            ],
            dim=-1,
        )  # fmt: skip
        others = torch.stack([torch.arange(CARS).roll(-k)[:CARS] for k in range(1, CARS)], dim=1)  # [CARS, CARS - 1]
        off = (xy[:, others] - xy[:, :, None]) / NEAR
        cos, sin = torch.cos(yaw)[..., None], torch.sin(yaw)[..., None]
        towards = yaw[:, others] - yaw[..., None]
        seen = torch.stack(
            [
                off[..., 0] * cos + off[..., 1] * sin, off[..., 1] * cos - off[..., 0] * sin,
                torch.cos(towards), torch.sin(towards), speed[:, others] / 10,
            ],
            dim=-1,
        )  # fmt: skip
        magnet = torch.tensor([0.0, 0.0, *self.terms.magnet_scale, 0.0]).expand(*speed.shape, 1, 5)
        return Seen(torch.cat([own, seen.flatten(2)], dim=-1), magnet)

    def step(self, state: CrossingState, action: Tensor) -> tuple[CrossingState, Outcome]:
        way = driven(state.cars, action)
        after = way[..., -1, :]
        apart = (way[:, :, None, :, :2] - way[:, None, :, :, :2]).norm(dim=-1).amin(-1)
        apart = apart + 1e3 * torch.eye(CARS)
        spacing = apart.amin(-1)
        lateral = (after[..., :2] * self.left).sum(-1) + SIDE
        outcome = paid(self.terms, after, self.goals, spacing, spacing, lateral.abs() > WIDE)
        return CrossingState(after, state.moment + 1), outcome
