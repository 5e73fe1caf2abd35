"""Waymo Open Motion in TFRecord, as the data set ships it: `scenario` protocol buffers, read without TensorFlow.

Field numbers: scenario.proto and map.proto of waymo-open-dataset.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import InputError
from .protobuf import Message, doubles, integer, integers, message, messages, real, records
from .recording import Array, Map, Polyline, Recording, Signal, empty, scene_of
from .scene import Kind, Light, Line, Relation, Scene

SOURCE = "womd"
KINDS = {1: Kind.VEHICLE, 2: Kind.PEDESTRIAN, 3: Kind.CYCLIST}
LIGHTS = (  # unknown; arrow: stop, caution, go; stop, caution, go; flashing: stop, caution
    Light.UNKNOWN, Light.STOP, Light.CAUTION, Light.GO, Light.STOP, Light.CAUTION, Light.GO, Light.STOP, Light.CAUTION,
)  # fmt: skip
MPH = 0.44704
LANE, BIKE = 3, 3  # of map features; of lane types
OUTLINES = {8: Line.CROSSWALK, 9: Line.SPEED_BUMP, 10: Line.DRIVEWAY}
DRAWN = {4: Line.ROAD_LINE, 5: Line.ROAD_EDGE}
STOP_SIGN = 7


def read_tfrecord(path: Path) -> Iterator[Scene]:
    """All scenes of a file, one at a time."""
    for number, record in enumerate(records(path)):
        given = message(record)
        if 2 not in given or 1 not in given:
            raise InputError(
                f"record {number} is no `scenario` of Waymo Open Motion (tf.Examples are not read: take the data set's "
                "scenario form)"
            )
        yield _scene(given)


def _scene(given: Message) -> Scene:
    times = np.array(doubles(given[1]))
    tracks = messages(given, 2)
    name = given[5][0] if 5 in given else b""
    named = name.decode(errors="replace") if isinstance(name, bytes) else ""
    ids = [str(integer(track, 1)) for track in tracks]
    found = empty(
        named or "scene", SOURCE, times, min(integer(given, 10) + 1, len(times)), ids,
        (KINDS.get(integer(track, 2), Kind.OTHER) for track in tracks),
    )  # fmt: skip
    for agent, track in enumerate(tracks):
        _track(found, agent, messages(track, 3))
    found.focal = [ids[integer(one, 1)] for one in messages(given, 11) if integer(one, 1) < len(ids)]
    if integer(given, 6) < len(ids):
        found.ego = ids[integer(given, 6)]
    for feature in messages(given, 8):
        _feature(found.map, feature)
    found.map.signals = _signals([messages(state, 1) for state in messages(given, 7)], len(times))
    return scene_of(found)


def _track(found: Recording, agent: int, states: list[Message]) -> None:
    if len(states) != len(found.times):
        raise InputError(f"agent {found.ids[agent]} has {len(states)} states in {len(found.times)} time steps")
    for step, state in enumerate(states):
        if not integer(state, 11):
            continue
        found.xy[agent, step] = real(state, 2), real(state, 3)
        found.size[agent, step] = real(state, 5), real(state, 6)
        found.yaw[agent, step] = real(state, 8)
        found.velocity[agent, step] = real(state, 9), real(state, 10)
        found.valid[agent, step] = True


def _feature(made: Map, feature: Message) -> None:
    name = str(integer(feature, 1))
    for lane in messages(feature, LANE):
        kind = Line.BIKE_LANE if integer(lane, 2) == BIKE else Line.LANE
        limit = real(lane, 1) * MPH or np.nan
        made.lines.append(Polyline(name, kind, _points(lane, 8), limit))
        made.links += [(name, str(other), Relation.SUCCESSOR) for other in integers(lane.get(10, []))]
        for number, relation in ((11, Relation.LEFT), (12, Relation.RIGHT)):
            made.links += [(name, str(integer(other, 1)), relation) for other in messages(lane, number)]
    for number, kind in DRAWN.items():
        made.lines += [Polyline(name, kind, _points(one, 2)) for one in messages(feature, number)]
    for number, kind in OUTLINES.items():
        made.lines += [Polyline(name, kind, closed(_points(one, 1))) for one in messages(feature, number)]
    made.lines += [Polyline(name, Line.STOP_SIGN, _points(one, 2)) for one in messages(feature, STOP_SIGN)]


def closed(outline: Array) -> Array:
    """An outline that ends where it begins."""
    return outline if len(outline) < 2 or (outline[0] == outline[-1]).all() else np.vstack([outline, outline[:1]])


def _points(given: Message, number: int) -> Array:
    return np.array([(real(point, 1), real(point, 2)) for point in messages(given, number)]).reshape(-1, 2)


def _signals(moments: list[list[Message]], steps: int) -> list[Signal]:
    """One of each lane that ever had a light."""
    states: dict[str, np.ndarray] = {}
    places: dict[str, tuple[float, float]] = {}
    for step, lanes in enumerate(moments[:steps]):
        for lane in lanes:
            name = str(integer(lane, 1))
            state = integer(lane, 2)
            states.setdefault(name, np.zeros(steps, np.int8))[step] = LIGHTS[state] if state < len(LIGHTS) else 0
            for point in messages(lane, 3):
                places.setdefault(name, (real(point, 1), real(point, 2)))
    return [Signal(name, places[name], found) for name, found in states.items() if name in places]
