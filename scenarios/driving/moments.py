"""Scenes cut out of a simulation that goes by moment after moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .recording import Array, Signal, empty, scene_of
from .scene import Light, Scene
from .sumo_map import SumoMap

SOURCE = "sumo"
LIGHTS = {"G": Light.GO, "g": Light.GO, "y": Light.CAUTION, "Y": Light.CAUTION, "u": Light.CAUTION, "o": Light.CAUTION,
          "r": Light.STOP, "R": Light.STOP, "s": Light.STOP}  # fmt: skip
MOVED = 5.0  # metres that those have moved whom a predictor is asked for


@dataclass(frozen=True)
class Moment:
    """Everybody in one step of a simulation."""

    time: float  # seconds
    ids: tuple[str, ...]
    xy: Array  # [agents, 2] centres, metres
    yaw: Array  # [agents] radians
    speed: Array  # [agents] m/s
    size: Array  # [agents, 2] length and width, metres; NaN where unknown
    kind: NDArray[np.int8]  # [agents], a Kind each
    lights: dict[str, str]  # SUMO's state of every traffic light


@dataclass(frozen=True)
class Cut:
    """What is cut out."""

    steps: int = 110
    history: int = 50
    radius: float = 100.0  # metres around a junction
    least: int = 4  # agents within it when a scene begins
    places: int = 4  # junctions at the same time, at most
    pause: int = 300  # steps from the end of scenes to the beginning of the next


def scenes_of(
    moments: Iterable[Moment], network: SumoMap, name: str, cut: Cut, rng: np.random.Generator
) -> Iterator[Scene]:
    """Scenes around junctions, the busy ones drawn more often, none twice at the same time."""
    waited, held, places = cut.pause, list[Moment](), np.zeros((0, 2))
    for moment in moments:
        if not held:
            waited += 1
            if waited < cut.pause:
                continue
            places = _places(moment, network.junctions, cut, rng)
        if len(places):
            held.append(moment)
        if len(held) == cut.steps:
            for place in places:
                yield _scene(held, network, name, place, cut)
            held, waited = [], 0


def _places(moment: Moment, junctions: Array, cut: Cut, rng: np.random.Generator) -> Array:
    """`[places, 2]` around which there is enough going on."""
    if not len(moment.ids) or not len(junctions):
        return np.zeros((0, 2))
    near, moving = (
        cKDTree(places.reshape(-1, 2)).query_ball_point(junctions, cut.radius, return_length=True)
        for places in (moment.xy, moment.xy[moment.speed > 1.0])
    )
    busy = np.flatnonzero((near >= cut.least) & (moving > 0))
    chosen: list[int] = []
    for one in busy[np.argsort(-moving[busy] * rng.random(len(busy)))]:
        apart = all(np.linalg.norm(junctions[one] - junctions[other]) > cut.radius for other in chosen)
        if apart and len(chosen) < cut.places:
            chosen.append(int(one))
    return junctions[chosen]


def _scene(held: list[Moment], network: SumoMap, name: str, place: Array, cut: Cut) -> Scene:
    within = [np.linalg.norm(moment.xy - place, axis=1) < cut.radius for moment in held]
    met = {one: moment.kind[i] for moment, near in zip(held, within, strict=True)
           for i, one in enumerate(moment.ids) if near[i]}  # fmt: skip
    times = np.array([moment.time for moment in held])
    where = f"{name}@{round(times[0], 2):g}s-{place[0]:.0f}-{place[1]:.0f}"
    found = empty(where, SOURCE, times, cut.history, list(met), met.values())
    row = {one: i for i, one in enumerate(met)}
    for step, (moment, near) in enumerate(zip(held, within, strict=True)):
        here = np.flatnonzero(near)
        agents = [row[moment.ids[i]] for i in here]
        found.xy[agents, step] = moment.xy[here]
        found.yaw[agents, step] = moment.yaw[here]
        along = np.column_stack([np.cos(moment.yaw[here]), np.sin(moment.yaw[here])])
        found.velocity[agents, step] = moment.speed[here, None] * along
        found.size[agents, step] = moment.size[here]
        found.valid[agents, step] = True
    gone = np.linalg.norm(found.xy[:, -1] - found.xy[:, 0], axis=1)
    whole = found.valid.all(axis=1) & (gone > MOVED)
    found.focal = [one for one, there in zip(found.ids, whole, strict=True) if there]
    found.map, signals = network.around((float(place[0]), float(place[1])), cut.radius)
    for light, index, lane, stop in signals:
        states = [moment.lights.get(light, "") for moment in held]
        codes = [LIGHTS.get(state[index], Light.UNKNOWN) if index < len(state) else Light.UNKNOWN for state in states]
        found.map.signals.append(Signal(lane, stop, np.array(codes, np.int8)))
    return scene_of(found)
