"""Waymo's Sim Agents realism meta-metric with the settings of 2025, as far as their public definition reaches.

Source: waymo-research/waymo-open-dataset, folder `wdl_limited/sim_agents_metrics`: ranges, bins, pseudo-counts and weights of
`challenge_2025_sim_agents_config.textproto`, the rest of `metrics.py`, `estimators.py` and the modules of features; the
pseudo-count of indications of `protos/sim_agents_metrics.proto`.

As there: one histogram for each agent of a scene, of all steps of all rollouts. The log's steps are scored by it. A
likelihood is the exponential of the mean score over all agents and steps of a scene that are valid in the log, the data
set's the mean over scenes. Speeds and accelerations are scored in steps with valid ones on both sides, accelerations with
two on each. An indication is of all steps together that are valid in the log. Time to collision and red lights are of
vehicles.

Whom to score is up to the caller: Waymo scores those whom the data set asks to predict and the recording vehicle, in 32
rollouts of 80 steps of 0.1 s. What differs from Waymo's:

- Boxes have sharp corners; theirs are rounded by 0.7 of half the shorter side, which makes them a little further apart.
- Time to collision is `geometry.time_to_collision`: whoever is ahead within an agent's width, by the states' speeds along its
  direction. Theirs is of whom an agent follows (turned by 75 degrees at most, by 10 if the boxes overlap by less than 0.5 m
  sideways), by the difference of speeds whatever their directions, which they take from positions.
- Speeds are of x and y; theirs of x, y and z.
- A simulation has no acceleration in its first step; theirs has, as the history is known. None has a speed in the last step:
  here it is left out, there it is NaN, which their histogram counts in one of the outermost bins (which was not verified).
- A red light is run by passing the stop on an agent's own way while it is red, and was in the step before
  (`World.red_light`). Theirs looks at the lane that is nearest, and at one step.
- Road edges are those of `geometry.DirectedLines`; theirs close lines that end within 1 m of their beginning, and choose the
  nearest by height, too, three times as heavy: what is on another level is not near.
- Agents without any valid step do not count; there they are agents without mishap.
- A scene with nothing to score by (no vehicles) is NaN; theirs would be, too, but always have a recording vehicle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from .divergence import Histogram
from .metrics import Bools, Features
from .recording import Array
from .scene import Kind

PSEUDO_COUNT = 0.1  # of each bin
INDICATION = Histogram(-0.5, 1.5, 2)  # no and yes
INDICATION_PSEUDO_COUNT = 0.001


@dataclass(frozen=True)
class Series:
    """A feature that is scored step by step."""

    feature: str  # of `Features`
    histogram: Histogram
    differences: int = 0  # how often it is a central difference: its steps need valid ones on both sides
    vehicles: bool = False  # only of these


SERIES: Mapping[str, Series] = MappingProxyType(
    {
        "linear_speed": Series("speed_m_s", Histogram(0.0, 25.0, 10), 1),
        "linear_acceleration": Series("acceleration_m_s2", Histogram(-12.0, 12.0, 11), 2),
        "angular_speed": Series("angular_speed_rad_s", Histogram(-0.628, 0.628, 11), 1),
        "angular_acceleration": Series("angular_acceleration_rad_s2", Histogram(-3.14, 3.14, 11), 2),
        "distance_to_nearest_object": Series("spacing_m", Histogram(-5.0, 40.0, 10)),
        "time_to_collision": Series("time_to_collision_s", Histogram(0.0, 5.0, 10), vehicles=True),
        "distance_to_road_edge": Series("road_edge_m", Histogram(-20.0, 40.0, 10)),
    }
)
GROUPS: Mapping[str, Mapping[str, float]] = MappingProxyType(  # weights in the meta-metric, where they sum to 1
    {
        "kinematic": {
            "linear_speed": 0.05,
            "linear_acceleration": 0.05,
            "angular_speed": 0.05,
            "angular_acceleration": 0.05,
        },
        "interactive": {"distance_to_nearest_object": 0.1, "collision_indication": 0.25, "time_to_collision": 0.1},
        "map_based": {"distance_to_road_edge": 0.05, "offroad_indication": 0.25, "traffic_light_violation": 0.05},
    }
)


@dataclass(frozen=True, eq=False)
class Realism:
    """Likelihoods of the logs, between 0 and 1; means over scenes are the data set's numbers.

    NaN where a scene has nothing to score by: time to collision without vehicles, and with it all that it is in.
    """

    likelihoods: dict[str, Array]  # of each component, [scenes]
    groups: dict[str, Array]  # weighted means: kinematic, interactive, map_based; [scenes]
    meta: Array  # [scenes]


def realism(log: Features, simulated: Features) -> Realism:
    """How likely the logs are among the rollouts.

    Args:
        log: of the same scenes in a world with one rollout (`metrics.logged`); its `who` says who is scored, and when.
        simulated: of all rollouts, those of a scene one after the other. Its `who` does not matter.

    Raises:
        ValueError: these are not rollouts of the same scenes, agents and steps.
    """
    scenes, agents, steps = log.who.shape
    rollouts = len(simulated.who) // max(scenes, 1)
    if not rollouts or simulated.who.shape != (scenes * rollouts, agents, steps):
        raise ValueError(
            f"simulated {simulated.who.shape}: expected rollouts x {scenes}, {agents}, {steps}, as the log"
        )
    vehicles = log.who & (log.kind == Kind.VEHICLE)[..., None]
    found = {}
    for name, one in SERIES.items():
        valid = vehicles if one.vehicles else log.who
        for _ in range(one.differences):
            valid = _between(valid)
        values = getattr(simulated, one.feature).reshape(scenes, rollouts, agents, steps)
        found[name] = _series(getattr(log, one.feature), values, valid, one.histogram)
    mishaps = {
        "collision_indication": (log.spacing_m < 0, simulated.spacing_m < 0, log.who),
        "offroad_indication": (log.road_edge_m > 0, simulated.road_edge_m > 0, log.who),
        "traffic_light_violation": (log.ran_red_light, simulated.ran_red_light, vehicles),
    }
    for name, (logged, ours, valid) in mishaps.items():
        happened = np.any(ours.reshape(scenes, rollouts, agents, steps) & valid[:, None], axis=-1)
        found[name] = _indication(np.any(logged & valid, axis=-1), happened, np.any(log.who, axis=-1))
    groups = {
        group: np.sum([weight * found[name] for name, weight in weights.items()], axis=0) / sum(weights.values())
        for group, weights in GROUPS.items()
    }
    meta = np.sum([sum(weights.values()) * groups[group] for group, weights in GROUPS.items()], axis=0)
    return Realism(found, groups, meta)


def log_likelihood(log: Array, simulated: Array, histogram: Histogram, pseudo_count: float) -> Array:
    """`[..., steps]` of each logged value among simulated ones.

    Args:
        log: `[..., steps]`.
        simulated: `[..., samples]`; NaN are left out.
        pseudo_count: added to each bin's count, so that no bin is impossible.
    """
    bins = histogram.index(simulated)
    known = ~np.isnan(simulated)
    counts = np.stack([(known & (bins == i)).sum(axis=-1) for i in range(histogram.bins)], axis=-1) + pseudo_count
    shares = counts / counts.sum(axis=-1, keepdims=True)
    return np.log(np.take_along_axis(shares, histogram.index(log), axis=-1))


def _series(log: Array, simulated: Array, valid: Bools, histogram: Histogram) -> Array:
    """`[scenes]` of `[scenes, agents, steps]` and `[scenes, rollouts, agents, steps]`."""
    pooled = np.moveaxis(simulated, 1, 2).reshape(*log.shape[:2], -1)
    return _exp_mean(log_likelihood(log, pooled, histogram, PSEUDO_COUNT), valid & ~np.isnan(log))


def _indication(log: Bools, simulated: Bools, valid: Bools) -> Array:
    """`[scenes]` of `[scenes, agents]` and `[scenes, rollouts, agents]`."""
    samples = np.moveaxis(simulated, 1, 2).astype(np.float64)
    scores = log_likelihood(log[..., None].astype(np.float64), samples, INDICATION, INDICATION_PSEUDO_COUNT)
    return _exp_mean(scores, valid[..., None])


def _exp_mean(scores: Array, valid: Bools) -> Array:
    number = valid.sum(axis=(1, 2))
    total = np.where(valid, scores, 0.0).sum(axis=(1, 2))
    return np.exp(np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0))


def _between(valid: Bools) -> Bools:
    """`[..., steps]`: where the steps before and after are valid; never the first nor the last."""
    inside = np.zeros_like(valid)
    inside[..., 1:-1] = valid[..., 2:] & valid[..., :-2]
    return inside
