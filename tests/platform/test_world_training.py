"""World models are trained by Ray Train, go on where they stopped, and are compared with extrapolation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from throng.cluster.session import session
from throng.platform.world_training import Epoch, TrainingSettings, train_world_model
from throng.policies.driving.model_file import load_model
from throng.policies.driving.tokens import tokens_of
from throng.policies.driving.world_model import WorldModelSettings
from throng.scenarios.driving.recording import Map, Polyline, empty, scene_of
from throng.scenarios.driving.scene import Kind, Line, Scene, save_scene
from throng.scenarios.errors import InputError
from throng.tune.cli import app
from typer.testing import CliRunner

FRAMES, HISTORY = 91, 11


def braking(seed: int) -> Scene:
    """Two cars brake at 1 m/s² from the end of the history on."""
    rng = np.random.default_rng(seed)
    time = np.arange(FRAMES) * 0.1
    found = empty(f"brake{seed}", "made", time, HISTORY, ["a", "b"], [Kind.VEHICLE] * 2)
    speed = np.clip(9.0 - np.clip(time - 1.0, 0, None), 0, None)
    for i in range(2):
        yaw = rng.uniform(-3, 3)
        along = np.array([np.cos(yaw), np.sin(yaw)])
        way = np.concatenate([[0.0], np.cumsum(speed[:-1] * 0.1)])
        found.xy[i] = 15.0 * np.array([i, -i]) + way[:, None] * along
        found.yaw[i], found.velocity[i] = yaw, speed[:, None] * along
        found.size[i], found.valid[i] = (4.0, 2.0), True
    found.map = Map([Polyline("lane", Line.LANE, np.array([(-50.0, 0.0), (50.0, 0.0)]))])
    return scene_of(found)


SETTINGS = TrainingSettings(
    WorldModelSettings(hidden=16, heads=2, encoder_layers=1, modes=2), epochs=2, batch=2, moments=1, learning_rate=5e-3
)


class Stop(Exception):
    """As if somebody had ended the program."""


def test_training_goes_on_where_it_was_stopped_and_comes_to_the_same_model(tmp_path: Path) -> None:
    scenes = [tokens_of(braking(i)) for i in range(4)]
    heard: list[Epoch] = []

    def stop(epoch: Epoch) -> None:
        raise Stop

    with session("local", 2):
        whole = train_world_model(scenes, scenes[:1], SETTINGS, tmp_path / "whole", "local", heard.append)
        with pytest.raises(Stop):
            train_world_model(scenes, scenes[:1], SETTINGS, tmp_path / "parts", "local", stop)
    assert [one.epoch for one in heard] == [1, 2]
    assert all(np.isfinite([one.loss, one.min_fde, one.held_out_min_fde]).all() for one in heard)
    assert heard[1].loss < heard[0].loss
    heard.clear()
    parts = train_world_model(scenes, scenes[:1], SETTINGS, tmp_path / "parts", "local", heard.append)
    assert heard[-1].epoch == 2
    assert len(heard) == 1 or heard[0].epoch == 1  # stopped before or after its checkpoint was written
    one, other = load_model(whole), load_model(parts)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="other seed"):
        train_world_model(scenes, [], replace(SETTINGS, seed=1), tmp_path / "parts", "local", heard.append)

    files = []
    for i in range(2):
        files.append(str(tmp_path / f"{i}.scene.npz"))
        save_scene(braking(100 + i), Path(files[-1]))
    told = CliRunner().invoke(
        app,
        [
            "worldmodel",
            "evaluate",
            "--model",
            str(whole),
            "--model",
            str(parts),
            *files,
            "--out",
            str(tmp_path / "e.json"),
        ],
    )
    assert told.exit_code == 0, told.output
    found = json.loads((tmp_path / "e.json").read_text())
    assert (found["agents"], found["scenes"], found["seconds"]) == (4, 2, 6.0)
    plain = found["errors"]["constant velocity"]
    assert plain["minFDE"][0] == pytest.approx(18.0, abs=0.4), "half of 1 m/s² over 6 s"
    assert plain["MR"] == [1.0]
    assert len(found["errors"]["world model"]["minFDE"]) == 2
    assert "constant turn" in told.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--hidden", "10", "--heads", "3"], "--hidden 10 cannot be divided among --heads 3"),
        (["--held-out", "{file}"], "held out, too"),
        (["--held-out", "{bad}"], "no scene that a world model can use"),
    ],
    ids=["heads", "same", "bad"],
)
def test_what_cannot_be_trained_is_refused_before_ray_starts(tmp_path: Path, options: list[str], said: str) -> None:
    file, bad = tmp_path / "a.scene.npz", tmp_path / "b.scene.npz"
    save_scene(braking(0), file)
    bad.write_bytes(b"nothing of the kind")
    given = [one.format(file=file, bad=bad) for one in options]
    told = CliRunner().invoke(app, ["worldmodel", "train", str(file), "--out", str(tmp_path / "m"), *given])
    assert told.exit_code != 0
    assert said in told.output + str(told.exception)
    assert not (tmp_path / "m").exists()
