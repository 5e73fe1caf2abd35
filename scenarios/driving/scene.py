"""A driving scene: what some seconds of recorded traffic are to everything that works on them, whatever recorded it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from enum import IntEnum
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Floats = NDArray[np.float32]
X, Y, YAW, SPEED, LENGTH, WIDTH, TYPE = range(7)  # columns of `Scene.tracks`
CHANNELS = 7
SUFFIX = ".scene.npz"
_FORMAT = 1


class Kind(IntEnum):
    """What an agent is."""

    VEHICLE = 0
    PEDESTRIAN = 1
    CYCLIST = 2
    OTHER = 3  # stands, or nobody knows


class Line(IntEnum):
    """What a polyline of the map is."""

    LANE = 0  # centre line of a lane for cars, in the direction of travel
    BIKE_LANE = 1
    BUS_LANE = 2
    ROAD_EDGE = 3  # cars stay on one side of it
    ROAD_LINE = 4  # paint
    CROSSWALK = 5  # closed outline
    DRIVEWAY = 6  # closed outline
    SPEED_BUMP = 7  # closed outline
    STOP_SIGN = 8  # a point


class Relation(IntEnum):
    """How the second lane of an edge of the lane graph lies to the first."""

    SUCCESSOR = 0
    LEFT = 1
    RIGHT = 2


class Light(IntEnum):
    """What a traffic light says to those on its lane; arrows and flashing are not told apart."""

    UNKNOWN = 0
    GO = 1
    CAUTION = 2
    STOP = 3


@dataclass(frozen=True, eq=False)
class Scene:
    """Traffic of some seconds, and the map below it. Metres, seconds, radians, metres per second.

    Coordinates are those of the recording less `origin`, so that float32 resolves a millimetre. Agents that were not seen
    in a step have zeros there.
    """

    name: str
    source: str  # the reader's name
    step: float  # seconds between two steps
    history: int  # steps that a predictor may see; the rest is what came
    origin: NDArray[np.float64]  # [2] of these coordinates in those of the recording
    ids: tuple[str, ...]  # [agents]
    tracks: Floats  # [agents, steps, 7]: X, Y (centre), YAW, SPEED (negative: backwards), LENGTH, WIDTH, TYPE (a Kind)
    valid: NDArray[np.bool_]  # [agents, steps]
    goals: Floats  # [agents, 2]: where an agent wants to be; where it was seen last, unless the recording knows better
    focal: NDArray[np.bool_]  # [agents]: whom the data set asks to predict
    ego: int  # index of the recording vehicle, or -1
    points: Floats  # [points, 2] of all polylines, one after the other
    offsets: NDArray[np.int64]  # [lines + 1]: polyline i has the points offsets[i] to offsets[i + 1]
    line_kind: NDArray[np.int8]  # [lines], a Line each
    line_ids: tuple[str, ...]  # [lines], names in the recording
    speed_limit: Floats  # [lines], NaN where there is none or nobody knows
    lane_graph: NDArray[np.int32]  # [edges, 3]: line, line, Relation
    light_lane: NDArray[np.int32]  # [lights]: the line that a light is for, or -1
    light_xy: Floats  # [lights, 2]: where one has to stop
    lights: NDArray[np.int8]  # [lights, steps], a Light each
    notes: tuple[str, ...] = ()  # what was repaired when it was read

    def __str__(self) -> str:
        return f"{self.name}: {self.agents} agents, {self.steps} steps of {self.step:g} s, {self.lines} polylines"

    @property
    def stem(self) -> str:
        """The name as a file may have it: a recording may say anything."""
        return re.sub(r"[^\w@.-]|^\.+", "_", self.name) or "scene"

    @property
    def agents(self) -> int:
        return len(self.tracks)

    @property
    def steps(self) -> int:
        return self.tracks.shape[1]

    @property
    def lines(self) -> int:
        return len(self.line_kind)

    @property
    def kind(self) -> NDArray[np.int8]:
        """`[agents]`, a `Kind` each: what an agent was taken for in most steps."""
        seen = np.where(self.valid, self.tracks[:, :, TYPE], -1)
        counts = np.stack([(seen == kind).sum(axis=1) for kind in Kind], axis=1)
        return counts.argmax(axis=1).astype(np.int8)

    def polyline(self, line: int) -> Floats:
        """`[points, 2]`."""
        return self.points[self.offsets[line] : self.offsets[line + 1]]

    def of_kind(self, *kinds: Line) -> NDArray[np.int64]:
        """Indices of the polylines of some kinds."""
        return np.flatnonzero(np.isin(self.line_kind, kinds))


def save_scene(scene: Scene, path: Path) -> None:
    """Writes `NAME.scene.npz`: arrays, and the rest as JSON; nothing to unpickle."""
    arrays: dict[str, Any] = {}
    facts: dict[str, Any] = {"format": _FORMAT}
    for one in fields(Scene):
        value = getattr(scene, one.name)
        (arrays if isinstance(value, np.ndarray) else facts)[one.name] = value
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    partial.replace(path)


def load_scene(path: Path) -> Scene:
    """Reads what `save_scene` wrote.

    Raises:
        InputError: it is something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        facts = json.loads(found.pop("facts").tobytes())
        if facts.pop("format") != _FORMAT:
            raise ValueError("another version's format")
        for name in ("ids", "line_ids", "notes"):
            facts[name] = tuple(facts[name])
        scene = Scene(**facts, **found)
        _require_shapes(scene)
        return scene
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise InputError(
            f"{path}: not a scene that this version can read ({error}); `throng scenes` writes them as NAME{SUFFIX}"
        ) from error


def _require_shapes(scene: Scene) -> None:
    """Raises ValueError where the arrays of a file do not fit each other."""
    agents, steps, lines, edges, lights = (
        len(scene.ids), scene.valid.shape[-1], len(scene.line_ids), len(scene.lane_graph), len(scene.lights)
    )  # fmt: skip
    shapes = {
        "origin": (2,), "tracks": (agents, steps, CHANNELS), "valid": (agents, steps), "goals": (agents, 2),
        "focal": (agents,), "points": (len(scene.points), 2), "offsets": (lines + 1,), "line_kind": (lines,),
        "speed_limit": (lines,), "lane_graph": (edges, 3), "light_lane": (lights,), "light_xy": (lights, 2),
        "lights": (lights, steps),
    }  # fmt: skip
    for name, shape in shapes.items():
        if getattr(scene, name).shape != shape:
            raise ValueError(f"{name} is {getattr(scene, name).shape}, not {shape}")
    for name in ("tracks", "points", "goals", "light_xy"):
        if not np.isfinite(getattr(scene, name)).all():
            raise ValueError(f"{name} is not finite")
    ends = scene.offsets
    if ends[0] != 0 or ends[-1] != len(scene.points) or (np.diff(ends) < 1).any():
        raise ValueError("offsets do not cut the points into lines")
    indices: tuple[tuple[NDArray[Any], int, int], ...] = (
        (scene.lane_graph[:, :2], 0, lines), (scene.light_lane, -1, lines), (scene.line_kind, 0, len(Line)),
        (scene.lights, 0, len(Light)), (scene.tracks[:, :, TYPE], 0, len(Kind)),
    )  # fmt: skip
    if not scene.valid.any() or any(((one < low) | (one >= high)).any() for one, low, high in indices):
        raise ValueError("nobody is seen, or an index points nowhere")
