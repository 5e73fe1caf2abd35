"""Episodes of a fine-tuning with batched, incremental rollouts and stacked agents, against the public code's way of doing it.

There, every rollout is played by itself, the world model encodes the map and all of the history again in every half second
(batch 1), and agents are updated one after the other. Both ways here use the same world model with the same (random) weights
and the same networks; the scene is of SUMO traffic in the built-in town.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from imagined import forward
from measure import Result, here, in_turns, ratio
from public_update import PublicAgent, rollouts_of
from throng.platform.scenes import Wanted
from throng.policies.driving.imagination import likeliest
from throng.policies.driving.tokens import STRIDE
from throng.policies.driving.world_model import WorldModel
from throng.policies.marl.actors import Learner
from throng.policies.marl.algorithms import ALGORITHMS
from throng.policies.marl.driving import DrivingTerms, driven
from throng.policies.marl.game import Played, Seen, play
from throng.policies.marl.imagined import OWN, ImaginedGame
from throng.scenarios.driving.insertion import drivers
from throng.scenarios.driving.scene import Scene
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import scenes

ROLLOUTS, AGENTS = 32, 5
PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}
OF_AGENTS = ("observation", "draw", "log_prob", "magnet", "reward", "cost")  # what `Played` has of each


@torch.no_grad()
def alone(game: ImaginedGame, learner: Learner, random: torch.Generator) -> np.ndarray:
    """One rollout with everything encoded anew in every half second; what the agents did, `[moments, agents, 2]`."""
    known, frame = game.tokens, game.tokens.history - 1
    agents, there = known.agents.copy(), known.there.copy()
    own = game.drivers.numpy()
    done = []
    for _ in range(game.horizon):
        found, rows = forward(game.model, replace(known, agents=agents, there=there), frame)
        place = {row: i for i, row in enumerate(rows.tolist())}
        feature = found.feature[[place[one] for one in own.tolist()]].flatten(-2)
        told = torch.cat([feature, torch.zeros(len(own), OWN)], dim=-1)[None]
        draw, _ = learner.act(Seen(told, told), random)
        action = learner.head.action(draw)[0]
        way = found.trajectory[torch.arange(len(rows)), likeliest(found), :STRIDE].numpy()
        before = np.concatenate([agents[rows, frame, None, :2], way[:, :-1, :2]], axis=1)
        moved = way[..., :2] - before
        coming = slice(frame + 1, frame + 1 + STRIDE)
        there[:, coming] = there[:, frame, None]
        agents[rows, coming, :3] = way
        agents[rows, coming, 3] = 10 * (moved[..., 0] * np.cos(way[..., 2]) + moved[..., 1] * np.sin(way[..., 2]))
        agents[own, coming] = driven(torch.from_numpy(agents[own, frame]), action).numpy()
        frame += STRIDE
        done.append(action.numpy())
    return np.stack(done)


def finetuning(quick: bool) -> list[Result]:
    """Rollouts and updates of both ways; one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = WorldModel().eval()
    scene = max(scenes(Wanted(4, begin=900.0)), key=lambda one: int(one.valid[:, one.history - 1].sum()))
    chosen = drivers(scene, AGENTS).tolist()
    game = ImaginedGame(model, scene, chosen, DrivingTerms(), horizon=3 if quick else 12)
    learner = ALGORITHMS["trafficgamer"].made(game, ALGORITHMS["trafficgamer"].settings(), 0)
    rollouts = 8 if quick else ROLLOUTS

    def together() -> None:
        play(game, learner.act, learner.head.action, rollouts, torch.Generator().manual_seed(0))

    costs = in_turns(
        2 if quick else 5,
        {
            "alone": lambda: here(lambda: alone(game, learner, torch.Generator().manual_seed(0))),
            "together": lambda: here(together),
        },
    )
    times = rollouts * ratio(costs["alone"], costs["together"])
    seconds = min(one.cpu for one in costs["together"])
    detail = (
        f"{AGENTS} drivers among {int(game.tokens.there[:, game.tokens.history - 1].sum())} agents, {rollouts} rollouts of "
        f"{game.horizon} half seconds: {seconds:.2f} CPU s an episode, {1 / seconds:.2g} episodes/s"
    )
    return [
        Result(
            "fine-tuning, rollouts: one by one, encoded anew / batched and incremental", times, 5.0, "higher", detail
        ),
        *(_updates(name, model, scene, agents, rollouts, quick) for name in ALGORITHMS for agents in (AGENTS, 10)),
        _agents(model, scene, rollouts, quick),
    ]


def _agents(model: WorldModel, scene: Scene, rollouts: int, quick: bool) -> Result:
    """Of an episode, rollouts and update: ten drivers against four in the same scene."""
    algorithm = ALGORITHMS["trafficgamer"]

    def episode(agents: int) -> Callable[[], None]:
        game = ImaginedGame(model, scene, drivers(scene, agents).tolist(), DrivingTerms(), 3 if quick else 12)
        learner = algorithm.made(game, algorithm.settings(), 0)

        def play_and_learn() -> None:
            learner.update(play(game, learner.act, learner.head.action, rollouts, torch.Generator().manual_seed(0)))

        return play_and_learn

    ways = {agents: episode(agents) for agents in (4, 10)}
    costs = in_turns(2 if quick else 5, {str(agents): lambda way=way: here(way) for agents, way in ways.items()})
    seconds = {agents: min(one.cpu for one in own) for agents, own in costs.items()}
    detail = f"{rollouts} rollouts: {seconds['10']:.2f} against {seconds['4']:.2f} CPU s"
    return Result("fine-tuning, an episode: 10 agents / 4", ratio(costs["10"], costs["4"]), 3.0, "lower", detail)


def _updates(name: str, model: WorldModel, scene: Scene, agents: int, rollouts: int, quick: bool) -> Result:
    """Of an algorithm, on the same rollouts: agents in one stack, whose critics share a layer, or a learner for each, apart.

    Told beside: what the ratio would be if of the stack's time only its products of matrices were left, and the loop, which
    runs the same code with one agent, were quicker by as much. A value below the bar means that no cheaper step beside the
    products brings the stack there. And beside MAPPO's: the public code's way, which differs in more than the loop
    (optimiser, how moments are put together).
    """
    algorithm = ALGORITHMS[name]
    game = ImaginedGame(model, scene, drivers(scene, agents).tolist(), DrivingTerms(), 3 if quick else 12)
    settings = algorithm.settings()
    stack = algorithm.made(game, settings, 0)
    played = play(game, stack.act, stack.head.action, rollouts, torch.Generator().manual_seed(0))
    wide = agents * game.numbers
    ours = [algorithm.learner(1, game.numbers, algorithm.head(), settings, 0, wide) for _ in range(agents)]
    told = played.observation.flatten(2)[:, :, None]
    parts = [
        Played(**{each: getattr(played, each)[:, :, one : one + 1] for each in OF_AGENTS}, blocks=told)
        for one in range(agents)
    ]

    def one_by_one() -> None:
        for learner, part in zip(ours, parts, strict=True):
            learner.update(part)

    ways: dict[str, Callable[[], object]] = {"ours": one_by_one, "stack": lambda: stack.update(played)}
    if name == "mappo":
        public, kept = [PublicAgent(agents, game.numbers, settings) for _ in range(agents)], rollouts_of(played)

        def as_public() -> None:
            for one, learner in enumerate(public):
                learner.update(kept, one)

        ways["public"] = as_public
    costs = in_turns(2 if quick else 5, {way: lambda call=call: here(call) for way, call in ways.items()})
    rows = played.reward.shape[0] * played.reward.shape[1]
    least = 1e3 * min(one.cpu for one in costs["stack"])
    products = min(_of_products(lambda: stack.update(played)) for _ in range(len(costs["stack"])))
    most = median((a.cpu - b.cpu + products) / products for a, b in zip(costs["ours"], costs["stack"], strict=True))
    detail = (
        f"{rows} rows, {settings.epochs} passes, {least:.0f} CPU ms, {1e3 * products:.0f} of them in products of matrices; "
        f"with nothing else {most:.2f}"
    )
    if "public" in costs:
        detail += f"; the public code's way {ratio(costs['public'], costs['stack']):.2f} times"
    value = ratio(costs["ours"], costs["stack"])
    return Result(f"fine-tuning, updates of {name}: {agents} agents one by one / stacked", value, 3.0, "higher", detail)


def _of_products(call: Callable[[], object]) -> float:
    """CPU seconds of a call that its products of matrices take."""

    class Clock(TorchDispatchMode):
        seconds = 0.0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            began = time.process_time()
            found = func(*args, **(kwargs or {}))
            if func in PRODUCTS:
                self.seconds += time.process_time() - began
            return found

    with Clock() as clock:
        call()
    return clock.seconds
