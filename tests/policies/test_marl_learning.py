"""The fine-tuners' own updates on games whose gaps are known exactly, and on the crossing."""

from collections.abc import Callable

import pytest
import torch
from throng.policies.marl import small_games
from throng.policies.marl.actors import Learner
from throng.policies.marl.algorithms import ALGORITHMS, restore, state_of
from throng.policies.marl.cce_masac import CceMasac, CceMasacSettings
from throng.policies.marl.crossing import Crossing
from throng.policies.marl.driving import DrivingTerms
from throng.policies.marl.exploitability import ResponseBudget, best_response, broken_gaps, own_sums, restricted_gaps
from throng.policies.marl.game import Played, play
from throng.policies.marl.heads import CategoricalHead
from throng.policies.marl.small_games import TableGame
from throng.policies.marl.trafficgamer import TrafficGamer, TrafficGamerSettings


def policy_of(game: TableGame, learner: Learner) -> torch.Tensor:
    """`[horizon, states, 2, choices]`."""
    told = game.everything()
    with torch.no_grad():
        share = learner.actor(told.flatten(0, 1)).softmax(-1)
    return share.transpose(0, 1).view(game.horizon, game.states, 2, game.choices)


def of_table(kind: str, game: TableGame, magnet: float, seed: int) -> Learner:
    """Learners with steps that fit games of a few numbers; all else is as it is in driving."""
    head = CategoricalHead(game.choices)
    if kind == "trafficgamer":
        settings = TrafficGamerSettings(
            magnet=magnet, actor_rate=3e-4, critic_rate=1e-3, bonus=0.0, entropy=0.0, hidden=32, cost_hidden=8
        )
        return TrafficGamer(2, game.numbers, head, settings, seed)
    given = CceMasacSettings(
        magnet=magnet, actor_rate=1e-4, critic_rate=3e-3, bonus=0.0, temperature=1e-4, temperature_rate=0.0, batch=64,
        polyak=0.1, hidden=32,
    )  # fmt: skip
    return CceMasac(2, game.numbers, head, given, seed)


GAMES: dict[str, Callable[[], TableGame]] = {
    "rock-paper-scissors": small_games.biased_rock_paper_scissors,
    "inspection": small_games.inspection,
    "merge": small_games.merge,
}


def test_the_magnet_holds_what_otherwise_goes_round() -> None:
    """In short; the study below is the whole of it."""
    off, on = (gap_at_the_end("trafficgamer", "rock-paper-scissors", magnet, 0, 120) for magnet in (0.0, 0.2))
    assert on < 0.5 * off


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["rock-paper-scissors", "inspection", "merge"])
@pytest.mark.parametrize("kind", ["trafficgamer", "cce-masac"])
def test_last_iterates_with_a_magnet_are_within_a_fifth(kind: str, name: str, seed: int) -> None:
    # A stronger magnet settles sooner, and farther from the equilibrium.
    matrix = {"trafficgamer": 0.3, "cce-masac": 0.5}[kind]
    updates, pulled = (300, 0.2) if name == "merge" else (600, matrix)
    off, on = (gap_at_the_end(kind, name, magnet, seed, updates) for magnet in (0.0, pulled))
    assert on <= off / 5, f"{on:.3f} with the magnet, {off:.3f} without"


def gap_at_the_end(kind: str, name: str, magnet: float, seed: int, updates: int) -> float:
    """Of the last iterate, mean over when one might have stopped in the last quarter: without a magnet it goes round."""
    torch.set_num_threads(1)
    game = GAMES[name]()
    learner = of_table(kind, game, magnet, seed)
    generator, gaps = torch.Generator().manual_seed(seed), []
    for update in range(updates):
        learner.update(play(game, learner.act, learner.head.action, 128, generator))
        if 4 * update >= 3 * updates:
            gaps.append(float(game.gaps(policy_of(game, learner)).mean()))
    return sum(gaps) / len(gaps)


def trained(name: str, updates: int, game: Crossing, seed: int = 0, **settings: float) -> Learner:
    algorithm = ALGORITHMS[name]
    learner = algorithm.made(game, algorithm.settings(**settings), seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        learner.update(played(game, learner, generator))
    return learner


def played(game: Crossing, learner: Learner, generator: torch.Generator) -> Played:
    return play(game, learner.act, learner.head.action, 16, generator)


@pytest.mark.parametrize("name", ["mappo", "trafficgamer"])
def test_cars_learn_to_cross(name: str) -> None:
    game = Crossing(DrivingTerms())
    learner = trained(name, 25, game, actor_rate=5e-4, critic_rate=1e-3)
    worth = [
        float(play(game, one.act, one.head.action, 128, torch.Generator().manual_seed(9)).returns().mean())
        for one in (trained(name, 0, game), learner)
    ]
    assert worth[1] > worth[0] + 3.0


@pytest.mark.parametrize("name", ["mappo", "masac", "trafficgamer", "cce-masac"])
def test_what_a_learner_knows_is_all_that_it_needs_to_go_on(name: str) -> None:
    game = Crossing(DrivingTerms())
    one = trained(name, 2, game)
    other = ALGORITHMS[name].made(game, ALGORITHMS[name].settings(), 0)
    restore(other, {key: value.clone() for key, value in state_of(one).items()})
    told = played(game, one, torch.Generator().manual_seed(5))
    one.update(told)
    other.update(told)
    after = state_of(other)
    assert all(torch.equal(value, after[key]) for key, value in state_of(one).items())


@pytest.mark.parametrize("name", ["mappo", "trafficgamer"])
def test_an_agent_learns_the_same_whoever_else_is_in_the_stack(name: str) -> None:
    """Of the others only what they did matters in an update, not what they learn.

    Soft actor-critics are left out: their critics learn from what all actors would do now, and share a layer.
    """
    game = Crossing(DrivingTerms())
    one, other = (trained(name, 0, game) for _ in range(2))
    with torch.no_grad():
        for parameter in other.actor.parameters():
            parameter[1:] += 0.1  # the first agent is the same
    told = played(game, one, torch.Generator().manual_seed(5))
    for learner in (one, other):
        learner.update(told)
    first, second = state_of(one), state_of(other)
    for key, value in first.items():
        if key.startswith("actor."):
            assert torch.allclose(value[0], second[key][0], atol=1e-6)


def test_multipliers_rise_with_the_distance_that_is_to_be_kept() -> None:
    found = []
    for limit in (3.0, 11.0):
        game = Crossing(DrivingTerms(distance_limit=limit))
        learner = trained("trafficgamer", 8, game)
        found.append(float(state_of(learner)["multiplier.value"].mean()))
    assert 0.0 <= found[0] < found[1]


@pytest.mark.parametrize(("confidence", "worst"), [(0.0, 32), (0.75, 8)])
def test_multipliers_follow_the_costliest_games(confidence: float, worst: int) -> None:
    game = Crossing(DrivingTerms(distance_limit=11.0))
    algorithm = ALGORITHMS["trafficgamer"]
    learner = algorithm.made(game, algorithm.settings(confidence=confidence, budget=0.01, multiplier_rate=0.5), 0)
    told = play(game, learner.act, learner.head.action, 32, torch.Generator().manual_seed(3))
    multiplier = learner.update(told)["multiplier"]
    of_games = told.cost.mean(0).sort(0).values  # [rollouts, agents]
    assert torch.allclose(multiplier, 0.5 * (of_games[-worst:].mean(0) - 0.01))
    assert (of_games.std(0) > 0).all()


def test_best_responses_by_training_come_near_the_exact_gap() -> None:
    game = small_games.inspection()
    learner = of_table("trafficgamer", game, 0.0, 0)  # about uniform
    exact = game.gaps(policy_of(game, learner))
    budget = ResponseBudget(iterations=60, rollouts=128, evaluated=8000, actor_rate=3e-3)
    found = broken_gaps(game, learner, budget, seed=0)
    assert torch.allclose(found.gap.double(), exact, atol=0.15)
    alone = broken_gaps(game, learner, budget, seed=0, agents=[1])
    assert float(alone.gap[0]) == pytest.approx(float(exact[1]), abs=0.15)


def test_what_policies_are_worth_is_played_once_for_all_agents_and_prices() -> None:
    game = Crossing(DrivingTerms(distance_limit=30.0))
    learner = trained("trafficgamer", 2, game)
    budget = ResponseBudget(iterations=2, rollouts=8, evaluated=20)
    parts = [own_sums(game, learner, budget, 3, part) for part in range(budget.parts)]
    reward, cost = (torch.cat(sums) for sums in zip(*parts, strict=True))
    assert reward.shape == cost.shape == (20, 4)
    prices = torch.tensor([0.0, 1.0, 2.0, 3.0])
    for agent in (0, 3):
        for one, value in ((None, reward), (prices, reward - prices * cost)):
            found = broken_gaps(game, learner, budget, 3, one, [agent])
            assert torch.allclose(found.own, value.mean(0)[agent], atol=1e-4)
            assert best_response(game, learner, agent, budget, 3, one) == float(found.best)


def test_prices_make_costs_part_of_the_value() -> None:
    game = Crossing(DrivingTerms(distance_limit=30.0))
    learner = trained("trafficgamer", 0, game)
    budget = ResponseBudget(iterations=0, rollouts=16, evaluated=32)
    plain = broken_gaps(game, learner, budget, seed=0)
    dear = broken_gaps(game, learner, budget, seed=0, prices=torch.full((4,), 2.0))
    assert torch.equal(plain.best, plain.own)
    assert (dear.own < plain.own).all()
    (own,) = restricted_gaps(game, learner, 16, seed=0)
    assert torch.equal(own.best, own.own)  # the magnet has one mode, and everybody keeps to it
