"""Sources of candidates that do not evolve: the prior (random search), CMA-ES and guided diffusion (the paper's LDM_CFG and
LDM_PCFG), asked and told by the search.

They search the same latents as Algorithm 2, through the same ladder of simulations, at the same budget.
"""

from __future__ import annotations

import math
from typing import Protocol

import cma
import numpy as np
import torch
from numpy.typing import NDArray

from ..workers.reward import Proposal, RewardClient
from .evolution import Individual

Array = NDArray[np.float32]


class Source(Protocol):
    """Proposes candidates and hears how they did."""

    def ask(self, taus: Array, seed: int) -> Proposal:
        """One latent for each traffic state `[samples, roads, minutes]` at which its policies will be learnt."""

    def tell(self, simulated: list[Individual], seed: int) -> None:
        """Takes the error estimates of what became of the last proposals; failed ones are missing."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint has to keep."""

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restores what `tensors` returned."""


class Prior:
    """Random search: every candidate is a draw from N(0, I)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape

    def ask(self, taus: Array, seed: int) -> Proposal:
        rng = np.random.default_rng(seed)
        return Proposal(rng.standard_normal((len(taus), *self._shape), dtype=np.float32))

    def tell(self, simulated: list[Individual], seed: int) -> None:
        """Learns nothing."""

    def tensors(self) -> dict[str, torch.Tensor]:
        return {}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Has nothing to restore."""


class CmaEs:
    """CMA-ES (Hansen; package `cma`) in the latent, begun at the prior: mean 0, step 1, one generation per generation.

    pycma keeps its state in a pickle; here a checkpoint keeps what it was told, and a resumed run tells it again.
    """

    def __init__(self, shape: tuple[int, ...], population: int, seed: int) -> None:
        self._shape = shape
        self._rng = np.random.default_rng(seed)
        options = {
            "popsize": population,
            "randn": lambda *size: self._rng.standard_normal(size),
            "seed": math.nan,  # draws from the generator above; the global one stays untouched
            "verbose": -9,
        }
        self._strategy = cma.CMAEvolutionStrategy(np.zeros(math.prod(shape)), 1.0, options)
        self._asked: NDArray[np.float64] | None = None
        self._told: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    def ask(self, taus: Array, seed: int) -> Proposal:
        self._asked = np.stack(self._strategy.ask(len(taus)))
        return Proposal(self._asked.reshape(-1, *self._shape).astype(np.float32))

    def tell(self, simulated: list[Individual], seed: int) -> None:
        assert self._asked is not None
        errors = np.full(len(self._asked), np.nan)
        row = {asked.astype(np.float32).tobytes(): i for i, asked in enumerate(self._asked)}
        for one in simulated:
            errors[row[one.z.ravel().tobytes()]] = one.estimate
        errors[np.isnan(errors)] = np.nanmax(errors)  # a simulation that failed is as bad as the worst
        self._tell(self._asked, errors)

    def _tell(self, asked: NDArray[np.float64], errors: NDArray[np.float64]) -> None:
        self._strategy.tell(list(asked), errors.tolist())
        self._told.append((asked, errors))

    def tensors(self) -> dict[str, torch.Tensor]:
        if not self._told:
            return {}
        asked, errors = (np.stack(column) for column in zip(*self._told, strict=True))
        return {"asked": torch.from_numpy(asked), "errors": torch.from_numpy(errors)}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        if "asked" in tensors:
            for asked, errors in zip(tensors["asked"].numpy(), tensors["errors"].numpy(), strict=True):
                self._strategy.ask(len(asked))  # moves its random numbers on as they were
                self._tell(asked, errors)


class Guided:
    """LDM_CFG and LDM_PCFG: a diffusion model that is told errors, asked for the best; no parents, no mutation.

    The reward service holds the model; this remembers the simulations of the last generations, which it trains on.
    """

    def __init__(self, reward: RewardClient, replay: int) -> None:
        self._reward = reward
        self._replay = replay
        self._told: list[tuple[Array, Array, NDArray[np.float64]]] = []  # latents, conditions, errors by generation

    def ask(self, taus: Array, seed: int) -> Proposal:
        return self._reward.sample(taus, seed)

    def tell(self, simulated: list[Individual], seed: int) -> None:
        if not self._told:
            traffic = [one.traffic for one in simulated if one.traffic is not None]
            self._reward.fit_encoder(np.stack(traffic).astype(np.float32))
        columns = (
            np.stack([one.z for one in simulated]),
            np.stack([one.tau for one in simulated]).astype(np.float32),
            np.array([one.estimate for one in simulated]),
        )
        self._told = [*self._told, columns][-self._replay :]
        z, taus, errors = (np.concatenate(column) for column in zip(*self._told, strict=True))
        self._reward.train(z, taus, errors, seed)()

    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{generation}.{name}": torch.from_numpy(np.ascontiguousarray(value))
            for generation, told in enumerate(self._told)
            for name, value in zip(("z", "tau", "error"), told, strict=True)
        }

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        count = len(tensors) // 3
        self._told = [
            (tensors[f"{i}.z"].numpy(), tensors[f"{i}.tau"].numpy(), tensors[f"{i}.error"].numpy())
            for i in range(count)
        ]
