"""RLlib's multi-agent PPO against our MAPPO on the crossing: the same games, networks, distributions, settings and episodes.

    python bench/rllib_check.py --seeds 0 1 2 3 4 --episodes 100

Prints the mean return of a car, evaluated on 256 games that are the same for all, with its standard deviation over seeds.
`workers/rllib_ppo.py` says how the two differ. Learning rates are ten times TrafficGamer's: a hundred episodes are to do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import ray
import torch
from throng.cluster.session import session
from throng.policies.marl.actors import Learner
from throng.policies.marl.algorithms import ALGORITHMS
from throng.policies.marl.crossing import Crossing
from throng.policies.marl.driving import DrivingTerms
from throng.policies.marl.game import play
from throng.policies.marl.mappo import MappoSettings
from throng.workers.rllib_ppo import actors_of, built, known_by, ppo

ROLLOUTS, EVALUATED = 32, 256
SETTINGS = replace(MappoSettings(), actor_rate=5e-4, critic_rate=1e-3)
Game = Crossing


def worth(game: Game, learner: Learner) -> float:
    """Mean return of a car."""
    random, dice = torch.Generator().manual_seed(10**6), torch.Generator().manual_seed(0)
    return float(play(game, learner.act, learner.head.action, EVALUATED, random, dice).returns().mean())


def mappo(game: Game, seed: int, episodes: int) -> Learner:
    learner = ALGORITHMS["mappo"].made(game, SETTINGS, seed)
    random = torch.Generator().manual_seed(seed)
    for _ in range(episodes):
        learner.update(play(game, learner.act, learner.head.action, ROLLOUTS, random))
    return learner


def rllib(game: Game, seed: int, episodes: int) -> Learner:
    """Its actors, as ours; it plays in this process."""
    names = [str(agent) for agent in range(game.agents)]
    algorithm = built(ppo(ray.put(game), names, game.horizon, SETTINGS, ROLLOUTS, 0, seed))
    for _ in range(episodes):
        algorithm.train()
    learner = ALGORITHMS["mappo"].made(game, SETTINGS, seed)
    learner.actor.load_state_dict(actors_of(known_by(algorithm), names))
    algorithm.stop()
    return learner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--episodes", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    game = Crossing(DrivingTerms())
    ways: dict[str, Callable[[Game, int, int], Learner]] = {"mappo": mappo, "rllib-ppo": rllib}
    untaught = [worth(game, mappo(game, seed, 0)) for seed in given.seeds]
    print(f"untaught: {told(untaught)}", flush=True)
    with session("local", 1):
        for name, train in ways.items():
            found = [worth(game, train(game, seed, given.episodes)) for seed in given.seeds]
            each = ", ".join(f"{one:.2f}" for one in found)
            print(f"{name}: {told(found)} after {given.episodes} episodes, {len(found)} seeds ({each})", flush=True)


def told(values: list[float]) -> str:
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
