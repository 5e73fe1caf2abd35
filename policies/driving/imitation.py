"""Learning a world model from recorded scenes, and what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...scenarios.driving.kinematics import wrapped
from .tokens import STEP, STRIDE, Batch
from .world_model import Memory, Prediction, WorldModel, WorldModelSettings

HEADING = 0.2  # weight of directions beside positions
FIRST = 2 * STRIDE  # the first frame after which is predicted: Waymo's second of history


class Loss(NamedTuple):
    """Sums over predicted agents, and how many they were."""

    total: Tensor
    agents: Tensor
    regression: Tensor
    classification: Tensor
    final: Tensor  # metres from the best mode to the end, of those who are seen there


def laplace(scale: Tensor, error: Tensor) -> Tensor:
    """Negative log-density."""
    return torch.log(2 * scale) + error.abs() / scale


def loss_of(found: Prediction, future: Tensor, seen: Tensor) -> Loss:
    """Winner takes all: of the mode that comes nearest, the likelihood of the way; of all, that of its end (QCNet).

    Args:
        future: `[n, future, 3]` x, y and direction as they came.
        seen: `[n, future]` bool; each of the n in one frame at least.
    """
    error = found.trajectory - future[:, None]
    apart = error[..., :2].square().sum(-1).clamp_min(1e-12).sqrt()
    frames = seen.sum(-1)
    best = (apart * seen[:, None]).sum(-1).argmin(-1)
    of_best = best[:, None, None, None].expand(-1, 1, *error.shape[2:])
    near, scale = error.gather(1, of_best)[:, 0], found.scale.gather(1, of_best[..., :2])[:, 0]
    way = laplace(scale[..., :1], near[..., :2]).sum(-1) + HEADING * laplace(scale[..., 1], wrapped(near[..., 2]))
    regression = (way * seen).sum(-1) / frames
    last = (seen * torch.arange(1, seen.shape[1] + 1, device=seen.device)).argmax(-1)
    at_end = last[:, None, None].expand(-1, error.shape[1], 1)
    end_error = error.detach().gather(2, at_end[..., None].expand(-1, -1, -1, 3))[:, :, 0]
    end_scale = found.scale.detach().gather(2, at_end[..., None].expand(-1, -1, -1, 2))[:, :, 0]
    end = -laplace(end_scale[..., :1], end_error[..., :2]).sum(-1)
    classification = -torch.logsumexp(found.logits.log_softmax(-1) + end, dim=-1)
    total = regression + classification
    final = end_error[..., :2].norm(dim=-1).amin(-1)
    return Loss(
        total.sum(), torch.tensor(float(len(total)), device=total.device), regression.detach().sum(),
        classification.detach().sum(), final.sum(),
    )  # fmt: skip


class Imitation(nn.Module):
    """A world model with its loss in one call, as data-parallel training wants it."""

    def __init__(self, settings: WorldModelSettings) -> None:
        super().__init__()
        self.model = WorldModel(settings)

    def forward(self, batch: Batch, frames: tuple[int, ...], most: int, generator: torch.Generator) -> Loss:
        """Of predictions after some frames of a batch: multiples of `STRIDE`, at least `FIRST`.

        Args:
            most: agents whose future is predicted after each frame, drawn from those who are seen then and later.
            generator: of the draw.
        """
        known = self.model.encode_map(batch)
        memory: Memory | None = None
        losses = []
        for frame in range(STRIDE, max(frames) + 1, STRIDE):
            memory = self.model.observe(batch, known, frame, memory)
            if frame in frames:
                future, seen = ahead(batch, frame, self.model.settings.future)
                rows = torch.nonzero(memory.there[:, -1] & seen.any(-1))[:, 0]
                rows = rows[torch.randperm(len(rows), generator=generator)[:most].to(rows.device)]
                found = self.model.predict(batch, known, frame, memory, rows)
                losses.append(loss_of(found, future[rows], seen[rows]))
        return Loss(*(torch.stack(part).sum() for part in zip(*losses, strict=True)))


def ahead(batch: Batch, frame: int, future: int) -> tuple[Tensor, Tensor]:
    """`[worlds * agents, future, 3]` and `[worlds * agents, future]`: what comes after a frame, as far as the batch goes."""
    way = batch.agents[:, :, frame + 1 : frame + 1 + future, :3].flatten(0, 1)
    seen = batch.there[:, :, frame + 1 : frame + 1 + future].flatten(0, 1)
    lacking = future - seen.shape[1]
    if lacking > 0:
        way = torch.cat([way, way.new_zeros(len(way), lacking, 3)], dim=1)
        seen = torch.cat([seen, seen.new_zeros(len(seen), lacking)], dim=1)
    return way, seen


@dataclass(frozen=True)
class Extrapolation:
    """Goes on as in the last half second: what predictions have to beat.

    `turning`: at the rate at which it turned; without it, straight on.
    """

    turning: bool

    def predict(self, batch: Batch, frame: int, rows: Tensor, future: int) -> Tensor:
        """`[n, 1, future, 3]` x, y and direction."""
        now = batch.agents[:, :, frame].flatten(0, 1)[rows]
        before = batch.agents[:, :, frame - STRIDE].flatten(0, 1)[rows]
        known = batch.there[:, :, frame - STRIDE].flatten()[rows]
        turn = wrapped(now[:, 2] - before[:, 2]) / (STRIDE * STEP)
        rate = torch.where(known & torch.tensor(self.turning, device=rows.device), turn, 0.0)[:, None]
        time = STEP * torch.arange(1, future + 1, device=rows.device)
        yaw = now[:, 2, None] + rate * time
        # The way along an arc; its chord where it hardly turns.
        half = rate * time / 2
        reach = now[:, 3, None] * time * torch.sinc(half / torch.pi)
        course = now[:, 2, None] + half
        xy = now[:, None, :2] + reach[..., None] * torch.stack([torch.cos(course), torch.sin(course)], dim=-1)
        return torch.cat([xy, yaw[..., None]], dim=-1)[:, None]
