"""Fine-tuning: a scene, a world model, and vehicles that learn to drive in it; what they learn is measured at the end.

The loop: actors play games with the policies of now, a learner apart learns from them, and so on; every few episodes what it
knows is committed. Results do not depend on how many actors there are.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol
from typing import cast as cast_to

import numpy as np
import ray
import torch
from rich.console import Console
from tensorboardX import SummaryWriter

from ..cluster.session import cpus, session
from ..policies.driving.model_file import MODEL, load_model
from ..policies.driving.tokens import STRIDE, tokens_of
from ..policies.driving.world_model import WorldModel
from ..scenarios.driving.files import read_scenes
from ..scenarios.driving.insertion import drivers, with_goals, with_newcomers
from ..scenarios.driving.scene import Scene
from ..scenarios.errors import InputError
from ..workers.fleet import Failure, Fleet, FleetError, Rules
from ..workers.games import Arrays, GameSpec, GameWorker, Prices, actor_of
from ..workers.member import Question
from ..workers.placement import rollout_options, rollouts_on
from ..workers.pool import TENSOR_ALLOCATOR
from .finetuning_config import RLLIB, EvaluationConfig, FineTuningConfig, SumoSceneConfig
from .progress import Progress
from .scenes import Wanted, scenes_from_sumo
from .seeds import child_seed
from .store import RunStore
from .telemetry import recorded
from .world_training import Epoch, TrainingSettings, train_world_model

BLOCK = 10  # episodes between two checkpoints
RESTRICTED = 16  # games on which each mode is tried
CHUNK = 8  # generated futures of one call


def run(
    config: FineTuningConfig, directory: Path, resume: bool, console: Console,
    heard: Callable[[dict[str, float]], None] | None = None,
) -> RunStore:  # fmt: skip
    """Trains to the end (or on from where it stopped) and evaluates; returns the store, closed.

    Args:
        heard: called with each block that is committed: `episodes` so far, and the mean `return` of the block's.

    Raises:
        InputError: bad inputs or a directory in use, before any rollout.
        FleetError: more workers were lost than the configuration allows.
    """
    with Progress(console) as progress:
        progress.phase("reading")
        scene, chosen = cast(config, progress)
        model = None if _to_train(config) else load_model(config.world_model.folder)
        settings = config.settings()
        store = RunStore.create(directory, config, extend=resume)
        try:
            spec = GameSpec(
                model or _world_model(config, progress), scene, chosen, config.terms.terms(), config.scene.horizon,
                config.scene.most, config.actors, settings, child_seed(config.seed, "learner"),
            )  # fmt: skip
            with recorded(store, progress):
                state: Arrays | None = None
                if config.system == RLLIB:
                    from .rllib_run import rllib_crew  # importing RLlib takes seconds

                    with rllib_crew(config, spec, store.manifest().get("episodes", 0)) as players:
                        state = _trained(config, store, players, progress, heard)
                with crew(config, spec, progress) as workers:
                    if state is None:
                        state = _trained(config, store, workers, progress, heard)
                    _evaluated(config, replace(spec, algorithm=config.system), store, workers, state, progress)
        finally:
            store.close()
    return store


def cast(config: FineTuningConfig, progress: Progress) -> tuple[Scene, tuple[int, ...]]:
    """The scene, newcomers included, and who is driven in it.

    Raises:
        InputError: naming the file, the scene, the agent or the lane that is not there.
    """
    given = config.scene
    scene = _scene(given.file, given.name) if given.file else _sumo_scene(given.sumo or SumoSceneConfig(), progress)
    scene = with_newcomers(scene, tuple(one.newcomer() for one in given.insert))
    scene = with_goals(scene, given.goals)
    chosen = drivers(scene, given.agents, given.drive)
    idle = [name for name in given.goals if scene.ids.index(name) not in chosen]
    if idle:
        raise InputError(f"scene.goals: {idle[0]!r} is not driven; name it in scene.drive, too")
    left = (scene.steps - scene.history) // STRIDE
    if left < (given.horizon or 1):
        raise InputError(f"scene {scene.name!r} has {left} half seconds left, not {given.horizon or 1} (scene.horizon)")
    return scene, tuple(chosen.tolist())


def prepare(config: FineTuningConfig, progress: Progress) -> None:
    """Trains the world model that is to be trained first: once, before several runs want it at the same time."""
    if _to_train(config):
        _world_model(config, progress)


def _to_train(config: FineTuningConfig) -> bool:
    """Whether a world model is to be trained first."""
    return config.world_model.scenes > 0 and not (config.world_model.folder / MODEL).is_file()


def _world_model(config: FineTuningConfig, progress: Progress) -> WorldModel:
    """Trained on SUMO's scenes, and kept in its folder."""
    given, sumo = config.world_model, config.scene.sumo or SumoSceneConfig()
    wanted = Wanted(given.scenes, seed=sumo.seed + 1)
    with tempfile.TemporaryDirectory(prefix="throng-") as scratch:
        files = scenes_from_sumo(sumo.config, None, 0.1, wanted, Path(scratch), progress)
        scenes = [tokens_of(scene) for path in files for scene in read_scenes(path)]
    progress.phase("training a world model")

    def heard(epoch: Epoch) -> None:
        progress.advance(epoch.epoch / given.epochs, f"loss {epoch.loss:.2f} · minFDE {epoch.min_fde:.2f} m")

    settings = TrainingSettings(epochs=given.epochs)
    return load_model(train_world_model(scenes, [], settings, given.folder, config.workers.address, heard))


def _scene(path: Path, name: str | None) -> Scene:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    names = []
    for scene in read_scenes(path):
        if name in (None, scene.name):
            return scene
        names.append(scene.name)
    raise InputError(f"{path}: no scene {name!r} there; it has {', '.join(names[:5])}")


def _sumo_scene(given: SumoSceneConfig, progress: Progress) -> Scene:
    """The one of several in which most agents move."""
    wanted = Wanted(given.scenes, begin=given.begin, seed=given.seed)
    with tempfile.TemporaryDirectory(prefix="throng-") as scratch:
        files = scenes_from_sumo(given.config, None, 0.1, wanted, Path(scratch), progress)
        scenes = [scene for path in files for scene in read_scenes(path)]
    return max(scenes, key=_moving)


def _moving(scene: Scene) -> int:
    now = scene.history - 1
    off = np.linalg.norm(scene.tracks[:, -1, :2] - scene.tracks[:, now, :2], axis=1)
    return int((scene.valid[:, now] & scene.valid[:, -1] & (off > 2.0)).sum())


class Crew(Protocol):
    """Who plays and who learns."""

    def each(self, method: str, calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Numbers and results of calls of `GameWorker`, as they come."""

    def learn(self, state: Arrays, parts: Sequence[Arrays]) -> tuple[Arrays, Arrays]:
        """See `GameWorker.learn`."""


class LocalCrew:
    """All of it in this process."""

    def __init__(self, spec: GameSpec) -> None:
        self._worker = GameWorker(spec)

    def each(self, method: str, calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        for number, call in enumerate(calls):
            yield number, getattr(self._worker, method)(*call)

    def learn(self, state: Arrays, parts: Sequence[Arrays]) -> tuple[Arrays, Arrays]:
        return self._worker.learn(state, *parts)


class RayCrew:
    """Actors that play, and one that learns; all are replaced when they are lost."""

    def __init__(self, spec: GameSpec, config: FineTuningConfig, size: int, progress: Progress) -> None:
        given = config.workers
        shared = ray.put(spec)
        actor = ray.remote(GameWorker)
        rules = Rules(given.deadline, restarts=given.restarts)

        def alive() -> Question:
            return "process", ()

        def pulse(fleet: Fleet) -> None:
            progress.waits(fleet.name, *fleet.waiting())

        options = rollout_options(given.memory) | {"runtime_env": {"env_vars": TENSOR_ALLOCATOR}}
        self._players = Fleet(
            "player", lambda: actor.options(**options).remote(shared), size, rules, alive, pulse=pulse
        )
        learning = options | {"num_cpus": 0.25}
        self._learner = Fleet("learner", lambda: actor.options(**learning).remote(shared), 1, rules, alive, pulse=pulse)

    def each(self, method: str, calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        # What is large is the same in all calls: it goes to the object store once.
        known: dict[int, Any] = {}

        def shared(one: Any) -> Any:
            if not isinstance(one, dict):
                return one
            if id(one) not in known:
                known[id(one)] = ray.put(one)
            return known[id(one)]

        asked = ((number, tuple(shared(one) for one in call)) for number, call in enumerate(calls))
        for number, result in self._players.run(method, asked):
            yield cast_to(int, number), _must(method, result)

    def learn(self, state: Arrays, parts: Sequence[Arrays]) -> tuple[Arrays, Arrays]:
        arguments = tuple(ray.put(one) for one in (state, *parts))
        ((_, result),) = self._learner.run("learn", [(0, arguments)])
        told: tuple[Arrays, Arrays] = _must("learn", result)
        return told

    def close(self) -> None:
        self._players.close()
        self._learner.close()


def _must(method: str, result: Any) -> Any:
    if isinstance(result, Failure):
        raise FleetError(f"{method} failed again and again: {result.error}")
    return result


@contextlib.contextmanager
def crew(config: FineTuningConfig, spec: GameSpec, progress: Progress) -> Iterator[Crew]:
    """Workers in this process (`workers.rollouts: 0`) or on Ray."""
    given = config.workers
    if given.rollouts == 0:
        yield LocalCrew(spec)
        return
    with session(given.address, (given.rollouts or cpus()) + 1) as there:
        workers = RayCrew(spec, config, given.rollouts or rollouts_on(there(), 1), progress)
        try:
            yield workers
        finally:
            if ray.is_initialized():
                workers.close()


def _trained(
    config: FineTuningConfig, store: RunStore, workers: Crew, progress: Progress,
    heard: Callable[[dict[str, float]], None] | None,
) -> Arrays:  # fmt: skip
    """What the learner knows after all episodes."""
    facts = store.manifest()
    done, block, curve = facts.get("episodes", 0), facts["generation"], facts.get("gap_curve", [])
    ((_, state),) = workers.each("first", [()])
    if done:
        state = {name: one.numpy() for name, one in store.checkpoint().items()}
    training = config.training
    sizes = [min(training.chunk, training.rollouts - first) for first in range(0, training.rollouts, training.chunk)]
    progress.phase("training", share=done / training.episodes)
    writer = SummaryWriter(str(store.directory))
    rows: list[dict[str, Any]] = []
    for episode in range(done, training.episodes):
        began = time.monotonic()
        actor = actor_of(state)
        calls = [(actor, child_seed(config.seed, "play", episode, part), size) for part, size in enumerate(sizes)]
        parts = [part for _, part in sorted(workers.each("play", calls), key=lambda one: one[0])]
        state, told = workers.learn(state, parts)
        seconds = time.monotonic() - began
        agents = len(told["return"])
        rows += [
            {
                "episode": episode,
                "agent": agent,
                "seconds": seconds,
                **{name: float(one[agent]) for name, one in told.items()},
            }
            for agent in range(agents)
        ]
        for name, one in told.items():
            writer.add_scalar(name, float(one.mean()), episode)
        progress.advance(
            (episode + 1) / training.episodes,
            f"episode {episode + 1} of {training.episodes} · return {told['return'].mean():.2f} · "
            f"cost {told['cost'].mean():.2f}",
        )
        looked = episode + 1 < training.episodes and _due(config.evaluation, episode + 1)
        if looked:
            (gaps,) = _gaps(
                config, workers, actor_of(state), (None,), agents, progress, f"gap at episode {episode + 1}"
            )
            curve.append({"episode": episode + 1, "gap": float(np.mean(gaps["gap"]))})
            progress.phase("training", share=(episode + 1) / training.episodes)
        if looked or (episode + 1) % BLOCK == 0 or episode + 1 == training.episodes:
            tensors = {name: torch.from_numpy(np.array(one)) for name, one in state.items()}
            block += 1
            store.commit(block, rows, {}, tensors, {"episodes": episode + 1, "gap_curve": curve})
            if heard is not None:
                heard({"episodes": episode + 1, "return": float(np.mean([row["return"] for row in rows]))})
            rows = []
    writer.close()
    return state


def _asked(workers: Crew, method: str, calls: Sequence[tuple[Any, ...]], progress: Progress, about: str) -> list[Any]:
    """Results in the order of the calls."""
    progress.phase(about)
    found: dict[int, Any] = {}
    for number, one in workers.each(method, calls):
        found[number] = one
        progress.advance(len(found) / len(calls), f"{len(found)} of {len(calls)}")
    return [found[number] for number in range(len(calls))]


def _due(given: EvaluationConfig, episodes: int) -> bool:
    """Whether gaps are measured after so many episodes, while training goes on."""
    return given.every > 0 and given.iterations > 0 and episodes % given.every == 0


def _response_seed(config: FineTuningConfig) -> int:
    return child_seed(config.seed, "respond")


def _gaps(
    config: FineTuningConfig, workers: Crew, actor: Arrays, prices: Sequence[Prices], agents: int, progress: Progress,
    about: str,
) -> list[dict[str, list[float]]]:  # fmt: skip
    """By each of several prices, of each driver: values of its policy and its best response, and the gap between them."""
    seed, budget = _response_seed(config), config.evaluation.budget()
    parts = [(actor, part, budget, seed) for part in range(budget.parts)]
    played = _asked(workers, "compare", parts, progress, f"{about}: policies as they are")
    reward, cost = (np.concatenate([one[name] for one in played]).mean(0) for name in ("reward", "cost"))
    calls = [(actor, agent, budget, seed, one) for one in prices for agent in range(agents)]
    found = _asked(workers, "respond", calls, progress, about)
    told = []
    for number, one in enumerate(prices):
        own = (reward if one is None else reward - one * cost).tolist()
        best = found[number * agents : (number + 1) * agents]
        gap = [max(high - low, 0.0) for low, high in zip(own, best, strict=True)]
        told.append({"own": own, "best": best, "gap": gap})
    return told


def _evaluated(
    config: FineTuningConfig, spec: GameSpec, store: RunStore, workers: Crew, state: Arrays, progress: Progress
) -> None:
    """Writes futures, and evaluation.json: how they lie to the record, and how exploitable the policies are."""
    from .finetuning_report import fidelity, write_report

    given, actor = config.evaluation, actor_of(state)
    agents = len(spec.drivers)
    sizes = [min(CHUNK, given.futures - first) for first in range(0, given.futures, CHUNK)]
    calls = [(actor, child_seed(config.seed, "drive", part), size) for part, size in enumerate(sizes)]
    futures = _asked(workers, "drive", calls, progress, "driving")
    result: dict[str, Any] = {"drivers": [spec.scene.ids[agent] for agent in spec.drivers], "futures": given.futures}
    result |= fidelity(spec, futures)
    prices: dict[str, Prices] = {"reward": None}
    dear = state.get("multiplier.value")
    if dear is not None and np.any(dear):
        prices["reward less cost"] = dear
    if given.iterations:
        each = tuple(prices.values())
        gaps = _gaps(config, workers, actor, each, agents, progress, "best responses")
        tries = [(actor, agent, RESTRICTED, _response_seed(config), each) for agent in range(agents)]
        modes = _asked(workers, "restrict", tries, progress, "modes")
        result["gaps"] = {
            name: gaps[number] | {"restricted": [one[number] for one in modes]} for number, name in enumerate(prices)
        }
    if (curve := store.manifest()["gap_curve"]) and "gaps" in result:
        last = {"episode": config.training.episodes, "gap": float(np.mean(result["gaps"]["reward"]["gap"]))}
        result["gap_curve"] = [*curve, last]
    store.write_json("evaluation.json", result)
    progress.phase("drawing")
    write_report(config, spec, store, futures, result)
