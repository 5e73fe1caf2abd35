"""From what a reader found in a file to a scene: what is refused, and what is repaired.

| found | done |
|---|---|
| no agent was ever seen | refused |
| time steps differ by more than half of one | refused: two recordings, or frames are missing |
| a position, speed or direction is NaN or infinite | the agent counts as not seen in that step |
| an agent jumps further than its kind can go | its longest stretch without a jump is kept |
| an agent has no size | the usual one of its kind |
| an agent was never seen | left out |
| polylines without points, or with NaN | left out, and with them the edges of the lane graph that name them |
| a map without a lane graph | lanes follow each other where they meet |
| no map | read; whoever needs a map refuses the scene |

A scene's `notes` say what was repaired.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ..errors import InputError
from .scene import CHANNELS, LENGTH, SPEED, TYPE, WIDTH, YAW, Kind, Line, Relation, Scene

Array = NDArray[np.float64]
SIZES = {Kind.VEHICLE: (4.6, 1.9), Kind.PEDESTRIAN: (0.6, 0.6), Kind.CYCLIST: (1.8, 0.7), Kind.OTHER: (1.0, 1.0)}  # m
FASTEST = {Kind.VEHICLE: 70.0, Kind.PEDESTRIAN: 12.0, Kind.CYCLIST: 25.0, Kind.OTHER: 70.0}  # m/s
JITTER = 1.5  # metres that trackers may be off from one step to the next, on top
UNEVEN = 0.5  # of a time step; a missing frame is 1
MEETING = 0.3  # metres between the end of a lane and the beginning of one that follows it
LANES = (Line.LANE, Line.BIKE_LANE, Line.BUS_LANE)
NAMED = 3  # agents named in a note; of more, the number says it


@dataclass(frozen=True)
class Polyline:
    """A line of the map, as recorded."""

    id: str
    kind: Line
    points: Array  # [points, 2 or 3]
    speed_limit: float = np.nan  # m/s


@dataclass(frozen=True)
class Signal:
    """A traffic light of one lane."""

    lane: str  # id of its polyline
    xy: tuple[float, float]
    states: NDArray[np.int8]  # [steps], a Light each


@dataclass
class Map:
    """Lines, who follows whom, and lights."""

    lines: list[Polyline] = field(default_factory=list)
    links: list[tuple[str, str, Relation]] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)


@dataclass
class Recording:
    """What a reader found, in the coordinates of the file."""

    name: str
    source: str
    times: Array  # [steps] seconds
    history: int
    ids: list[str]  # [agents]
    kind: NDArray[np.int8]  # [agents], a Kind each
    xy: Array  # [agents, steps, 2] centres
    yaw: Array  # [agents, steps] radians
    velocity: Array  # [agents, steps, 2] m/s
    size: Array  # [agents, steps, 2] length and width; NaN or 0 where unknown
    valid: NDArray[np.bool_]  # [agents, steps]
    map: Map
    focal: Iterable[str] = ()  # ids
    ego: str = ""  # id
    goals: Array | None = None  # [agents, 2]


def empty(name: str, source: str, times: Array, history: int, ids: list[str], kinds: Iterable[int]) -> Recording:
    """A recording in which nobody has been seen yet, for a reader to fill."""
    shape = (len(ids), len(times))
    nothing = np.full((*shape, 2), np.nan)
    return Recording(
        name, source, times, history, ids, np.fromiter(kinds, np.int8, len(ids)), nothing.copy(), np.full(shape, np.nan),
        nothing.copy(), nothing.copy(), np.zeros(shape, bool), Map(),
    )  # fmt: skip


def scene_of(found: Recording) -> Scene:
    """The scene, repaired where the table above says so.

    Raises:
        InputError: it is no scene; the reader puts the file's name before the message.
    """
    notes: list[str] = []
    step = _step(found.times)
    moving = np.concatenate([found.xy, found.yaw[:, :, None], found.velocity], axis=2)
    numbers = np.all(np.isfinite(moving), axis=2)
    broken = np.flatnonzero((found.valid & ~numbers).any(axis=1))
    if broken.size:
        notes.append(f"{_named(found.ids, broken)}: NaN in some steps, in which they count as not seen")
    valid = found.valid & numbers
    whole = [_without_jumps(found, agent, step, valid[agent]) for agent in range(len(found.ids))]
    jumped = np.flatnonzero([not np.array_equal(*pair) for pair in zip(whole, valid, strict=True)])
    if jumped.size:
        notes.append(f"{_named(found.ids, jumped)}: jumped; the longest stretch without a jump is kept")
        valid = np.stack(whole)
    kept = np.flatnonzero(valid.any(axis=1))
    if not kept.size:
        raise InputError(f"scene {found.name!r}: no agent was seen in any step")
    if kept.size < len(found.ids):
        notes.append(f"{len(found.ids) - kept.size} agents were never seen and are left out")
    return _assembled(found, kept, valid[kept], step, notes)


def _step(times: Array) -> float:
    if len(times) < 2:
        raise InputError("a single moment is no scene: expected at least two time steps")
    steps = np.diff(times)
    step = float(np.median(steps))
    if not np.isfinite(times).all() or step <= 0 or np.abs(steps - step).max() > UNEVEN * step:
        at = int(np.abs(steps - step).argmax())
        raise InputError(
            f"time steps differ: {steps[at]:.3g} s after step {at}, {step:.3g} s usually; "
            "expected one rate throughout (cut the recording there, or fill it)"
        )
    return round(step, 4)


def _without_jumps(found: Recording, agent: int, step: float, valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`[steps]`: the longest stretch of an agent between two jumps."""
    seen = np.flatnonzero(valid)
    way = np.linalg.norm(np.diff(found.xy[agent, seen], axis=0), axis=1)
    jumps = np.flatnonzero(way > FASTEST[Kind(found.kind[agent])] * step * np.diff(seen) + JITTER)
    if not jumps.size:
        return valid
    kept = np.zeros_like(valid)
    kept[max(np.split(seen, jumps + 1), key=len)] = True
    return kept


def _named(ids: list[str], agents: NDArray[np.intp]) -> str:
    if len(agents) > NAMED:
        return f"{len(agents)} agents ({', '.join(ids[i] for i in agents[:NAMED])}, …)"
    return f"agent{'s' if len(agents) > 1 else ''} {', '.join(ids[i] for i in agents)}"


def _assembled(
    found: Recording, kept: NDArray[np.intp], valid: NDArray[np.bool_], step: float, notes: list[str]
) -> Scene:
    xy, kind = found.xy[kept], found.kind[kept]
    origin = np.round(xy[valid].mean(axis=0))
    tracks = np.zeros((*valid.shape, CHANNELS))
    tracks[:, :, :2] = xy - origin
    tracks[:, :, YAW] = np.arctan2(np.sin(found.yaw[kept]), np.cos(found.yaw[kept]))
    tracks[:, :, SPEED] = _signed_speed(found.yaw[kept], found.velocity[kept], kind)
    usual = np.array([SIZES[Kind(one)] for one in kind])[:, None]
    given = found.size[kept]
    sized = np.all(np.isfinite(given) & (given > 0), axis=2)
    tracks[:, :, [LENGTH, WIDTH]] = np.where(sized[:, :, None], given, usual)
    unsized = np.flatnonzero((valid & ~sized).any(axis=1))
    if unsized.size:
        notes.append(f"{_named(found.ids, kept[unsized])}: no size, the usual one of their kind")
    tracks[:, :, TYPE] = kind[:, None]
    tracks[~valid] = 0.0
    last = valid.shape[1] - 1 - valid[:, ::-1].argmax(axis=1)
    goals = tracks[np.arange(len(kept)), last, :2]
    if found.goals is not None:
        known = np.isfinite(found.goals[kept]).all(axis=1)
        goals[known] = found.goals[kept][known] - origin
    focal = set(found.focal)
    ids = tuple(found.ids[i] for i in kept)
    return Scene(
        name=found.name, source=found.source, step=step, history=found.history, origin=origin, ids=ids,
        tracks=tracks.astype(np.float32), valid=valid, goals=goals.astype(np.float32),
        focal=np.array([one in focal for one in ids]), ego=ids.index(found.ego) if found.ego in ids else -1,
        **_columns(found.map, origin, valid.shape[1], notes), notes=tuple(notes),
    )  # fmt: skip


def _signed_speed(yaw: Array, velocity: Array, kind: NDArray[np.int8]) -> Array:
    """`[agents, steps]`; who moves against its own direction, other than on foot, drives backwards."""
    along = velocity[:, :, 0] * np.cos(yaw) + velocity[:, :, 1] * np.sin(yaw)
    backwards = (kind != Kind.PEDESTRIAN)[:, None] & (along < 0)
    speed = np.hypot(velocity[:, :, 0], velocity[:, :, 1])
    return np.where(backwards, -speed, speed)


def _meeting(lanes: list[Polyline]) -> Iterator[tuple[str, str, Relation]]:
    """Who follows whom, where one lane begins as and where another ends."""
    lanes = [one for one in lanes if len(one.points) > 1]
    if not lanes:
        return
    starts = cKDTree([one.points[0, :2] for one in lanes])
    into = np.array([one.points[1, :2] - one.points[0, :2] for one in lanes])
    for one in lanes:
        out = one.points[-1, :2] - one.points[-2, :2]
        for other in starts.query_ball_point(one.points[-1, :2], MEETING):
            if lanes[other] is not one and into[other] @ out > 0:
                yield one.id, lanes[other].id, Relation.SUCCESSOR


def _columns(given: Map, origin: Array, steps: int, notes: list[str]) -> dict[str, Any]:
    """The map's fields of a scene."""
    lines = [one for one in given.lines if len(one.points) and np.isfinite(one.points).all()]
    if len(lines) < len(given.lines):
        notes.append(f"{len(given.lines) - len(lines)} polylines without points, or with NaN, are left out")
    if not lines:
        notes.append("no map")
    index = {one.id: i for i, one in enumerate(lines)}
    points = [one.points[:, :2] - origin for one in lines]
    lanes = {one.id: one for one in lines if one.kind in LANES}
    given_links = given.links or list(_meeting(list(lanes.values())))
    links = [(index[a], index[b], relation) for a, b, relation in given_links if a in lanes and b in lanes]
    signals = given.signals
    return {
        "points": np.concatenate([*points, np.zeros((0, 2))]).astype(np.float32),
        "offsets": np.cumsum([0, *map(len, points)]).astype(np.int64),
        "line_kind": np.array([one.kind for one in lines], np.int8),
        "line_ids": tuple(one.id for one in lines),
        "speed_limit": np.array([one.speed_limit for one in lines], np.float32),
        "lane_graph": np.array(sorted(set(links)), np.int32).reshape(-1, 3),
        "light_lane": np.array([index.get(one.lane, -1) for one in signals], np.int32),
        "light_xy": (np.array([one.xy for one in signals]).reshape(-1, 2) - origin).astype(np.float32),
        "lights": np.array([one.states for one in signals], np.int8).reshape(len(signals), steps),
    }
