"""How near predictions come to what happened, with Argoverse's definitions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...scenarios.driving.metrics import MISSED
from .imitation import Extrapolation, ahead
from .tokens import STRIDE, Batch, SceneTokens, batch_of
from .world_model import Memory, WorldModel

Predictor = Callable[[Batch, int, Tensor], tuple[Tensor, Tensor]]
# (batch, frame, rows) -> trajectories [n, modes, future, 3], probabilities [n, modes]


@dataclass(frozen=True, eq=False)
class Errors:
    """Of `[agents]` whose future was predicted, each with the K most probable modes."""

    min_ade: NDArray[np.float64]  # metres, of the mode that ends nearest
    min_fde: NDArray[np.float64]  # metres at the end
    brier_min_fde: NDArray[np.float64]  # plus (1 - that mode's probability)²

    @property
    def miss_rate(self) -> float:
        """Share of agents of whom no mode ends within 2 m."""
        return float((self.min_fde > MISSED).mean())

    def means(self) -> dict[str, float]:
        """Argoverse's four numbers."""
        return {
            "minADE": float(self.min_ade.mean()),
            "minFDE": float(self.min_fde.mean()),
            "MR": self.miss_rate,
            "brier-minFDE": float(self.brier_min_fde.mean()),
        }

    def __len__(self) -> int:
        return len(self.min_fde)


def errors_of(scenes: Iterable[SceneTokens], predictor: Predictor, future: int, modes: int = 6) -> Errors:
    """Of predictions after the last frame of each scene's history, of its focal agents (of all, without any).

    Counted are those who are seen then and in the last of `future` frames; of scenes that end before, nobody. As in
    Argoverse 2, the best mode is the one that ends nearest, for minADE, too.
    """
    found = []
    for scene in scenes:
        frame = scene.history - 1
        if frame < STRIDE or scene.there.shape[1] < frame + 1 + future:
            continue
        begin = frame % STRIDE  # so that the last frame is that of a token
        batch = batch_of([scene], [begin], scene.there.shape[1] - begin)
        frame -= begin
        way, seen = ahead(batch, frame, future)
        asked = batch.there[0, :, frame] & seen[:, -1]
        focal = torch.from_numpy(scene.focal) & asked
        rows = torch.nonzero(focal if focal.any() else asked)[:, 0]
        if len(rows):
            with torch.no_grad():
                found.append(_errors(*predictor(batch, frame, rows), way[rows], seen[rows], modes))
    if not found:
        raise ValueError("no scene has anybody who is seen at the end of both its history and its future")
    return Errors(*(np.concatenate(part) for part in zip(*found, strict=True)))


def _errors(
    trajectory: Tensor, probability: Tensor, way: Tensor, seen: Tensor, modes: int
) -> tuple[NDArray[np.float64], ...]:
    chosen = probability.topk(min(modes, probability.shape[1]), dim=-1)
    share = chosen.values / chosen.values.sum(-1, keepdim=True)
    picked = trajectory.gather(1, chosen.indices[:, :, None, None].expand(-1, -1, *trajectory.shape[2:]))
    apart = (picked[..., :2] - way[:, None, :, :2]).norm(dim=-1)
    mean = (apart * seen[:, None]).sum(-1) / seen.sum(-1)[:, None]
    final, best = apart[..., -1].min(-1)
    at = best[:, None]
    brier = final + (1 - share.gather(1, at)[:, 0]).square()
    return tuple(one.double().numpy() for one in (mean.gather(1, at)[:, 0], final, brier))


def by_model(model: WorldModel) -> Predictor:
    """What the model says after it has seen all frames of the history."""

    def predict(batch: Batch, frame: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        known = model.encode_map(batch)
        memory: Memory | None = None
        for moment in range(frame % STRIDE or STRIDE, frame + 1, STRIDE):
            memory = model.observe(batch, known, moment, memory)
        assert memory is not None
        found = model.predict(batch, known, frame, memory, rows)
        return found.trajectory, found.probability()

    return predict


def by_extrapolation(turning: bool, future: int) -> Predictor:
    """At constant velocity, or at constant speed and turning rate; one mode."""
    ahead_of = Extrapolation(turning)

    def predict(batch: Batch, frame: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        return ahead_of.predict(batch, frame, rows, future), torch.ones(len(rows), 1)

    return predict
