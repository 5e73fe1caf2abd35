"""Routes against scipy's Dijkstra, enumeration of all paths, and Eq. 12 written down a second time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from throng.policies.navigation import FLOOR, Bonus, RouterName, distances_ahead, fastest_routes, route_vehicles
from throng.policies.value_iteration import state_values, value_iteration
from throng.scenarios.demand import Routes
from throng.scenarios.network import RoadNetwork

Networks = Callable[..., RoadNetwork]
ROUTERS: tuple[RouterName, ...] = ("regret", "astar_q", "consistent")
Array = NDArray[np.float32]


def _distances(network: RoadNetwork, cost: NDArray[np.floating]) -> NDArray[np.float64]:
    """Least cost `[from road, to road]` over the allowed connections, cost `[connections]`; scipy."""
    arcs = network.connections[network.allowed]
    shape = (network.road_count, network.road_count)
    return dijkstra(csr_array((cost[network.allowed].astype(np.float64), (arcs[:, 0], arcs[:, 1])), shape=shape))


def _cost(network: RoadNetwork, route: NDArray[np.int32], cost: NDArray[np.floating]) -> float:
    """Cost of a route; fails if it drives a connection that is not there or not allowed."""
    used = network.find_connections(route[:-1], route[1:])
    assert (used >= 0).all()
    assert network.allowed[used].all(), "the route drives a masked connection"
    return float(cost[used].astype(np.float64).sum())


def _reachable_pairs(network: RoadNetwork) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Every (origin, destination) with a route, equal ones included."""
    length = network.length[network.connections[:, 1]]
    origin, destination = np.nonzero(np.isfinite(_distances(network, length)))
    return origin.astype(np.int32), destination.astype(np.int32)


def _regret(network: RoadNetwork, rewards: Array, scale: float) -> Array:
    """`scale * (Q - V)` of the policies learnt from rewards."""
    q = value_iteration(rewards, network.first, network.to, network.allowed, 0.8)
    return np.float32(scale) * (q - state_values(q, network.first, network.allowed)[:, network.connections[:, 0]])


@pytest.mark.parametrize("seed", range(6))
def test_without_preferences_routes_are_shortest(random_network: Networks, seed: int) -> None:
    network = random_network(np.random.default_rng(seed), 12, 30, masked=0.2)
    length = network.length[network.connections[:, 1]]
    least = _distances(network, length)
    origin, destination = _reachable_pairs(network)
    for router in ROUTERS:
        routes = route_vehicles(network, origin, destination, None, router)
        assert len(routes) == len(origin)
        for i, (o, d) in enumerate(zip(origin, destination, strict=True)):
            route = routes.route(i)
            assert (route[0], route[-1]) == (o, d)
            assert _cost(network, route, length) == pytest.approx(least[o, d], rel=1e-5)


def test_the_fastest_routes_are_fastest(random_network: Networks) -> None:
    network = random_network(np.random.default_rng(7), 15, 45)
    seconds = (network.length / network.speed)[network.connections[:, 1]]
    origin, destination = _reachable_pairs(network)
    routes = fastest_routes(network, origin, destination)
    found = [_cost(network, routes.route(i), seconds) for i in range(len(routes))]
    np.testing.assert_allclose(found, _distances(network, seconds)[origin, destination], rtol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_consistent_routes_are_optimal_for_what_they_claim_to_minimise(random_network: Networks, seed: int) -> None:
    """If the floor or the sign of the bonus were wrong, scipy would find a cheaper route for some pair."""
    rng = np.random.default_rng(seed)
    network = random_network(rng, 12, 34, masked=0.2)
    length = network.length[network.connections[:, 1]]
    origin, destination = _reachable_pairs(network)
    bonus = (rng.standard_normal((len(origin), len(length))) * 150).astype(np.float32)
    routes = route_vehicles(network, origin, destination, Bonus(bonus), "consistent")
    floored = 0
    for i, (o, d) in enumerate(zip(origin, destination, strict=True)):
        cost = np.maximum(length - bonus[i], FLOOR * length)
        floored += int((cost > length - bonus[i]).sum())
        assert _cost(network, routes.route(i), cost) == pytest.approx(_distances(network, cost)[o, d], rel=1e-5)
    assert floored > 0, "the floor was never tried"


def _paths(network: RoadNetwork, origin: int, destination: int) -> Iterator[NDArray[np.int32]]:
    """All simple paths over allowed connections."""
    stack = [[origin]]
    while stack:
        path = stack.pop()
        if path[-1] == destination:
            yield np.array(path, np.int32)
            continue
        stack += [[*path, int(t)] for t in network.successors(path[-1]) if t not in path]


@pytest.mark.parametrize("guided", [False, True], ids=["dijkstra", "guided"])
@pytest.mark.parametrize("seed", range(6))
def test_regret_routes_beat_every_other_path(random_network: Networks, seed: int, guided: bool) -> None:
    """Length plus regret is never below length: were it, Dijkstra would not be exact and some listed path be cheaper.

    The distances ahead may only save work.
    """
    rng = np.random.default_rng(20 + seed)
    network = random_network(rng, 7, 18, masked=0.15)
    length = network.length[network.connections[:, 1]]
    origin, destination = _reachable_pairs(network)
    rewards = rng.standard_normal((len(origin), len(length))).astype(np.float32)
    bonus = _regret(network, rewards, 300.0)
    assert (bonus[:, network.allowed] <= 0).all()
    ahead = distances_ahead(network, destination) if guided else None
    routes = route_vehicles(network, origin, destination, Bonus(bonus), "regret", ahead)
    for i, (o, d) in enumerate(zip(origin.tolist(), destination.tolist(), strict=True)):
        cost = length - bonus[i]
        best = min(_cost(network, path, cost) for path in _paths(network, o, d))
        own = _cost(network, routes.route(i), cost)
        assert own == pytest.approx(best, rel=1e-5, abs=1e-3)
        assert own >= _cost(network, routes.route(i), length) - 1e-3


def test_distances_ahead_are_a_lower_bound_within_rounding(random_network: Networks) -> None:
    """Metres from the end of a road to the end of the destination; a single one too many would cost optimality."""
    network = random_network(np.random.default_rng(9), 14, 40, masked=0.2)
    exact = _distances(network, network.length[network.connections[:, 1]])
    goals = np.array([3, 11, 3, 7], np.int32)
    ahead = distances_ahead(network, goals)
    assert (np.flatnonzero(ahead.row >= 0) == [3, 7, 11]).all()
    for goal in (3, 7, 11):
        metres = ahead.metres[ahead.row[goal]]
        np.testing.assert_allclose(metres, exact[:, goal], rtol=1e-4)
        assert (metres <= exact[:, goal]).all()


def _grid(hand_made: Networks, columns: int, rows: int, rng: np.random.Generator) -> RoadNetwork:
    """Two-way streets on a rectangular grid of unequal blocks: the L1 distance never exceeds the driven one."""
    x, y = np.cumsum(rng.uniform(80, 300, columns)), np.cumsum(rng.uniform(80, 300, rows))
    nodes = list(itertools.product(range(columns), range(rows)))
    roads = [(a, b) for a in nodes for b in nodes if abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1]
    xy = {node: np.array([x[node[0]], y[node[1]]]) for node in nodes}
    pairs = [(i, j) for i, a in enumerate(roads) for j, b in enumerate(roads) if a[1] == b[0] and a[0] != b[1]]
    return hand_made(
        len(roads),
        pairs,
        length=[np.abs(xy[b] - xy[a]).sum() for a, b in roads],
        start_xy=[xy[a] for a, _ in roads],
        end_xy=[xy[b] for _, b in roads],
    )


def test_astar_without_a_bonus_finds_shortest_routes_on_a_grid(hand_made: Networks) -> None:
    """There L1 is consistent, so A* is exact; an L2 distance to the wrong point, or metres counted twice, is not."""
    network = _grid(hand_made, 5, 4, np.random.default_rng(8))
    length = network.length[network.connections[:, 1]]
    origin, destination = _reachable_pairs(network)
    zero = np.zeros((len(origin), len(length)), np.float32)
    routes = route_vehicles(network, origin, destination, Bonus(zero), "astar_q")
    found = [_cost(network, routes.route(i), length) for i in range(len(routes))]
    np.testing.assert_allclose(found, _distances(network, length)[origin, destination], rtol=1e-5)


def _equation_12(network: RoadNetwork, bonus: Array, origin: int, destination: int) -> list[int]:
    """A* with f = driven metres + |dx| + |dy| - bonus, a closed set and no re-opening, as the paper describes it."""
    goal = network.end_xy[destination]
    driven = {origin: np.float32(0)}
    f_of: dict[int, np.float32] = {origin: np.float32(0)}
    before: dict[int, int] = {}
    closed: set[int] = set()
    heap: list[tuple[np.float32, int]] = [(np.float32(0), origin)]
    while heap:
        _, road = heapq.heappop(heap)
        if road in closed:
            continue
        closed.add(road)
        if road == destination:
            break
        for e in range(network.first[road], network.first[road + 1]):
            after = int(network.connections[e, 1])
            if not network.allowed[e] or after in closed:
                continue
            metres = np.float32(driven[road] + network.length[after])
            apart = np.abs(network.end_xy[after] - goal)
            f = np.float32(np.float32(np.float32(metres + apart[0]) + apart[1]) - bonus[e])
            if after not in f_of or f < f_of[after]:
                f_of[after], driven[after], before[after] = f, metres, road
                heapq.heappush(heap, (f, after))
    path = [destination]
    while path[-1] != origin:
        path.append(before[path[-1]])
    return path[::-1]


@pytest.mark.parametrize("seed", range(6))
def test_astar_is_equation_12(random_network: Networks, seed: int) -> None:
    rng = np.random.default_rng(40 + seed)
    network = random_network(rng, 12, 34, masked=0.2)
    origin, destination = _reachable_pairs(network)
    bonus = (rng.standard_normal((len(origin), network.connection_count)) * 200).astype(np.float32)
    routes = route_vehicles(network, origin, destination, Bonus(bonus), "astar_q")
    for i, (o, d) in enumerate(zip(origin.tolist(), destination.tolist(), strict=True)):
        assert routes.route(i).tolist() == _equation_12(network, bonus[i], o, d)


@pytest.mark.parametrize("advantage", [False, True], ids=["plain", "advantage"])
@pytest.mark.parametrize("router", ROUTERS)
def test_a_bonus_made_on_the_spot_is_the_one_written_out(
    random_network: Networks, router: RouterName, advantage: bool
) -> None:
    """Of few drivers, in any order, with the queues of now: as if the whole table had been made before."""
    rng = np.random.default_rng(77)
    network = random_network(rng, 14, 40, masked=0.2)
    origin, destination = _reachable_pairs(network)
    base = rng.standard_normal((9, network.connection_count)).astype(np.float32)
    weight = rng.standard_normal(9).astype(np.float32)
    queue = rng.poisson(4, network.road_count).astype(np.float32)
    drivers = rng.integers(9, size=len(origin)).astype(np.int32)
    bias = base + weight[:, None] * np.log1p(queue)[network.to]
    if advantage:
        bias -= state_values(bias, network.first, network.allowed)[:, network.connections[:, 0]]
    written = Bonus(np.float32(200) * bias[drivers])
    made = Bonus(base, 200.0, advantage, weight, queue)
    expected = route_vehicles(network, origin, destination, written, router)
    routes = route_vehicles(network, origin, destination, made, router, drivers=drivers)
    np.testing.assert_array_equal(routes.roads, expected.roads)
    assert not np.array_equal(routes.roads, route_vehicles(network, origin, destination, None).roads)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_everybody_arrives_whatever_the_bonus(random_network: Networks, router: RouterName, scale: float) -> None:
    """No bonus, however large, may trap a vehicle, lead it over a masked connection, or depend on who else drives."""
    for seed in range(8):
        rng = np.random.default_rng(100 + seed)
        network = random_network(rng, int(rng.integers(2, 25)), int(rng.integers(1, 80)), masked=0.3)
        origin, destination = _reachable_pairs(network)
        bonus = (rng.standard_t(1.5, (len(origin), network.connection_count)) * scale).astype(np.float32)
        length = network.length[network.connections[:, 1]]
        routes = route_vehicles(network, origin, destination, Bonus(bonus), router)
        for i in range(len(origin)):
            route = routes.route(i)
            assert (route[0], route[-1]) == (origin[i], destination[i])
            assert len(set(route.tolist())) == len(route), "a loop"
            _cost(network, route, length)
        again = route_vehicles(network, origin, destination, Bonus(bonus), router)
        np.testing.assert_array_equal(again.roads, routes.roads)
        alone = [route_vehicles(network, origin[i : i + 1], destination[i : i + 1], Bonus(bonus[i : i + 1]), router).roads
                 for i in range(len(origin))]  # fmt: skip
        np.testing.assert_array_equal(np.concatenate(alone), routes.roads)


@pytest.mark.parametrize("router", ROUTERS)
def test_an_unreachable_destination_is_named(hand_made: Networks, router: RouterName) -> None:
    """A route invented for it would send SUMO a broken file; naming nobody would leave the user to search."""
    network = hand_made(4, [(0, 1), (1, 2), (2, 3)], allowed=[True, True, False])
    origin, destination = np.array([0, 0, 0], np.int32), np.array([1, 3, 3], np.int32)
    bonus = np.zeros((3, 3), np.float32)
    for given in (Bonus(bonus), None):
        with pytest.raises(ValueError, match=r"2 vehicles.*vehicle number 1\b"):
            route_vehicles(network, origin, destination, given, router)


@pytest.mark.parametrize("router", ROUTERS)
def test_who_is_there_stays_there(hand_made: Networks, router: RouterName) -> None:
    """Origin and destination on one road: a route of one road, also on a road without a way on."""
    network = hand_made(3, [(0, 1), (1, 0), (1, 2)])
    at = np.array([0, 1, 2], np.int32)
    routes = route_vehicles(network, at, at, Bonus(np.full((3, 3), 50, np.float32)), router)
    assert [routes.route(i).tolist() for i in range(3)] == [[0], [1], [2]]


def test_long_routes_do_not_spill_over(hand_made: Networks) -> None:
    """Far more roads per route than the array is first made for."""
    roads = 300
    network = hand_made(roads, [(s, s + 1) for s in range(roads - 1)])
    origin = np.arange(40, dtype=np.int32)
    destination = np.full(40, roads - 1, np.int32)
    bonus = np.zeros((40, roads - 1), np.float32)
    for router in ROUTERS:
        routes = route_vehicles(network, origin, destination, Bonus(bonus), router)
        expected = Routes.from_lists([range(o, roads) for o in origin])
        np.testing.assert_array_equal(routes.roads, expected.roads)
        np.testing.assert_array_equal(routes.offsets, expected.offsets)


def test_an_unknown_router_is_refused(hand_made: Networks) -> None:
    network = hand_made(2, [(0, 1)])
    at = np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="regret, astar_q or consistent"):
        route_vehicles(network, at, at, Bonus(np.zeros((1, 1), np.float32)), "dijkstra")  # type: ignore[arg-type]
