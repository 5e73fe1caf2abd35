"""A made-up driving scene, with all that scenes have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from throng.policies.driving.model_file import save_model
from throng.policies.driving.world_model import WorldModel, WorldModelSettings
from throng.scenarios.driving.recording import Map, Polyline, Signal, empty, scene_of
from throng.scenarios.driving.scene import Kind, Light, Line, Scene, save_scene

FRAMES, HISTORY = 91, 31


def made(seed: int = 0, turn: float = 0.0, shift: tuple[float, float] = (0.0, 0.0), lanes: int = 5) -> Scene:
    """Six cars and a pedestrian about a light; the third car comes late. All of it turned and shifted, if told."""
    rng = np.random.default_rng(seed)
    kinds = [Kind.VEHICLE] * 6 + [Kind.PEDESTRIAN]
    time = np.arange(FRAMES) * 0.1
    found = empty(f"made{seed}", "made", time, HISTORY, [f"a{i}" for i in range(7)], kinds)
    cos, sin = np.cos(turn), np.sin(turn)

    def moved(xy: np.ndarray) -> np.ndarray:
        return xy @ np.array([[cos, sin], [-sin, cos]]) + np.array(shift)

    for i in range(7):
        speed, bend = rng.uniform(2, 10), rng.uniform(-0.1, 0.1)
        yaw = rng.uniform(-3, 3) + bend * time
        start = rng.uniform(-30, 30, 2)
        way = speed * 0.1 * np.column_stack([np.cos(yaw), np.sin(yaw)])
        found.xy[i] = moved(start + np.vstack([np.zeros(2), np.cumsum(way[:-1], axis=0)]))
        found.velocity[i] = speed * np.column_stack([np.cos(yaw + turn), np.sin(yaw + turn)])
        found.yaw[i], found.size[i], found.valid[i] = yaw + turn, (4.5, 1.9), True
    found.valid[2, :12] = False
    lines = [
        Polyline(f"lane{i}", Line.LANE, moved(np.array([(-60.0 - i, y), (0.0, y + 5), (60.0 + 3 * i, y)])))
        for i, y in enumerate((-8.0, -3.7, 0.0, 4.1, 8.6)[:lanes])
    ]
    lines.append(Polyline("edge", Line.ROAD_EDGE, moved(np.array([(-60.0, -40.0), (60.0, -40.0)]))))
    states = np.where(time < 4.0, Light.STOP, Light.GO).astype(np.int8)
    found.map = Map(lines, [], [Signal("lane0", tuple(moved(np.array([(-5.0, 4.6)]))[0]), states)])
    return scene_of(found)


def fine_tuning(folder: Path, **settings: Any) -> Path:
    """A configuration, `case.yaml`, of two drivers of the made-up scene, whose world model knows nothing.

    Args:
        settings: by group; those of `scene` are added to the scene's.
    """
    save_scene(made(), folder / "made.scene.npz")
    torch.manual_seed(0)
    save_model(WorldModel(WorldModelSettings(hidden=24, heads=2, modes=3, future=30)), folder / "model")
    scene = {"file": "made.scene.npz", "agents": 2, **settings.pop("scene", {})}
    path = folder / "case.yaml"
    path.write_text(yaml.safe_dump({"scene": scene, "world_model": {"folder": "model"}, **settings}))
    return path
