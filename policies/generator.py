"""The conditional GAN of MASDiff's baseline CGAN: the diffusion model's place taken by a generator and a critic.

The generator is a residual round its own noise, `z = n + f(n, condition)`, with noise of the latent's shape and the last
layer of `f` zero: an untrained generator samples the prior N(0, I) exactly, as the untrained diffusion model does. The
paper names the baseline and nothing more; networks, sizes and mutation are ours, as like the diffusion model's as can be.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import softplus

from .batches import batches
from .critic import critic
from .diffusion import TokenDenoiser, VectorDenoiser

Array = NDArray[np.float32]


@dataclass(frozen=True)
class GeneratorSettings:
    """Named and sized as the diffusion model's, where both have them."""

    width: int = 256
    learning_rate: float = 5e-4
    updates: int = 100  # steps of each network per training call
    batch: int = 128
    ema: float = 0.98
    prior_share: float = 0.1  # of the real side that is fresh N(0, I): against collapse
    penalty: float = 1.0  # on the critic's squared gradient at real samples (R1): without it the two circle each other
    grad_clip: float = 1.0


class GeneratorModel:
    """Trains on weighted latents and proposes new ones: `DiffusionModel`'s methods, with the noise made visible.

    Args:
        shape: of one latent and of its noise, `[d]` or `[vehicles, k]`.
        condition: length of the condition vector (encoded traffic state).
        trips: `[vehicles, features] float32`, what a token knows of its vehicle; needed for `[vehicles, k]` latents.

    A latent is known by its noise: that is what a search keeps of a parent and what `mutate` takes. The same noise gives
    another latent once the weights have changed. All methods take and return numpy arrays; randomness comes from the seed
    of each call, so that a call is a pure function of the weights and its arguments.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        condition: int,
        settings: GeneratorSettings,
        trips: Array | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.settings = settings
        self.shape = shape
        self.condition = condition
        self.device = torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # The denoisers' networks at a time that is always 0: noise in, correction out.
            if len(shape) == 1:
                self.network: nn.Module = VectorDenoiser(shape[0], condition, settings.width)
            else:
                assert trips is not None
                self.network = TokenDenoiser(shape[1], condition, settings.width, torch.from_numpy(trips))
            self.critic = critic(shape, condition, settings.width, trips)
        self.network.to(self.device)
        self.critic.to(self.device)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self._optimisers = {"adam": self._adam(self.network), "critic_adam": self._adam(self.critic)}

    def _adam(self, network: nn.Module) -> torch.optim.Adam:
        # No momentum: the other side moves, and yesterday's direction is wrong today.
        return torch.optim.Adam(network.parameters(), lr=self.settings.learning_rate, betas=(0.0, 0.99))

    # -- training ---------------------------------------------------------------------------------------------------

    def train(self, z: Array, condition: Array, weight: NDArray[np.float64], seed: int) -> float:
        """Plays the non-saturating game of generator and critic for `updates` steps of each.

        The real side is drawn with probability proportional to weight (MASDiff, Eqs. 8-9) with its conditions; the
        generator answers to the same conditions. A share of the real side is fresh N(0, I).

        Args:
            z: `[samples, *shape]`; condition: `[samples, condition]`; weight: `[samples]`, non-negative.

        Returns:
            The critic's mean loss in the last tenth of the updates: 2 log 2 where it cannot tell real from generated.

        Raises:
            ValueError: no sample has weight, or the loss is not finite.
        """
        cfg = self.settings
        generator = torch.Generator(device="cpu").manual_seed(seed)
        losses = []
        sizes = (cfg.updates, cfg.batch, cfg.prior_share)
        for clean, state, *seen in batches(z, condition, weight, *sizes, generator, self.device):
            real = clean.requires_grad_()
            noise = torch.randn(real.shape, generator=generator).to(self.device)
            made = self._generate(self.network, noise, state, *seen)
            losses.append(self._step_critic(real, made.detach(), state, seen))
            self._step("adam", softplus(-self.critic(made, state, *seen)).mean())
            with torch.no_grad():
                for slow, fast in zip(self.average.parameters(), self.network.parameters(), strict=True):
                    slow.lerp_(fast, 1.0 - cfg.ema)
        loss_value = float(np.mean(losses[-max(1, len(losses) // 10) :]))
        if not math.isfinite(loss_value):
            raise ValueError("the critic's loss is not finite; lower the learning rate")
        return loss_value

    def _step_critic(self, real: Tensor, made: Tensor, state: Tensor, seen: list[Tensor]) -> float:
        """One step of the critic with the R1 penalty (Mescheder et al. 2018); its loss without the penalty."""
        told = self.critic(real, state, *seen)
        loss = softplus(-told).mean() + softplus(self.critic(made, state, *seen)).mean()
        (slope,) = torch.autograd.grad(told.sum(), real, create_graph=True)
        self._step("critic_adam", loss + 0.5 * self.settings.penalty * slope.square().flatten(1).sum(dim=1).mean())
        return float(loss.detach())

    def _step(self, name: str, loss: Tensor) -> None:
        optimiser = self._optimisers[name]
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], self.settings.grad_clip)
        optimiser.step()

    def _generate(self, network: nn.Module, noise: Tensor, condition: Tensor, *seen: Tensor) -> Tensor:
        start = torch.zeros(len(noise), device=self.device)
        return noise + cast(Tensor, network(noise, start, condition, *seen))

    # -- proposing --------------------------------------------------------------------------------------------------

    def sample(self, condition: Array, seed: int) -> tuple[Array, Array]:
        """One new latent for each condition, and its noise, both `[samples, *shape]`."""
        generator = torch.Generator(device="cpu").manual_seed(seed)
        noise = torch.randn((len(condition), *self.shape), generator=generator).numpy()
        return self.generate(noise, condition), noise

    def mutate(
        self, noise: Array, condition: Array, kept: float | NDArray[np.float64], seed: int
    ) -> tuple[Array, Array]:
        """Children of the parents with the given noise: latents and their noise, both `[samples, *shape]`.

        `n' = sqrt(kept) n + sqrt(1 - kept) eps` is N(0, I) again, as Eq. 10 noises a latent; `kept` in [0, 1] is the
        share of signal kept, of all or of each `[samples]`, and 1 gives the parents as the present weights generate them.
        """
        share = np.broadcast_to(kept, len(noise)).reshape(-1, *[1] * (noise.ndim - 1))
        generator = torch.Generator(device="cpu").manual_seed(seed)
        fresh = torch.randn(noise.shape, generator=generator).numpy()
        moved = (np.sqrt(share) * noise + np.sqrt(1.0 - share) * fresh).astype(np.float32)
        return self.generate(moved, condition), moved

    @torch.no_grad()
    def generate(self, noise: Array, condition: Array) -> Array:
        """The latents `[samples, *shape]` of given noise."""
        given = [torch.from_numpy(np.ascontiguousarray(one)).to(self.device) for one in (noise, condition)]
        return self._generate(self.average, *given).cpu().numpy().astype(np.float32)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Everything that training changes, as flat named tensors."""
        flat = {f"{name}.{k}": v for name, part in self._parts().items() for k, v in part.state_dict().items()}
        for name, optimiser in self._optimisers.items():
            for i, slot in optimiser.state_dict()["state"].items():
                flat |= {f"{name}.{i}.{k}": torch.as_tensor(v) for k, v in slot.items()}
        return {k: v.detach().cpu().clone().contiguous() for k, v in flat.items()}

    def load_state(self, flat: dict[str, Tensor]) -> None:
        """Restores what `state` returned."""
        grouped: dict[str, dict[str, Tensor]] = {}
        for key, value in flat.items():
            name, rest = key.split(".", 1)
            grouped.setdefault(name, {})[rest] = value
        for name, part in self._parts().items():
            part.load_state_dict(grouped[name])
        for name, optimiser in self._optimisers.items():
            slots: dict[int, dict[str, Tensor]] = {}
            for key, value in grouped.get(name, {}).items():
                index, slot = key.split(".")
                slots.setdefault(int(index), {})[slot] = value.clone()  # Adam would write into it
            groups = optimiser.state_dict()["param_groups"]
            optimiser.load_state_dict({"state": slots, "param_groups": groups})

    def _parts(self) -> dict[str, nn.Module]:
        return {"network": self.network, "average": self.average, "critic": self.critic}
