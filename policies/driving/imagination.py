"""Traffic that goes on as a world model says: many futures of a scene at once, half a second at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...scenarios.driving.kinematics import wrapped
from ...scenarios.errors import InputError
from .tokens import STEP, STRIDE, Batch, SceneTokens, batch_of
from .world_model import Memory, Prediction, WorldModel


@dataclass(frozen=True, eq=False)
class Imagined:
    """One moment of all futures; worlds are copies of a scene, one after the other."""

    batch: Batch  # the last `STRIDE` + 1 frames
    memory: Memory
    frame: int  # of the scene


class Imagination:
    """The map and the history are encoded once, for all futures together; then only what is new.

    Args:
        model: in evaluation mode, on any device.
        scene: what was there.
        rollouts: futures.
        frame: the last that is known; by default the last of the scene's history.

    Raises:
        InputError: so many frames are not there.
    """

    def __init__(self, model: WorldModel, scene: SceneTokens, rollouts: int, frame: int | None = None) -> None:
        last = scene.history - 1 if frame is None else frame
        if not STRIDE <= last < scene.there.shape[1]:
            raise InputError(f"scene {scene.name!r}: frame {last} is not one of {STRIDE} to {scene.there.shape[1] - 1}")
        self.model, self.rollouts = model, rollouts
        begin, device = last % STRIDE, next(model.parameters()).device
        history = batch_of([scene], [begin], last - begin + 1).to(device)
        self._known = model.encode_map(history)
        memory: Memory | None = None
        for moment in range(STRIDE, last - begin + 1, STRIDE):
            memory = model.observe(history, self._known, moment, memory)
        assert memory is not None
        self._all = batch_of([scene], [last - STRIDE], scene.there.shape[1] - last + STRIDE, rollouts).to(device)
        self._first, self._last = last - STRIDE, last
        self._memory = _copied(memory, rollouts)

    def begin(self) -> Imagined:
        """The last known moment, the same in all futures."""
        frames = slice(0, STRIDE + 1)
        batch = replace(self._all, agents=self._all.agents[:, :, frames], there=self._all.there[:, :, frames])
        return Imagined(self._with_lights(batch, self._last), self._memory, self._last)

    def predict(self, state: Imagined) -> tuple[Prediction, Tensor]:
        """What everybody who is there may do next, and `[n]` who that is, as indices into `[worlds * agents]`."""
        rows = torch.nonzero(state.memory.there[:, -1])[:, 0]
        return self.model.predict(state.batch, self._known, STRIDE, state.memory, rows), rows

    def advance(self, state: Imagined, ways: Tensor) -> Imagined:
        """Half a second later.

        Args:
            ways: `[worlds, agents, STRIDE, 4]` x, y, direction and speed of everybody in the frames that come.
        """
        there = state.batch.there[:, :, -1:]
        agents = torch.cat([state.batch.agents[:, :, -1:], ways * there[..., None]], dim=2)
        batch = replace(state.batch, agents=agents, there=there.expand(-1, -1, STRIDE + 1))
        batch = self._with_lights(batch, state.frame + STRIDE)
        memory = self.model.observe(batch, self._known, STRIDE, state.memory)
        return Imagined(batch, memory, state.frame + STRIDE)

    def modes(self, state: Imagined, found: Prediction, rows: Tensor, mode: Tensor) -> Tensor:
        """`[worlds, agents, STRIDE, 4]`: the ways of chosen modes `[n]` of `rows` for `advance`; 0 of others."""
        way = found.trajectory[torch.arange(len(rows), device=rows.device), mode, :STRIDE]
        before = torch.cat([state.batch.agents[:, :, -1, :2].flatten(0, 1)[rows][:, None], way[:, :-1, :2]], dim=1)
        moved = way[..., :2] - before
        speed = (moved[..., 0] * torch.cos(way[..., 2]) + moved[..., 1] * torch.sin(way[..., 2])) / STEP
        told = torch.cat([way[..., :2], wrapped(way[..., 2:]), speed[..., None]], dim=-1)
        worlds, agents = state.batch.size.shape[:2]
        return told.new_zeros(worlds * agents, STRIDE, 4).index_copy(0, rows, told).view(worlds, agents, STRIDE, 4)

    def _with_lights(self, batch: Batch, frame: int) -> Batch:
        """With the lights of the frames up to one; behind the end of the record they stay as they were."""
        states = self._all.light_state
        last = states.shape[2] - 1
        wanted = torch.arange(frame - STRIDE, frame + 1, device=states.device) - self._first
        return replace(batch, light_state=states[:, :, wanted.clamp_max(last)])


def _copied(memory: Memory, copies: int) -> Memory:
    """For `copies` worlds in place of one."""

    def rows(values: Tensor) -> Tensor:
        return values.repeat(copies, *[1] * (values.dim() - 1))

    keys = [one.repeat(1, copies, 1, 1) for one in memory.keys]
    return Memory(rows(memory.pose), rows(memory.there), rows(memory.speed), rows(memory.token), keys)


def likeliest(found: Prediction) -> Tensor:
    """`[n]`."""
    return found.logits.argmax(-1)


def drawn(found: Prediction, generator: torch.Generator) -> Tensor:
    """`[n]` modes by their probabilities."""
    return torch.multinomial(found.probability(), 1, generator=generator)[:, 0]
