"""The reward service: the diffusion model that proposes reward models for traffic states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from ..policies.diffusion import DiffusionModel, DiffusionSettings
from ..policies.generator import GeneratorModel, GeneratorSettings
from ..policies.guidance import GuidedModel, ProxyGuidedModel
from ..policies.traffic_encoder import TrafficEncoder
from .fleet import Failure, Fleet, Rules
from .member import Question

Array = NDArray[np.float32]
RULES = Rules(deadline=600.0)
CONDITION = 16  # length of the encoded traffic state
ModelName = Literal["diffusion", "gan", "guided", "proxy"]
MODELS: dict[str, Callable[..., DiffusionModel | GuidedModel]] = {
    "diffusion": DiffusionModel,
    "guided": GuidedModel,
    "proxy": ProxyGuidedModel,
}

Model = DiffusionModel | GeneratorModel | GuidedModel


@dataclass(frozen=True, eq=False)
class Proposal:
    """Latents a model proposes, and what a mutation of them changes, where that is not the latent itself."""

    z: Array  # [samples, *latent]
    code: Array | None = None  # [samples, *code]

    def take(self, rows: NDArray[np.int64]) -> Proposal:
        return Proposal(self.z[rows], None if self.code is None else self.code[rows])


class RewardService:
    """Holds the diffusion model; trains it and draws from it. A plain class, made a Ray actor by the platform.

    `train` returns the new state to its caller, who hands it to a replacement (`load`) if this service is lost: no default
    reward is ever given in its stead.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        trips: Array | None,
        settings: DiffusionSettings,
        seed: int,
        kind: ModelName = "diffusion",
        device: str = "cpu",
    ) -> None:
        if device == "cpu":
            torch.set_num_threads(1)

        def untrained() -> Model:
            if kind == "gan":
                same = {name: getattr(settings, name) for name in ("width", "updates", "batch", "prior_share")}
                return GeneratorModel(shape, CONDITION, GeneratorSettings(**same), trips, seed, device)
            return MODELS[kind](shape, CONDITION, settings, trips, seed, device)

        self._untrained = untrained
        self._model = untrained()
        self._encoder: TrafficEncoder | None = None

    def fit_encoder(self, queues: Array) -> dict[str, torch.Tensor]:
        """Fits the encoder of traffic states to `queues [samples, roads, minutes]`; it stays fixed from then on."""
        self._encoder = TrafficEncoder.fit(queues, CONDITION)
        return self.state()

    def train(
        self, z: Array, queues: Array, score: NDArray[np.float64], seed: int
    ) -> tuple[float, dict[str, torch.Tensor]]:
        """Trains on samples and their weights (MASDiff, Eq. 9) or, guided models, errors; returns the loss and the state."""
        loss = self._model.train(z, self._encode(queues), score, seed)
        return loss, self.state()

    def sample(self, queues: Array, seed: int) -> Proposal:
        """One latent for each traffic state `[samples, roads, minutes]` (Algorithm 2, line 6)."""
        if isinstance(self._model, GeneratorModel):
            return Proposal(*self._model.sample(self._encode(queues), seed))
        return Proposal(self._model.sample(self._encode(queues), seed))

    def mutate(self, genes: Array, queues: Array, kept: float | NDArray[np.float64], seed: int) -> Proposal:
        """Children of parents given by their latents: truncated diffusion-denoising (Algorithm 2, line 10).

        Of a GAN, parents are given by their noise, and that is what is mutated.
        """
        if isinstance(self._model, GeneratorModel):
            return Proposal(*self._model.mutate(genes, self._encode(queues), kept, seed))
        if isinstance(self._model, GuidedModel):
            raise TypeError("guided models do not evolve")
        return Proposal(self._model.mutate(genes, self._encode(queues), kept, seed))

    def _encode(self, queues: Array) -> Array:
        if self._encoder is None:
            return np.zeros((len(queues), CONDITION), np.float32)
        return self._encoder.encode(queues)

    def state(self) -> dict[str, torch.Tensor]:
        """Model, optimiser and encoder as flat named tensors."""
        flat = self._model.state()
        if self._encoder is not None:
            flat["encoder.mean"] = torch.from_numpy(self._encoder.mean)
            flat["encoder.components"] = torch.from_numpy(self._encoder.components)
        return flat

    def load(self, flat: dict[str, torch.Tensor]) -> None:
        """Restores what `state` returned; nothing: what it was made with."""
        self._encoder = None
        if not flat:
            self._model = self._untrained()
            return
        if "encoder.mean" in flat:
            parts = (flat["encoder.mean"], flat["encoder.components"])
            self._encoder = TrafficEncoder(*(part.numpy().copy() for part in parts))
        self._model.load_state({k: v for k, v in flat.items() if not k.startswith("encoder.")})


class RewardClient:
    """The platform's side of the reward service: asks it, and replaces it with its last state when it is lost.

    Args:
        shape, trips, settings, seed, kind, device: as of the service and its model.
        remote: whether the service is an actor; otherwise it is in this process.
        options: Ray's, asked when an actor is created.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        trips: Array | None,
        settings: DiffusionSettings,
        seed: int,
        remote: bool,
        kind: ModelName = "diffusion",
        rules: Rules = RULES,
        device: str = "cpu",
        options: Callable[[], dict[str, Any]] = dict,
        pulse: Callable[[Fleet], None] = lambda _: None,
    ) -> None:
        self.tensors: dict[str, torch.Tensor] | None = None  # the state after the last training
        self._service: RewardService | None = None
        self._fleet: Fleet | None = None
        arguments = (shape, trips, settings, seed, kind, device)
        if not remote:
            self._service = RewardService(*arguments)
            return
        service = ray.remote(RewardService)
        # One at a time, as an answer may depend on what was asked before.
        rules = replace(rules, in_flight=1)

        def create() -> Any:
            return service.options(**options()).remote(*arguments)

        self._fleet = Fleet("reward service", create, 1, rules, self._state, pulse=pulse)

    def _state(self) -> Question:
        return "load", (self.tensors or {},)

    @property
    def restarts(self) -> int:
        return 0 if self._fleet is None else self._fleet.restarts

    def _ask(self, method: str, *arguments: Any) -> Callable[[], Any]:
        """Puts a question; what comes back waits for the answer.

        Raises:
            RuntimeError: the service cannot answer it.
            FleetError: it was lost too often.
        """
        if self._fleet is None:
            answer = getattr(self._service, method)(*arguments)
            return lambda: answer
        answers = self._fleet.run(method, [(method, arguments)], check=_flaw)

        def wait() -> Any:
            ((_, answer),) = answers
            if isinstance(answer, Failure):
                raise RuntimeError(f"the reward service failed in {method}: {answer.error}")
            return answer

        return wait

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self._ask("load", tensors)()

    def fit_encoder(self, queues: Array) -> None:
        self.tensors = self._ask("fit_encoder", queues)()

    def train(self, z: Array, queues: Array, score: NDArray[np.float64], seed: int) -> Callable[[], float]:
        """Starts training; call what is returned, before anything else is asked, to wait for its loss."""
        training = self._ask("train", z, queues, score, seed)

        def finish() -> float:
            loss, self.tensors = training()
            return float(loss)

        return finish

    def sample(self, queues: Array, seed: int) -> Proposal:
        return self._ask("sample", queues, seed)()

    def mutate(self, genes: Array, queues: Array, kept: float | NDArray[np.float64], seed: int) -> Proposal:
        return self._ask("mutate", genes, queues, kept, seed)()

    def close(self) -> None:
        if self._fleet is not None:
            self._fleet.close()


def _flaw(answer: Any) -> str:
    """What is wrong with an answer: no reward may be made of numbers that are none."""
    loss, tensors = answer if isinstance(answer, tuple) else (0.0, answer if isinstance(answer, dict) else {})
    parts = [answer.z, answer.code] if isinstance(answer, Proposal) else [loss]
    finite = all(np.isfinite(part).all() for part in parts if part is not None)
    finite = finite and all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    return "" if finite else "an answer that is not finite"
