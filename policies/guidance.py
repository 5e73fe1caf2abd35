"""The baselines LDM_CFG and LDM_PCFG: diffusion that is told which error to have, and no evolution.

How good a sample is counts as one more condition, dropped from a tenth of the training. Sampling asks for the best there
is and leads away from the unconditional prediction, `eps = (1 + w) eps_told - w eps_untold` (classifier-free guidance, Ho
and Salimans 2022); at w = 2 draws lie beyond the best samples, not among them. LDM_PCFG puts the predictions of a proxy in
the place of simulated errors. MASDiff names both and gives no details.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .critic import critic
from .diffusion import DiffusionModel, DiffusionSettings

Array = NDArray[np.float32]
DROPPED = 0.1  # share of the training that is not told
GUIDANCE = 2.0  # w
CLIPPED = 90  # percentile of the errors that counts as worst: one gridlock must not make all others look the same
PROXY_UPDATES, PROXY_BATCH = 400, 128


class _Guided(DiffusionModel):
    """A diffusion model whose last two conditions are how good, and 1 (or two zeros: not told); it draws guided."""

    def _predict(self, network: nn.Module, noisy: Tensor, t: Tensor, condition: Tensor, *seen: Tensor) -> Tensor:
        told = super()._predict(network, noisy, t, condition, *seen)
        if network is not self.average:  # training
            return told
        without = torch.cat([condition[:, :-2], torch.zeros_like(condition[:, -2:])], dim=1)
        untold = super()._predict(network, noisy, t, without, *seen)
        return (1.0 + GUIDANCE) * told - GUIDANCE * untold


class GuidedModel:
    """LDM_CFG: latents given a traffic state and an error.

    Arguments as `DiffusionModel`'s; `prior_share` is not used: a fresh draw from N(0, I) has no error to be told with.
    An untrained model samples the prior.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        condition: int,
        settings: DiffusionSettings,
        trips: Array | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self._model = _Guided(shape, condition + 2, replace(settings, prior_share=0.0), trips, seed, device)

    def train(self, z: Array, condition: Array, error: NDArray[np.float64], seed: int) -> float:
        """Minimises the noise-prediction loss with the errors among the conditions.

        Args:
            z: `[samples, *shape]`; condition: `[samples, condition]`; error: `[samples]`, in any unit.

        Returns:
            The mean loss of the last tenth of the updates.

        Raises:
            ValueError: an error or the loss is not finite.
        """
        # Each sample stands there twice, told and not told, and is drawn as often as chance would drop the telling.
        given = np.concatenate([_told(condition, goodness(error)), np.pad(condition, ((0, 0), (0, 2)))])
        weight = np.repeat([1.0 - DROPPED, DROPPED], len(z))
        return self._model.train(np.concatenate([z, z]), given, weight, seed)

    def sample(self, condition: Array, seed: int) -> Array:
        """One latent for each traffic state `[samples, condition]`, guided to the best error; `[samples, *shape]`."""
        return self._model.sample(_told(condition, np.ones(len(condition))), seed)

    def state(self) -> dict[str, Tensor]:
        """Everything that training changes, as flat named tensors."""
        return self._model.state()

    def load_state(self, flat: dict[str, Tensor]) -> None:
        """Restores what `state` returned."""
        self._model.load_state(flat)


class ProxyGuidedModel(GuidedModel):
    """LDM_PCFG: told the errors that a proxy expects, which it learns from simulated samples."""

    def __init__(
        self,
        shape: tuple[int, ...],
        condition: int,
        settings: DiffusionSettings,
        trips: Array | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        super().__init__(shape, condition, settings, trips, seed, device)
        self._proxy = Proxy(shape, condition, settings, trips, device)

    def train(self, z: Array, condition: Array, error: NDArray[np.float64], seed: int) -> float:
        """Fits the proxy, then trains with what it predicts in the errors' place; arguments as `GuidedModel.train`'s."""
        self._proxy.fit(z, condition, error, seed)
        return super().train(z, condition, self._proxy.predict(z, condition), seed)

    def predict(self, z: Array, condition: Array) -> NDArray[np.float64]:
        """The errors `[samples]` that the proxy expects of `z [samples, *shape]`, in their unit, without a simulation."""
        return self._proxy.predict(z, condition)

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"proxy.{name}": value for name, value in self._proxy.state().items()}

    def load_state(self, flat: dict[str, Tensor]) -> None:
        self._proxy.load_state({name[6:]: value for name, value in flat.items() if name.startswith("proxy.")})
        super().load_state({name: value for name, value in flat.items() if not name.startswith("proxy.")})


class Proxy:
    """Predicts the error of a latent in a traffic state: a network fitted afresh by least squares whenever it is asked to."""

    def __init__(
        self,
        shape: tuple[int, ...],
        condition: int,
        settings: DiffusionSettings,
        trips: Array | None = None,
        device: str = "cpu",
    ) -> None:
        self._parts = (shape, condition, settings.width, trips)
        self._rate, self._device = settings.learning_rate, torch.device(device)
        self._network = self._fresh(0)
        self._scale = torch.tensor([0.0, 1.0])  # mean and s.d. of the errors it was fitted to

    def _fresh(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return critic(*self._parts).to(self._device)

    def fit(self, z: Array, condition: Array, error: NDArray[np.float64], seed: int) -> None:
        """Fits to simulated samples `z [samples, *shape]`, `condition [samples, condition]`, `error [samples]`."""
        known = _clipped(error)
        mean, spread = float(known.mean()), max(float(known.std()), 1e-9)
        wanted = ((known - mean) / spread).astype(np.float32)
        data = [torch.from_numpy(np.ascontiguousarray(one)).to(self._device) for one in (z, condition, wanted)]
        self._network, self._scale = self._fresh(seed), torch.tensor([mean, spread])
        optimiser = torch.optim.Adam(self._network.parameters(), lr=self._rate)
        generator = torch.Generator(device="cpu").manual_seed(seed)
        for _ in range(PROXY_UPDATES):
            rows = torch.randint(len(z), (min(PROXY_BATCH, len(z)),), generator=generator).to(self._device)
            loss = (self._network(data[0][rows], data[1][rows]) - data[2][rows]).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    @torch.no_grad()
    def predict(self, z: Array, condition: Array) -> NDArray[np.float64]:
        """Expected errors `[samples]`, in the unit of those it was fitted to."""
        mean, spread = self._scale.tolist()
        given = [torch.from_numpy(np.ascontiguousarray(one)).to(self._device) for one in (z, condition)]
        return np.asarray(mean + spread * self._network(*given).cpu().numpy().astype(np.float64))

    def state(self) -> dict[str, Tensor]:
        """Weights and scale as flat named tensors."""
        flat = self._network.state_dict() | {"scale": self._scale}
        return {name: value.detach().cpu().clone().contiguous() for name, value in flat.items()}

    def load_state(self, flat: dict[str, Tensor]) -> None:
        """Restores what `state` returned."""
        self._scale = flat["scale"].clone()
        self._network.load_state_dict({name: value for name, value in flat.items() if name != "scale"})


def goodness(error: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 for the smallest error, 0 for the 90th percentile and above, linear between (MASDiff, Eq. 8); `[samples]`.

    Raises:
        ValueError: an error is not finite.
    """
    known = _clipped(error)
    spread = known.max() - known.min()
    return np.ones_like(known) if spread == 0 else 1.0 - (known - known.min()) / spread


def _clipped(error: NDArray[np.float64]) -> NDArray[np.float64]:
    known = np.asarray(error, np.float64)
    if not np.isfinite(known).all():
        raise ValueError("errors must be finite; leave out simulations that failed")
    return np.minimum(known, np.percentile(known, CLIPPED))


def _told(condition: Array, good: NDArray[np.float64]) -> Array:
    return np.column_stack([condition, good, np.ones(len(condition))]).astype(np.float32)
