"""Pictures of generated scenes: who is too near, and what is drawn, are what is there."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations

import numpy as np
from driving_scenes import made
from matplotlib.patches import Circle
from throng.scenarios.driving.draw import BROKEN, CONTROLLED, ENVIRONMENT, Overlay, animation, picture, too_near
from throng.scenarios.driving.scene import Scene

DISTANCE = 20.0


def generated() -> Scene:
    """Two controlled vehicles and a third that comes late, all of which come near to each other and part again."""
    scene = made()
    focal = np.isin(np.arange(scene.agents), (0, 2, 3))
    return replace(scene, focal=focal)


def brute(scene: Scene) -> np.ndarray:
    near = np.zeros(scene.valid.shape, bool)
    for step in range(scene.steps):
        there = [agent for agent in range(scene.agents) if scene.focal[agent] and scene.valid[agent, step]]
        for one, other in permutations(there, 2):
            off = scene.tracks[one, step, :2].astype(float) - scene.tracks[other, step, :2].astype(float)
            near[one, step] |= float(off @ off) < DISTANCE**2
    return near


def test_who_is_too_near_is_found_by_looking_at_all_pairs() -> None:
    scene = generated()
    expected = brute(scene)
    assert expected.any() and not expected[scene.focal].all()
    np.testing.assert_array_equal(too_near(scene, DISTANCE), expected)


def test_a_frame_has_circles_that_warn_where_the_distance_is_broken() -> None:
    scene = generated()
    expected = brute(scene)
    for step in (int(expected.any(axis=0).argmax()), int(expected.any(axis=0).argmin())):
        figure = picture(scene, step, Overlay(made(seed=1), DISTANCE))
        circles = [one for one in figure.axes[0].patches if isinstance(one, Circle)]
        assert {one.get_radius() for one in circles} == {DISTANCE}
        warned = [one for one in circles if np.allclose(one.get_edgecolor()[:3], _rgb(BROKEN))]
        assert len(circles) == (scene.focal & scene.valid[:, step]).sum()
        assert len(warned) == expected[:, step].sum()
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert names[:5] == ["controlled", "environment", "logged", "20 m kept", "nearer than 20 m"]


def test_the_animation_tells_three_kinds_apart() -> None:
    scene, record = generated(), made(seed=1)
    page = animation(scene, Overlay(record, DISTANCE))
    data = json.loads(page.split("const scene = ")[1].split(";\n")[0])
    assert [one["colour"] for one in data["agents"]] == [CONTROLLED if one else ENVIRONMENT for one in scene.focal]
    np.testing.assert_array_equal(np.array([one["near"] for one in data["agents"]], bool), brute(scene))
    assert [one["id"] for one in data["record"]] == list(record.ids)
    np.testing.assert_allclose(data["record"][0]["states"][40][:2], record.tracks[0, 40, :2], atol=0.006)
    plain = json.loads(animation(scene).split("const scene = ")[1].split(";\n")[0])
    assert plain["record"] == [] and plain["distance"] is None
    assert [name for name, *_ in plain["legend"]] == ["vehicle", "pedestrian", "to predict"]


def _rgb(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
