"""Pictures of a scene: one moment as PNG, all of it as an animation in one HTML file that opens offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from .scene import LENGTH, WIDTH, YAW, Kind, Light, Line, Scene, X, Y

MARGIN = 12.0  # metres around the agents
KIND_COLOURS = {Kind.VEHICLE: "#3b6fb6", Kind.PEDESTRIAN: "#c2557a", Kind.CYCLIST: "#2f9e77", Kind.OTHER: "#9aa0a6"}
EGO, FOCAL = "#d9822b", "#7b4fb5"
LINE_STYLES: dict[Line, tuple[str, float]] = {  # colour, width in points
    Line.LANE: ("#c3c8ce", 0.7), Line.BIKE_LANE: ("#b5d6c6", 0.7), Line.BUS_LANE: ("#d8cfa8", 0.7),
    Line.ROAD_LINE: ("#e2e5e8", 0.6), Line.ROAD_EDGE: ("#50565c", 1.0), Line.CROSSWALK: ("#8fa3b8", 0.8),
    Line.DRIVEWAY: ("#d9d3c7", 0.6), Line.SPEED_BUMP: ("#cbb58a", 0.6),
}  # fmt: skip
LIGHT_COLOURS = {Light.GO: "#2e9e4f", Light.CAUTION: "#e0b000", Light.STOP: "#cc3333", Light.UNKNOWN: "#9aa0a6"}


def extent(scene: Scene) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of where agents are seen."""
    seen = scene.tracks[:, :, [X, Y]][scene.valid]
    (left, bottom), (right, top) = seen.min(axis=0) - MARGIN, seen.max(axis=0) + MARGIN
    return float(left), float(right), float(bottom), float(top)


def boxes(tracks: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Corners `[..., 4, 2]` of agents `[..., 7]`."""
    half = np.stack([tracks[..., LENGTH], tracks[..., WIDTH]], axis=-1)[..., None, :] / 2
    corners = half * np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])
    cos, sin = np.cos(tracks[..., YAW])[..., None], np.sin(tracks[..., YAW])[..., None]
    x = cos * corners[..., 0] - sin * corners[..., 1] + tracks[..., X, None]
    y = sin * corners[..., 0] + cos * corners[..., 1] + tracks[..., Y, None]
    return np.stack([x, y], axis=-1).astype(np.float64)


def _colour(scene: Scene, agent: int, kind: NDArray[np.int8]) -> str:
    if agent == scene.ego:
        return EGO
    return FOCAL if scene.focal[agent] else KIND_COLOURS[Kind(kind[agent])]


def picture(scene: Scene, step: int | None = None, focal: str = "to predict") -> Figure:
    """The map, agents' boxes in one step (the last of the history), where they had been and where they went.

    Args:
        focal: what the legend calls the focal agents.
    """
    step = min(scene.history, scene.steps) - 1 if step is None else step
    left, right, bottom, top = extent(scene)
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
        colour = _colour(scene, agent, kinds)
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
    colours = [_colour(scene, agent, kinds) for agent in there]
    axes.add_collection(
        PolyCollection(
            list(boxes(scene.tracks[there, step])), facecolors=colours, edgecolors="white", linewidths=0.3, zorder=3
        )
    )
    if len(scene.lights):
        shown = [LIGHT_COLOURS[Light(one)] for one in scene.lights[:, step]]
        axes.scatter(scene.light_xy[:, 0], scene.light_xy[:, 1], c=shown, s=14, zorder=4, linewidths=0)
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xlabel="m", ylabel="m")
    axes.set_title(f"{scene.name} ({scene.source}), step {step} of {scene.steps}", fontsize=8)
    axes.tick_params(labelsize=7)
    there_kinds = sorted({Kind(one) for one in kinds})
    keys: list[Any] = [Patch(color=KIND_COLOURS[kind], label=kind.name.lower()) for kind in there_kinds]
    keys += [Patch(color=EGO, label="ego")] if scene.ego >= 0 else []
    keys += [Patch(color=FOCAL, label=focal)] if scene.focal.any() else []
    keys += [Line2D([], [], color="#50565c", alpha=0.35, label="past"), Line2D([], [], color="#50565c", label="future")]
    figure.legend(handles=keys, loc="outside lower center", ncols=4, frameon=False, fontsize=7)
    return figure


def animation(scene: Scene) -> str:
    """HTML of the scene, looping."""
    kinds = scene.kind
    lines = [
        [*LINE_STYLES[kind], np.round(scene.polyline(line), 2).tolist()]
        for kind in LINE_STYLES
        for line in scene.of_kind(kind)
    ]
    agents = [
        {
            "id": scene.ids[agent],
            "colour": _colour(scene, agent, kinds),
            "kind": Kind(kinds[agent]).name.lower(),
            "states": [
                np.round(scene.tracks[agent, step, :6].astype(float), 2).tolist() if seen else None
                for step, seen in enumerate(scene.valid[agent])
            ],
        }
        for agent in range(scene.agents)
    ]
    data = {
        "title": f"{scene.name} ({scene.source})", "step": scene.step, "steps": scene.steps, "history": scene.history,
        "extent": extent(scene), "lines": lines, "agents": agents,
        "lights": [
            {"xy": np.round(xy.astype(float), 2).tolist(), "states": states.tolist()}
            for xy, states in zip(scene.light_xy, scene.lights, strict=True)
        ],
        "lightColours": [LIGHT_COLOURS[light] for light in Light],
    }  # fmt: skip
    page = Path(__file__).with_name("scene.html").read_text()
    return page.replace("/*DATA*/null", json.dumps(data, separators=(",", ":")).replace("</", "<\\/"))
