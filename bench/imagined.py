"""World-model rollouts: many futures together, only new frames encoded, against one forward for each rollout and step.

The baseline is what the public TrafficGamer code does: in every half second of every rollout the map and all of the history
are encoded again, one scene at a time. Both use the same model with the same (random) weights, and choose the same modes. The
scene is of SUMO traffic in the built-in town, with Argoverse's five seconds of history and six to come.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from measure import Result, here, in_turns, ratio
from throng.platform.scenes import Wanted
from throng.policies.driving.imagination import Imagination, likeliest
from throng.policies.driving.tokens import STRIDE, SceneTokens, batch_of, tokens_of
from throng.policies.driving.world_model import Memory, Prediction, WorldModel
from throng.scenarios.driving.scene import Scene
from worlds import scenes

ROLLOUTS, STEPS = 32, 12
COMPARED = 3  # half seconds: later, modes of random weights are so nearly equal that rounding chooses among them
AGREE = 0.05  # metres


def together(model: WorldModel, known: SceneTokens, rollouts: int, steps: int, frame: int) -> torch.Tensor:
    """The last frame `[rollouts * agents, 4]`."""
    worlds = Imagination(model, known, rollouts, frame)
    state = worlds.begin()
    for _ in range(steps):
        found, rows = worlds.predict(state)
        state = worlds.advance(state, worlds.modes(state, found, rows, likeliest(found)))
    return state.batch.agents[:, :, -1].flatten(0, 1)


def apart(model: WorldModel, known: SceneTokens, steps: int, frame: int) -> torch.Tensor:
    """One rollout, everything encoded anew in each step; `[agents, 4]`."""
    agents, there = known.agents.copy(), known.there.copy()
    for _ in range(steps):
        found, rows = forward(model, replace(known, agents=agents, there=there), frame)
        way = found.trajectory[torch.arange(len(rows)), likeliest(found), :STRIDE].numpy()
        before = np.concatenate([agents[rows, frame, None, :2], way[:, :-1, :2]], axis=1)
        moved = way[..., :2] - before
        speed = 10 * (moved[..., 0] * np.cos(way[..., 2]) + moved[..., 1] * np.sin(way[..., 2]))
        coming = slice(frame + 1, frame + 1 + STRIDE)
        there[:, coming] = there[:, frame, None]
        agents[rows, coming, :3], agents[rows, coming, 3] = way, speed
        frame += STRIDE
    return torch.from_numpy(agents[:, frame])


def forward(model: WorldModel, known: SceneTokens, frame: int) -> tuple[Prediction, torch.Tensor]:
    """The map and up to five seconds of history, then the prediction."""
    first = max(frame % STRIDE, frame - STRIDE * model.settings.memory)
    batch = batch_of([known], [first], frame - first + 1)
    encoded = model.encode_map(batch)
    memory: Memory | None = None
    for moment in range(STRIDE, frame - first + 1, STRIDE):
        memory = model.observe(batch, encoded, moment, memory)
    assert memory is not None
    rows = torch.nonzero(memory.there[:, -1])[:, 0]
    return model.predict(batch, encoded, frame - first, memory, rows), rows


def _present(scene: Scene) -> int:
    return int(scene.valid[:, scene.history - 1].sum())


@torch.no_grad()
def imagined(quick: bool) -> list[Result]:
    """Rollout-steps per second of both; one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = WorldModel().eval()
    known = tokens_of(max(scenes(Wanted(4, begin=900.0)), key=_present))
    frame = known.history - 1
    rollouts, steps = (8, 3) if quick else (ROLLOUTS, STEPS)
    one = together(model, known, 2, COMPARED, frame)
    off = float((one[: len(known.agents), :2] - apart(model, known, COMPARED, frame)[:, :2]).abs().max())
    if off > AGREE:
        raise RuntimeError(f"the two ways of rolling out differ by {off:g} m; the comparison means nothing")
    costs = in_turns(
        2 if quick else 5,
        {
            "apart": lambda: here(lambda: apart(model, known, steps, frame)),
            "together": lambda: here(lambda: together(model, known, rollouts, steps, frame)),
        },
    )
    value = rollouts * ratio(costs["apart"], costs["together"])
    each = {name: min(cost.cpu for cost in some) for name, some in costs.items()}
    there = int(known.there[:, frame].sum())
    ms = [1e3 * each["together"] / rollouts / steps, 1e3 * each["apart"] / steps]
    detail = (
        f"{there} agents, {len(known.pieces)} pieces of the map, {rollouts} rollouts of {steps} half seconds: {ms[0]:.3g} ms "
        f"a rollout and step against {ms[1]:.3g}; after {COMPARED} they differ by {off:.1g} m"
    )
    return [Result("world model: one by one / batched and incremental", value, 5.0, "higher", detail)]
