"""Scenes in which agents are driven: many at once, each many times, as one differentiable function of state and action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from .draw import extent
from .geometry import FAR, DirectedLines, box_distance, time_to_collision
from .idm import Idm
from .kinematics import REAR, Motion, advance
from .line_index import line_index
from .recording import LANES, Array
from .routes import routes
from .scene import LENGTH, SPEED, WIDTH, YAW, Kind, Line, Scene, X, Y
from .signals import RedLights

AROUND = 60.0  # metres beyond where agents were seen in which distances from road edges are exact
Others = Literal["log", "idm"]


@dataclass(frozen=True, eq=False)
class WorldState:
    """One moment of all worlds."""

    agents: Tensor  # [worlds, agents, 4]: x, y, direction, speed; anything where nobody is
    present: Tensor  # [worlds, agents] bool
    step: int  # since the beginning


class World:
    """Worlds of scenes, `rollouts` of each, one after the other: world w is of scene w // rollouts.

    They begin with the last step of a scene's history. Controlled agents do what they are told, the others what they did, or
    keep to the ways that they went by the intelligent driver model.

    Args:
        scenes: with the same time step.
        controlled: `[agents]` bool for each scene. Who is not there at the beginning cannot be controlled.
        rollouts: worlds of each scene.
        others: what those do who are not controlled.
        begin: step of the scenes with which worlds begin; by default the last of the history.
        motion: what the second number of an action is to who does not walk: the steering angle of a bicycle, or the
            curvature of its way (TrafficGamer).

    Raises:
        InputError: naming the scene.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        controlled: Sequence[NDArray[np.bool_]],
        rollouts: int = 1,
        others: Others = "log",
        begin: int | None = None,
        motion: Motion = "bicycle",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        _require(scenes, begin)
        self.scenes = tuple(scenes)
        self.rollouts = rollouts
        self._motion = motion
        self.seconds = scenes[0].step  # of a step
        self.begins = begins = [min(one.history, one.steps) - 1 if begin is None else begin for one in scenes]
        self.horizon = min(one.steps - first for one, first in zip(scenes, begins, strict=True)) - 1  # steps with a log
        self.back = min(begins)  # steps with a log before the beginning
        most = max(one.agents for one in scenes)
        log = np.zeros((len(scenes), most, self.back + self.horizon + 1, 4))
        seen = np.zeros(log.shape[:-1], bool)
        size, kind = np.ones((len(scenes), most, 2)), np.zeros((len(scenes), most), np.int64)
        goals, driven = np.zeros((len(scenes), most, 2)), np.zeros((len(scenes), most), bool)
        for i, (one, first) in enumerate(zip(scenes, begins, strict=True)):
            steps = slice(first - self.back, first + self.horizon + 1)
            log[i, : one.agents] = one.tracks[:, steps][:, :, [X, Y, YAW, SPEED]]
            seen[i, : one.agents] = one.valid[:, steps]
            size[i, : one.agents] = _sizes(one, first)
            kind[i, : one.agents] = one.kind
            goals[i, : one.agents] = one.goals
            driven[i, : one.agents] = controlled[i]
            absent = np.flatnonzero(controlled[i] & ~one.valid[:, first])
            if absent.size:
                raise InputError(f"scene {one.name!r}: agent {one.ids[absent[0]]} is not there in step {first}")
        self._track = torch.as_tensor(log, dtype=dtype, device=device)
        self._seen = torch.as_tensor(seen, device=device)
        self.log = self._track[:, :, self.back :]  # [scenes, agents, horizon + 1, 4]
        self.seen = self._seen[:, :, self.back :]
        self.scene = torch.arange(len(scenes), device=device).repeat_interleave(rollouts)  # [worlds]
        self.size = torch.as_tensor(size, dtype=dtype, device=device)[self.scene]  # [worlds, agents, 2]
        self.rear = REAR * self.size[..., 0]  # [worlds, agents] metres from the centre to the rear axle
        self.kind = torch.as_tensor(kind, device=device)[self.scene]
        self.goals = torch.as_tensor(goals, dtype=dtype, device=device)[self.scene]  # [worlds, agents, 2]
        self.controlled = torch.as_tensor(driven, device=device)[self.scene]
        walks = (self.kind == Kind.PEDESTRIAN) & self.controlled
        self._walks = walks if walks.any() else None
        self._alone = not bool((self.seen.any(-1)[self.scene] & ~self.controlled).any())  # there is nobody else
        self._idm = Idm(self.log, self.seen, self.scene) if others == "idm" else None
        self._lights = RedLights(
            scenes, [routes(one, first) for one, first in zip(scenes, begins, strict=True)], begins, self.horizon,
            self.scene, dtype,
        )  # fmt: skip
        self._edges = _lines(scenes, (Line.ROAD_EDGE,), dtype, device)
        self._lanes = _lines(scenes, LANES, dtype, device)
        one, other = torch.triu_indices(most, most, 1, device=device)
        self._pairs = (one, other)
        # Which pairs an agent is in: [agents, agents - 1].
        pair = torch.zeros(most, most, dtype=torch.long, device=device)
        pair[one, other] = pair[other, one] = torch.arange(len(one), device=device)
        self._of_agent = pair[~torch.eye(most, dtype=torch.bool, device=device)].view(most, most - 1)

    def reset(self) -> WorldState:
        """The beginning."""
        return self.logged(0)

    def logged(self, step: int) -> WorldState:
        """What was recorded in a step, `-back` to `horizon`."""
        at = self.back + step
        return WorldState(self._track[self.scene, :, at], self._seen[self.scene, :, at], step)

    def step(self, state: WorldState, action: Tensor) -> WorldState:
        """The next moment; `state` stays as it is.

        Args:
            action: `[worlds, agents, 3]` as `kinematics.advance` takes them; those of who is not controlled do not matter.
        """
        if state.step >= self.horizon:
            raise ValueError(f"the scenes' logs end after {self.horizon} steps")
        moved = advance(state.agents, action, self._walks, self.rear, self.seconds, self._motion)
        if self._alone:
            return WorldState(moved, state.present, state.step + 1)
        if self._idm is None:
            logged = self.logged(state.step + 1)
            others, there = logged.agents, logged.present
        else:
            others = self._idm.step(state.agents, state.present, self.size, self.red_light(state), self.seconds)
            there = state.present
        driven = self.controlled
        agents = torch.where(driven[..., None], moved, others)
        return WorldState(agents, torch.where(driven, state.present, there), state.step + 1)

    def nearest(self, state: WorldState) -> Tensor:
        """`[worlds, agents]` signed distance of each agent's box from the nearest other (MRIC, Eq. 45), metres.

        Negative: they overlap. Of who is not there, or alone, it is `FAR`.
        """
        one, other = self._pairs
        if not len(one):
            return torch.full_like(state.agents[..., 0], FAR)
        boxes = state.agents[..., :3]
        apart = box_distance(boxes[:, one], boxes[:, other], self.size[:, one], self.size[:, other])
        both = state.present[:, one] & state.present[:, other]
        return torch.where(both, apart, FAR)[:, self._of_agent].amin(-1)

    def off_road(self, state: WorldState) -> Tensor:
        """`[worlds, agents]` how far each agent's box is off the road (MRIC, Eq. 49), metres; negative: wholly on it."""
        return self._edges.box_distance(state.agents[..., :3], self.size, self.scene)

    def lane_distance(self, state: WorldState) -> Tensor:
        """`[worlds, agents]` metres of each agent's centre from the middle of the nearest lane."""
        return self._lanes.distance(state.agents[..., :2], self.scene).abs()

    def lane_direction(self, state: WorldState) -> Tensor:
        """`[worlds, agents]` radians: where the nearest lane leads."""
        return self._lanes.direction(state.agents[..., :2], self.scene)

    def red_light(self, state: WorldState) -> Tensor:
        """`[worlds, agents]` metres of each vehicle's centre beyond the stop of a red light on its way (MRIC, Eq. 52).

        Negative: before it. `-FAR`: no red light on its way, or passed long ago, or no vehicle.
        """
        beyond = self._lights.beyond(state.agents[..., :2], state.step)
        return torch.where(self.kind == Kind.VEHICLE, beyond, -FAR)

    def time_to_collision(self, state: WorldState) -> Tensor:
        """`[worlds, agents]` seconds until an agent meets who is ahead of it, at constant speeds."""
        return time_to_collision(state.agents, state.present, self.size)


def _require(scenes: Sequence[Scene], begin: int | None) -> None:
    if not scenes:
        raise InputError("no scenes")
    for one in scenes:
        if one.step != scenes[0].step:
            raise InputError(
                f"scene {one.name!r} has steps of {one.step:g} s, {scenes[0].name!r} of {scenes[0].step:g} s"
            )
        if not len(one.of_kind(Line.ROAD_EDGE)):
            raise InputError(f"scene {one.name!r} has no road edges in its map")
        if not len(one.of_kind(*LANES)):
            raise InputError(f"scene {one.name!r} has no lanes in its map")
        first = one.history - 1 if begin is None else begin
        if not 0 <= first < one.steps - 1:
            raise InputError(f"scene {one.name!r} has {one.steps} steps: nothing comes after step {first}")


def _sizes(scene: Scene, step: int) -> NDArray[np.float32]:
    """`[agents, 2]`: in the first step from `step` on in which an agent is seen, or the last before."""
    seen = scene.valid.copy()
    later = seen[:, step:].any(axis=1)
    seen[later, :step] = False
    first = np.where(later, seen.argmax(axis=1), seen.shape[1] - 1 - seen[:, ::-1].argmax(axis=1))
    return scene.tracks[np.arange(scene.agents), first][:, [LENGTH, WIDTH]]


def span(scene: Scene) -> tuple[Array, Array]:
    """Two corners `[2]` of where agents may come."""
    left, right, bottom, top = extent(scene)
    return np.array([left, bottom]) - AROUND, np.array([right, top]) + AROUND


def _lines(
    scenes: Sequence[Scene], kinds: tuple[Line, ...], dtype: torch.dtype, device: torch.device | str
) -> DirectedLines:
    indices = []
    for one in scenes:
        low, high = span(one)
        lines = [one.polyline(line).astype(np.float64) for line in one.of_kind(*kinds)]
        indices.append(line_index(lines, low, high))
    return DirectedLines(indices, dtype, device)
