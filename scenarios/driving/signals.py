"""How far vehicles are beyond a red light on their way: batched, differentiable."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .geometry import FAR
from .routes import Route
from .scene import Light, Scene

PASSED = 5.0  # metres beyond a stop from which a light is no more of interest: who passed at green may go on


class RedLights:
    """The lights on the ways of all agents of several scenes.

    Args:
        scenes: with lights or without.
        routes: of each, by agent.
        begins: the step of each scene that is step 0 here.
        horizon: steps after it.
        scene: `[worlds]`.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        routes: Sequence[dict[int, Route]],
        begins: Sequence[int],
        horizon: int,
        scene: Tensor,
        dtype: torch.dtype,
    ) -> None:
        every = [route for some in routes for route in some.values()]
        self.any = bool(every)
        if not every:
            return
        agents = max(one.agents for one in scenes)
        most, slots = max(len(one.points) for one in every), max(len(one.stops) for one in every)
        points = np.zeros((len(scenes), agents, most, 2))
        stops = np.full((len(scenes), agents, slots), FAR)
        red = np.zeros((len(scenes), agents, slots, horizon + 1), bool)
        for i, (one, some) in enumerate(zip(scenes, routes, strict=True)):
            states = one.lights[:, begins[i] : begins[i] + horizon + 1] == Light.STOP
            for agent, route in some.items():
                points[i, agent] = np.pad(route.points, ((0, most - len(route.points)), (0, 0)), mode="edge")
                stops[i, agent, : len(route.stops)] = route.stops
                red[i, agent, : len(route.stops)] = states[route.lights]
        way = np.diff(points, axis=2)
        length = np.linalg.norm(way, axis=-1)
        along = np.concatenate([np.zeros_like(length[..., :1]), length.cumsum(-1)], axis=-1)[..., :-1]

        def tensor(values: np.ndarray) -> Tensor:
            kind = dtype if values.dtype != bool else torch.bool
            return torch.as_tensor(values, dtype=kind, device=scene.device)[scene]

        self._start, self._way, self._length, self._along = (
            tensor(one) for one in (points[:, :, :-1], way, length, along)
        )
        self._stops, self._red = tensor(stops), tensor(red)

    def beyond(self, points: Tensor, step: int) -> Tensor:
        """`[worlds, agents]` metres beyond the stop of a red light on the way (MRIC, Eq. 52); negative: before it.

        Of several the one that is furthest passed. `-FAR` without one.

        Args:
            points: `[worlds, agents, 2]`.
            step: whose lights.
        """
        if not self.any:
            return torch.full_like(points[..., 0], -FAR)
        to = points[..., None, :] - self._start
        length = self._length.clamp_min(1e-6)
        share = ((to * self._way).sum(-1) / length.square()).clamp(0.0, 1.0)
        with torch.no_grad():
            which = (to - share[..., None] * self._way).square().sum(-1).argmin(-1, keepdim=True)
        at = torch.take_along_dim(self._along + share * length, which, -1)
        beyond = at - self._stops
        counts = self._red[..., step] & (beyond < PASSED)
        return torch.where(counts, beyond, -FAR).amax(-1)
