"""The conditional diffusion model that proposes preference latents (MASDiff, Eqs. 2-11).

A DDPM with noise prediction. The denoiser is a residual round the exact denoiser of N(0, I),
`eps = sqrt(1 - abar_t) z_t + f(z_t, t, condition)`, with the last layer of `f` zero: an untrained model samples the prior
exactly, which gives line 6 of Algorithm 2 a meaning in its first iteration. (What the paper calls alpha_t is abar_t here.)
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

from .batches import batches

BLOCK = 2**19  # numbers of latents denoised at once on a CPU: more only misses its caches
OUTERMOST = 8.0  # prior standard deviations: no latent is farther out


@dataclass(frozen=True)
class DiffusionSettings:
    """The paper gives none of these; see the specification's section 3."""

    steps: int = 50  # K_d
    beta_first: float = 1e-3
    beta_last: float = 0.15  # abar_K = 0.015
    width: int = 256
    learning_rate: float = 1e-3
    updates: int = 100  # gradient steps per training call
    batch: int = 128
    ema: float = 0.98
    prior_share: float = 0.1  # of a batch that is fresh N(0, I): against collapse
    grad_clip: float = 1.0


class Schedule:
    """Linear beta schedule; `abar[t]` for t = 0..K with `abar[0] = 1` (MASDiff, Eqs. 3-5)."""

    def __init__(self, settings: DiffusionSettings) -> None:
        beta = torch.linspace(settings.beta_first, settings.beta_last, settings.steps, dtype=torch.float64)
        self.beta = torch.cat([torch.zeros(1, dtype=torch.float64), beta])
        self.abar = torch.cumprod(1.0 - self.beta, dim=0)

    def step_for(self, kept: float) -> int:
        """The step t whose `abar_t` is nearest to `kept`, the share of the parent's signal that survives."""
        if kept >= 1.0:
            return 0
        return int((self.abar - kept).abs().argmin())


class TimeEmbedding(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("frequency", torch.exp(torch.linspace(0.0, math.log(1000.0), size // 2)))

    def forward(self, t: Tensor) -> Tensor:
        angle = t[:, None] * cast(Tensor, self.frequency) / 10.0
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class VectorDenoiser(nn.Module):
    """Residual noise predictor for one latent vector `[batch, d]`: a three-layer MLP."""

    def __init__(self, size: int, condition: int, width: int) -> None:
        super().__init__()
        self.time = TimeEmbedding(32)
        self.layers = nn.Sequential(
            nn.Linear(size + 32 + condition, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, size),
        )
        _zero(self.layers[-1])

    def forward(self, z: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return cast(Tensor, self.layers(torch.cat([z, self.time(t), condition], dim=1)))


class TokenDenoiser(nn.Module):
    """Residual noise predictor for vehicle tokens `[batch, vehicles, k]`: one network shared by all vehicles (DeepSets).

    A token sees itself, the mean of all tokens, the condition and its own trip; the number of vehicles is free.
    """

    def __init__(self, size: int, condition: int, width: int, trips: Tensor) -> None:
        super().__init__()
        self.register_buffer("trips", trips)  # [vehicles, trip features]
        self.time = TimeEmbedding(32)
        self.token = nn.Linear(size, width)
        self.pooled = nn.Sequential(nn.Linear(size + 32 + condition, width), nn.SiLU(), nn.Linear(width, width))
        self.trip = nn.Linear(trips.shape[1], width)
        self.out = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, size))
        _zero(self.out[-1])

    def forward(self, z: Tensor, t: Tensor, condition: Tensor, vehicles: Tensor | None = None) -> Tensor:
        """`vehicles [k]` names the vehicles that the tokens `z [batch, k, size]` belong to; None: all of them."""
        shared = self.pooled(torch.cat([z.mean(dim=1), self.time(t), condition], dim=1))
        known = cast(Tensor, self.trips)
        trips = self.trip(known if vehicles is None else known[vehicles])
        return cast(Tensor, self.out(self.token(z) + shared[:, None] + trips))


def _zero(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Linear)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


class DiffusionModel:
    """Trains on weighted latents and proposes new ones.

    Args:
        shape: of one latent, `[d]` or `[vehicles, k]`.
        condition: length of the condition vector (encoded traffic state).
        trips: `[vehicles, features] float32`, what a token knows of its vehicle; needed for `[vehicles, k]` latents.

    All methods take and return numpy arrays; randomness comes from the seed of each call, so that a call is a pure
    function of the weights and its arguments.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        condition: int,
        settings: DiffusionSettings,
        trips: NDArray[np.float32] | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.settings = settings
        self.shape = shape
        self.condition = condition
        self.device = torch.device(device)
        self.schedule = Schedule(settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if len(shape) == 1:
                self.network: nn.Module = VectorDenoiser(shape[0], condition, settings.width)
            else:
                assert trips is not None
                self.network = TokenDenoiser(shape[1], condition, settings.width, torch.from_numpy(trips))
        self.network.to(self.device)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self._abar = self.schedule.abar.to(self.device, torch.float32)
        self._optimiser = torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate)

    # -- training ---------------------------------------------------------------------------------------------------

    def train(
        self,
        z: NDArray[np.float32],
        condition: NDArray[np.float32],
        weight: NDArray[np.float64],
        seed: int,
    ) -> float:
        """Minimises the weighted noise-prediction loss (MASDiff, Eq. 9) for `updates` gradient steps.

        Samples are drawn as `batches` says.

        Args:
            z: `[samples, *shape]`; condition: `[samples, condition]`; weight: `[samples]`, non-negative.

        Returns:
            The mean loss of the last tenth of the updates.

        Raises:
            ValueError: no sample has weight, or the loss is not finite.
        """
        cfg = self.settings
        generator = torch.Generator(device="cpu").manual_seed(seed)
        losses = []
        sizes = (cfg.updates, cfg.batch, cfg.prior_share)
        for clean, given, *seen in batches(z, condition, weight, *sizes, generator, self.device):
            t = torch.randint(1, cfg.steps + 1, (len(clean),), generator=generator).to(self.device)
            noise = torch.randn(clean.shape, generator=generator).to(self.device)
            abar = self._abar[t].view(-1, *[1] * len(self.shape))
            noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
            error = noise - self._predict(self.network, noisy, t, given, *seen)
            loss = error.square().mean()
            self._optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.network.parameters(), cfg.grad_clip)
            self._optimiser.step()
            with torch.no_grad():
                for slow, fast in zip(self.average.parameters(), self.network.parameters(), strict=True):
                    slow.lerp_(fast, 1.0 - cfg.ema)
            losses.append(float(loss.detach()))
        loss_value = float(np.mean(losses[-max(1, len(losses) // 10) :]))
        if not math.isfinite(loss_value):
            raise ValueError("the diffusion loss is not finite; lower diffusion.learning_rate")
        return loss_value

    def _predict(self, network: nn.Module, noisy: Tensor, t: Tensor, condition: Tensor, *seen: Tensor) -> Tensor:
        abar = self._abar[t].view(-1, *[1] * len(self.shape))
        return (1 - abar).sqrt() * noisy + cast(Tensor, network(noisy, t.float(), condition, *seen))

    # -- proposing --------------------------------------------------------------------------------------------------

    def sample(self, condition: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
        """Draws `R ~ p(R | tau)` by the full reverse chain (Algorithm 2, line 6), `[samples, *shape]`."""
        generator = torch.Generator(device="cpu").manual_seed(seed)
        z = torch.randn((len(condition), *self.shape), generator=generator)
        return self._denoise(z, torch.full((len(z),), self.settings.steps), condition, generator)

    def mutate(
        self, z: NDArray[np.float32], condition: NDArray[np.float32], kept: float | NDArray[np.float64], seed: int
    ) -> NDArray[np.float32]:
        """Truncated diffusion-denoising (MASDiff, Eqs. 10-11): noise to step t, then the last t reverse steps.

        Args:
            z: parents `[samples, *shape]`; kept: `abar_t` in (0, 1], the share of signal kept, of all or of each
                `[samples]`; 1 returns the parent.
        """
        t = torch.tensor([self.schedule.step_for(one) for one in np.broadcast_to(kept, len(z)).tolist()])
        generator = torch.Generator(device="cpu").manual_seed(seed)
        abar = self.schedule.abar[t].to(torch.float32).view(-1, *[1] * len(self.shape))
        noise = torch.randn(z.shape, generator=generator)
        noisy = abar.sqrt() * torch.from_numpy(z) + (1 - abar).sqrt() * noise
        return self._denoise(noisy, t, condition, generator)

    @torch.no_grad()
    def _denoise(
        self, z: Tensor, start: Tensor, condition: NDArray[np.float32], generator: torch.Generator
    ) -> NDArray[np.float32]:
        """The reverse chain of each sample from its step `start [samples]` on; 0 leaves it as it is."""
        everybody = z.to(self.device)
        given = torch.from_numpy(np.ascontiguousarray(condition)).to(self.device)
        abar = self.schedule.abar
        size = max(1, BLOCK // math.prod(self.shape)) if self.device.type == "cpu" else len(z)
        for t in range(int(start.max()), 0, -1):
            rows = (start >= t).nonzero()[:, 0]
            # DDPM's larger variance, exact for N(0, I) data: the smaller would shrink each untrained draw and mutation.
            noise = torch.randn((len(rows), *self.shape), generator=generator) if t > 1 else None
            now, before = float(abar[t]), float(abar[t - 1])
            beta = 1 - now / before
            for first in range(0, len(rows), size):
                block = rows[first : first + size].to(self.device)
                z = everybody[block]
                step = torch.full((len(z),), t, device=self.device)
                eps = self._predict(self.average, z, step, given[block])
                # Where the network was never trained it extrapolates, and the chain would run away with it.
                clean = ((z - math.sqrt(1 - now) * eps) / math.sqrt(now)).clamp(-OUTERMOST, OUTERMOST)
                z = (math.sqrt(before) * beta * clean + math.sqrt(1 - beta) * (1 - before) * z) / (1 - now)
                if noise is not None:
                    z = z + math.sqrt(beta) * noise[first : first + size].to(self.device)
                everybody[block] = z
        return everybody.cpu().numpy().astype(np.float32)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Everything that training changes, as flat named tensors."""
        flat = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        flat |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for i, slot in self._optimiser.state_dict()["state"].items():
            flat |= {f"adam.{i}.{k}": torch.as_tensor(v) for k, v in slot.items()}
        return {k: v.detach().cpu().clone().contiguous() for k, v in flat.items()}

    def load_state(self, flat: dict[str, Tensor]) -> None:
        """Restores what `state` returned."""
        self.network.load_state_dict({k[8:]: v for k, v in flat.items() if k.startswith("network.")})
        self.average.load_state_dict({k[8:]: v for k, v in flat.items() if k.startswith("average.")})
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in flat.items():
            if key.startswith("adam."):
                _, index, name = key.split(".")
                slots.setdefault(int(index), {})[name] = value.clone()  # Adam would write into it
        optimiser = self._optimiser.state_dict()
        self._optimiser.load_state_dict({"state": slots, "param_groups": optimiser["param_groups"]})
