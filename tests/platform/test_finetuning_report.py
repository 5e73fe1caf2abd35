"""Fidelity of generated traffic: the record's own row is what counting it by hand gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import shapely
from driving_scenes import made
from throng.platform.finetuning_report import fidelity, generated, recorded
from throng.policies.marl.driving import DrivingTerms
from throng.scenarios.driving.draw import boxes
from throng.scenarios.driving.insertion import Newcomer, with_newcomers
from throng.scenarios.driving.scene import Scene
from throng.workers.games import GameSpec

LIMIT, STRIDE = 12.0, 5


def spec_of(scene: Scene, drivers: tuple[int, ...]) -> GameSpec:
    """Of which only what fidelity asks for is there: no world model."""
    model: Any = None
    return GameSpec(model, scene, drivers, DrivingTerms(distance_limit=LIMIT), None, 32, "trafficgamer", None, 0)


def together() -> Scene:
    """The first driver goes 1 m beside the second, until it leaves; the third drives alone."""
    scene = made()
    tracks, valid = scene.tracks.copy(), scene.valid.copy()
    tracks[0] = tracks[1] + np.array([1.0, 0, 0, 0, 0, 0, 0], np.float32)
    valid[0, 53:] = False
    tracks[~valid] = 0.0
    return replace(scene, tracks=tracks, valid=valid)


def replayed(scene: Scene) -> dict[str, np.ndarray]:
    """Futures in which everybody does again what the scene says."""
    now = scene.history - 1
    tracks = np.stack([scene.tracks[:, now:, :4]] * 2)
    return {"tracks": tracks, "there": scene.valid[:, now], "cost": np.zeros(1)}


def test_the_records_row_is_what_counting_by_hand_gives() -> None:
    scene = with_newcomers(together(), (Newcomer("lane2", 70.0, 3.0, 30.0),))
    drivers = (0, 1, 4, 7)
    row = fidelity(spec_of(scene, drivers), [replayed(scene)])["record"]
    steps = range(scene.history, scene.steps)
    real = range(7)  # the newcomer is nobody's record
    crashed = {agent: False for agent in drivers[:3]}
    apart = np.full((3, len(steps)), np.inf)
    speeds = []
    for k, step in enumerate(steps):
        there = [agent for agent in real if scene.valid[agent, step]]
        shapes = {agent: shapely.Polygon(boxes(scene.tracks[agent, step])) for agent in there}
        for i, agent in enumerate(drivers[:3]):
            if agent not in there:
                continue
            speeds.append(scene.tracks[agent, step, 3])
            crashed[agent] |= any(shapes[agent].intersects(shapes[other]) for other in there if other != agent)
            for other in {*drivers[:3]} & {*there} - {agent}:
                apart[i, k] = min(
                    apart[i, k], np.hypot(*(scene.tracks[agent, step, :2] - scene.tracks[other, step, :2]))
                )
    moments = [
        apart[i, k : k + STRIDE].min() < LIMIT
        for i, agent in enumerate(drivers[:3])
        for k in range(0, len(steps), STRIDE)
        if scene.valid[agent, scene.history + k : scene.history + k + STRIDE].any()
    ]
    assert row["drivers"] == ["a0", "a1", "a4"]
    assert row["crashes"] == pytest.approx(np.mean([*crashed.values()])) and row["crashes"] > 0
    assert row["cost"] == pytest.approx(np.mean(moments)) and 0 < row["cost"] < 1
    assert row["least_spacing_m"] == pytest.approx(1.0, abs=1e-4)
    assert row["spacing_m"] == pytest.approx(apart[np.isfinite(apart)].mean(), abs=1e-4)
    assert row["speed_m_s"] == pytest.approx(np.mean(speeds), rel=1e-6)


def test_futures_that_replay_the_record_have_its_numbers() -> None:
    """Both rows are of the same measures, and the distances between them none."""
    scene = made()
    result = fidelity(spec_of(scene, (0, 1, 4)), [replayed(scene)])
    for name in ("crashes", "least_spacing_m", "spacing_m", "speed_m_s"):
        assert result["record"][name] == pytest.approx(result[name], rel=1e-6), name
    assert [*result["distances"]["speed"].values(), *result["distances"]["spacing"].values()] == [0.0] * 6


def test_who_was_put_in_has_no_record() -> None:
    scene = with_newcomers(made(), (Newcomer("lane2", 70.0, 3.0, 30.0),))
    assert fidelity(spec_of(scene, (7,)), [replayed(scene)])["record"] is None
    spec = spec_of(scene, (0, 7))
    record, shown = recorded(spec, replayed(scene)), generated(spec, replayed(scene), 0)
    assert record.ids == scene.ids[:7] and shown.ids == scene.ids
    assert record.steps == shown.steps == scene.steps
    np.testing.assert_array_equal(record.tracks, scene.tracks[:7])
