"""How agents move in a time step, given what they do: pure, batched, differentiable.

A state is `[..., 4]`: x and y of the centre (metres), direction (radians), speed (metres per second). Agents of several kinds
move by one call: each by the model of its kind.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Motion = Literal["bicycle", "curvature"]
REAR = FRONT = 0.3  # of an agent's length, from its centre to its axles (MRIC: l_r = c_r L, l_f = c_f L)
HIGHEST = (6.0, torch.pi / 4)  # m/s² and radians of steering that drivers ask for at most (MRIC, Sec. V)
SHARE = REAR / (REAR + FRONT)
SLOWEST = 0.1  # m/s below which the steering of a logged step cannot be told


def bicycle(state: Tensor, action: Tensor, rear: Tensor, step: float) -> Tensor:
    """The next state of vehicles and cyclists (MRIC, Eq. 4 to 8).

    Args:
        state: `[..., 4]`.
        action: `[..., 2]` or more: acceleration (m/s²) and steering angle (radians); what follows does not matter.
        rear: `[...]` metres from the centre to the rear axle: `REAR` of the length.
        step: seconds.
    """
    return _Bicycle.apply(state, action, rear, step)  # type: ignore[no-untyped-call]


class _Bicycle(torch.autograd.Function):
    """With its own backward pass: that of its operations takes three times as long. It has no second derivative."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, action: Tensor, rear: Tensor, step: float) -> Tensor:
        x, y, yaw, speed = state.unbind(-1)
        acceleration, steering = action.unbind(-1)[:2]
        tan = torch.tan(steering)
        slip = torch.atan(tan * SHARE)
        course = yaw + slip
        cos, sin = torch.cos(course), torch.sin(course)
        turn = torch.sin(slip) / rear
        ctx.save_for_backward(tan, slip, cos, sin, speed, turn, rear)
        ctx.step, ctx.unused = step, action.shape[-1] - 2
        after = torch.empty_like(state)
        new_x, new_y, new_yaw, new_speed = after.unbind(-1)
        torch.addcmul(x, speed, cos, value=step, out=new_x)
        torch.addcmul(y, speed, sin, value=step, out=new_y)
        torch.addcmul(yaw, speed, turn, value=step, out=new_yaw)
        torch.add(speed, acceleration, alpha=step, out=new_speed)
        return after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The transposed Jacobian (MRIC, Eq. 13, and its counterpart for actions) times the gradient."""
        tan, slip, cos, sin, speed, turn, rear = ctx.saved_tensors
        x, y, yaw, faster = gradient.unbind(-1)
        # By direction, by speed and by slip angle; all are still to be multiplied by the time step.
        across = torch.addcmul(y * cos, x, sin, value=-1) * speed
        along = torch.addcmul(torch.addcmul(x * cos, y, sin), yaw, turn)
        cos_slip = torch.cos(slip)
        by_slip = torch.addcmul(across, speed * cos_slip / rear, yaw)
        # slip = atan(s tan(steering)) changes by s cos(slip)^2 (1 + tan(steering)^2).
        tilted = cos_slip * tan
        by_state, by_action = torch.empty_like(gradient), gradient.new_empty(*x.shape, 2 + ctx.unused)
        own, asked = by_state.unbind(-1), by_action.unbind(-1)
        own[0].copy_(x)
        own[1].copy_(y)
        torch.add(yaw, across, alpha=ctx.step, out=own[2])
        torch.add(faster, along, alpha=ctx.step, out=own[3])
        torch.mul(faster, ctx.step, out=asked[0])
        bent = torch.addcmul(cos_slip * cos_slip, tilted, tilted).mul_(SHARE * ctx.step)
        torch.mul(by_slip, bent, out=asked[1])
        for unused in asked[2:]:
            unused.zero_()
        return by_state, by_action, None, None


def bicycle_action(state: Tensor, after: Tensor, rear: Tensor, step: float) -> Tensor:
    """The action `[..., 2]` by which `bicycle` comes to the direction and speed `after`; who stands does not steer."""
    speed = state[..., 3]
    turn = wrapped(after[..., 2] - state[..., 2])
    moving = speed.abs() > SLOWEST
    way = torch.where(moving, speed * step, torch.ones_like(speed))
    slip = torch.asin((turn * rear / way).clamp(-0.99, 0.99))
    steering = torch.atan(torch.tan(slip) / SHARE)
    return torch.stack([(after[..., 3] - speed) / step, torch.where(moving, steering, 0.0)], dim=-1)


def delta(state: Tensor, action: Tensor, step: float) -> Tensor:
    """The next state of pedestrians (MRIC, Eq. 9 to 12); an action is `[..., 3]`, what x, y and direction change by."""
    way = action[..., :2]
    # The length of a step of nothing has no gradient: it is that of a hair's breadth.
    speed = way.square().sum(-1).clamp_min(1e-12).sqrt() / step
    return torch.cat([state[..., :3] + action, speed[..., None]], dim=-1)


def curvature(state: Tensor, action: Tensor, step: float) -> Tensor:
    """The next state under an acceleration (m/s²) and a curvature (1/m), `[..., 2]` (TrafficGamer, Methods).

    Who brakes stops, and does not drive backwards.
    """
    x, y, yaw, speed = state.unbind(-1)
    acceleration, bend = action.unbind(-1)
    after = (speed + acceleration * step).clamp_min(0.0)
    # With constant acceleration the mean speed is that of both ends; who stops within the step stands for the rest of it.
    stopping = (speed + acceleration * step < 0) & (acceleration < 0)
    braking = torch.where(stopping, acceleration, -torch.ones_like(acceleration))
    way = torch.where(stopping, -speed.square() / (2 * braking), (speed + after) / 2 * step)
    return torch.stack([x + way * torch.cos(yaw), y + way * torch.sin(yaw), yaw + bend * way, after], dim=-1)


def advance(
    state: Tensor, action: Tensor, walks: Tensor | None, rear: Tensor, step: float, motion: Motion = "bicycle"
) -> Tensor:
    """The next state of agents of all kinds: those who walk by `delta`, all others by `bicycle` or `curvature`.

    Args:
        state: `[..., 4]`.
        action: `[..., 3]`: acceleration, steering (or curvature) and nothing; of those who walk, what x, y and direction
            change by.
        walks: `[...]` bool; None: nobody does.
        rear: `[...]` metres from the centre to the rear axle.
        step: seconds.
        motion: of who does not walk.
    """
    asked = action if walks is None else torch.where(walks[..., None], 0.0, action)
    driven = bicycle(state, asked, rear, step) if motion == "bicycle" else curvature(state, asked[..., :2], step)
    return driven if walks is None else torch.where(walks[..., None], delta(state, action, step), driven)


def wrapped(angle: Tensor) -> Tensor:
    """The same direction between -pi and pi."""
    return torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi
