"""Scenes as a world model sees them: pieces of the map, and what agents did in the half seconds before decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from ...scenarios.driving.recording import LANES
from ...scenarios.driving.scene import Line, Scene
from ...scenarios.driving.world import span
from ...scenarios.errors import InputError

Array = NDArray[np.float64]
STEP = 0.1  # seconds between two frames
STRIDE = 5  # frames between two tokens of an agent: half a second, as TrafficGamer's macro-steps
PIECE, POINTS = 20.0, 8  # metres of a line in one token at most, and points by which its shape is told
CELL = 4.0  # metres: agents in the same cell of a grid look at the same pieces of the map
MAP_NEAR, MAP_AROUND = 24, 12  # pieces that an agent looks at, and a piece
DRAWN = (*LANES, Line.ROAD_EDGE, Line.CROSSWALK, Line.STOP_SIGN)
NOTHING = np.array([1e4, 1e4, 0.0])  # where nobody is: far from everything


@dataclass(frozen=True, eq=False)
class SceneTokens:
    """A scene, prepared once. Metres, radians, metres per second."""

    name: str
    agents: NDArray[np.float32]  # [agents, frames, 4] x, y, direction, speed
    there: NDArray[np.bool_]  # [agents, frames]
    size: NDArray[np.float32]  # [agents, 2]
    kind: NDArray[np.int64]  # [agents], a Kind each
    focal: NDArray[np.bool_]  # [agents]
    history: int  # frames
    pieces: NDArray[np.float32]  # [pieces, 3] middle and direction of a piece of a line
    piece_kind: NDArray[np.int64]  # [pieces], a Line each
    shape: NDArray[np.float32]  # [pieces, POINTS, 2] in the frame of the piece
    around: NDArray[np.int64]  # [pieces, MAP_AROUND] the pieces nearest to a piece, -1: none
    low: Array  # [2] corner of a grid
    cells: tuple[int, int]  # columns and rows
    near: NDArray[np.int64]  # [cells, MAP_NEAR] the pieces nearest to a cell, -1: none
    lights: NDArray[np.float32]  # [lights, 3] stop and direction of the lane
    light_state: NDArray[np.int64]  # [lights, frames], a Light each


def tokens_of(scene: Scene, most: int = 64) -> SceneTokens:
    """Of a scene with steps of 0.1 s, with a map or without one.

    Of more than `most` agents those nearest to the focal ones (or to everybody).

    Raises:
        InputError: another time step.
    """
    if abs(scene.step - STEP) > 1e-3:
        raise InputError(
            f"scene {scene.name!r} has steps of {scene.step:g} s; world models work in steps of {STEP:g} s"
        )
    kept = nearest_agents(scene, most)
    lines = [(line, scene.polyline(line).astype(np.float64)) for line in scene.of_kind(*DRAWN).tolist()]
    pieces = [(scene.line_kind[line], *piece) for line, points in lines for piece in _cut(points)]
    pose = np.array([one for _, one, _ in pieces]).reshape(-1, 3)
    low, high = span(scene)
    columns, rows = (max(1, int(n)) for n in np.ceil((high - low) / CELL))
    x, y = np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5, indexing="ij")
    centres = low + CELL * np.column_stack([x.ravel(), y.ravel()])
    return SceneTokens(
        name=scene.name,
        agents=scene.tracks[kept, :, :4].astype(np.float32),
        there=scene.valid[kept],
        size=_sizes(scene)[kept],
        kind=scene.kind[kept].astype(np.int64),
        focal=scene.focal[kept],
        history=scene.history,
        pieces=pose.astype(np.float32),
        piece_kind=np.array([kind for kind, _, _ in pieces], np.int64),
        shape=np.array([shape for _, _, shape in pieces], np.float32).reshape(-1, POINTS, 2),
        around=_nearest(pose, pose, MAP_AROUND + 1)[:, 1:],
        low=low,
        cells=(columns, rows),
        near=_nearest(pose, centres, MAP_NEAR),
        lights=_lights(scene),
        light_state=scene.lights.astype(np.int64),
    )


def _nearest(pose: Array, places: Array, most: int) -> NDArray[np.int64]:
    """`[places, most]` of the pieces nearest to each place, -1: there are no more."""
    if not len(pose):
        return np.full((len(places), most), -1)
    _, which = cKDTree(pose[:, :2]).query(places[:, :2], k=np.arange(1, most + 1))
    return np.where(which < len(pose), which, -1)


def nearest_agents(scene: Scene, most: int) -> NDArray[np.int64]:
    """Who is kept of a scene, in order: of more than `most` those nearest to the focal ones (or to everybody)."""
    if scene.agents <= most:
        return np.arange(scene.agents)
    seen = np.where(scene.valid[..., None], scene.tracks[..., :2], np.nan).astype(np.float64)
    middle = seen[scene.focal] if scene.focal.any() else seen
    tree = cKDTree(middle[~np.isnan(middle[..., 0])])
    apart = np.full(scene.agents, np.inf)
    for agent in range(scene.agents):
        apart[agent] = tree.query(seen[agent, scene.valid[agent]])[0].min()
    return np.sort(np.argsort(apart, kind="stable")[:most])


def _sizes(scene: Scene) -> NDArray[np.float32]:
    count = np.maximum(scene.valid.sum(axis=1), 1)[:, None]
    return (np.where(scene.valid[..., None], scene.tracks[..., 4:6], 0.0).sum(axis=1) / count).astype(np.float32)


def _cut(points: Array) -> list[tuple[Array, Array]]:
    """Pieces of a polyline: pose `[3]` of the middle, and points `[POINTS, 2]` in its frame."""
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    if length[-1] <= 0:
        return [(np.array([*points[0], 0.0]), np.zeros((POINTS, 2)))]
    found = []
    ends = np.linspace(0.0, length[-1], int(np.ceil(length[-1] / PIECE - 1e-6)) + 1)
    for begin, end in pairwise(ends):
        at = np.linspace(begin, end, POINTS)
        xy = np.column_stack([np.interp(at, length, points[:, k]) for k in range(2)])
        middle = np.array([np.interp((begin + end) / 2, length, points[:, k]) for k in range(2)])
        way = xy[POINTS // 2] - xy[POINTS // 2 - 1]
        yaw = float(np.arctan2(way[1], way[0]))
        along, left = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
        found.append((np.array([*middle, yaw]), np.column_stack([(xy - middle) @ along, (xy - middle) @ left])))
    return found


def _lights(scene: Scene) -> NDArray[np.float32]:
    """`[lights, 3]`; the direction is that of the lane at its beginning, 0 where the lane is not known."""
    found = np.zeros((len(scene.lights), 3), np.float32)
    found[:, :2] = scene.light_xy
    for i, line in enumerate(scene.light_lane.tolist()):
        points = scene.polyline(line) if line >= 0 else np.zeros((1, 2))
        if len(points) > 1:
            way = points[1] - points[0]
            found[i, 2] = np.arctan2(way[1], way[0])
    return found


@dataclass(frozen=True, eq=False)
class Batch:
    """Worlds side by side: scenes, or copies of one. Pieces of the maps of all scenes lie one after the other.

    The last piece is none; who is not there is far from everything.
    """

    agents: Tensor  # [worlds, agents, frames, 4]
    there: Tensor  # [worlds, agents, frames] bool
    size: Tensor  # [worlds, agents, 2]
    kind: Tensor  # [worlds, agents]
    pieces: Tensor  # [pieces + 1, 3]
    piece_kind: Tensor  # [pieces + 1]
    shape: Tensor  # [pieces + 1, POINTS, 2]
    around: Tensor  # [pieces + 1, MAP_AROUND]
    low: Tensor  # [worlds, 2]
    cells: Tensor  # [worlds, 2]
    first_cell: Tensor  # [worlds]
    near: Tensor  # [cells of all scenes, MAP_NEAR]
    lights: Tensor  # [worlds, lights, 3]
    light_state: Tensor  # [worlds, lights, frames], -1: none

    def near_pieces(self, xy: Tensor) -> Tensor:
        """`[worlds, many, MAP_NEAR]` pieces nearest to places `[worlds, many, 2]`."""
        place = torch.div(xy - self.low[:, None], CELL, rounding_mode="floor").long()
        place = torch.minimum(place.clamp_min(0), self.cells[:, None] - 1)
        cell = self.first_cell[:, None] + place[..., 0] * self.cells[:, None, 1] + place[..., 1]
        return self.near.index_select(0, cell.flatten()).view(*cell.shape, MAP_NEAR)

    def to(self, device: torch.device) -> Batch:
        return Batch(**{one.name: getattr(self, one.name).to(device) for one in fields(self)})


def batch_of(scenes: Sequence[SceneTokens], begin: Sequence[int], frames: int, copies: int = 1) -> Batch:
    """Frames `begin[i]` to before `begin[i] + frames` of each scene, `copies` times each.

    Beyond a scene's end nobody is there.
    """
    most = max(len(one.agents) for one in scenes)
    lights = max(1, *(len(one.lights) for one in scenes))
    count = len(scenes)
    agents = np.zeros((count, most, frames, 4), np.float32)
    there = np.zeros((count, most, frames), bool)
    size, kind = np.ones((count, most, 2), np.float32), np.zeros((count, most), np.int64)
    light = np.zeros((count, lights, 3), np.float32)
    state = np.full((count, lights, frames), -1, np.int64)
    for i, (one, first) in enumerate(zip(scenes, begin, strict=True)):
        own, long = slice(0, len(one.agents)), min(frames, one.there.shape[1] - first)
        agents[i, own, :long] = one.agents[:, first : first + long]
        there[i, own, :long] = one.there[:, first : first + long]
        size[i, own], kind[i, own] = one.size, one.kind
        light[i, : len(one.lights)] = one.lights
        state[i, : len(one.lights), :long] = one.light_state[:, first : first + long]
    agents[~there] = 0.0
    first_piece = np.cumsum([0] + [len(one.pieces) for one in scenes])
    none = first_piece[-1]

    def shifted(values: NDArray[np.int64], first: int) -> NDArray[np.int64]:
        return np.where(values < 0, none, values + first)

    world = torch.arange(count).repeat_interleave(copies)
    first_cell = np.cumsum([0] + [len(one.near) for one in scenes])[:-1]
    return Batch(
        agents=torch.from_numpy(agents)[world],
        there=torch.from_numpy(there)[world],
        size=torch.from_numpy(size)[world],
        kind=torch.from_numpy(kind)[world],
        pieces=torch.from_numpy(np.concatenate([*(one.pieces for one in scenes), NOTHING[None]]).astype(np.float32)),
        piece_kind=torch.from_numpy(np.concatenate([*(one.piece_kind for one in scenes), [len(Line)]])),
        shape=torch.from_numpy(np.concatenate([*(one.shape for one in scenes), np.zeros((1, POINTS, 2), np.float32)])),
        around=torch.from_numpy(
            np.concatenate([*map(shifted, (one.around for one in scenes), first_piece), np.full((1, MAP_AROUND), none)])
        ),
        low=torch.from_numpy(np.array([one.low for one in scenes], np.float32))[world],
        cells=torch.from_numpy(np.array([one.cells for one in scenes]))[world],
        first_cell=torch.from_numpy(first_cell)[world],
        near=torch.from_numpy(np.concatenate([*map(shifted, (one.near for one in scenes), first_piece)])),
        lights=torch.from_numpy(light)[world],
        light_state=torch.from_numpy(state)[world],
    )
