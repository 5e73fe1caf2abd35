"""The reward service: the diffusion model that proposes reward models for traffic states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError

from ..policies.diffusion import DiffusionModel, DiffusionSettings
from ..policies.generator import GeneratorModel, GeneratorSettings
from ..policies.guidance import GuidedModel, ProxyGuidedModel
from ..policies.traffic_encoder import TrafficEncoder
from .fleet import TRIES

Array = NDArray[np.float32]
CONDITION = 16  # length of the encoded traffic state
ModelName = Literal["diffusion", "gan", "guided", "proxy"]
MODELS: dict[str, Callable[..., DiffusionModel | GuidedModel]] = {
    "diffusion": DiffusionModel,
    "guided": GuidedModel,
    "proxy": ProxyGuidedModel,
}


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
        self._model: DiffusionModel | GeneratorModel | GuidedModel
        if kind == "gan":
            same = {name: getattr(settings, name) for name in ("width", "updates", "batch", "prior_share")}
            self._model = GeneratorModel(shape, CONDITION, GeneratorSettings(**same), trips, seed, device)
        else:
            self._model = MODELS[kind](shape, CONDITION, settings, trips, seed, device)
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
        """Restores what `state` returned."""
        if "encoder.mean" in flat:
            parts = (flat["encoder.mean"], flat["encoder.components"])
            self._encoder = TrafficEncoder(*(part.numpy().copy() for part in parts))
        self._model.load_state({k: v for k, v in flat.items() if not k.startswith("encoder.")})


class RewardClient:
    """The platform's side of the reward service: asks it, and replaces it with its last state when it is lost.

    `remote=False` keeps the service in this process.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        trips: Array | None,
        settings: DiffusionSettings,
        seed: int,
        remote: bool,
        kind: ModelName = "diffusion",
        deadline: float = 600.0,
    ) -> None:
        self._arguments = (shape, trips, settings, seed, kind)
        self._remote = remote
        self._deadline = deadline
        self.tensors: dict[str, torch.Tensor] | None = None  # the state after the last training
        self.restarts = 0
        self._service = self._create()

    def _create(self) -> Any:
        if not self._remote:
            return RewardService(*self._arguments)
        return ray.remote(RewardService).options(num_cpus=0.25).remote(*self._arguments)

    def _ask(self, method: str, *arguments: Any) -> Callable[[], Any]:
        """Puts a question; what comes back waits for the answer."""
        if not self._remote:
            answer = getattr(self._service, method)(*arguments)
            return lambda: answer
        asked = getattr(self._service, method).remote(*arguments)
        return lambda: self._await(asked, method, arguments)

    def _await(self, asked: Any, method: str, arguments: tuple[Any, ...]) -> Any:
        for attempt in range(TRIES):
            try:
                return ray.get(asked, timeout=self._deadline)
            except RayTaskError as error:
                raise RuntimeError(f"the reward service failed in {method}: {error.cause}") from error
            except RayError as error:  # lost or hung: the same question to a fresh one in the same state
                if attempt + 1 == TRIES:
                    raise RuntimeError(f"the reward service was lost twice in {method}: {error}") from error
                ray.kill(self._service)
                self.restarts += 1
                self._service = self._create()
                if self.tensors is not None:
                    ray.get(self._service.load.remote(self.tensors), timeout=self._deadline)
                asked = getattr(self._service, method).remote(*arguments)
        raise AssertionError("unreachable")

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
        if self._remote:
            ray.kill(self._service)
