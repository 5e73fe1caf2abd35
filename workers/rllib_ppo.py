"""RLlib's PPO (new API stack) for the drivers of a game: a policy and a critic of its own for each of them.

What acts is what acts in `policies/marl`: the same network, and the same distribution, here torch's. What RLlib does with it
is its own: sampling, episodes, advantages, loss, minibatches, optimisation. It differs from `mappo` in this:

- a critic sees its driver's observation, not everybody's, and its targets are not standardised;
- critics' gradients are clipped, too;
- RLlib's batches hold a moment more of every game, which is masked in losses. As many rows as were played are not quite a
  pass, then: ten passes over games of 12 moments are eleven steps, each on 12 of 13 rows;
- but it is not masked where advantages are standardised, and its own is the next game's value less this one's: on the
  crossing, after twenty episodes, 2.7 standard deviations, which leaves 0.6 of one to what was played. It learns more slowly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchDeterministic, TorchDistribution
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from ..policies.driving.model_file import optimizer_tensors, restore_optimizer
from ..policies.marl.algorithms import ALGORITHMS
from ..policies.marl.mappo import MappoSettings
from .rllib_env import ACTIONS, GameEnv

SUMS = "throng"  # in RLlib's metrics: sums over the games of an episode


class Laplace(TorchDistribution):  # type: ignore[misc]  # RLlib's types are left out
    """Independent Laplace distributions; what scales come of outputs is as in `LaplaceHead`."""

    head = ALGORITHMS["mappo"].head()

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc = loc
        super().__init__(loc=loc, scale=scale)

    def _get_torch_distribution(self, loc: Tensor, scale: Tensor) -> torch.distributions.Distribution:
        return torch.distributions.Laplace(loc, scale, validate_args=False)

    @classmethod
    def from_logits(cls, logits: Tensor, **_: Any) -> Laplace:
        return cls(*cls.head.parameters(logits))

    @staticmethod
    def required_input_dim(space: Any, **_: Any) -> int:
        return 2 * int(np.prod(space.shape))

    def logp(self, value: Tensor, **_: Any) -> Tensor:
        return super().logp(value).sum(-1)

    def entropy(self) -> Tensor:
        return super().entropy().sum(-1)

    def kl(self, other: Any) -> Tensor:
        return super().kl(other).sum(-1)

    def to_deterministic(self) -> TorchDeterministic:
        return TorchDeterministic(loc=self.loc)


class Driver(TorchRLModule, ValueFunctionAPI):  # type: ignore[misc]  # RLlib's types are left out
    """An actor and a critic with one hidden layer of `hidden` units each; `actors_of` knows their layers."""

    def setup(self) -> None:
        numbers, hidden = self.observation_space.shape[0], self.model_config["hidden"]
        self.actor = _network(numbers, hidden, 2 * ACTIONS, 0.01)
        self.critic = _network(numbers, hidden, 1, 1.0)
        self.action_dist_cls = Laplace

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.actor(batch[Columns.OBS])}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        return self.critic(batch[Columns.OBS])[..., 0]


class TwoRates(PPOTorchLearner):  # type: ignore[misc]  # RLlib's types are left out
    """PPO whose actors and critics have an optimiser, a rate and a limit to their gradient's norm each."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        rates = {"actor": config.lr, "critic": config.learner_config_dict["critic_rate"]}
        for name, rate in rates.items():
            own = list(getattr(self.module[module_id].unwrapped(), name).parameters())
            self.register_optimizer(
                module_id=module_id,
                optimizer_name=name,
                optimizer=torch.optim.AdamW(own, lr=rate),
                params=own,
                lr_or_lr_schedule=rate,
            )

    def known(self) -> dict[str, Tensor]:
        """All that it has learnt: by module, part and name."""
        told: dict[str, Tensor] = {}
        for module, part, network, optimizer in self._parts():
            own = {f"network.{name}": one.detach().clone() for name, one in network.state_dict().items()}
            own |= {f"optimizer.{name}": one for name, one in optimizer_tensors(optimizer).items()}
            told |= {f"{module}/{part}/{name}": one for name, one in own.items()}
        return told

    def remember(self, known: Mapping[str, Tensor]) -> None:
        """Makes it know what `known` told."""
        for module, part, network, optimizer in self._parts():
            own: dict[str, dict[str, Tensor]] = {"network": {}, "optimizer": {}}
            for name, one in known.items():
                if name.startswith(begin := f"{module}/{part}/"):
                    what, rest = name.removeprefix(begin).split(".", 1)
                    own[what][rest] = one
            network.load_state_dict(own["network"])
            restore_optimizer(optimizer, own["optimizer"])

    def _parts(self) -> Iterator[tuple[str, str, nn.Module, torch.optim.Optimizer]]:
        for module in sorted(self.module.keys()):
            for part in ("actor", "critic"):
                network = getattr(self.module[module].unwrapped(), part)
                yield module, part, network, self.get_optimizer(module, part)


def ppo(
    game: Any, names: Sequence[str], horizon: int, settings: MappoSettings, rollouts: int, runners: int, seed: int,
    restarts: int = 0, deadline: float = 600.0,
) -> PPOConfig:  # fmt: skip
    """One training step of it is one episode: `rollouts` games, then `settings.epochs` passes over them.

    Args:
        game: as `GameEnv` takes it.
        names: of its agents.
        runners: Ray actors that play, a divisor of `rollouts`; 0: this process plays. Each plays its games side by side.
        seed: of weights, games and draws.
        restarts: how often RLlib replaces a lost actor.
        deadline: seconds that actors may take for an episode's games.
    """
    modules = {name: module_of(name) for name in names}
    return (
        PPOConfig()
        .environment(GameEnv, env_config={"game": game, "names": tuple(names), "final": True})
        .env_runners(
            num_env_runners=runners,
            num_envs_per_env_runner=rollouts // max(runners, 1),
            rollout_fragment_length=horizon,
            sample_timeout_s=deadline,
        )
        # Draws are clipped, as ours are, and their density is that before.
        .environment(normalize_actions=False, clip_actions=True)
        .learners(num_learners=0)
        .multi_agent(policies=set(modules.values()), policy_mapping_fn=lambda agent, *_, **__: modules[agent])
        .rl_module(
            rl_module_spec=MultiRLModuleSpec(
                rl_module_specs={
                    module: RLModuleSpec(module_class=Driver, model_config={"hidden": settings.hidden})
                    for module in modules.values()
                }
            )
        )
        .training(
            gamma=settings.discount,
            lambda_=settings.trace,
            clip_param=settings.clip,
            # Costs of a game are large numbers: RLlib's limit to a value's squared error would leave critics no gradient.
            vf_clip_param=float("inf"),
            use_kl_loss=False,
            entropy_coeff=settings.entropy,
            lr=settings.actor_rate,
            grad_clip=settings.most,
            grad_clip_by="global_norm",
            num_epochs=settings.epochs,
            train_batch_size_per_learner=rollouts * horizon,
            minibatch_size=rollouts * horizon,
            learner_class=TwoRates,
            learner_config_dict={"critic_rate": settings.critic_rate},
        )
        .callbacks(on_episode_end=_told)
        .fault_tolerance(
            restart_failed_env_runners=restarts > 0,
            max_num_env_runner_restarts=restarts,
        )
        .debugging(seed=seed % 2**31, log_level="ERROR")
    )


def built(config: PPOConfig) -> Algorithm:
    """The algorithm; Ray must be there."""
    algorithm = config.build_algo()
    # It makes itself a folder below the user's home, and writes nothing there.
    with contextlib.suppress(OSError):
        Path(algorithm.logdir).rmdir()
    return algorithm


def module_of(name: str) -> str:
    """RLlib makes folders of modules' names, and refuses those that cannot be one."""
    return f"{quote(name, safe='')}-driver"


def games_of(result: Mapping[str, Any], names: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean returns and costs of the agents, `[agents]`, over the games of an episode.

    Args:
        result: of `Algorithm.train`.

    Raises:
        KeyError: nobody has played.
    """
    sums = result["env_runners"][SUMS]
    told = np.array([[sums[name]["return"], sums[name]["cost"]] for name in names]) / sums["games"]
    return told[:, 0], told[:, 1]


def known_by(algorithm: Algorithm) -> dict[str, Tensor]:
    """All that its learner has learnt, see `TwoRates.known`: data, where RLlib's own checkpoints are pickles."""
    told: dict[str, Tensor] = _learner(algorithm, lambda learner: learner.known())
    return told


def remind(algorithm: Algorithm, known: Mapping[str, Tensor]) -> None:
    """Makes an algorithm go on from what one `known_by` told."""
    _learner(algorithm, lambda learner: learner.remember(known))
    algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=algorithm.learner_group, inference_only=True)


def actors_of(known: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The actors' weights of what is `known_by` an algorithm, as `policies.marl.actors.Actors` name them."""

    def stacked(name: str) -> Tensor:
        return torch.stack([known[f"{module_of(one)}/actor/network.{name}"] for one in names])

    return {
        "first.weight": stacked("0.weight").transpose(1, 2).contiguous(),
        "first.bias": stacked("0.bias")[:, None],
        "weight": stacked("1.weight")[:, None],
        "bias": stacked("1.bias")[:, None],
        "last.weight": stacked("3.weight").transpose(1, 2).contiguous(),
        "last.bias": stacked("3.bias")[:, None],
    }


def _learner(algorithm: Algorithm, work: Callable[[TwoRates], Any]) -> Any:
    """What the one learner there is answers."""
    return next(iter(algorithm.learner_group.foreach_learner(work))).get()


def _network(inputs: int, hidden: int, outputs: int, last_gain: float) -> nn.Sequential:
    """As `StackedMlp` of one agent."""
    first, last = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
    for layer, gain in ((first, 2**0.5), (last, last_gain)):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.LayerNorm(hidden), nn.ReLU(), last)


def _told(*, episode: Any, metrics_logger: Any, **_: Any) -> None:
    """Adds a game that is over to the sums; RLlib begins them anew with every episode."""
    metrics_logger.log_value((SUMS, "games"), 1, reduce="sum")
    for name, own in episode.agent_episodes.items():
        costs = [info["cost"] for info in own.get_infos() if "cost" in info]  # the beginning has none
        metrics_logger.log_value((SUMS, name, "return"), own.get_return(), reduce="sum")
        metrics_logger.log_value((SUMS, name, "cost"), float(np.mean(costs)), reduce="sum")
