"""Driving worlds: steps, what agents see, collisions and leaving the road, against torchdrivesim (pip install torchdrivesim).

One scene of SUMO traffic, cut out of the built-in town, in B worlds with the same A vehicles and the same actions on both
sides. One thread. torchdrivesim's collisions are its IoU of boxes, which has a gradient, and its approximation of boxes by
five discs; ours are exact signed distances.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measure import Result, here, in_turns, ratio
from rich.console import Console
from throng.platform.progress import Progress
from throng.platform.scenes import Wanted, scenes_from_sumo
from throng.scenarios.driving.files import read_scenes
from throng.scenarios.driving.kinematics import REAR
from throng.scenarios.driving.observation import Observer
from throng.scenarios.driving.scene import Scene
from throng.scenarios.driving.world import World, WorldState

SIZES = [(1, 8), (1, 32), (16, 8), (16, 32), (64, 8), (64, 32), (256, 8), (256, 32)]  # worlds, agents
BAR = (64, 8)
STEPS = 40
AGREE = 1e-5  # metres and radians over STEPS steps


def scenes(wanted: Wanted) -> Iterator[Scene]:
    """Cut out of the built-in town."""
    with tempfile.TemporaryDirectory() as folder, Progress(Console(quiet=True)) as progress:
        for path in scenes_from_sumo(None, None, 0.1, wanted, Path(folder), progress):
            yield from read_scenes(path)


@cache
def scene() -> Scene:
    """With as many vehicles there throughout as the largest size has."""
    most = max(agents for _, agents in SIZES)
    for one in scenes(Wanted(8, begin=900.0, history=1.0, future=5.0, radius=300.0)):
        whole = np.flatnonzero(one.valid.all(axis=1) & (one.kind == 0))
        if len(whole) >= most:
            return _of(one, whole[:most])
    raise RuntimeError(f"no scene with {most} vehicles")


def _of(one: Scene, agents: np.ndarray) -> Scene:
    ids = tuple(one.ids[i] for i in agents)
    return replace(
        one, ids=ids, tracks=one.tracks[agents], valid=one.valid[agents], goals=one.goals[agents],
        focal=one.focal[agents], ego=-1,
    )  # fmt: skip


def world(worlds: int, agents: int, dtype: torch.dtype = torch.float32) -> World:
    one = _of(scene(), np.arange(agents))
    return World([one], [np.ones(agents, bool)], rollouts=worlds, dtype=dtype)


def actions(worlds: int, agents: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """`[STEPS, worlds, agents, 3]`: accelerations and steering angles, and nothing."""
    drawn = torch.as_tensor(np.random.default_rng(0).standard_normal((STEPS, worlds, agents, 3)), dtype=dtype)
    return drawn * torch.tensor([1.0, 0.05, 0.0], dtype=dtype)


def peer(ours: World, collisions: str, start: torch.Tensor | None = None) -> Any:
    """The same vehicles in torchdrivesim's simulator, on an empty plane."""
    from torchdrivesim.kinematic import KinematicBicycle
    from torchdrivesim.mesh import BirdviewMesh
    from torchdrivesim.rendering import RendererConfig
    from torchdrivesim.simulator import CollisionMetric, Simulator, TorchDriveConfig

    begin = ours.reset()
    model = KinematicBicycle(max_acceleration=1.0, max_steering=1.0, dt=ours.seconds)
    model.set_params(lr=REAR * ours.size[..., 0])
    model.set_state(begin.agents if start is None else start)
    settings = TorchDriveConfig(collision_metric=CollisionMetric[collisions], renderer=RendererConfig())
    return Simulator(
        BirdviewMesh.empty(batch_size=len(ours.scene)),
        {"car": model},
        {"car": ours.size},
        {"car": begin.present},
        settings,
    )


def slip(steering: torch.Tensor) -> torch.Tensor:
    """torchdrivesim steers by the slip angle itself."""
    return torch.atan(0.5 * torch.tan(steering))


def agreement() -> float:
    """The largest difference of positions and directions over `STEPS` steps of both, in double precision.

    torchdrivesim accelerates before it moves, we after (MRIC, Eq. 4 to 8): so ours begin with the first step's speed.
    """
    ours = world(16, 8, torch.float64)
    doing = actions(16, 8, torch.float64)
    theirs = peer(ours, "discs")
    state = ours.reset()
    first = state.agents.clone()
    first[..., 3] += doing[0, ..., 0] * ours.seconds
    state = WorldState(first, state.present, 0)
    apart = 0.0
    for step in range(STEPS):
        following = doing[min(step + 1, STEPS - 1), ..., :1]
        state = ours.step(state, torch.cat([following, doing[step, ..., 1:]], dim=-1))
        theirs.step({"car": torch.stack([doing[step, ..., 0], slip(doing[step, ..., 1])], dim=-1)})
        apart = max(apart, float((state.agents[..., :3] - theirs.get_state()["car"][..., :3]).abs().max()))
    return apart


def _forward(ours: World, doing: torch.Tensor, look: Callable[[list[WorldState]], object]) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        states = [ours.reset()]
        for action in doing:
            states = [*states[-5:], ours.step(states[-1], action)]
            look(states)

    return run


def _peer_forward(ours: World, doing: torch.Tensor, collisions: str) -> Callable[[], None]:
    theirs, begin = peer(ours, collisions), ours.reset().agents

    @torch.no_grad()
    def run() -> None:
        theirs.kinematic_model["car"].set_state(begin)
        for action in doing:
            theirs.step({"car": action[..., :2]})
            theirs.compute_collision()

    return run


def _gradient(ours: World, doing: torch.Tensor, collide: bool) -> Callable[[], None]:
    def run() -> None:
        given = doing.clone().requires_grad_()
        state, loss = ours.reset(), torch.zeros(())
        for action in given.unbind(0):
            state = ours.step(state, action)
            if collide:
                loss = loss - ours.nearest(state).clamp_max(1.0).sum()
        (loss + state.agents.square().sum()).backward()

    return run


def _peer_gradient(ours: World, doing: torch.Tensor, collisions: str, collide: bool) -> Callable[[], None]:
    theirs, begin = peer(ours, collisions), ours.reset().agents

    def run() -> None:
        given = doing[..., :2].clone().requires_grad_()
        theirs.kinematic_model["car"].set_state(begin)
        loss = torch.zeros(())
        for action in given.unbind(0):
            theirs.step({"car": action})
            if collide:
                loss = loss + theirs.compute_collision()["car"].sum()
        (loss + theirs.get_state()["car"].square().sum()).backward()

    return run


def driving(quick: bool) -> list[Result]:
    """Throughput of both at all sizes, forward and with gradients; bars hold at 64 worlds of 8 vehicles."""
    torch.set_num_threads(1)
    if find_spec("torchdrivesim") is None:
        print(
            "bench: driving is compared with torchdrivesim, which is not here: pip install torchdrivesim",
            file=sys.stderr,
        )
        return []
    apart = agreement()
    results = [
        Result("driving: largest difference from torchdrivesim's bicycle", apart, AGREE, "lower", f"{STEPS} steps")
    ]
    for worlds, agents in [BAR] if quick else SIZES:
        results += _size(worlds, agents, quick)
    return results


def _size(worlds: int, agents: int, quick: bool) -> list[Result]:
    ours, all_actions = world(worlds, agents), actions(worlds, agents)
    observer = Observer(ours)
    few = all_actions[: 2 if quick or worlds * agents > 2000 else 8]

    def everything(states: list[WorldState]) -> None:
        observer.observe(states)
        ours.nearest(states[-1])
        ours.off_road(states[-1])

    calls = {
        "boxes": _forward(ours, few, lambda states: ours.nearest(states[-1])),
        "all": _forward(ours, few, everything),
        "iou": _peer_forward(ours, few, "iou"),
        "discs": _peer_forward(ours, few, "discs"),
        "gradient": _gradient(ours, all_actions, False),
        "peer gradient": _peer_gradient(ours, all_actions, "discs", False),
        "gradient of collisions": _gradient(ours, few, True),
        "peer gradient of collisions": _peer_gradient(ours, few, "discs", True),
    }
    costs = in_turns(3 if quick else 9, {name: (lambda call=call: here(call)) for name, call in calls.items()})
    rate = {name: worlds * agents * len(few) / median(cost.cpu for cost in costs[name]) for name in calls}
    size = f"{worlds} x {agents}"
    at_bar = (worlds, agents) == BAR
    thousands = ", ".join(f"{name} {rate[name] / 1e3:.3g}" for name in ("boxes", "all", "iou", "discs"))
    detail = f"thousands of agent-steps/s: {thousands}"
    ms = {name: 1e3 * median(cost.cpu for cost in costs[name]) for name in calls}

    def row(name: str, theirs: str, mine: str, bar: float, text: str) -> Result:
        return Result(
            f"driving {size}: {name}", ratio(costs[theirs], costs[mine]), bar if at_bar else 0.0, "higher", text
        )

    return [
        row("step + exact boxes, times torchdrivesim's step + IoU", "iou", "boxes", 8.0, detail),
        row("step + exact boxes, times its step + discs", "discs", "boxes", 1.0, detail),
        row("all of it, times its step + IoU", "iou", "all", 0.0, "step, observation, boxes and road edges"),
        row(
            f"{STEPS} steps forward and backward", "peer gradient", "gradient", 1.5,
            f"{ms['gradient']:.3g} ms against {ms['peer gradient']:.3g}",
        ),
        row(
            f"{len(few)} steps and collisions forward and backward, times discs", "peer gradient of collisions",
            "gradient of collisions", 0.0,
            f"{ms['gradient of collisions']:.3g} ms against {ms['peer gradient of collisions']:.3g}",
        ),
    ]  # fmt: skip
