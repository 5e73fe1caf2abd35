"""Scenes with vehicles that were not there, and the choice of who is driven."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .recording import LANES, Array
from .scene import CHANNELS, Kind, Relation, Scene

SIZE = (4.6, 1.9)  # metres, of vehicles that are put in
NEW = "new-"  # before the numbers of vehicles that are put in
MOVED = 2.0  # metres from where they stand that vehicles come that are worth driving


@dataclass(frozen=True)
class Newcomer:
    """A vehicle on a lane of the map, at constant speed until it is driven."""

    lane: str  # the recording's name of a lane
    at: float  # metres from its beginning, in the last step of the history
    speed: float  # m/s
    ahead: float  # metres along the lane, and those that follow it, to where it wants to be


def with_newcomers(scene: Scene, newcomers: tuple[Newcomer, ...]) -> Scene:
    """The scene with more vehicles, named `new-1`, `new-2`, …, behind its own.

    They come from straight behind, and go straight on: who drives them knows better.

    Raises:
        InputError: naming the lane that is not there, or who would stand in whom.
    """
    for number, one in enumerate(newcomers, 1):
        scene = _with(scene, one, f"{NEW}{number}")
    return scene


def with_goals(scene: Scene, goals: Mapping[str, tuple[float, float]]) -> Scene:
    """The scene with other goals for some agents.

    Args:
        goals: by the agents' ids: x and y in the recording's coordinates, metres.

    Raises:
        InputError: naming the agent that is not there.
    """
    own = scene.goals.copy()
    for name, goal in goals.items():
        if name not in scene.ids:
            raise InputError(f"scene {scene.name!r} has no agent {name!r}; it has {', '.join(scene.ids[:5])}, …")
        own[scene.ids.index(name)] = np.asarray(goal) - scene.origin
    return replace(scene, goals=own)


def _with(scene: Scene, new: Newcomer, name: str) -> Scene:
    lanes = {scene.line_ids[line]: int(line) for line in scene.of_kind(*LANES)}
    if new.lane not in lanes:
        known = ", ".join(sorted(lanes)[:5])
        raise InputError(f"scene {scene.name!r} has no lane {new.lane!r}; it has {known}, …")
    way = _way(scene, lanes[new.lane], new.at + new.ahead)
    if not 0 <= new.at < way[1][-1]:
        raise InputError(f"scene {scene.name!r}: lane {new.lane!r} does not reach to {new.at:g} m")
    start, goal = _along(way, new.at), _along(way, min(new.at + new.ahead, way[1][-1]))
    now = scene.history - 1
    time = scene.step * (np.arange(scene.steps) - now)
    track = np.zeros((1, scene.steps, CHANNELS), np.float32)
    track[0, :, 0] = start[0] + new.speed * time * np.cos(start[2])
    track[0, :, 1] = start[1] + new.speed * time * np.sin(start[2])
    track[0, :, 2:] = start[2], new.speed, *SIZE, Kind.VEHICLE
    there = scene.valid[:, now]
    off = np.linalg.norm(scene.tracks[there, now, :2] - start[:2], axis=1)
    if there.any() and off.min() < SIZE[0]:
        other = scene.ids[np.flatnonzero(there)[off.argmin()]]
        raise InputError(f"scene {scene.name!r}: on lane {new.lane!r} at {new.at:g} m is {other} already")
    return replace(
        scene,
        ids=(*scene.ids, name),
        tracks=np.concatenate([scene.tracks, track]),
        valid=np.concatenate([scene.valid, np.ones((1, scene.steps), bool)]),
        goals=np.concatenate([scene.goals, goal[None, :2].astype(np.float32)]),
        focal=np.append(scene.focal, False),
    )


def _way(scene: Scene, lane: int, long: float) -> tuple[Array, Array]:
    """Points `[n, 2]` from a lane's beginning on along the first of those that follow, and metres `[n]` to them."""
    after = {int(one): int(two) for one, two, kind in scene.lane_graph[::-1] if kind == Relation.SUCCESSOR}
    seen = [lane]
    points = scene.polyline(lane).astype(np.float64)
    while True:
        length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
        following = after.get(seen[-1], -1)
        if length[-1] >= long or following < 0 or following in seen:
            return points, length
        seen.append(following)
        points = np.concatenate([points, scene.polyline(following).astype(np.float64)])


def _along(way: tuple[Array, Array], metres: float) -> Array:
    """`[3]` x, y and direction."""
    points, length = way
    xy = np.array([np.interp(metres, length, points[:, k]) for k in range(2)])
    later = np.array([np.interp(metres + 1.0, length, points[:, k]) for k in range(2)])
    before = np.array([np.interp(metres - 1.0, length, points[:, k]) for k in range(2)])
    step = later - before
    return np.array([*xy, np.arctan2(step[1], step[0])])


def drivers(scene: Scene, count: int, named: tuple[str, ...] = ()) -> NDArray[np.int64]:
    """`[count]` who is driven: those named, then newcomers, then who moves nearest to them or to the focal agents.

    Raises:
        InputError: naming who cannot be driven, or how many can.
    """
    now = scene.history - 1
    unknown = [one for one in named if one not in scene.ids]
    if unknown:
        raise InputError(f"scene {scene.name!r} has no agent {unknown[0]!r}; it has {', '.join(scene.ids[:5])}, …")
    can = np.isin(scene.kind, (Kind.VEHICLE, Kind.CYCLIST)) & scene.valid[:, now]
    moved = np.where(scene.valid[..., None], scene.tracks[..., :2] - scene.tracks[:, now, None, :2], 0.0)
    moves = can & (np.linalg.norm(moved, axis=2)[:, now:].max(axis=1) > MOVED)
    chosen = [scene.ids.index(one) for one in named]
    for agent in chosen:
        if not can[agent]:
            raise InputError(f"scene {scene.name!r}: {scene.ids[agent]} is no vehicle that is there in step {now}")
    chosen += [i for i, one in enumerate(scene.ids) if one.startswith(NEW) and i not in chosen]
    others = [i for i in np.flatnonzero(moves).tolist() if i not in chosen]
    if len(chosen) + len(others) < count:
        raise InputError(
            f"scene {scene.name!r}: {count} agents are to be driven and only {len(chosen) + len(others)} vehicles move; "
            "give fewer, or put some in (`insert`)"
        )
    middle = scene.tracks[chosen or np.flatnonzero(scene.focal & can).tolist() or others, now, :2]
    off = np.linalg.norm(scene.tracks[others, now, None, :2] - middle, axis=2).min(axis=1)
    nearest = [others[i] for i in np.argsort(off, kind="stable")]
    return np.array([*chosen, *nearest][:count])
