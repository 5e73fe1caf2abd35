"""Hidden truths for synthetic studies: preferences that nobody tells the learner.

A structured truth has effects of the whole population, of origin-destination groups and of individuals, as preferences have.
With i.i.d. rewards per vehicle and connection, the law of large numbers makes all truths look alike in the aggregate: that
case is kept apart and reported apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

POPULATION, GROUP, INDIVIDUAL = 1.0, 0.4, 0.4  # s.d. of the effects, per s.d. of a feature
STRUCTURED = ("structured", "taste")  # truths with a population, which other individuals can be drawn from


def structured_weights(
    groups: NDArray[np.int32], features: int, seed: int, individuals: int = 0
) -> NDArray[np.float32]:
    """Feature weights of every vehicle, `[vehicles, features]`.

    `seed` fixes the population mean, the group effects and the spread of individuals; `individuals` redraws the
    individuals alone: the same population with other people in it, which is all that an aggregate can tell (the
    identifiability floor).
    """
    shared = np.random.default_rng([seed, 0])
    mean = POPULATION * shared.standard_normal(features)
    effect = GROUP * shared.standard_normal((int(groups.max()) + 1, features))
    spread = INDIVIDUAL * np.exp(0.3 * shared.standard_normal(features))
    person = np.random.default_rng([seed, 1, individuals]).standard_normal((groups.size, features))
    return (mean + effect[groups] + spread * person).astype(np.float32)


def structured_mean(features: int, seed: int) -> NDArray[np.float32]:
    """The population mean `[features]` of the truth `seed`."""
    return (POPULATION * np.random.default_rng([seed, 0]).standard_normal(features)).astype(np.float32)


def shared_taste(connections: int, seed: int) -> NDArray[np.float32]:
    """What all hidden drivers like or dislike about each connection alike, N(0, 1), `[connections]`."""
    return np.random.default_rng([seed, 3]).standard_normal(connections, dtype=np.float32)


def iid_rewards(vehicles: int, connections: int, seed: int) -> NDArray[np.float32]:
    """Independent N(0, 1) rewards, `[vehicles, connections]`: the literal reading of "randomly generated" in the paper."""
    return np.random.default_rng([seed, 2]).standard_normal((vehicles, connections), dtype=np.float32)
