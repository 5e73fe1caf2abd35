"""From rewards to routes: what a preference does to the routes that are driven."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from throng.policies import policy as policy_module
from throng.policies.features import STATIC, fit_scaler, static_features
from throng.policies.learners import LearnerSettings
from throng.policies.navigation import FLOOR, RouterName, route_vehicles
from throng.policies.policy import JunctionPolicy, Navigation, Navigator, concatenate
from throng.policies.preferences import (
    HierarchicalPreferences,
    Rewards,
    TokenPreferences,
    od_groups,
    rewards_of_weights,
)
from throng.scenarios.demand import Demand, Routes
from throng.scenarios.network import TURNS, RoadNetwork
from throng.scenarios.scenario import Scenario

Array = NDArray[np.float32]
ROUTERS: tuple[RouterName, ...] = ("regret", "astar_q", "consistent")
MODES = [Navigation("regret"), Navigation("astar_q", "q"), Navigation("astar_q", "advantage"), Navigation("consistent")]
NAMES = ["regret", "astar_q-q", "astar_q-advantage", "consistent"]


def _navigator(town: Scenario, navigation: Navigation) -> Navigator:
    navigator = Navigator(town.network, town.demand, town.begin, navigation)
    navigator.calibrate(_model(town))
    return navigator


def _model(town: Scenario) -> HierarchicalPreferences:
    network = town.network
    return HierarchicalPreferences(network, _phi(town), od_groups(network, town.demand, 5))


def _phi(town: Scenario) -> Array:
    return static_features(town.network, fit_scaler(town.network))


def _draw(town: Scenario, seed: int) -> Rewards:
    model = _model(town)
    return model.decode(np.random.default_rng(seed).standard_normal(model.shape, dtype=np.float32))


def _empty(town: Scenario) -> Array:
    return np.zeros((town.network.road_count, town.minutes), np.float32)


def _connections(network: RoadNetwork, routes: Routes) -> NDArray[np.int32]:
    """Rows of all connections driven, vehicle after vehicle."""
    inside = np.ones(len(routes.roads), bool)
    inside[routes.offsets[1:] - 1] = False
    at = np.flatnonzero(inside)
    found = network.find_connections(routes.roads[at], routes.roads[at + 1])
    assert (found >= 0).all()
    return found


def _same(a: Routes, b: Routes) -> bool:
    return np.array_equal(a.roads, b.roads) and np.array_equal(a.offsets, b.offsets)


@pytest.mark.parametrize("router", ["regret", "consistent"])
def test_without_lambda_everybody_drives_the_shortest_way(town: Scenario, router: RouterName) -> None:
    navigator = _navigator(town, Navigation(router, lambda_metres=0.0))
    shortest = route_vehicles(town.network, town.demand.origin, town.demand.destination, None)
    assert _same(navigator.routes(_draw(town, 0), _empty(town)), shortest)


@pytest.mark.parametrize("navigation", MODES, ids=NAMES)
def test_with_lambda_preferences_move_people(town: Scenario, navigation: Navigation) -> None:
    """If Q never reached the router, all preferences would explain the traffic equally well."""
    navigator = _navigator(town, navigation)
    shortest = route_vehicles(town.network, town.demand.origin, town.demand.destination, None)
    routes = [navigator.routes(_draw(town, seed), _empty(town)) for seed in (0, 1)]
    assert not _same(*routes)
    for one in routes:
        assert not _same(one, shortest)
        assert np.array_equal(one.roads[one.offsets[:-1]], town.demand.origin)
        assert np.array_equal(one.roads[one.offsets[1:] - 1], town.demand.destination)


@pytest.mark.parametrize("what", ["left", "signal"])
def test_the_more_a_thing_is_disliked_the_less_it_is_met(town: Scenario, what: str) -> None:
    """Dijkstra on length + k * (times met): by exchange, no vehicle meets it more often as k grows.

    With k beyond all lengths, everybody meets it as seldom as the network allows: scipy counts that.
    """
    network, n = town.network, len(town.demand)
    turns = [TURNS.index(turn) for turn in ("left", "slight_left")]
    met = np.isin(network.turn, turns) if what == "left" else network.signal[network.connections[:, 1]]
    navigator = Navigator(network, town.demand, 0.0, Navigation("consistent", lambda_metres=1.0))
    per_vehicle = []
    for dislike in (0.0, 30.0, 100.0, 300.0, 1e5):
        static = np.repeat((-dislike * met).astype(np.float32)[None], n, axis=0)
        routes = navigator.routes(Rewards(static, np.zeros(n, np.float32)), _empty(town))
        owner = np.repeat(np.arange(n), np.diff(routes.offsets) - 1)
        per_vehicle.append(np.bincount(owner, met[_connections(network, routes)], minlength=n))
    for weaker, stronger in itertools.pairwise(per_vehicle):
        assert (stronger <= weaker).all()
    arcs = network.connections[network.allowed]
    often = csr_array((met[network.allowed] + 1e-6, (arcs[:, 0], arcs[:, 1])), shape=(network.road_count,) * 2)
    fewest = dijkstra(often)[town.demand.origin, town.demand.destination]
    np.testing.assert_array_equal(per_vehicle[-1], np.floor(fewest))


@pytest.mark.parametrize("navigation", MODES, ids=NAMES)
@pytest.mark.parametrize("what", ["left", "signal"])
def test_every_router_lets_a_dislike_through(town: Scenario, navigation: Navigation, what: str) -> None:
    """With a wrong sign of Q in a heuristic, people would seek what they dislike."""
    network, n = town.network, len(town.demand)
    phi = _phi(town)
    navigator = _navigator(town, navigation)
    column = phi[:, STATIC.index(what)]
    met = []
    for weight in (2.0, 0.0, -2.0):
        weights = np.zeros((n, len(STATIC) + 1), np.float32)
        weights[:, STATIC.index(what)] = weight
        used = _connections(network, navigator.routes(rewards_of_weights(weights, phi), _empty(town)))
        met.append(int((column[used] > 0).sum()))
    assert met[0] > met[1] > met[2]


@pytest.mark.parametrize("navigation", MODES, ids=NAMES)
def test_who_shuns_queues_leaves_the_queued_road_when_it_queues(town: Scenario, navigation: Navigation) -> None:
    """Those who depart in another minute meet no queue and must not move at all."""
    network, n = town.network, len(town.demand)
    navigator = _navigator(town, navigation)
    rewards = Rewards(np.zeros((n, network.connection_count), np.float32), np.full(n, -2.0, np.float32))
    before = navigator.routes(rewards, _empty(town))
    minute = town.demand.depart // 60
    then = minute == 2
    lengths = np.diff(before.offsets)
    owner = np.repeat(np.arange(n), lengths)
    inner = np.ones(len(before.roads), bool)
    inner[before.offsets[:-1]] = inner[before.offsets[1:] - 1] = False
    road = int(np.bincount(before.roads[inner & then[owner]]).argmax())
    queue = _empty(town)
    queue[road, 2] = 60.0
    after = navigator.routes(rewards, queue)

    def users(routes: Routes) -> set[int]:
        owners = np.repeat(np.arange(n), np.diff(routes.offsets))
        return {int(i) for i in owners[routes.roads == road] if then[i]}

    assert len(users(after)) < len(users(before))
    for i in np.flatnonzero(~then):
        assert np.array_equal(before.route(i), after.route(i))


def test_departures_after_the_last_minute_see_the_last_traffic(
    hand_made: Callable[..., RoadNetwork], make_demand: Callable[..., Demand]
) -> None:
    """A reference traffic of one minute stands for all of them; before `begin` counts as the first minute."""
    network = hand_made(3, [(0, 1), (0, 2)])
    demand = make_demand([0, 0, 0], [1, 1, 1], [95.0, 100.0, 400.0])
    navigator = Navigator(network, demand, 100.0, Navigation())
    rewards = Rewards(np.zeros((3, 2), np.float32), np.ones(3, np.float32))
    queue = np.array([[0, 0], [1, 0], [3, 7]], np.float32)
    table = navigator.reward_table(rewards, queue, navigator.minute)
    np.testing.assert_allclose(table, np.log1p([[1, 3], [1, 3], [0, 7]]), rtol=1e-6)


@pytest.mark.parametrize("navigation", MODES, ids=NAMES)
def test_chunks_do_not_show(town: Scenario, navigation: Navigation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A city is learnt in chunks; a vehicle's route must not depend on where they are cut."""
    navigator, rewards = _navigator(town, navigation), _draw(town, 3)
    queue = np.random.default_rng(0).poisson(2, (town.network.road_count, town.minutes)).astype(np.float32)
    whole = navigator.routes(rewards, queue)
    for chunk in (1, 37, len(town.demand)):
        monkeypatch.setattr(policy_module, "CHUNK", chunk)
        assert _same(navigator.routes(rewards, queue), whole)


@pytest.mark.parametrize("tokens", [None, 16])
def test_memory_is_that_of_a_chunk(town: Scenario, tokens: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of all vehicles on all connections, of which a city has gigabytes."""
    network, count = town.network, len(town.demand)
    model = _model(town) if tokens is None else TokenPreferences(network, _phi(town), count, tokens)
    navigator = Navigator(network, town.demand, town.begin, Navigation())
    z = np.random.default_rng(0).standard_normal(model.shape, dtype=np.float32)
    queue = np.random.default_rng(1).poisson(2, (network.road_count, town.minutes)).astype(np.float32)
    navigator.calibrate(model)
    whole = navigator.routes(model.decode(z), queue)
    made: list[int] = []
    static = Rewards.static.fget
    assert static is not None

    def watched(rewards: Rewards) -> Array:
        table: Array = static(rewards)
        made.append(len(table))
        return table

    monkeypatch.setattr(Rewards, "static", property(watched))
    monkeypatch.setattr(policy_module, "CHUNK_BYTES", 4 * network.connection_count * 7)
    assert _same(navigator.routes(model.decode(z), queue), whole)
    assert made == [7] * (count // 7) + [count % 7] * (count % 7 > 0)
    made.clear()
    navigator.calibrate(model)
    assert set(made) == {min(count, policy_module.CALIBRATION_VEHICLES)}


def test_concatenated_routes_are_those_of_the_parts() -> None:
    lists = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]]
    parts = [Routes.from_lists(lists[:1]), Routes.from_lists(lists[1:3]), Routes.from_lists(lists[3:])]
    whole = concatenate(parts)
    assert [whole.route(i).tolist() for i in range(len(whole))] == lists


@pytest.mark.parametrize("navigation", MODES, ids=NAMES)
def test_at_junctions_nothing_new_is_decided_when_the_queues_are_the_expected_ones(
    town: Scenario, navigation: Navigation
) -> None:
    """Asked on its origin road, with the queues of now equal to those it learnt at, a vehicle keeps its route."""
    navigator, rewards = _navigator(town, navigation), _draw(town, 4)
    queue = np.random.default_rng(1).poisson(3, (town.network.road_count, town.minutes)).astype(np.float32)
    planned = navigator.routes(rewards, queue)
    junction = JunctionPolicy(navigator, rewards, queue)
    for minute in range(town.minutes):
        rows = np.flatnonzero(navigator.minute == minute).astype(np.int32)
        asked = junction.routes(rows, town.demand.origin[rows], queue[:, minute])
        for i, row in enumerate(rows):
            assert asked.route(i).tolist() == planned.route(row).tolist()


def test_at_junctions_the_queues_of_now_decide(
    hand_made: Callable[..., RoadNetwork], make_demand: Callable[..., Demand]
) -> None:
    """Two ways round, one 20 m longer: the queue-averse driver takes it exactly when the short one queues."""
    network = hand_made(4, [(0, 1), (0, 2), (1, 3), (2, 3)], length=[100, 100, 120, 100])
    demand = make_demand([0], [3])
    navigator = Navigator(network, demand, 0.0, Navigation("regret", lambda_metres=50.0), LearnerSettings(discount=0.5))
    rewards = Rewards(np.zeros((1, 4), np.float32), np.array([-1.0], np.float32))
    junction = JunctionPolicy(navigator, rewards, np.zeros((4, 1), np.float32))
    at = np.zeros(1, np.int32)
    for vehicles, expected in ((0.0, [0, 1, 3]), (0.4, [0, 1, 3]), (0.6, [0, 2, 3]), (9.0, [0, 2, 3])):
        # 50 m * log(1 + 0.4) = 16.8 m of regret, log(1 + 0.6) makes 23.5 m: the detour of 20 m lies between.
        now = np.array([0, vehicles, 0, 0], np.float32)
        assert junction.routes(at, at, now).route(0).tolist() == expected


@pytest.mark.parametrize("router", ["regret", "consistent"])
def test_at_junctions_routes_are_optimal_whatever_the_queues(town: Scenario, router: RouterName) -> None:
    """Queues shorter than expected must not make a regret negative: the distances ahead would then mislead the search."""
    network, n = town.network, len(town.demand)
    source, target = network.connections.T
    length = network.length[target].astype(np.float64)
    navigator, rewards = _navigator(town, Navigation(router)), _draw(town, 6)
    rng = np.random.default_rng(2)
    expected = rng.poisson(8, (network.road_count, town.minutes)).astype(np.float32)
    now = rng.poisson(2, network.road_count).astype(np.float32)
    routes = JunctionPolicy(navigator, rewards, expected).routes(np.arange(n, dtype=np.int32), town.demand.origin, now)
    learnt = navigator.q_values(rewards, expected, navigator.minute).astype(np.float64)
    for i in range(0, n, 7):
        bias = rewards.static[i] + rewards.queue_weight[i] * np.log1p(now)[target].astype(np.float64)
        if router == "regret":
            best = np.zeros(network.road_count)
            for q in (learnt[i], None):  # V of the departure first, then that of the queues of now
                q = bias + 0.8 * best[target] if q is None else q
                best = np.array(
                    [max(q[(source == s) & network.allowed], default=0.0) for s in range(network.road_count)]
                )
            bias = q - best[source]
            assert (bias[network.allowed] <= 1e-9).all()
        cost = np.maximum(length - navigator.gain * bias, FLOOR * length)
        arcs, shape = network.allowed, (network.road_count,) * 2
        least = dijkstra(
            csr_array((cost[arcs], (source[arcs], target[arcs])), shape=shape), indices=town.demand.origin[i]
        )
        route = routes.route(i)
        driven = cost[network.find_connections(route[:-1], route[1:])].sum()
        assert driven == pytest.approx(least[town.demand.destination[i]], rel=1e-4)


def test_calibration_makes_lambda_metres_per_standard_deviation(town: Scenario) -> None:
    """For `consistent` the bias is the reward itself, about unit s.d.: the gain is then lambda, give or take."""
    gain = _navigator(town, Navigation("consistent", lambda_metres=400.0)).gain
    assert gain == pytest.approx(400.0, rel=0.35)
    for navigation in MODES:
        navigator = _navigator(town, navigation)
        double = _navigator(town, Navigation(navigation.router, navigation.heuristic, 2 * navigation.lambda_metres))
        assert double.gain == pytest.approx(2 * navigator.gain)
