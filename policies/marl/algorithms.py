"""The algorithms there are, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ..driving.model_file import optimizer_tensors, restore_optimizer
from .actors import Learner
from .cce_masac import CceMasac, CceMasacSettings
from .game import Game
from .heads import LaplaceHead
from .mappo import Mappo, MappoSettings
from .masac import Masac, MasacSettings
from .trafficgamer import TrafficGamer, TrafficGamerSettings

FIRST = (0.3, 0.1)  # scales of accelerations and curvatures, of the highest, in the beginning
OPTIMIZER = "optimizer."  # before the names of its tensors in a learner's state


@dataclass(frozen=True)
class Algorithm:
    """How learners are made."""

    learner: Any
    settings: Any  # a frozen dataclass
    squashed: bool  # how actions come of draws, see `LaplaceHead`

    def head(self) -> LaplaceHead:
        return LaplaceHead(FIRST, self.squashed)

    def made(self, game: Game, settings: Any, seed: int) -> Learner:
        """A learner with its first weights."""
        learner: Learner = self.learner(game.agents, game.numbers, self.head(), settings, seed)
        return learner


ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {
        "mappo": Algorithm(Mappo, MappoSettings, squashed=False),
        "trafficgamer": Algorithm(TrafficGamer, TrafficGamerSettings, squashed=False),
        "masac": Algorithm(Masac, MasacSettings, squashed=True),
        "cce-masac": Algorithm(CceMasac, CceMasacSettings, squashed=True),
    }
)


def state_of(learner: Learner) -> dict[str, Tensor]:
    """All that a learner has learnt, its optimiser's tensors included."""
    own = {name: one.detach().clone() for name, one in learner.state_dict().items()}
    return own | {OPTIMIZER + name: one for name, one in optimizer_tensors(learner.optimizer).items()}


def restore(learner: Learner, state: Mapping[str, Tensor]) -> None:
    """Makes a learner the one whose state it was."""
    learner.load_state_dict({name: one for name, one in state.items() if not name.startswith(OPTIMIZER)})
    restore_optimizer(
        learner.optimizer,
        {name.removeprefix(OPTIMIZER): one for name, one in state.items() if name.startswith(OPTIMIZER)},
    )
