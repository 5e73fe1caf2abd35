"""The four learners: one fixed point, reached exactly or nearly, and what is particular to each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.special
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from throng.policies.features import fit_scaler
from throng.policies.learners import LearnerKind, LearnerSettings, make_learner
from throng.policies.policy import JunctionPolicy, Navigation
from throng.policies.preferences import Rewards
from throng.policies.problem import LatentSettings, Problem
from throng.policies.stacked import Q_MOMENTS, RENEWED, StackedNetworks
from throng.scenarios.errors import InputError
from throng.scenarios.network import RoadNetwork
from throng.scenarios.scenario import Scenario

Array = NDArray[np.float32]
Networks = Callable[..., RoadNetwork]
KINDS: tuple[LearnerKind, ...] = ("vi", "soft_vi", "dqn", "iql")
NEURAL: tuple[LearnerKind, ...] = ("dqn", "iql")
GAP = 0.05  # of Q between the best two actions: below it, either will do


def _problem(town: Scenario, prior: str, kind: LearnerKind = "vi", navigation: Navigation | None = None) -> Problem:
    latent = LatentSettings(prior)  # type: ignore[arg-type]
    return Problem(town, fit_scaler(town.network), latent, navigation or Navigation(), LearnerSettings(kind))


def _drawn(town: Scenario, prior: str, seed: int) -> tuple[Rewards, Array]:
    """Rewards of all vehicles drawn from the prior, and queues."""
    rng = np.random.default_rng(seed)
    model = _problem(town, prior).preference_model()
    queue = rng.gamma(1.0, 3.0, (town.network.road_count, town.minutes)).astype(np.float32)
    return model.decode(rng.standard_normal(model.shape, dtype=np.float32)), queue


def _agreement(network: RoadNetwork, q: Array, exact: Array) -> float:
    """Share of (vehicle, road) pairs with an action gap above `GAP` for which the best action is the same."""
    same = decided = 0
    for road in range(network.road_count):
        rows = np.arange(network.first[road], network.first[road + 1])
        rows = rows[network.allowed[rows]]
        if rows.size > 1:
            best = np.sort(exact[:, rows], axis=1)
            clear = best[:, -1] - best[:, -2] > GAP
            same += int((q[clear][:, rows].argmax(1) == exact[clear][:, rows].argmax(1)).sum())
            decided += int(clear.sum())
    assert decided > network.road_count
    return same / decided


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("prior", ["hier", "token"])
@pytest.mark.parametrize("kind", NEURAL)
def test_networks_choose_as_value_iteration_does(town: Scenario, kind: LearnerKind, prior: str, seed: int) -> None:
    """Issue: at least 99 % of the choices that matter, for drivers as the priors draw them."""
    rewards, queue = _drawn(town, prior, seed)
    navigator = _problem(town, prior).navigator(_problem(town, prior).preference_model())
    table = navigator.reward_table(rewards, queue, navigator.minute)[seed::5]
    settings = LearnerSettings(kind, seed=seed)
    q = make_learner(settings, town.network).q(table)
    exact = make_learner(LearnerSettings(), town.network).q(table)
    assert _agreement(town.network, q, exact) >= 0.99
    assert np.abs(q - exact).mean() < (0.02 if kind == "dqn" else 0.15)


@pytest.mark.parametrize("kind", NEURAL)
def test_networks_learn_any_graph(random_network: Networks, kind: LearnerKind) -> None:
    """Dead ends, closed turns, roads with eight ways on and others with one, loud drivers and quiet ones."""
    rng = np.random.default_rng(5)
    network = random_network(rng, 30, 90, masked=0.2)
    open_ways = np.bincount(network.connections[network.allowed, 0], minlength=network.road_count)
    assert not open_ways.all()
    assert np.diff(network.first).max() >= 7
    loudness = np.array([0.01, 1.0, 300.0], np.float32).repeat(8)[:, None]
    rewards = loudness * rng.standard_normal((24, network.connection_count), dtype=np.float32)
    q = make_learner(LearnerSettings(kind), network).q(rewards) / loudness
    exact = make_learner(LearnerSettings(), network).q(rewards / loudness)
    assert _agreement(network, q, exact) >= 0.99
    assert np.abs(q - exact).max() < (0.1 if kind == "dqn" else 0.5)


@pytest.mark.parametrize("kind", NEURAL)
def test_a_dead_end_is_worth_nothing_and_a_closed_turn_draws_nobody(hand_made: Networks, kind: LearnerKind) -> None:
    network = hand_made(4, [(0, 1), (0, 2), (1, 0), (1, 3), (2, 1)], allowed=[True, True, False, True, True])
    q = make_learner(LearnerSettings(kind, discount=0.5), network).q(np.array([[-3, 1, 9, 2, 4]], np.float32))
    np.testing.assert_allclose(q[0], [-3 + 0.5 * 2, 1 + 0.5 * 5, 9 + 0.5 * 3.5, 2, 4 + 0.5 * 2], atol=0.05)


def test_at_expectile_one_half_iql_follows_the_mean(random_network: Networks) -> None:
    """The 0.5-expectile is the mean over allowed actions, so Q solves a linear system."""
    rng = np.random.default_rng(6)
    network = random_network(rng, 12, 40, masked=0.2)
    e = network.connection_count
    rewards = rng.standard_normal((5, e), dtype=np.float32)
    source, target = network.connections.T
    ways = np.bincount(source[network.allowed], minlength=network.road_count)
    follows = (target[:, None] == source) & network.allowed  # [connection, following connection]
    step = follows / np.maximum(ways, 1)[target][:, None]
    expected = np.linalg.solve(np.eye(e) - 0.8 * step, rewards.T.astype(np.float64)).T
    q = make_learner(LearnerSettings("iql", expectile=0.5), network).q(rewards)
    np.testing.assert_allclose(q, expected, atol=0.05)


def test_gradients_are_those_of_autograd() -> None:
    networks = StackedNetworks(3, 11, 5, 4, 0.01, 1, Q_MOMENTS, 0, torch.device("cpu"))
    wanted = torch.randn((3, 4, 11), generator=torch.Generator().manual_seed(1))
    for weight in networks.weights:
        weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    rows, heads, bias = (weight.clone().requires_grad_() for weight in networks.weights)
    loss = 0.5 * (heads @ rows.tanh() + bias - wanted).square().sum()
    expected = torch.autograd.grad(loss, (rows, heads, bias))
    networks.backward(networks.outputs() - wanted)
    for found, right in zip(networks.gradients, expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


def test_a_stack_learns_what_a_module_per_vehicle_learns(random_network: Networks) -> None:
    """DQN of one vehicle after another with torch's own layers, autograd and Adam, from the same initial network."""
    rng = np.random.default_rng(7)
    network = random_network(rng, 10, 30)
    rewards = rng.standard_normal((3, network.connection_count), dtype=np.float32)
    updates, rate, hidden = 40, 0.02, 6
    settings = LearnerSettings("dqn", hidden=hidden, updates=updates, learning_rate=rate, seed=3)
    found = make_learner(settings, network).q(rewards)
    roads, slots = network.road_count, int(np.diff(network.first).max())
    source, target = (torch.from_numpy(column.astype(np.int64)) for column in network.connections.T)
    slot = torch.from_numpy(np.arange(len(source)) - network.first[network.connections[:, 0]]).long()
    initial = StackedNetworks(1, roads, hidden, slots, rate, updates, Q_MOMENTS, 3, torch.device("cpu"))
    for i, reward in enumerate(torch.from_numpy(rewards)):
        scale = reward.square().mean().sqrt()
        rows, head = torch.nn.Embedding(roads, hidden), torch.nn.Linear(hidden, slots)
        with torch.no_grad():
            rows.weight.copy_(initial.weights[0][0].T)
            head.weight.copy_(initial.weights[1][0])
            head.bias.copy_(initial.weights[2][0, :, 0])
        adam = torch.optim.Adam([*rows.parameters(), *head.parameters()], lr=rate)
        decay = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, updates)
        wanted = torch.zeros(len(source))
        for update in range(updates):
            q = head(torch.tanh(rows(source))).gather(1, slot[:, None])[:, 0]
            if update % RENEWED == 0:
                value = torch.zeros(roads)
                for road in range(roads):
                    if (source == road).any():
                        value[road] = q.detach()[source == road].max()
                wanted = reward / scale + 0.8 * value[target]
            adam.zero_grad()
            (0.5 * (q - wanted).square()).sum().backward()
            adam.step()
            decay.step()
        expected = scale * head(torch.tanh(rows(source))).gather(1, slot[:, None])[:, 0]
        np.testing.assert_allclose(found[i], expected.detach().numpy(), atol=2e-3)


@pytest.mark.parametrize("kind", NEURAL)
def test_what_is_learnt_of_a_vehicle_does_not_depend_on_the_others(town: Scenario, kind: LearnerKind) -> None:
    """Chunks, stacks and order are matters of speed: the same but for rounding.

    On most processors bit for bit; on some a batched product rounds otherwise in batches of another size.
    """
    table = _drawn(town, "hier", 4)[0].static
    learner = make_learner(LearnerSettings(kind, updates=100), town.network)
    whole = learner.q(table)
    order = np.random.default_rng(0).permutation(len(table))
    np.testing.assert_allclose(learner.q(table[order]), whole[order], atol=1e-4)
    for rows in (slice(0, 1), slice(40, 45), slice(131, 300)):
        np.testing.assert_allclose(learner.q(table[rows]), whole[rows], atol=1e-4)
    np.testing.assert_allclose(learner.q(4.0 * table[:3]), 4.0 * whole[:3], atol=4e-4)
    other = make_learner(LearnerSettings(kind, updates=100, seed=1), town.network).q(table)
    assert np.abs(other - whole).max() > 0.01


# -- soft value iteration -----------------------------------------------------------------------------------------


def _soft_brute_force(network: RoadNetwork, rewards: Array, discount: float, temperature: float) -> NDArray[np.float64]:
    """Jacobi sweeps in float64 with numpy's logaddexp until nothing changes by 1e-12."""
    source, target = network.connections.T
    found = np.empty(rewards.shape)
    for i, r in enumerate(rewards.astype(np.float64)):
        v, change = np.zeros(network.road_count), 1.0
        while change > 1e-12:
            q, new = r + discount * v[target], np.full(network.road_count, -np.inf)
            np.logaddexp.at(new, source[network.allowed], q[network.allowed] / temperature)
            new = np.where(np.isinf(new), 0.0, temperature * new)
            change, v = float(np.abs(new - v).max()), new
        found[i] = r + discount * v[target]
    return found


@pytest.mark.parametrize("temperature", [0.02, 0.2, 3.0])
@pytest.mark.parametrize("discount", [0.0, 0.8, 0.95])
def test_soft_q_is_that_of_brute_force(random_network: Networks, temperature: float, discount: float) -> None:
    rng = np.random.default_rng(8)
    network = random_network(rng, 9, 22, masked=0.3)
    rewards = rng.standard_normal((35, network.connection_count), dtype=np.float32)
    settings = LearnerSettings("soft_vi", discount, temperature)
    learner = make_learner(settings, network)
    q = learner.q(rewards)
    np.testing.assert_allclose(q, _soft_brute_force(network, rewards, discount, temperature), atol=2e-3)
    log_chance = (q - learner.values(q)[:, network.connections[:, 0]]) / temperature
    chance = np.exp(np.where(network.allowed, log_chance, -np.inf))
    total = np.stack([np.bincount(network.connections[:, 0], row, network.road_count) for row in chance])
    open_ways = np.bincount(network.connections[network.allowed, 0], minlength=network.road_count) > 0
    np.testing.assert_allclose(total, np.broadcast_to(open_ways, total.shape), atol=1e-4)


def test_cold_soft_values_are_hard_ones_and_indifference_is_worth_its_entropy(
    random_network: Networks, hand_made: Networks
) -> None:
    rng = np.random.default_rng(9)
    network = random_network(rng, 10, 30, masked=0.2)
    rewards = rng.standard_normal((40, network.connection_count), dtype=np.float32)
    cold = make_learner(LearnerSettings("soft_vi", temperature=1e-4), network)
    hard = make_learner(LearnerSettings(), network)
    np.testing.assert_allclose(cold.q(rewards), hard.q(rewards), atol=4e-3)
    complete = hand_made(5, [(a, b) for a in range(5) for b in range(5) if a != b])
    soft = make_learner(LearnerSettings("soft_vi", temperature=0.5), complete)
    np.testing.assert_allclose(soft.q(np.zeros((1, 20), np.float32)), 0.8 * 0.5 * np.log(4) / 0.2, atol=2e-3)


@pytest.mark.parametrize("lambda_metres", [100.0, 1e6])
def test_soft_regret_routes_trade_metres_for_likelihood(town: Scenario, lambda_metres: float) -> None:
    """Costs are metres less gain T log pi: scipy's Dijkstra on them; with a large lambda, the most likely route."""
    problem = _problem(town, "hier", "soft_vi", Navigation(lambda_metres=lambda_metres))
    navigator = problem.navigator(problem.preference_model())
    rewards, queue = _drawn(town, "hier", 1)
    routes = navigator.routes(rewards, queue)
    network, temperature = town.network, problem.learner.temperature
    source, target = network.connections.T
    q = navigator.q_values(rewards, queue, navigator.minute).astype(np.float64)
    for i in range(0, len(town.demand), 11):
        value = np.zeros(network.road_count)
        for s in np.unique(source[network.allowed]):
            value[s] = temperature * scipy.special.logsumexp(q[i][(source == s) & network.allowed] / temperature)
        cost = network.length[target] + navigator.gain * (value[source] - q[i])
        arcs, shape = network.allowed, (network.road_count,) * 2
        graph = csr_array((cost[arcs], (source[arcs], target[arcs])), shape=shape)
        least = dijkstra(graph, indices=town.demand.origin[i])[town.demand.destination[i]]
        route = routes.route(i)
        assert cost[network.find_connections(route[:-1], route[1:])].sum() == pytest.approx(least, rel=1e-4)


# -- all of them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_from_rewards_to_routes_with_every_learner(town: Scenario, kind: LearnerKind) -> None:
    """Before departure and at junctions; dqn and iql drive as vi does."""
    rewards, queue = _drawn(town, "hier", 2)
    problem, exact = _problem(town, "hier", kind), _problem(town, "hier")
    navigator = problem.navigator(problem.preference_model())
    planned = navigator.routes(rewards, queue)
    assert np.array_equal(planned.roads[planned.offsets[:-1]], town.demand.origin)
    assert np.array_equal(planned.roads[planned.offsets[1:] - 1], town.demand.destination)
    reference = exact.navigator(exact.preference_model())
    if kind in NEURAL:
        assert navigator.gain == reference.gain
        right = reference.routes(rewards, queue)
        same = [np.array_equal(planned.route(i), right.route(i)) for i in range(len(planned))]
        assert np.mean(same) > 0.95
    junction = JunctionPolicy(navigator, rewards, queue)
    moved = total = 0
    for minute in range(town.minutes):
        rows = np.flatnonzero(navigator.minute == minute).astype(np.int32)
        asked = junction.routes(rows, town.demand.origin[rows], queue[:, minute])
        moved += sum(not np.array_equal(asked.route(i), planned.route(row)) for i, row in enumerate(rows))
        total += rows.size
    assert total == len(town.demand)
    assert moved <= (0.05 * total if kind in NEURAL else 0.01 * total)  # r + gamma V is Q at the fixed point only


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_learnt_is_refused(hand_made: Networks, kind: LearnerKind) -> None:
    network = hand_made(3, [(0, 1), (1, 0)])
    learner = make_learner(LearnerSettings(kind, updates=3), network)
    with pytest.raises(ValueError, match="finite"):
        learner.q(np.array([[0.0, np.nan]], np.float32))
    with pytest.raises(ValueError, match="discount"):
        make_learner(LearnerSettings(kind, discount=1.0), network).q(np.zeros((1, 2), np.float32))
    assert learner.q(np.zeros((0, 2), np.float32)).shape == (0, 2)
    assert make_learner(LearnerSettings(kind), hand_made(2, [])).q(np.zeros((3, 0), np.float32)).shape == (3, 0)


def test_wrong_settings_are_refused(hand_made: Networks) -> None:
    network = hand_made(2, [(0, 1), (1, 0)])
    with pytest.raises(
        InputError, match=r"learner\.device: 'cuda:99' cannot be used here .*; set learner\.device: cpu"
    ):
        make_learner(LearnerSettings("dqn", device="cuda:99"), network)
    with pytest.raises(ValueError, match="expectile"):
        make_learner(LearnerSettings("iql", expectile=1.0), network)
    with pytest.raises(ValueError, match="temperature"):
        make_learner(LearnerSettings("soft_vi", temperature=-1.0), network).q(np.zeros((1, 2), np.float32))
    with pytest.raises(ValueError, match="choose vi, soft_vi, dqn or iql"):
        make_learner(LearnerSettings("sarsa"), network)  # type: ignore[arg-type]
