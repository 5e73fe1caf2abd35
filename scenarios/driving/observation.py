"""What agents see of a world, each in its own frame: batched, differentiable in the coordinates (not in the choice)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import one_hot

from .recording import Array
from .scene import Kind, Light, Line, Scene
from .world import World, WorldState, span

CELL = 4.0  # metres: agents in the same cell of a grid see the same points of the map
EXACT = "donot_use_mm_for_euclid_dist"
OBJECT = 8  # x, y, cosine and sine of the direction, velocity (2), length, width
POINT = 4  # x, y, cosine and sine of the direction
KINDS = {"object_kind": len(Kind), "point_kind": len(Line), "light_state": len(Light)}


@dataclass(frozen=True)
class Sight:
    """How much an agent sees: the nearest of everything. MRIC's is 6, 16, 2000, 1.0 and 16 (Table V)."""

    past: int = 6  # moments of itself
    objects: int = 16
    points: int = 128  # of the map
    spacing: float = 3.0  # metres between two points of a line of the map
    lights: int = 16


@dataclass(frozen=True, eq=False)
class Observation:
    """In the frame of each agent: x ahead, y to the left. Metres and metres per second; zeros where nothing is."""

    ego: Tensor  # [worlds, agents, past, 8]: itself, the present last; as objects
    goal: Tensor  # [worlds, agents, 2]
    objects: Tensor  # [worlds, agents, objects, 8]: nearest first
    object_kind: Tensor  # [worlds, agents, objects], a Kind each, -1: nobody
    points: Tensor  # [worlds, agents, points, 4]
    point_kind: Tensor  # [worlds, agents, points], a Line each, -1: none
    lights: Tensor  # [worlds, agents, lights, 2]
    light_state: Tensor  # [worlds, agents, lights], a Light each, -1: none

    def flat(self) -> Tensor:
        """`[worlds, agents, numbers]`: all of it side by side, kinds and states as 0 and 1."""
        parts = []
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in KINDS:
                value = one_hot(value + 1, KINDS[one.name] + 1)[..., 1:].to(self.ego.dtype)
            parts.append(value.flatten(2))
        return torch.cat(parts, dim=-1)


class Observer:
    """Looks at the worlds of `world`.

    Args:
        world: whose agents see.
        sight: how much of it.
    """

    def __init__(self, world: World, sight: Sight | None = None) -> None:
        self.sight = sight or Sight()
        self._world = world
        dtype, device = world.log.dtype, world.log.device
        maps = [_points(one, self.sight.spacing) for one in world.scenes]
        first = np.cumsum([0] + [len(places) for places, _ in maps])
        grids = [_grid(one, places, self.sight.points) for one, (places, _) in zip(world.scenes, maps, strict=True)]
        # Of each point its four numbers and 1; the last point is none: nothing but 0, which no frame moves.
        numbers = np.concatenate([np.pad(places, ((0, 0), (0, 1)), constant_values=1.0) for places, _ in maps])
        self._points = torch.as_tensor(np.pad(numbers, ((0, 1), (0, 0))), dtype=dtype, device=device)
        kinds = np.concatenate([*(kinds for _, kinds in maps), [-1]])
        self._point_kind = torch.as_tensor(kinds, dtype=torch.long, device=device)
        tables = [np.where(table < 0, first[-1], table + first[i]) for i, (_, _, table) in enumerate(grids)]
        nothing = np.full((1, self.sight.points), first[-1])  # what those see who are not there
        self._table = torch.as_tensor(np.concatenate([*tables, nothing]), dtype=torch.long, device=device)
        self._low = torch.as_tensor(np.array([low for low, _, _ in grids]), dtype=dtype, device=device)[world.scene]
        self._cells = torch.as_tensor(np.array([cells for _, cells, _ in grids]), device=device)[world.scene]
        starts = np.cumsum([0] + [len(table) for _, _, table in grids])[:-1]
        self._first_cell = torch.as_tensor(starts, device=device)[world.scene]
        self._light_xy, self._light_state = self._lights(world)

    def _lights(self, world: World) -> tuple[Tensor, Tensor]:
        """`[worlds, lights, 2]`, and `[worlds, lights, steps]`, -1: none."""
        most = max(1, *(len(one.lights) for one in world.scenes))
        xy = np.zeros((len(world.scenes), most, 2))
        states = np.full((len(world.scenes), most, world.horizon + 1), -1, np.int64)
        for i, (one, first) in enumerate(zip(world.scenes, world.begins, strict=True)):
            xy[i, : len(one.lights)] = one.light_xy
            states[i, : len(one.lights)] = one.lights[:, first : first + world.horizon + 1]
        device = world.log.device
        return (
            torch.as_tensor(xy, dtype=world.log.dtype, device=device)[world.scene],
            torch.as_tensor(states, device=device)[world.scene],
        )

    def observe(self, states: Sequence[WorldState]) -> Observation:
        """What is seen in the last of `states`; those before it are an agent's own past.

        Where there are fewer than `Sight.past`, the earliest stands for those before it.
        """
        now = states[-1]
        frame = _frames(now.agents)
        past = list(states[-self.sight.past :])
        past = [past[0]] * (self.sight.past - len(past)) + past
        rows = [_rows(one.agents, self._world.size, one.present & now.present) for one in past]
        objects, object_kind = self._objects(now, rows[-1], frame)
        points, point_kind = self._map(now, frame)
        lights, light_state = self._nearest_lights(now, frame)
        goal = _places(self._world.goals[:, :, None], now.present[..., None], frame)
        ego = torch.stack(rows, dim=2) @ frame
        return Observation(ego, goal[:, :, 0], objects, object_kind, points, point_kind, lights, light_state)

    def _objects(self, now: WorldState, rows: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        agents = now.present.shape[1]
        with torch.no_grad():
            xy = now.agents[..., :2]
            apart = torch.cdist(xy, xy, compute_mode=EXACT)
            itself = torch.eye(agents, dtype=torch.bool, device=xy.device)
            both = now.present[:, None] & now.present[:, :, None] & ~itself
            near, which = torch.where(both, apart, torch.inf).topk(min(self.sight.objects, agents), largest=False)
            there = near < torch.inf
        seen = (_of_world(rows, which) * there[..., None]) @ frame
        kind = torch.where(there, _of_world(self._world.kind, which), -1)
        return _filled(seen, self.sight.objects, 0.0), _filled(kind, self.sight.objects, -1)

    def _map(self, now: WorldState, frame: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            place = torch.div(now.agents[..., :2] - self._low[:, None], CELL, rounding_mode="floor").long()
            place = torch.minimum(place.clamp_min(0), self._cells[:, None] - 1)
            cell = self._first_cell[:, None] + place[..., 0] * self._cells[:, None, 1] + place[..., 1]
            cell = torch.where(now.present, cell, len(self._table) - 1)
            which = self._table.index_select(0, cell.flatten()).flatten()
        shape = (*now.present.shape, self.sight.points)
        points = self._points.index_select(0, which).view(*shape, POINT + 1)
        kind = self._point_kind.index_select(0, which).view(shape)
        return points @ frame[..., [0, 1, 2, 3, -1], :POINT], kind

    def _nearest_lights(self, now: WorldState, frame: Tensor) -> tuple[Tensor, Tensor]:
        states = self._light_state[..., now.step]
        xy = self._light_xy
        with torch.no_grad():
            apart = torch.cdist(now.agents[..., :2], xy, compute_mode=EXACT)
            there = (states[:, None] >= 0) & now.present[..., None]
            near, which = torch.where(there, apart, torch.inf).topk(min(self.sight.lights, xy.shape[1]), largest=False)
            there = near < torch.inf
        seen = _places(_of_world(xy, which), there, frame)
        state = torch.where(there, _of_world(states, which), -1)
        return _filled(seen, self.sight.lights, 0.0), _filled(state, self.sight.lights, -1)


def _of_world(values: Tensor, which: Tensor) -> Tensor:
    """Of `values` `[worlds, many, ...]` those that `which` `[worlds, agents, some]` names."""
    first = values.shape[1] * torch.arange(len(values), device=values.device)[:, None, None]
    return values.flatten(0, 1).index_select(0, (first + which).flatten()).view(*which.shape, *values.shape[2:])


def _rows(agents: Tensor, size: Tensor, there: Tensor) -> Tensor:
    """`[worlds, agents, 9]`: x, y, cosine, sine, velocity, length, width and 1 in the frame of the world; 0 of nobody."""
    facing = torch.stack([torch.cos(agents[..., 2]), torch.sin(agents[..., 2])], dim=-1)
    one = torch.ones_like(agents[..., :1])
    return torch.cat([agents[..., :2], facing, agents[..., 3:] * facing, size, one], dim=-1) * there[..., None]


def _frames(agents: Tensor) -> Tensor:
    """`[worlds, agents, 9, 8]`: what `_rows` has, times this, is in the frame of an agent."""
    cos, sin = torch.cos(agents[..., 2]), torch.sin(agents[..., 2])
    x, y = agents[..., 0], agents[..., 1]
    nought, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = []
    for first in (0, 2, 4):
        rows += [[nought] * first + pair + [nought] * (6 - first) for pair in ([cos, -sin], [sin, cos])]
    rows += [[nought] * 6 + [one, nought], [nought] * 7 + [one]]
    rows.append([-x * cos - y * sin, x * sin - y * cos] + [nought] * 6)
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _places(xy: Tensor, there: Tensor, frame: Tensor) -> Tensor:
    """`[worlds, agents, many, 2]` in the frame of each agent; 0 of what is not there."""
    rows = torch.cat([xy, torch.ones_like(xy[..., :1])], dim=-1) * there[..., None]
    return rows @ frame[..., [0, 1, -1], :2]


def _filled(values: Tensor, most: int, nothing: float) -> Tensor:
    """`[worlds, agents, most, ...]`: with `nothing` behind what there is."""
    lacking = most - values.shape[2]
    if lacking <= 0:
        return values
    more = values.new_full((*values.shape[:2], lacking, *values.shape[3:]), nothing)
    return torch.cat([values, more], dim=2)


def _points(scene: Scene, spacing: float) -> tuple[Array, np.ndarray]:
    """`[points, 4]` along all lines of the map, and `[points]` a Line each."""
    found, kinds = [np.zeros((0, POINT))], []
    for line in range(scene.lines):
        points = scene.polyline(line).astype(np.float64)
        way = np.diff(points, axis=0)
        length = np.linalg.norm(way, axis=1)
        moving = length > 0
        if not moving.any():
            found.append(np.array([[*points[0], 0.0, 0.0]]))  # a point has no direction
            kinds.append(scene.line_kind[line])
            continue
        start, way, length = points[:-1][moving], way[moving], length[moving]
        along = np.concatenate([[0.0], np.cumsum(length)])
        count = max(2, int(np.ceil(along[-1] / spacing)) + 1)
        at = np.linspace(0, along[-1], count)
        segment = np.clip(np.searchsorted(along, at, side="right") - 1, 0, len(length) - 1)
        unit = way[segment] / length[segment, None]
        found.append(np.column_stack([start[segment] + (at - along[segment])[:, None] * unit, unit]))
        kinds += [scene.line_kind[line]] * count
    return np.concatenate(found), np.array(kinds, np.int64)


def _grid(scene: Scene, points: Array, most: int) -> tuple[Array, tuple[int, int], np.ndarray]:
    """The corner of a grid, its columns and rows, and `[cells, most]` the points nearest to the middle of each, -1: none."""
    low, high = span(scene)
    columns, rows = (max(1, int(n)) for n in np.ceil((high - low) / CELL))
    x, y = np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5, indexing="ij")
    centres = low + CELL * np.column_stack([x.ravel(), y.ravel()])
    _, which = cKDTree(points[:, :2]).query(centres, k=np.arange(1, most + 1))
    return low, (columns, rows), np.where(which < len(points), which, -1)
