"""Driving games on recorded scenes: some vehicles are driven, the world model drives all others and says what is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...scenarios.driving.geometry import DirectedLines
from ...scenarios.driving.kinematics import wrapped
from ...scenarios.driving.line_index import line_index
from ...scenarios.driving.recording import LANES
from ...scenarios.driving.scene import Scene
from ...scenarios.driving.world import span
from ..driving.imagination import Imagination, Imagined, likeliest
from ..driving.tokens import STEP, STRIDE, tokens_of
from ..driving.world_model import Prediction, WorldModel
from .driving import HIGHEST, DrivingTerms, driven, paid
from .game import Outcome, Seen

OWN = 5  # numbers of an observation beside what the world model makes of its agent
OFF_LANE = 3.0  # metres from the middle of the nearest lane that is no road any more
MOMENT = STEP * STRIDE  # seconds
NOBODY = 1e3  # metres to who is not there


class ImaginedState(NamedTuple):
    imagined: Imagined
    found: Prediction  # of what everybody who is there may do
    rows: Tensor  # who that is
    moment: int


class ImaginedGame:
    """See `game.Game`. All rollouts begin with the last moment of the scene's history.

    Args:
        model: in evaluation mode.
        scene: with a map or without one; without, nobody leaves the road.
        drivers: `[agents]` indices of the scene's agents that are driven.
        terms: what driving pays.
        horizon: moments; by default as many as the scene has left, at most twelve.
        most: agents of the scene that are there at all, those nearest to the drivers.
    """

    def __init__(
        self, model: WorldModel, scene: Scene, drivers: Sequence[int], terms: DrivingTerms, horizon: int | None = None,
        most: int = 32,
    ) -> None:  # fmt: skip
        focal = np.zeros(scene.agents, bool)
        focal[list(drivers)] = True
        # The agents that are kept keep their order, so that a driver is found again by how many are kept before it.
        self.tokens = tokens_of(replace(scene, focal=focal), most)
        kept = np.flatnonzero(self.tokens.focal)
        order = np.argsort(np.argsort(list(drivers)))
        self.device = next(model.parameters()).device
        self.drivers = torch.as_tensor(kept[order], device=self.device)  # [agents] of those that are there
        self.model, self.scene, self.terms = model, scene, terms
        left = (scene.steps - scene.history) // STRIDE
        self.horizon = min(12, left) if horizon is None else horizon
        self.agents = len(self.drivers)
        self.numbers = model.settings.modes * model.settings.hidden + OWN
        self.goals = torch.as_tensor(scene.goals[list(drivers)], device=self.device)
        lanes = [scene.polyline(line).astype(np.float64) for line in scene.of_kind(*LANES)]
        self._lanes = None
        if lanes:
            self._lanes = DirectedLines([line_index(lanes, *span(scene))], torch.float32, self.device)
        self._worlds: Imagination | None = None

    def begin(self, rollouts: int, generator: torch.Generator) -> ImaginedState:
        """The same for all rollouts; nothing is drawn."""
        if self._worlds is None or self._worlds.rollouts != rollouts:
            self._worlds = Imagination(self.model, self.tokens, rollouts)
        return self._predicted(self._worlds.begin(), 0)

    def see(self, state: ImaginedState) -> Seen:
        """The world model's features of all modes, the goal in the own frame, speed and time; magnets are its modes."""
        now = self.places(state)
        of = self._of_drivers(state)
        feature = state.found.feature[of].flatten(-2)
        off = self.goals - now[..., :2]
        cos, sin = torch.cos(now[..., 2]), torch.sin(now[..., 2])
        own = torch.stack(
            [
                (off[..., 0] * cos + off[..., 1] * sin) / 20, (off[..., 1] * cos - off[..., 0] * sin) / 20,
                off.norm(dim=-1) / 20, now[..., 3] / 10, torch.full_like(cos, state.moment / self.horizon),
            ],
            dim=-1,
        )  # fmt: skip
        mean = actions_of(now, state.found.trajectory[of][..., :STRIDE, :])
        scale = torch.tensor(self.terms.magnet_scale, device=self.device).expand_as(mean)
        magnet = torch.cat([mean, scale, state.found.logits[of][..., None]], dim=-1)
        return Seen(torch.cat([feature, own], dim=-1), magnet)

    def step(self, state: ImaginedState, action: Tensor) -> tuple[ImaginedState, Outcome]:
        assert self._worlds is not None
        ways = self._worlds.modes(state.imagined, state.found, state.rows, likeliest(state.found))
        own = driven(self.places(state), action)
        ways = ways.index_copy(1, self.drivers, own)
        there = state.imagined.batch.there[:, :, -1]
        apart = torch.cdist(own[..., :2].transpose(1, 2), ways[..., :2].transpose(1, 2)).amin(1)
        # Nobody is near to who is not there, nor to themselves.
        apart = torch.where(there[:, None], apart, NOBODY)
        itself = torch.arange(self.agents, device=self.device)
        apart[:, itself, self.drivers] = NOBODY
        last = own[:, :, -1]
        outcome = paid(self.terms, last, self.goals, apart.amin(-1), self._among(apart), self._off_road(last))
        after = self._worlds.advance(state.imagined, ways)
        return self._predicted(after, state.moment + 1), outcome

    def places(self, state: ImaginedState) -> Tensor:
        """`[rollouts, agents, 4]` of the drivers."""
        return state.imagined.batch.agents[:, self.drivers, -1]

    def _among(self, apart: Tensor) -> Tensor:
        return apart[:, :, self.drivers].amin(-1)

    def _predicted(self, imagined: Imagined, moment: int) -> ImaginedState:
        assert self._worlds is not None
        return ImaginedState(imagined, *self._worlds.predict(imagined), moment)

    def _of_drivers(self, state: ImaginedState) -> Tensor:
        """`[rollouts, agents]`: which of the predictions are of them."""
        worlds, agents = state.imagined.batch.size.shape[:2]
        index = torch.empty(worlds * agents, dtype=torch.long, device=self.device)
        index[state.rows] = torch.arange(len(state.rows), device=self.device)
        return index.view(worlds, agents)[:, self.drivers]

    def _off_road(self, agents: Tensor) -> Tensor:
        if self._lanes is None:
            return torch.zeros(agents.shape[:-1], dtype=torch.bool, device=self.device)
        scene = torch.zeros(len(agents), dtype=torch.long, device=self.device)
        return self._lanes.distance(agents[..., :2], scene).abs() > OFF_LANE


def actions_of(now: Tensor, way: Tensor) -> Tensor:
    """`[..., modes, 2]`: the acceleration and curvature, of the `HIGHEST`, that come nearest to ways.

    Args:
        now: `[..., 4]`.
        way: `[..., modes, STRIDE, 3]` x, y and direction.
    """
    off = way[..., -1, :2] - now[..., None, :2]
    yaw = now[..., 2, None]
    along = off[..., 0] * torch.cos(yaw) + off[..., 1] * torch.sin(yaw)
    acceleration = 2.0 * (along - now[..., 3, None] * MOMENT) / MOMENT**2
    bend = wrapped(way[..., -1, 2] - yaw) / along.clamp_min(0.5)
    found = torch.stack([acceleration, bend], dim=-1) / torch.tensor(HIGHEST, device=now.device)
    return found.clamp(-1.0, 1.0)
