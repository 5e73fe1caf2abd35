"""What came of a fine-tuning: how the generated traffic lies to the record, scenes as files, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..policies.driving.tokens import STRIDE, nearest_agents
from ..scenarios.driving.divergence import (
    TRAFFICGAMER_DISTANCE_M,
    TRAFFICGAMER_SPEED_M_S,
    Histogram,
    hellinger,
    kullback_leibler,
    wasserstein,
)
from ..scenarios.driving.draw import Overlay, animation, picture
from ..scenarios.driving.geometry import FAR, box_distance
from ..scenarios.driving.insertion import NEW
from ..scenarios.driving.metrics import samples_of
from ..scenarios.driving.scene import LENGTH, SPEED, WIDTH, YAW, Scene, X, Y, save_scene
from ..workers.games import Arrays, GameSpec
from .finetuning_config import FineTuningConfig
from .store import RunStore

SHOWN = 3  # generated scenes that are written
Array = NDArray[np.float64]


def fidelity(spec: GameSpec, futures: Sequence[Arrays]) -> dict[str, Any]:
    """Crashes, and distances between the distributions of speeds and spacings and the record's: drivers, future only.

    Vehicles that were put in are compared with nobody: the record does not have them. Speeds are of who moves, spacings
    pairwise distances of centres, within the ranges of TrafficGamer's code. `record` has the same numbers of what the drivers
    really did.
    """
    tracks = np.concatenate([one["tracks"] for one in futures])  # [futures, agents there, frames, 4]
    kept = _kept(spec)
    where = {agent: row for row, agent in enumerate(kept)}
    rows = [where[agent] for agent in spec.drivers]
    frames = tracks.shape[2] - 1
    scene, now = spec.scene, spec.scene.history - 1
    own = tracks[:, rows, 1:].astype(np.float64)
    there = np.flatnonzero(futures[0]["there"])
    sizes = torch.from_numpy(_sizes(scene)[kept])
    spacing = _spacing(own)
    result: dict[str, Any] = {
        "crashes": _crashes(torch.from_numpy(tracks[:, :, 1:]), sizes, rows, there),
        "cost": float(np.mean([one["cost"] for one in futures])),
        "least_spacing_m": float(spacing.min(axis=(1, 2)).mean()) if len(rows) > 1 else None,
        "spacing_m": float(spacing.mean()) if len(rows) > 1 else None,
        "speed_m_s": float(own[..., 3].mean()),
        "record": _record(spec, kept, futures[0]["there"], frames),
    }
    known = [i for i, agent in enumerate(spec.drivers) if not scene.ids[agent].startswith(NEW)]
    agents = [spec.drivers[i] for i in known]
    steps = slice(now + 1, now + 1 + frames)
    log = np.moveaxis(scene.tracks[agents, steps][..., [X, Y, YAW, SPEED]].astype(np.float64), 0, 1)
    made = np.moveaxis(own[:, known], 1, 2)
    real = samples_of(log, scene.valid[agents, steps].T)
    found = samples_of(made, np.ones(made.shape[:-1], bool))
    result["distances"] = {
        "speed": _distances(real[0], found[0], TRAFFICGAMER_SPEED_M_S, "m/s"),
        "spacing": _distances(real[1], found[1], TRAFFICGAMER_DISTANCE_M, "m"),
    }
    return result


def _record(spec: GameSpec, kept: list[int], there: NDArray[np.bool_], frames: int) -> dict[str, Any] | None:
    """The same numbers of the recorded drivers, among the same agents, as far as they were there; None: all were put in."""
    scene = spec.scene
    steps = slice(scene.history, scene.history + frames)
    real = there & [not scene.ids[agent].startswith(NEW) for agent in kept]
    seen = scene.valid[kept, steps] & real[:, None]
    log = scene.tracks[kept, steps][..., [X, Y, YAW, SPEED]].astype(np.float64)
    log[~seen] = np.nan
    rows = [row for row in map(kept.index, spec.drivers) if seen[row].any()]
    if not rows:
        return None
    spacing = _spacing(log[None, rows])[0]
    moments = spacing.reshape(len(rows), -1, STRIDE).min(axis=2)
    counted = seen[rows].reshape((*moments.shape, STRIDE)).any(axis=2)
    sizes = torch.from_numpy(_sizes(scene)[kept].astype(np.float64))
    return {
        "drivers": [scene.ids[kept[row]] for row in rows],
        "crashes": _crashes(torch.from_numpy(log[None]), sizes, rows, np.flatnonzero(real)),
        "cost": float((moments < spec.terms.distance_limit)[counted].mean()),
        "least_spacing_m": float(spacing.min()) if np.isfinite(spacing).any() else None,
        "spacing_m": float(spacing[np.isfinite(spacing)].mean()) if np.isfinite(spacing).any() else None,
        "speed_m_s": float(np.nanmean(log[rows][..., 3])),
    }


def _distances(real: Array, made: Array, histogram: Histogram, unit: str) -> dict[str, float] | None:
    """None where there is nothing to compare."""
    if not len(real) or not len(made):
        return None
    p, q = histogram.counts(real), histogram.counts(made)
    return {
        "kullback_leibler_nats": kullback_leibler(p, q),
        "hellinger": hellinger(p, q),
        f"wasserstein_{unit.replace('/', '_')}": wasserstein(p, q, histogram),
    }


def _kept(spec: GameSpec) -> list[int]:
    """Indices of the scene's agents that are in the game at all, in order."""
    focal = np.zeros(spec.scene.agents, bool)
    focal[list(spec.drivers)] = True
    kept: list[int] = nearest_agents(replace(spec.scene, focal=focal), spec.most).tolist()
    return kept


def _sizes(scene: Scene) -> NDArray[np.float32]:
    now = scene.history - 1
    return np.maximum(scene.tracks[:, now][:, [LENGTH, WIDTH]], 0.1)


def _spacing(own: Array) -> Array:
    """`[futures, drivers, frames]` metres from each driver to the nearest other; infinite of who is not there, or alone."""
    xy = own[..., :2]
    apart = np.nan_to_num(np.linalg.norm(xy[:, :, None] - xy[:, None], axis=-1), nan=np.inf)
    apart[:, np.arange(xy.shape[1]), np.arange(xy.shape[1])] = np.inf
    return np.asarray(apart.min(axis=2))


def _crashes(tracks: torch.Tensor, sizes: torch.Tensor, rows: list[int], there: NDArray[np.int64]) -> float:
    """Share of drivers and futures whose box overlaps another's at some time."""
    crashed = []
    for row in rows:
        others = [int(one) for one in there if one != row]
        if not others:
            return 0.0
        boxes = tracks[:, others, :, :3]
        own = tracks[:, row, None, :, :3].expand_as(boxes)
        size = sizes[others][None, :, None].expand(*boxes.shape[:3], 2)
        apart = box_distance(own, boxes, sizes[row].expand_as(size), size)
        crashed.append((apart.clamp_max(FAR) < 0).any(-1).any(-1))
    return float(torch.stack(crashed).float().mean())


def generated(spec: GameSpec, future: Arrays, number: int) -> Scene:
    """A future as a scene: the record's history, then what was made; `focal` are those who were driven."""
    kept, scene = _kept(spec), spec.scene
    made = future["tracks"][number].astype(np.float32)
    frames = made.shape[1] - 1
    now = scene.history - 1
    steps = now + 1 + frames
    tracks, valid = scene.tracks[kept, :steps].copy(), scene.valid[kept, :steps].copy()
    there = future["there"]
    tracks[there, now + 1 :] = tracks[there, now, None]
    tracks[there, now + 1 :, :4] = made[there, 1:]
    valid[:, now + 1 :] = there[:, None]
    tracks[~valid] = 0.0
    focal = np.isin(kept, spec.drivers)
    return replace(
        scene,
        name=f"{scene.name}-{spec.algorithm}-{number}",
        ids=tuple(scene.ids[agent] for agent in kept),
        tracks=tracks,
        valid=valid,
        goals=scene.goals[kept],
        focal=focal,
        ego=-1,
        lights=scene.lights[:, :steps],
    )


def recorded(spec: GameSpec, future: Arrays) -> Scene:
    """Where the agents of a future, other than those that were put in, really were in its steps; in the same order."""
    kept, scene = _kept(spec), spec.scene
    agents = [
        agent
        for agent, there in zip(kept, future["there"], strict=True)
        if there and not scene.ids[agent].startswith(NEW)
    ]
    steps = scene.history + future["tracks"].shape[2] - 1
    return replace(
        scene,
        ids=tuple(scene.ids[agent] for agent in agents),
        tracks=scene.tracks[agents, :steps],
        valid=scene.valid[agents, :steps],
        goals=scene.goals[agents],
        focal=np.isin(agents, spec.drivers),
        ego=-1,
        lights=scene.lights[:, :steps],
    )


def write_report(
    config: FineTuningConfig, spec: GameSpec, store: RunStore, futures: Sequence[Arrays], result: dict[str, Any]
) -> None:
    """Curves of the training, and the first generated scenes: files, pictures, animations; of the first a frame a moment."""
    for name in ("figures/future-0", "scenes"):
        (store.directory / name).mkdir(parents=True, exist_ok=True)
    figure = _curves(store.ledger(), config, result.get("gap_curve", []))
    store.write("figures/training.png", lambda path: figure.savefig(path, format="png"))
    overlay = Overlay(recorded(spec, futures[0]), spec.terms.distance_limit)
    for number in range(min(SHOWN, len(futures[0]["tracks"]))):
        scene = generated(spec, futures[0], number)
        # `save_scene` names files by what it is given, and makes them appear complete.
        save_scene(scene, store.directory / "scenes" / f"future-{number}.scene.npz")
        if number >= config.evaluation.pictures:
            continue
        _write_picture(store, f"future-{number}", scene, scene.history - 1, overlay)
        page = animation(scene, overlay)
        store.write(f"figures/future-{number}.html", lambda path, page=page: path.write_text(page))  # type: ignore[misc]
        if number == 0:
            for frame, step in enumerate(range(scene.history - 1, scene.steps, STRIDE)):
                _write_picture(store, f"future-0/frame-{frame:03}", scene, step, overlay)


def _write_picture(store: RunStore, name: str, scene: Scene, step: int, overlay: Overlay) -> None:
    shown = picture(scene, step, overlay)
    store.write(f"figures/{name}.png", lambda path: shown.savefig(path, format="png"))


def _curves(ledger: pa.Table, config: FineTuningConfig, gaps: Sequence[dict[str, float]]) -> Figure:
    """Return, share of moments that break the constraint, and multipliers, of each driver and their mean; mean gaps."""
    shown = [
        ("return", "return of an episode"),
        ("cost", f"share of moments nearer than {config.terms.distance_limit:g} m"),
        ("multiplier", "multiplier"),
    ]
    shown = [one for one in shown if one[0] in ledger.column_names]
    panels = len(shown) + bool(gaps)
    figure = Figure(figsize=(4.4 * panels, 3.2), dpi=150, layout="constrained")
    agent, episode = ledger["agent"].to_numpy(), ledger["episode"].to_numpy()
    every = np.atleast_1d(figure.subplots(1, panels))
    for axes, (name, label) in zip(every, shown, strict=False):
        values = ledger[name].to_numpy()
        for one in np.unique(agent):
            axes.plot(episode[agent == one], values[agent == one], color="#b4b8bd", linewidth=0.7)
        episodes = np.unique(episode)
        means = [values[episode == one].mean() for one in episodes]
        axes.plot(episodes, means, color="#0a66b0", linewidth=1.6)
        axes.set(xlabel="episode", title=label)
    if gaps:
        axes = every[-1]
        axes.plot(
            *zip(*((one["episode"], one["gap"]) for one in gaps), strict=True), "o-", color="#0a66b0", markersize=4
        )
        axes.set(xlabel="episode", title="CCE-gap by best responses", ylim=(0, None))
    for axes in every:
        axes.title.set_fontsize(9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("grey: drivers; blue: their mean", fontsize=8)
    return figure


def summary(store: RunStore) -> list[str]:
    """A finished run in a few lines."""
    result = store.read_json("evaluation.json")
    assert result is not None
    told = [f"drivers: {', '.join(result['drivers'])}"]
    told.append(f"{result['futures']} futures: {_row(result)}")
    if record := result.get("record"):
        told.append(f"the record, {len(record['drivers'])} of the drivers: {_row(record)}")
    for name, one in result["distances"].items():
        if one is not None:
            numbers = ", ".join(f"{key.replace('_', ' ')} {value:.3f}" for key, value in one.items())
            told.append(f"{name} against the record: {numbers}")
    for name, one in result.get("gaps", {}).items():
        told.append(
            f"CCE-gap in {name}: {np.mean(one['gap']):.2f} by best responses, "
            f"{np.mean(one['restricted']):.2f} among the world model's modes (mean of drivers)"
        )
    told.append(f"figures: {store.directory / 'figures'}; generated scenes: {store.directory / 'scenes'}")
    return told


def _row(one: dict[str, Any]) -> str:
    """Numbers of futures, or of the record, in words."""
    mean, least = one.get("spacing_m"), one["least_spacing_m"]
    return (
        f"{100 * one['crashes']:.0f} % of drivers crash, mean speed {one['speed_m_s']:.1f} m/s, "
        f"{100 * one['cost']:.0f} % of moments too near"
        + (f", spacing {mean:.1f} m" if mean is not None else "")
        + (f", at least {least:.1f} m" if least is not None else "")
    )
