"""Training a world model on recorded scenes with Ray Train."""

from __future__ import annotations

import json
import math
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import train
from ray.train.torch import TorchTrainer, prepare_model
from ray.util.queue import Empty, Queue

from ..cluster.session import cpus, session
from ..policies.driving.evaluation import by_model, errors_of
from ..policies.driving.imitation import FIRST, Imitation
from ..policies.driving.model_file import load_model, load_optimizer, save_model, save_optimizer
from ..policies.driving.tokens import STRIDE, SceneTokens, batch_of
from ..policies.driving.world_model import WorldModelSettings
from ..scenarios.errors import InputError

STATE, OPTIMIZER, SETTINGS = "state.json", "optimizer.safetensors", "training.json"
PAST = 50  # frames of history at most: five seconds
WARM = 0.05  # of all updates, in which the learning rate rises
# Threads that wait for each other sleep: beside other busy processes, those that spin take four times as long and more.
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class TrainingSettings:
    """How a world model is trained."""

    model: WorldModelSettings = field(default_factory=WorldModelSettings)
    epochs: int = 20
    batch: int = 8  # scenes in an update, of each worker
    moments: int = 3  # of each scene in an update after which the future is predicted
    agents: int = 128  # whose future is predicted after each of them, of all scenes of a batch together
    learning_rate: float = 1e-3
    decay: float = 1e-4
    clip: float = 1.0
    seed: int = 0
    workers: int = 1
    gpu: bool = False


@dataclass(frozen=True)
class Epoch:
    """How far training is."""

    epoch: int  # that are done
    loss: float
    min_fde: float  # metres, of the best of all modes, on what it learns from
    held_out_min_fde: float  # metres, of the held-out scenes; NaN without any
    seconds: float


def train_world_model(
    scenes: Sequence[SceneTokens], held_out: Sequence[SceneTokens], settings: TrainingSettings, out: Path, address: str,
    heard: Callable[[Epoch], None],
) -> Path:  # fmt: skip
    """Trains, or goes on where training in `out` stopped; the model is written into `out` at the end of every epoch.

    Args:
        held_out: of which errors are told after each epoch; nothing is learnt from them.
        address: of Ray, as `throng run` takes it.
        heard: called after each epoch.

    Returns:
        The folder of the model.

    Raises:
        InputError: `out` holds another training.
    """
    out = out.resolve()
    usable = [one for one in scenes if one.there.shape[1] > FIRST + STRIDE]
    if not usable:
        raise InputError(f"no scene is longer than the {(FIRST + STRIDE) / 10:g} s that training needs")
    _require_same(settings, [one.name for one in scenes], out)
    with session(address, max(cpus(), settings.workers + 1)):
        news = Queue(actor_options={"num_cpus": 0})
        threads = max(1, cpus() // settings.workers) if address == "local" else 1
        needs: dict[str, float] = {"CPU": 1, **({"GPU": 1} if settings.gpu else {})}
        trainer = TorchTrainer(
            _train,
            train_loop_config={
                "scenes": ray.put(usable), "held_out": ray.put(list(held_out)), "settings": settings, "news": news,
                "threads": threads,
            },
            scaling_config=train.ScalingConfig(
                num_workers=settings.workers, use_gpu=settings.gpu, resources_per_worker=needs
            ),
            run_config=train.RunConfig(  # type: ignore[call-arg]  # Ray declares the older one
                name="training",
                storage_path=str(out),
                worker_runtime_env={"env_vars": PATIENT},
                checkpoint_config=train.CheckpointConfig(num_to_keep=2),
                failure_config=train.FailureConfig(max_failures=3),
            ),
        )  # fmt: skip
        result = _listened(trainer, news, heard)
    if result.checkpoint is None:
        raise RuntimeError(f"training ended without a model: {result.error}")
    with result.checkpoint.as_directory() as folder:
        model = load_model(Path(folder))
        state = json.loads((Path(folder) / STATE).read_text())
    save_model(model, out, epochs=state["epoch"], scenes=len(usable), held_out=len(held_out))
    return out


def _require_same(settings: TrainingSettings, names: list[str], out: Path) -> None:
    """Remembers what is trained on what; refuses to go on with something else."""
    given = {**asdict(settings), "scenes": names}
    # How long, and on how many workers, may change.
    told = {key: one for key, one in given.items() if key not in ("epochs", "workers", "gpu")}
    path = out / SETTINGS
    if path.is_file():
        before = json.loads(path.read_text())
        wrong = [key for key, one in told.items() if before.get(key) != one]
        if wrong:
            raise InputError(
                f"{out}: a training with other {' and '.join(wrong)} was begun here; choose another folder, or the same "
                "files and options to go on with it"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n")


def _listened(trainer: TorchTrainer, news: Queue, heard: Callable[[Epoch], None]) -> train.Result:
    """Waits for the end of training and hands on what comes before it."""
    ended: queue.SimpleQueue[train.Result | BaseException] = queue.SimpleQueue()

    def fit() -> None:
        try:
            ended.put(trainer.fit())
        except BaseException as error:  # handed on to who waits
            ended.put(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive() or not news.empty():
        try:
            heard(Epoch(**news.get(timeout=0.5)))
        except Empty:
            continue
    result = ended.get()
    if isinstance(result, BaseException):
        raise result
    return result


def _train(config: dict[str, Any]) -> None:
    """What each of Ray Train's workers does."""
    settings: TrainingSettings = config["settings"]
    scenes: list[SceneTokens] = ray.get(config["scenes"])
    held_out: list[SceneTokens] = ray.get(config["held_out"])
    torch.set_num_threads(config["threads"])
    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(settings.seed)
    imitation = Imitation(settings.model)
    optimizer = torch.optim.AdamW(imitation.parameters(), lr=settings.learning_rate, weight_decay=settings.decay)
    done = _restored(imitation, optimizer)
    learner = prepare_model(imitation)
    device = next(learner.parameters()).device
    updates = math.ceil(len(scenes) / (settings.batch * world))
    total = updates * settings.epochs
    for epoch in range(done, settings.epochs):
        began = time.monotonic()
        rng = np.random.default_rng([settings.seed, epoch])
        # Everybody draws the same order and takes their own share of it; the last round begins again at the front.
        order = np.resize(rng.permutation(len(scenes)), updates * settings.batch * world)
        own = np.random.default_rng([settings.seed, epoch, rank])
        generator = torch.Generator().manual_seed(int(own.integers(2**62)))
        sums = np.zeros(5)
        for update in range(updates):
            first = (update * world + rank) * settings.batch
            chosen = [scenes[i] for i in order[first : first + settings.batch]]
            rate = _rate((epoch * updates + update + 1) / total)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate
            sums += _update(learner, optimizer, chosen, settings, own, generator, device)
        errors = [math.nan]
        if rank == 0 and held_out:
            imitation.eval()
            errors = list(errors_of(held_out, by_model(imitation.model.cpu()), settings.model.future).min_fde)
            imitation.to(device).train()
        agents = max(sums[1], 1.0)
        told = asdict(
            Epoch(epoch + 1, sums[0] / agents, sums[4] / agents, float(np.mean(errors)), time.monotonic() - began)
        )
        if rank == 0:
            with tempfile.TemporaryDirectory() as folder:
                save_model(imitation.model, Path(folder))
                save_optimizer(optimizer, Path(folder) / OPTIMIZER)
                (Path(folder) / STATE).write_text(json.dumps({"epoch": epoch + 1}))
                train.report(told, checkpoint=train.Checkpoint.from_directory(folder))
            config["news"].put(told)
        else:
            train.report(told)


def _rate(share: float) -> float:
    """Of the learning rate: up to the whole of it, then down on half a cosine."""
    if share < WARM:
        return share / WARM
    return 0.5 * (1 + math.cos(math.pi * (share - WARM) / (1 - WARM)))


def _update(
    learner: torch.nn.Module, optimizer: torch.optim.Optimizer, scenes: list[SceneTokens], settings: TrainingSettings,
    rng: np.random.Generator, generator: torch.Generator, device: torch.device,
) -> np.ndarray:  # fmt: skip
    """One step on some scenes; the sums of its losses."""
    window = PAST + settings.model.future
    begins = [int(rng.integers(max(1, one.there.shape[1] - window + 1))) for one in scenes]
    batch = batch_of(scenes, begins, window).to(device)
    # Early enough that the shortest scene still has a future; the latest says how much is to be encoded.
    latest = min(PAST, min(one.there.shape[1] for one in scenes) - STRIDE)
    moments = np.arange(FIRST, latest + 1, STRIDE)
    frames = rng.choice(moments, min(settings.moments, len(moments)), replace=False)
    loss = learner(batch, tuple(int(one) for one in frames), settings.agents, generator)
    optimizer.zero_grad()
    (loss.total / loss.agents.clamp_min(1.0)).backward()
    torch.nn.utils.clip_grad_norm_(learner.parameters(), settings.clip)
    optimizer.step()
    return np.array([float(one.detach()) for one in loss])


def _restored(imitation: Imitation, optimizer: torch.optim.Optimizer) -> int:
    """Epochs that a checkpoint has behind it, whose weights are then taken."""
    checkpoint = train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        imitation.model.load_state_dict(load_model(Path(folder)).state_dict())
        load_optimizer(optimizer, Path(folder) / OPTIMIZER)
        return int(json.loads((Path(folder) / STATE).read_text())["epoch"])
