"""Pictures of a scene: one moment as PNG, all of it as an animation in one HTML file that opens offline."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch
from numpy.typing import NDArray

from .scene import LENGTH, WIDTH, YAW, Kind, Light, Line, Scene, X, Y

MARGIN = 12.0  # metres around the agents
AROUND = 25.0  # metres around those who are controlled
KIND_COLOURS = {Kind.VEHICLE: "#3b6fb6", Kind.PEDESTRIAN: "#c2557a", Kind.CYCLIST: "#2f9e77", Kind.OTHER: "#9aa0a6"}
EGO, FOCAL = "#d9822b", "#7b4fb5"
# Of generated scenes: colours that the colour-blind tell apart (Okabe and Ito), and grey.
CONTROLLED, ENVIRONMENT, LOGGED, BROKEN = "#0072b2", "#8d969f", "#007d5b", "#d55e00"
LINE_STYLES: dict[Line, tuple[str, float]] = {  # colour, width in points
    Line.LANE: ("#c3c8ce", 0.7), Line.BIKE_LANE: ("#b5d6c6", 0.7), Line.BUS_LANE: ("#d8cfa8", 0.7),
    Line.ROAD_LINE: ("#e2e5e8", 0.6), Line.ROAD_EDGE: ("#50565c", 1.0), Line.CROSSWALK: ("#8fa3b8", 0.8),
    Line.DRIVEWAY: ("#d9d3c7", 0.6), Line.SPEED_BUMP: ("#cbb58a", 0.6),
}  # fmt: skip
LIGHT_COLOURS = {Light.GO: "#2e9e4f", Light.CAUTION: "#e0b000", Light.STOP: "#cc3333", Light.UNKNOWN: "#9aa0a6"}


@dataclass(frozen=True, eq=False)
class Overlay:
    """What a generated scene is drawn with: its focal agents were controlled, the others are their environment."""

    record: Scene | None  # where agents really went, in the same steps and coordinates; focal are the same ones
    distance: float | None  # metres that the controlled are to keep from each other's centres


def extent(scene: Scene) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of where agents are seen."""
    return _around(scene.tracks[:, :, [X, Y]][scene.valid], MARGIN)


def _around(seen: NDArray[np.floating[Any]], margin: float) -> tuple[float, float, float, float]:
    (left, bottom), (right, top) = seen.min(axis=0) - margin, seen.max(axis=0) + margin
    return float(left), float(right), float(bottom), float(top)


def _shown(scene: Scene, overlay: Overlay | None) -> tuple[float, float, float, float]:
    """The extent; of generated scenes around where the controlled went, and really went."""
    if overlay is None:
        return extent(scene)
    told = [scene] if overlay.record is None else [scene, overlay.record]
    ways = [one.tracks[:, :, [X, Y]][one.valid & one.focal[:, None]] for one in told]
    return _around(np.concatenate(ways), AROUND)


def boxes(tracks: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Corners `[..., 4, 2]` of agents `[..., 7]`."""
    half = np.stack([tracks[..., LENGTH], tracks[..., WIDTH]], axis=-1)[..., None, :] / 2
    corners = half * np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])
    cos, sin = np.cos(tracks[..., YAW])[..., None], np.sin(tracks[..., YAW])[..., None]
    x = cos * corners[..., 0] - sin * corners[..., 1] + tracks[..., X, None]
    y = sin * corners[..., 0] + cos * corners[..., 1] + tracks[..., Y, None]
    return np.stack([x, y], axis=-1).astype(np.float64)


def too_near(scene: Scene, distance: float) -> NDArray[np.bool_]:
    """`[agents, steps]`: which focal agents have another's centre nearer than `distance` metres."""
    asked = scene.valid & scene.focal[:, None]
    xy = np.where(asked[..., None], scene.tracks[:, :, [X, Y]], np.nan)
    near = np.linalg.norm(xy[:, None] - xy[None], axis=-1) < distance
    near[np.arange(scene.agents), np.arange(scene.agents)] = False
    found: NDArray[np.bool_] = np.any(near, axis=1)
    return found


def _colour(scene: Scene, agent: int, kind: NDArray[np.int8], overlay: Overlay | None) -> str:
    if overlay is not None:
        return CONTROLLED if scene.focal[agent] else ENVIRONMENT
    if agent == scene.ego:
        return EGO
    return FOCAL if scene.focal[agent] else KIND_COLOURS[Kind(kind[agent])]


def picture(scene: Scene, step: int | None = None, overlay: Overlay | None = None) -> Figure:
    """The map, agents' boxes in one step (the last of the history), where they had been and where they went."""
    step = min(scene.history, scene.steps) - 1 if step is None else step
    left, right, bottom, top = _shown(scene, overlay)
    size = 8.0 / max(right - left, top - bottom)
    figure = Figure(
        figsize=(max(4.5, (right - left) * size), max(4.5, (top - bottom) * size) + 0.7), dpi=150, layout="constrained"
    )
    axes = figure.subplots()
    for kind, (colour, width) in LINE_STYLES.items():
        lines = [scene.polyline(line) for line in scene.of_kind(kind)]
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=width))
    kinds = scene.kind
    for agent in range(scene.agents):
        colour = _colour(scene, agent, kinds, overlay)
        for past in (True, False):
            steps = np.flatnonzero(scene.valid[agent])
            steps = steps[steps <= step] if past else steps[steps >= step]
            axes.plot(
                *scene.tracks[agent, steps][:, [X, Y]].T,
                color=colour,
                linewidth=0.8 if past else 1.2,
                alpha=0.35 if past else 0.9,
            )
    there = [agent for agent in range(scene.agents) if scene.valid[agent, step]]
    colours = [_colour(scene, agent, kinds, overlay) for agent in there]
    axes.add_collection(
        PolyCollection(
            list(boxes(scene.tracks[there, step])), facecolors=colours, edgecolors="white", linewidths=0.3, zorder=3
        )
    )
    if len(scene.lights):
        shown = [LIGHT_COLOURS[Light(one)] for one in scene.lights[:, step]]
        axes.scatter(scene.light_xy[:, 0], scene.light_xy[:, 1], c=shown, s=14, zorder=4, linewidths=0)
    if overlay is not None:
        _draw(overlay, scene, step, axes)
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xlabel="m", ylabel="m")
    when = f"step {step} of {scene.steps}"
    if overlay is not None:
        when = f"{(step - scene.history + 1) * scene.step:+.1f} s"
    axes.set_title(f"{scene.name} ({scene.source}), {when}", fontsize=8, wrap=True)
    axes.tick_params(labelsize=7)
    keys = [_key(*one) for one in _legend(scene, overlay)]
    keys += [Line2D([], [], color="#50565c", alpha=0.35, label="past"), Line2D([], [], color="#50565c", label="future")]
    figure.legend(handles=keys, loc="outside lower center", ncols=4, frameon=False, fontsize=7)
    return figure


def _draw(overlay: Overlay, scene: Scene, step: int, axes: Axes) -> None:
    """Outlines and ways of the record, circles of the distance."""
    record, distance = overlay.record, overlay.distance
    if record is not None:
        for agent in np.flatnonzero(record.focal):
            steps = np.flatnonzero(record.valid[agent])
            way = record.tracks[agent, steps[steps >= scene.history - 1]]
            axes.plot(*way[:, [X, Y]].T, color=LOGGED, linewidth=1.0, linestyle=(0, (3, 2)), zorder=2.5)
        if scene.history <= step < record.steps:
            outlines = list(boxes(record.tracks[record.valid[:, step], step]))
            axes.add_collection(
                PolyCollection(
                    outlines, facecolors="none", edgecolors=LOGGED, linewidths=0.8, linestyles=[(0, (3, 1.5))], zorder=4
                )
            )
    if distance is not None:
        near = too_near(scene, distance)[:, step]
        for agent in np.flatnonzero(scene.focal & scene.valid[:, step]):
            colour, width = (BROKEN, 1.8) if near[agent] else (CONTROLLED, 0.7)
            middle = scene.tracks[agent, step, :2]
            axes.add_patch(
                Circle((middle[0], middle[1]), distance, fill=False, edgecolor=colour, linewidth=width, zorder=3.5)
            )


def _legend(scene: Scene, overlay: Overlay | None) -> list[tuple[str, str, str]]:
    """Names, colours and shapes: `box`, `outline`, `ring` or `thick ring`."""
    if overlay is None:
        keys = [(Kind(one).name.lower(), KIND_COLOURS[Kind(one)], "box") for one in sorted({*scene.kind.tolist()})]
        keys += [("ego", EGO, "box")] if scene.ego >= 0 else []
        return keys + ([("to predict", FOCAL, "box")] if scene.focal.any() else [])
    keys = [("controlled", CONTROLLED, "box"), ("environment", ENVIRONMENT, "box")]
    keys += [("logged", LOGGED, "outline")] if overlay.record is not None else []
    if overlay.distance is not None:
        keys.append((f"{overlay.distance:g} m kept", CONTROLLED, "ring"))
        keys.append((f"nearer than {overlay.distance:g} m", BROKEN, "thick ring"))
    return keys


def _key(name: str, colour: str, shape: str) -> Any:
    if shape == "box":
        return Patch(color=colour, label=name)
    if shape == "outline":
        return Patch(facecolor="none", edgecolor=colour, linestyle="--", label=name)
    width = 1.8 if shape == "thick ring" else 0.7
    return Line2D(
        [], [], color="none", marker="o", markersize=8, markeredgecolor=colour, markeredgewidth=width, label=name
    )


def animation(scene: Scene, overlay: Overlay | None = None) -> str:
    """HTML of the scene, looping."""
    kinds = scene.kind
    lines = [
        [*LINE_STYLES[kind], np.round(scene.polyline(line), 2).tolist()]
        for kind in LINE_STYLES
        for line in scene.of_kind(kind)
    ]
    distance = overlay.distance if overlay is not None else None
    near = too_near(scene, distance) if distance is not None else None
    agents = [
        {
            "id": scene.ids[agent],
            "colour": _colour(scene, agent, kinds, overlay),
            "kind": Kind(kinds[agent]).name.lower(),
            "states": _states(scene, agent),
            "controlled": overlay is not None and bool(scene.focal[agent]),
            "near": near[agent].astype(int).tolist() if near is not None else [],
        }
        for agent in range(scene.agents)
    ]
    record = overlay.record if overlay is not None else None
    data = {
        "title": f"{scene.name} ({scene.source})", "step": scene.step, "steps": scene.steps, "history": scene.history,
        "extent": _shown(scene, overlay), "lines": lines, "agents": agents,
        "lights": [
            {"xy": np.round(xy.astype(float), 2).tolist(), "states": states.tolist()}
            for xy, states in zip(scene.light_xy, scene.lights, strict=True)
        ],
        "lightColours": [LIGHT_COLOURS[light] for light in Light],
        "legend": _legend(scene, overlay), "distance": distance, "brokenColour": BROKEN, "loggedColour": LOGGED,
        "record": [
            {"id": name, "states": _states(record, agent), "controlled": bool(record.focal[agent])}
            for agent, name in enumerate(record.ids)
        ] if record is not None else [],
    }  # fmt: skip
    page = Path(__file__).with_name("scene.html").read_text()
    return page.replace("/*DATA*/null", json.dumps(data, separators=(",", ":")).replace("</", "<\\/"))


def _states(scene: Scene, agent: int) -> list[list[float] | None]:
    """x, y, direction, speed, length and width in each step; None where it is not seen."""
    return [
        np.round(scene.tracks[agent, step, :6].astype(float), 2).tolist() if seen else None
        for step, seen in enumerate(scene.valid[agent])
    ]
