"""How agents move in a time step, given what they do: pure, batched, differentiable.

A state is `[..., 4]`: x and y of the centre (metres), direction (radians), speed (metres per second). Agents of several kinds
move by one call: each by the model of its kind.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .scene import Kind

REAR = FRONT = 0.3  # of an agent's length, from its centre to its axles (MRIC: l_r = c_r L, l_f = c_f L)
SLOWEST = 0.1  # m/s below which the steering of a logged step cannot be told


def bicycle(state: Tensor, action: Tensor, length: Tensor, step: float) -> Tensor:
    """The next state of vehicles and cyclists (MRIC, Eq. 4 to 8).

    Args:
        state: `[..., 4]`.
        action: `[..., 2]` acceleration (m/s²) and steering angle (radians).
        length: `[...]` of the agent, metres.
        step: seconds.
    """
    x, y, yaw, speed = state.unbind(-1)
    acceleration, steering = action.unbind(-1)
    slip = torch.atan(REAR / (REAR + FRONT) * torch.tan(steering))
    way = speed * step
    return torch.stack(
        [
            x + way * torch.cos(yaw + slip),
            y + way * torch.sin(yaw + slip),
            yaw + way / (REAR * length) * torch.sin(slip),
            speed + acceleration * step,
        ],
        dim=-1,
    )


def bicycle_action(state: Tensor, after: Tensor, length: Tensor, step: float) -> Tensor:
    """The action `[..., 2]` by which `bicycle` comes to the direction and speed `after`; who stands does not steer."""
    speed = state[..., 3]
    turn = wrapped(after[..., 2] - state[..., 2])
    moving = speed.abs() > SLOWEST
    way = torch.where(moving, speed * step, torch.ones_like(speed))
    slip = torch.asin((turn * REAR * length / way).clamp(-0.99, 0.99))
    steering = torch.atan((REAR + FRONT) / REAR * torch.tan(slip))
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


def advance(state: Tensor, action: Tensor, kind: Tensor, length: Tensor, step: float) -> Tensor:
    """The next state of agents of all kinds: pedestrians by `delta`, all others by `bicycle`.

    Args:
        state: `[..., 4]`.
        action: `[..., 3]`: acceleration, steering and nothing; of pedestrians, what x, y and direction change by.
        kind: `[...]`, a `Kind` each.
        length: `[...]` metres.
        step: seconds.
    """
    walks = (kind == Kind.PEDESTRIAN)[..., None]
    if not walks.any():
        return bicycle(state, action[..., :2], length, step)
    driven = bicycle(state, torch.where(walks, 0.0, action)[..., :2], length, step)
    return torch.where(walks, delta(state, action, step), driven)


def wrapped(angle: Tensor) -> Tensor:
    """The same direction between -pi and pi."""
    return torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi
