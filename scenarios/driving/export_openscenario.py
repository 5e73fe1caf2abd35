"""Scenes as OpenSCENARIO XML 1.2: entities that follow their trajectories in world coordinates, at given times.

Written by the package `scenariogeneration`. The road network is left empty: it would be OpenDRIVE, which scenes do not have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .export_scenarionet import HEIGHTS
from .recording import Array
from .scene import LENGTH, WIDTH, YAW, Kind, Scene, X, Y

MINOR_VERSION = 2
REAR = 0.3  # of a vehicle's length from its centre back to the rear axle, by which OpenSCENARIO places vehicles
MASS = {Kind.VEHICLE: 1500.0, Kind.PEDESTRIAN: 75.0, Kind.CYCLIST: 90.0, Kind.OTHER: 100.0}  # kg


def write_openscenario(scene: Scene, path: Path) -> None:
    """One story with a group of maneuvers for each agent.

    Who comes later is added then, who leaves before the end is deleted; where an agent was not seen in between, it is
    interpolated. Sizes are the median, heights, axles, masses and limits usual ones. Lights are left out. Focal agents have
    the property `focal`.

    Raises:
        InputError: the package `scenariogeneration` is not installed.
    """
    xosc = _package()
    entities, init = xosc.Entities(), xosc.Init()
    start = xosc.ValueTrigger("start", 0, xosc.ConditionEdge.none, _time(xosc, 0.0))
    act = xosc.Act("recorded", start)
    for agent, name in enumerate(_names(scene.ids)):
        _add(xosc, scene, agent, name, entities, init, act)
    end = xosc.ValueTrigger(
        "end", 0, xosc.ConditionEdge.none, _time(xosc, scene.step * (scene.steps - 1)), triggeringpoint="stop"
    )
    board = xosc.StoryBoard(init, end)
    board.add_story(xosc.Story("traffic", xosc.ParameterDeclarations()).add_act(act))
    made = xosc.Scenario(
        scene.name, "throng", xosc.ParameterDeclarations(), entities, board, xosc.RoadNetwork(), xosc.Catalog(),
        osc_minor_version=MINOR_VERSION,
    )  # fmt: skip
    made.write_xml(str(path))


def _package() -> Any:
    try:
        from scenariogeneration import xosc
    except ImportError as error:
        raise InputError(
            "OpenSCENARIO is written by the package scenariogeneration, which is not installed: "
            "pip install 'throng[openscenario]'"
        ) from error
    return xosc


def _names(ids: tuple[str, ...]) -> list[str]:
    """Names that differ; a dollar would be a parameter."""
    names = [one.replace("$", "_") for one in ids]
    return [name if name not in names[:i] else f"{name} ({i})" for i, name in enumerate(names)]


def _add(xosc: Any, scene: Scene, agent: int, name: str, entities: Any, init: Any, act: Any) -> None:
    """An agent, where it is in the beginning, and what it does."""
    kind = Kind(scene.kind[agent])
    steps = np.flatnonzero(scene.valid[agent])
    states = scene.tracks[agent, steps].astype(np.float64)
    length, width = np.median(states[:, [LENGTH, WIDTH]], axis=0).tolist()
    ahead = REAR * length if kind in (Kind.VEHICLE, Kind.CYCLIST) else 0.0
    entity = _entity(xosc, kind, length, width, ahead)
    if scene.focal[agent]:
        entity.add_property("focal", "true")
    entities.add_scenario_object(name, entity)
    places = [_place(xosc, scene, state, ahead) for state in states]
    drives = xosc.Event(f"{name} drives", xosc.Priority.parallel)
    if steps[0] == 0:
        init.add_init_action(name, xosc.TeleportAction(places[0]))
    else:
        drives.add_action(f"{name} appears", xosc.AddEntityAction(name, places[0]))
    if len(steps) > 1:
        way = xosc.Trajectory(f"{name} way", False)
        way.add_shape(xosc.Polyline((scene.step * steps).round(4).tolist(), places))
        drives.add_action(
            f"{name} follows its way",
            xosc.FollowTrajectoryAction(way, xosc.FollowingMode.position, xosc.ReferenceContext.absolute, 1, 0),
        )
    events = [(drives, int(steps[0]))] if drives.action else []
    if steps[-1] < scene.steps - 1:
        leaves = xosc.Event(f"{name} leaves", xosc.Priority.parallel)
        leaves.add_action(f"{name} disappears", xosc.DeleteEntityAction(name))
        events.append((leaves, int(steps[-1]) + 1))
    maneuver = xosc.Maneuver(f"{name} maneuver")
    for event, step in events:
        when = _time(xosc, scene.step * step)
        event.add_trigger(xosc.ValueTrigger(f"{event.name} at", 0, xosc.ConditionEdge.none, when))
        maneuver.add_event(event)
    act.add_maneuver_group(xosc.ManeuverGroup(f"{name} group").add_actor(name).add_maneuver(maneuver))


def _time(xosc: Any, seconds: float) -> Any:
    return xosc.SimulationTimeCondition(round(seconds, 4), xosc.Rule.greaterOrEqual)


def _place(xosc: Any, scene: Scene, state: Array, ahead: float) -> Any:
    """Of the reference point, `ahead` metres behind the centre."""
    x, y = state[[X, Y]] + scene.origin - ahead * np.array([np.cos(state[YAW]), np.sin(state[YAW])])
    return xosc.WorldPosition(round(float(x), 4), round(float(y), 4), 0, round(float(state[YAW]), 6))


def _entity(xosc: Any, kind: Kind, length: float, width: float, ahead: float) -> Any:
    height = HEIGHTS[kind]
    box = xosc.BoundingBox(round(width, 3), round(length, 3), height, round(ahead, 4), 0, height / 2)
    if kind == Kind.PEDESTRIAN:
        return xosc.Pedestrian("pedestrian", MASS[kind], xosc.PedestrianCategory.pedestrian, box)
    if kind == Kind.OTHER:
        return xosc.MiscObject("other", MASS[kind], xosc.MiscObjectCategory.obstacle, box)
    cycles = kind == Kind.CYCLIST
    category = xosc.VehicleCategory.bicycle if cycles else xosc.VehicleCategory.car
    steer, wheel, track = (1.0, 0.65, 0.05) if cycles else (0.6, 0.65, 0.85 * width)
    front = xosc.Axle(steer, wheel, round(track, 3), round(2 * ahead, 4), wheel / 2)
    rear = xosc.Axle(0.0, wheel, round(track, 3), 0, wheel / 2)
    return xosc.Vehicle(kind.name.lower(), category, box, front, rear, 70, 10, 10, MASS[kind])
