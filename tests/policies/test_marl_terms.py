"""What the fine-tuners are made of, against closed forms, numerical integration and plain loops."""

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import torch
from throng.policies.driving.tokens import STEP
from throng.policies.marl.critics import ScaledCritic
from throng.policies.marl.driving import HIGHEST, driven
from throng.policies.marl.game import Played, Transitions
from throng.policies.marl.heads import CategoricalHead, LaplaceHead, quantile
from throng.policies.marl.kernels import quantile_loss
from throng.policies.marl.networks import StackedMlp, clip_each
from throng.policies.marl.small_games import biased_rock_paper_scissors, inspection, merge
from throng.policies.marl.terms import (
    Multiplier,
    Running,
    cvar,
    generalised_advantage,
    rarity_bonus,
)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_joint_state_of_a_moment_is_what_all_agents_see_in_it() -> None:
    moments, rollouts, agents = 3, 4, 2
    told = torch.arange(moments * rollouts * agents, dtype=torch.float32).view(moments, rollouts, agents, 1)
    rest = torch.zeros(moments, rollouts, agents)
    played = Played(told, rest[..., None], rest, rest[..., None], rest, rest)
    rows = played.joint.view(moments, rollouts, agents)
    assert torch.equal(rows, told[..., 0])
    parts = Transitions.of(played, rest[..., None], rest, torch.tensor([2]))
    assert torch.equal(parts.joint, told[:, 2, :, 0])
    assert torch.equal(parts.joint_after[:-1], told[1:, 2, :, 0])
    assert parts.goes_on.tolist() == [[1, 1, 0]] * agents
    assert torch.equal(parts.now[1, :, 0], told[:, 2, 1, 0])
    # Of one agent, which is told what all see.
    apart = Played(*(one[:, :, :1] for one in (told, rest[..., None], rest, rest[..., None], rest, rest)), told.mT)
    parts = Transitions.of(apart, rest[:, :, :1, None], rest[:, :, :1], torch.tensor([2]))
    assert torch.equal(parts.joint[0], told[:, 2, :, 0])
    assert torch.equal(parts.joint_after[0, :-1], told[1:, 2, :, 0])


@pytest.mark.parametrize("confidence", [0.0, 0.3, 0.5, 0.9, 0.99])
def test_cvar_is_the_mean_of_the_tail(confidence: float) -> None:
    costs = numbers(64).exp()
    # Rockafellar and Uryasev: the least over v of v + E max(Z - v, 0) / (1 - confidence), which is at one of the samples.
    tail = min(float(v + (costs - v).clamp_min(0).mean() / (1 - confidence)) for v in costs)
    assert float(cvar(costs, confidence)) == pytest.approx(tail, abs=1e-6)


def test_cvar_rises_with_confidence_and_refuses_nonsense() -> None:
    costs = numbers(5, 64)
    risks = torch.stack([cvar(costs, one) for one in np.linspace(0, 0.99, 34)])
    assert (risks.diff(dim=0) > 0).all()
    assert torch.allclose(risks[0], costs.mean(-1))
    with pytest.raises(ValueError, match="confidence"):
        cvar(costs, 1.0)


def test_quantile_regression_finds_the_tail_of_what_is_drawn() -> None:
    costs = -torch.log(torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    quantiles = torch.zeros(64, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([quantiles], lr=0.1)
    for _ in range(600):
        optimizer.zero_grad()
        (10 * quantile_loss(10 * quantiles, 10 * costs)).backward()  # so that Huber's loss is nearly the absolute one
        optimizer.step()
    assert float(cvar(quantiles.detach(), 0.9)) == pytest.approx(
        float(cvar(costs, 0.9)), rel=0.06
    )  # 64 of them say less of the very last


def test_advantages_are_sums_of_discounted_errors() -> None:
    reward, value = numbers(6, 3, 2), numbers(6, 3, 2, seed=1)
    discount, trace = 0.9, 0.7
    later = torch.cat([value[1:], torch.zeros(1, 3, 2)])
    error = reward + discount * later - value
    plain = torch.stack([sum((discount * trace) ** (k - t) * error[k] for k in range(t, 6)) for t in range(6)])
    assert torch.allclose(generalised_advantage(reward, value, discount, trace), plain)


def test_laplace_draws_are_those_of_the_distribution() -> None:
    head = LaplaceHead((0.3, 0.1), squashed=False)
    raw = torch.tensor([0.2, -0.1, 0.4, -0.5]).expand(1_000_000, 4)
    draws = head.draw(raw, torch.Generator().manual_seed(0)).numpy()
    mean, scale = (one[0].numpy() for one in head.parameters(raw))
    for k in range(2):
        assert scipy.stats.kstest(draws[:, k], scipy.stats.laplace(mean[k], scale[k]).cdf).statistic < 0.002
    spread = raw[:, 2:].clone().requires_grad_()
    both = torch.cat([torch.zeros(len(raw), 2), spread], dim=1)
    found, _ = head.weighed(both, torch.Generator().manual_seed(0))
    scale_of = head.parameters(both)[1][0]
    moment = found[0].square().mean(0).sum()
    by_spread = torch.autograd.grad(moment, spread, retain_graph=True)[0].sum(0)
    by_scale = torch.autograd.grad(scale_of.sum(), spread)[0].sum(0)
    assert torch.allclose(by_spread / by_scale, 4 * scale_of.detach(), rtol=0.02)


@pytest.mark.parametrize("squashed", [False, True])
def test_a_draw_of_exactly_nothing_is_no_infinity(squashed: bool) -> None:
    """Uniform numbers in single precision are 0 once in 2^24 draws, which a long training makes."""
    head = LaplaceHead((0.3,), squashed)
    raw = torch.zeros(3, 2)
    draw = quantile(*head.parameters(raw), torch.tensor([[0.0], [0.5], [1.0]]))
    assert torch.isfinite(head.log_prob(raw, draw)).all()
    assert float(draw[0]) < -4 and float(draw[1]) == 0 and float(draw[2]) > 4
    inside = torch.tensor([0.001, 0.3, 0.999], dtype=torch.float64)
    found = quantile(torch.tensor(0.2), torch.tensor(0.7), inside)
    assert np.allclose(found, scipy.stats.laplace(0.2, 0.7).ppf(inside))


@pytest.mark.parametrize("squashed", [False, True])
def test_densities_integrate_to_one_and_divergences_are_integrals(squashed: bool) -> None:
    head = LaplaceHead((0.3,), squashed)
    raw, before = torch.tensor([0.3, 0.2], dtype=torch.float64), torch.tensor([-0.1, -0.4], dtype=torch.float64)
    magnet = torch.tensor([[-0.2, 0.1, 0.0], [0.5, 0.2, 1.0]], dtype=torch.float64)

    def log_prob(told: torch.Tensor, x: float) -> float:
        return float(head.log_prob(told, torch.tensor([x], dtype=torch.float64)))

    def integral(of: "callable[[float], float]") -> float:  # type: ignore[valid-type]
        # Over actions: what a draw changes by with an action is 1 / (1 - tanh(x)^2).
        def bent(x: float) -> float:
            return (1 - np.tanh(x) ** 2) if squashed else 1.0

        kinks = sorted({float(head.parameters(one)[0]) for one in (raw, before)} | {-0.2, 0.5})
        if squashed:
            kinks = sorted([*kinks, *np.arctanh([-0.2, 0.5])])
        return scipy.integrate.quad(lambda x: of(x) * bent(x), -12, 12, points=kinks, limit=500)[0]

    assert integral(lambda x: np.exp(log_prob(raw, x))) == pytest.approx(1.0, abs=1e-6)
    kl = integral(lambda x: np.exp(log_prob(raw, x)) * (log_prob(raw, x) - log_prob(before, x)))
    assert float(head.divergence(raw, before)) == pytest.approx(kl, abs=1e-6)

    def of_magnet(x: float) -> float:
        return float(head.magnet_log_prob(magnet, torch.tensor([x], dtype=torch.float64)))

    from_magnet = integral(lambda x: np.exp(log_prob(raw, x)) * (log_prob(raw, x) - of_magnet(x)))
    many = raw.expand(400_000, 2)
    draw = head.draw(many, torch.Generator().manual_seed(0))
    sampled = (head.log_prob(many, draw) - head.magnet_log_prob(magnet, draw)).mean()
    assert float(sampled) == pytest.approx(from_magnet, abs=0.01)
    if not squashed:
        assert integral(lambda x: np.exp(of_magnet(x))) == pytest.approx(1.0, abs=1e-6)
        entropy = integral(lambda x: -np.exp(log_prob(raw, x)) * log_prob(raw, x))
        assert float(head.entropy(raw)) == pytest.approx(entropy, abs=1e-6)


def test_choices_are_weighed_by_their_probabilities() -> None:
    head = CategoricalHead(3)
    raw, before = numbers(5, 3).float(), numbers(5, 3, seed=1).float()
    draws, weights = head.weighed(raw, torch.Generator())
    assert torch.allclose(weights.sum(0), torch.ones(5))
    kl = sum(w * (head.log_prob(raw, d) - head.log_prob(before, d)) for d, w in zip(draws, weights, strict=True))
    assert torch.allclose(kl, head.divergence(raw, before), atol=1e-6)
    entropy = -sum(w * head.log_prob(raw, d) for d, w in zip(draws, weights, strict=True))
    assert torch.allclose(entropy, head.entropy(raw), atol=1e-6)
    many = head.draw(raw[0].expand(100_000, 3), torch.Generator().manual_seed(0))
    assert torch.allclose(head.action(many).mean(0), raw[0].softmax(-1), atol=0.01)


def test_constant_speed_and_acceleration_are_exact() -> None:
    start = torch.tensor([3.0, -2.0, 0.7, 9.0], dtype=torch.float64)
    way = torch.tensor([0.0, 0.0], dtype=torch.float64)
    now = start
    for _ in range(12):
        now = driven(now, way)[-1]
    assert float((now[:2] - start[:2]).norm()) == pytest.approx(54.0, abs=1e-9)
    now, faster = start, torch.tensor([0.2, 0.0], dtype=torch.float64)
    for _ in range(12):
        now = driven(now, faster)[-1]
    assert float(now[3]) == pytest.approx(9.0 + 6 * 0.2 * HIGHEST[0], abs=1e-9)
    assert float((now[:2] - start[:2]).norm()) == pytest.approx(9.0 * 6 + 0.5 * 36, abs=1e-9)
    bent = driven(start, torch.tensor([0.0, 1.0], dtype=torch.float64))[-1]
    assert float(bent[2] - start[2]) == pytest.approx(HIGHEST[1] * 9.0 * 5 * STEP, abs=1e-9)


def test_a_stack_is_as_many_networks() -> None:
    random = torch.Generator().manual_seed(0)
    stack = StackedMlp(3, 4, 2, random, hidden=8, own=2).double()
    x, own = numbers(3, 5, 4), numbers(3, 5, 2, seed=1)
    found = stack(x, own)
    for agent in range(3):
        h = x[agent] @ stack.first.weight[agent] + own[agent] @ stack.own.weight[agent]  # type: ignore[union-attr]
        h = torch.nn.functional.layer_norm(h + stack.first.bias[agent], (8,))
        h = torch.relu(h * stack.weight[agent] + stack.bias[agent])
        assert torch.allclose(found[agent], h @ stack.last.weight[agent] + stack.last.bias[agent])
    shared = stack(x[0], own)
    assert torch.allclose(shared, stack(x[0].expand(3, 5, 4), own))


def test_gradients_are_clipped_for_each_agent_alone() -> None:
    stack = StackedMlp(2, 4, 1, torch.Generator().manual_seed(0), hidden=8)
    out = stack(numbers(2, 5, 4).float())
    (100 * out[0].sum() + 1e-3 * out[1].sum()).backward()
    before = [one.grad.clone() for one in stack.parameters()]  # type: ignore[union-attr]
    clip_each(stack.parameters(), 0.5)
    norm = torch.stack([one.grad.flatten(1).square().sum(1) for one in stack.parameters()]).sum(0).sqrt()  # type: ignore[union-attr]
    assert float(norm[0]) == pytest.approx(0.5, rel=1e-5)
    assert all(torch.equal(a[1], b.grad[1]) for a, b in zip(before, stack.parameters(), strict=True))  # type: ignore[union-attr]


def test_what_a_critic_says_does_not_change_with_the_measure_it_takes() -> None:
    critic = ScaledCritic(2, 3, torch.Generator().manual_seed(0), hidden=8)
    joint = numbers(6, 3).float()
    critic.hear(10 + 5 * numbers(2, 6, seed=1).float())
    said = critic(joint)
    critic.hear(-200 + 50 * numbers(2, 6, seed=2).float())
    assert torch.allclose(critic(joint), said, atol=1e-3)
    told = Running(2)
    told.hear(numbers(7, 5, 2).float())
    assert torch.allclose(told.spread, numbers(7, 5, 2).float().flatten(0, 1).std(0, correction=0))


def test_multipliers_rise_with_costs_fall_without_and_never_below_nothing() -> None:
    one = Multiplier(2, budget=0.1, rate=0.5)
    one.ascend(torch.tensor([0.5, 0.0]))
    assert one.value.tolist() == pytest.approx([0.2, 0.0])
    one.ascend(torch.tensor([0.0, 0.1]))
    assert one.value.tolist() == pytest.approx([0.15, 0.0])


def test_who_is_rarely_seen_gets_the_bonus() -> None:
    seen = torch.cat([0.1 * numbers(1, 60, 20), 5 + 0.1 * numbers(1, 4, 20, seed=1)], dim=1).float()
    bonus = rarity_bonus(seen, 0.1, seed=0)
    assert float(bonus.min()) >= 0.1 and float(bonus.max()) <= 0.2
    assert float(bonus[0, 60:].mean()) > float(bonus[0, :60].mean()) + 0.01


def test_gaps_of_small_games_are_those_of_their_equilibria() -> None:
    rock = torch.tensor([2.0, 3.0, 1.0]) / 6
    assert biased_rock_paper_scissors().gaps(rock.expand(1, 1, 2, 3)).abs().max() < 1e-6
    fair = torch.tensor([[0.8, 0.2], [1 / 3, 2 / 3]])
    assert inspection().gaps(fair.expand(1, 1, 2, 2)).abs().max() < 1e-6
    first = torch.tensor([1.0, 0.0, 0.0])
    assert biased_rock_paper_scissors().gaps(first.expand(1, 1, 2, 3)).tolist() == pytest.approx([1.0, 1.0])


def test_the_gap_of_the_merge_is_that_of_playing_it() -> None:
    game = merge(2)
    policy = numbers(2, game.states, 2, 3).softmax(-1)

    def value(state: int, moment: int, player: int, best: bool) -> float:
        if moment == 2:
            return 0.0
        worth = np.zeros((3, 3))
        for one in range(3):
            for other in range(3):
                after = int(game.following[state, one, other])
                worth[one, other] = float(game.payoff[state, one, other, player]) + value(
                    after, moment + 1, player, best
                )
        mine, theirs = policy[moment, state, player].numpy(), policy[moment, state, 1 - player].numpy()
        by_own = worth @ theirs if player == 0 else theirs @ worth
        return float(by_own.max()) if best else float(by_own @ mine)

    plain = [value(game.first, 0, player, True) - value(game.first, 0, player, False) for player in range(2)]
    assert game.gaps(policy).tolist() == pytest.approx(plain)
