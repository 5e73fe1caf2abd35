"""What agents did in worlds, or in the logs, and how good it was: features, rates of mishaps, displacement from the log.

Steps are counted from the first after the beginning: moment 0 was given, nobody drove there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .geometry import FAR
from .recording import Array
from .scene import Kind
from .world import World, WorldState

Bools = NDArray[np.bool_]
HARDEST, TIGHTEST = 6.0, 0.3  # m/s² and 1/m (MRIC, kinematics infeasibility rate)
SLOWEST = 1.0  # m/s below which the curvature of a way is noise of the recording
SHORTEST = 1.0  # metres of a way below which its mean curvature is
MISSED = 2.0  # metres at the end (Argoverse)
STANDING, NEAR, APART = 0.3, 0.2, 60.0  # m/s, and metres between which TrafficGamer's code takes distances


@dataclass(frozen=True, eq=False)
class Features:
    """What agents did in the steps after the beginning; NaN where they were not there, or where it cannot be told.

    Speeds are central differences of positions and directions, accelerations central differences of these, as Waymo's:
    the last step has no speed, the first and the last two have no acceleration.
    """

    speed_m_s: Array  # [worlds, agents, steps]
    acceleration_m_s2: Array  # [worlds, agents, steps]
    angular_speed_rad_s: Array  # [worlds, agents, steps]
    angular_acceleration_rad_s2: Array  # [worlds, agents, steps]
    spacing_m: Array  # [worlds, agents, steps] to the nearest box of another; negative: they overlap; FAR: alone
    time_to_collision_s: Array  # [worlds, agents, steps]
    road_edge_m: Array  # [worlds, agents, steps] by which the box is off the road; negative: it is on it
    red_light_m: Array  # [worlds, agents, steps] beyond the stop of a red light; negative: before it; -FAR: none
    ran_red_light: Bools  # [worlds, agents, steps] passed the stop in this step, and the light is and was red
    step_curvature_1_m: Array  # [worlds, agents, steps] angular speed over speed; NaN of who is slower than SLOWEST
    curvature_1_m: Array  # [worlds, agents] mean over the way (MRIC does not say over what); NaN of who hardly moves
    progress_m: Array  # [worlds, agents] length of the way
    who: Bools  # [worlds, agents, steps] who is asked about, and there
    kind: NDArray[np.int64]  # [worlds, agents] a Kind each

    def samples(self, name: str) -> Array:
        """`[samples]`: a feature of those who are asked about, where it can be told."""
        values: Array = getattr(self, name)
        asked: Array = values[self.who if values.ndim == 3 else np.any(self.who, axis=-1)]
        return asked[~np.isnan(asked)]


def logged(world: World) -> list[WorldState]:
    """All moments of the logs, as if everybody had done again what it did: to measure the log like a simulation.

    Of a world with one rollout: of more it has as many copies.
    """
    return [world.logged(step) for step in range(world.horizon + 1)]


def measure(world: World, states: Sequence[WorldState], who: Bools | None = None) -> Features:
    """Features of moments that follow each other.

    Args:
        states: the first is where the steps begin from.
        who: `[worlds, agents]` or `[worlds, agents, steps]`, about whom is asked; by default, who is controlled. All are
            measured; it decides about `Features.who`, and which steps are part of a way.

    Raises:
        ValueError: fewer than two states, or they do not follow each other, or have other agents than the world.
    """
    _require_states(world, states)
    states = [replace(one, agents=one.agents.detach()) for one in states]
    moments = np.stack([_numpy(one.agents) for one in states], axis=2)  # [worlds, agents, steps + 1, 4]
    there = np.stack([one.present.cpu().numpy() for one in states], axis=2)
    present, seconds = there[..., 1:], world.seconds
    asked = np.asarray(world.controlled.cpu().numpy() if who is None else who, bool)
    if asked.shape not in (present.shape, present.shape[:2]):
        raise ValueError(f"who is {asked.shape}: expected {present.shape[:2]} or {present.shape}")
    asked = present & (asked if asked.ndim == 3 else asked[..., None])
    moments[~there] = np.nan
    xy, yaw = moments[..., :2], moments[..., 2]
    speed = np.linalg.norm(_central(xy, axis=2), axis=-1) / seconds
    # Over two steps at once: directions jump by a turn.
    turning = _wrapped(2 * _central(yaw, axis=2)) / 2 / seconds
    way = np.linalg.norm(np.diff(xy, axis=2), axis=-1)
    gone = asked & ~np.isnan(way)
    length = np.where(gone, way, 0.0).sum(axis=-1)
    turned = np.where(gone, _wrapped(np.diff(yaw, axis=2)), 0.0).sum(axis=-1)
    red = np.where(there, _each(world.red_light, states), -FAR)

    def here(measured: Callable[[WorldState], Any]) -> Array:
        return np.where(present, _each(measured, states[1:]), np.nan)

    return Features(
        speed_m_s=speed[..., 1:],
        acceleration_m_s2=_central(speed, axis=2)[..., 1:] / seconds,
        angular_speed_rad_s=turning[..., 1:],
        angular_acceleration_rad_s2=_central(turning, axis=2)[..., 1:] / seconds,
        spacing_m=here(world.nearest),
        time_to_collision_s=here(world.time_to_collision),
        road_edge_m=here(world.off_road),
        red_light_m=np.where(present, red[..., 1:], np.nan),
        ran_red_light=(red[..., 1:] > 0) & (red[..., :-1] <= 0) & (red[..., :-1] > -FAR),
        step_curvature_1_m=_ratio(turning, speed, speed > SLOWEST)[..., 1:],
        curvature_1_m=_ratio(turned, length, length > SHORTEST),
        progress_m=np.where(np.any(gone, axis=-1), length, np.nan),
        who=asked,
        kind=world.kind.cpu().numpy(),
    )


def fidelity_samples(world: World, states: Sequence[WorldState]) -> tuple[Array, Array]:
    """Speeds (m/s) of controlled agents and distances (m) of any two's centres: what TrafficGamer compares with the log.

    As in its code, those who stand and pairs that are far apart are left out; other than there, so is the history.
    """
    _require_states(world, states)
    agents = np.stack([_numpy(one.agents.detach()) for one in states[1:]])
    return samples_of(agents, np.stack([(one.present & world.controlled).cpu().numpy() for one in states[1:]]))


def samples_of(agents: Array, there: Bools) -> tuple[Array, Array]:
    """The same of agents `[..., agents, 4]` who are `there` `[..., agents]`."""
    speed = np.abs(agents[..., 3][there])
    apart = np.linalg.norm(agents[..., :, None, :2] - agents[..., None, :, :2], axis=-1)
    distance = apart[np.triu(there[..., :, None] & there[..., None, :], 1)]
    return speed[speed > STANDING], distance[(distance >= NEAR) & (distance <= APART)]


@dataclass(frozen=True, eq=False)
class Rates:
    """Shares of those who are asked about in each world, NaN where there is nobody; all but the first of vehicles."""

    collision: Array  # [worlds] who overlaps with anybody in any step; of the controlled, TrafficGamer's crash rate
    off_road: Array  # [worlds] whose box leaves the road in any step; MRIC excepts those on driveways
    off_road_steps: Array  # [worlds] of all their steps
    infeasible: Array  # [worlds] whose acceleration exceeds HARDEST, or whose curvature TIGHTEST, in any step
    red_light: Array  # [worlds] who is beyond the stop of a red light in any step, if it turned red since, too (MRIC)
    ran_red_light: Array  # [worlds] who passed it at red (Waymo)
    agents: NDArray[np.int64]  # [worlds] who are asked about
    vehicles: NDArray[np.int64]  # [worlds] of these

    def overall(self) -> dict[str, float]:
        """Of everybody in all worlds, as MRIC's; `off_road_steps` as if all vehicles had as many steps."""
        found = {}
        for name in ("collision", "off_road", "off_road_steps", "infeasible", "red_light", "ran_red_light"):
            number = self.agents if name == "collision" else self.vehicles
            share = np.nansum(getattr(self, name) * number) / max(number.sum(), 1)
            found[name] = float(share) if number.any() else float("nan")
        return found


def rates(features: Features) -> Rates:
    """How many had a mishap (MRIC, Sec. V-B, behaviour realism).

    1.4 % of the vehicles in MRIC's log are infeasible, at 5 Hz and by an estimate that it does not tell. This one finds 2 %
    of 1,863 vehicles in logs of the same data set at 5 Hz, but 11 % at 10 Hz, where the noise of recordings is larger:
    a rate says something beside that of the log.
    """
    agents: Bools = np.any(features.who, axis=-1)
    vehicles = agents & (features.kind == Kind.VEHICLE)
    asked = features.who & vehicles[..., None]
    off = asked & (features.road_edge_m > 0)
    broken = (np.abs(features.acceleration_m_s2) > HARDEST) | (np.abs(features.step_curvature_1_m) > TIGHTEST)

    def share(mishap: Bools, of: Bools) -> Array:
        """`[worlds]`, over all axes but the first."""
        number = of.reshape(len(of), -1).sum(axis=-1)
        return _ratio((mishap & of).reshape(len(of), -1).sum(axis=-1), number, number > 0)

    return Rates(
        collision=share(np.any(features.who & (features.spacing_m < 0), axis=-1), agents),
        off_road=share(np.any(off, axis=-1), vehicles),
        off_road_steps=share(off, asked),
        infeasible=share(np.any(asked & broken, axis=-1), vehicles),
        red_light=share(np.any(asked & (features.red_light_m > 0), axis=-1), vehicles),
        ran_red_light=share(np.any(asked & features.ran_red_light, axis=-1), vehicles),
        agents=agents.sum(axis=-1),
        vehicles=vehicles.sum(axis=-1),
    )


@dataclass(frozen=True, eq=False)
class Displacement:
    """Metres from the log, over the rollouts of each scene; NaN where nobody is asked about.

    Means over scenes are the data set's numbers.
    """

    ade: Array  # [scenes] mean over rollouts, agents and steps
    min_ade: Array  # [scenes] mean over agents of that of the rollout which is best for an agent
    min_sade: Array  # [scenes] of the rollout which is best for all agents together (Waymo calls this minADE)
    min_fde: Array  # [scenes] mean over agents of that in an agent's last logged step, by the best rollout there
    miss_rate: Array  # [scenes] share of agents of whom that is more than MISSED
    brier_min_fde: Array  # [scenes] `min_fde` plus (1 - the best rollout's probability)² (Argoverse 2)


def displacement(world: World, states: Sequence[WorldState], who: Bools | None = None) -> Displacement:
    """Of the rollouts of a world, all equally probable; the first state is not counted.

    Args:
        who: `[scenes, agents]`; by default, who is controlled.
    """
    _require_states(world, states)
    first, last = states[1].step, states[-1].step + 1
    xy = np.stack([_numpy(one.agents.detach())[..., :2] for one in states[1:]], axis=2)
    seen = world.seen.cpu().numpy()[:, :, first:last]
    asked = np.asarray(world.controlled.cpu().numpy()[:: world.rollouts] if who is None else who, bool)
    if asked.shape != seen.shape[:2]:
        raise ValueError(f"who is {asked.shape}: expected {seen.shape[:2]}")
    return displacement_of(xy, _numpy(world.log)[:, :, first:last, :2], seen & asked[..., None])


def displacement_of(xy: Array, log: Array, valid: Bools, probability: Array | None = None) -> Displacement:
    """Of any trajectories, such as the modes of a prediction (MRIC, Sec. V-B, scenario reconstruction; Argoverse 2).

    Args:
        xy: `[scenes * rollouts, agents, steps, 2]` metres, those of a scene one after the other.
        log: `[scenes, agents, steps, 2]`.
        valid: `[scenes, agents, steps]`, what is counted.
        probability: `[scenes * rollouts, agents]`; by default, rollouts are equally probable.

    Raises:
        ValueError: shapes that do not fit.
    """
    if valid.ndim != 3 or not len(valid) or log.shape != (*valid.shape, 2):
        raise ValueError(f"log is {log.shape}, valid {valid.shape}: expected [scenes, agents, steps, 2] and all but 2")
    scenes, agents, steps = valid.shape
    rollouts = len(xy) // scenes
    if xy.shape != (scenes * rollouts, agents, steps, 2) or not rollouts:
        raise ValueError(f"xy is {xy.shape}: expected {scenes} x rollouts, {agents} agents, {steps} steps, 2")
    if probability is None:
        probability = np.full((scenes * rollouts, agents), 1.0 / rollouts)
    if probability.shape != (scenes * rollouts, agents):
        raise ValueError(f"probability is {probability.shape}: expected {(scenes * rollouts, agents)}")
    apart = np.linalg.norm(xy.reshape(scenes, rollouts, agents, steps, 2) - log[:, None], axis=-1)
    there: Bools = np.any(valid, axis=-1)  # [scenes, agents]
    total = np.where(valid[:, None], apart, 0.0).sum(axis=-1)
    mean = total / np.maximum(valid.sum(axis=-1), 1)[:, None]  # [scenes, rollouts, agents]
    last = steps - 1 - valid[..., ::-1].argmax(axis=-1)
    final = np.take_along_axis(apart, last[:, None, :, None], axis=-1)[..., 0]
    best = final.argmin(axis=1)[:, None]
    closest = np.take_along_axis(final, best, axis=1)[:, 0]
    chance = np.take_along_axis(probability.reshape(scenes, rollouts, agents), best, axis=1)[:, 0]

    def over_agents(values: Array) -> Array:
        """`[scenes, ...]` of `[scenes, ..., agents]`."""
        some = np.broadcast_to(there if values.ndim == 2 else there[:, None], values.shape)
        number = some.sum(axis=-1)
        return _ratio(np.where(some, values, 0.0).sum(axis=-1), number, number > 0)

    return Displacement(
        ade=over_agents(mean).mean(axis=1),
        min_ade=over_agents(mean.min(axis=1)),
        min_sade=over_agents(mean).min(axis=1),
        min_fde=over_agents(closest),
        miss_rate=over_agents((closest > MISSED).astype(np.float64)),
        brier_min_fde=over_agents(closest + np.square(1.0 - chance)),
    )


def _require_states(world: World, states: Sequence[WorldState]) -> None:
    """Raises ValueError."""
    if len(states) < 2:
        raise ValueError(f"{len(states)} states: expected the first and at least one after it")
    expected = (*world.controlled.shape, 4)
    for i, one in enumerate(states):
        if one.step != states[0].step + i:
            raise ValueError(f"state {i} is of step {one.step}: expected {states[0].step + i}, one after the other")
        if tuple(one.agents.shape) != expected:
            raise ValueError(f"state {i} has agents {tuple(one.agents.shape)}: expected {expected}")


def _each(measured: Callable[[WorldState], Any], states: Sequence[WorldState]) -> Array:
    """`[worlds, agents, states]`."""
    return np.stack([_numpy(measured(one)) for one in states], axis=2)


def _numpy(tensor: Any) -> Array:
    return tensor.cpu().numpy().astype(np.float64)


def _central(values: Array, axis: int) -> Array:
    """Half of what values change by from the moment before to the one after, in their shape; NaN at both ends."""
    along = np.moveaxis(values, axis, 0)
    change = np.full_like(along, np.nan)
    change[1:-1] = (along[2:] - along[:-2]) / 2
    return np.moveaxis(change, 0, axis)


def _wrapped(angle: Array) -> Array:
    return np.mod(angle + np.pi, 2 * np.pi) - np.pi


def _ratio(values: Array, by: NDArray[Any], where: Bools) -> Array:
    """NaN elsewhere."""
    return np.divide(values, by, out=np.full(values.shape, np.nan), where=where)
