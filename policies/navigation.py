"""Routes of all vehicles in one call: A* + Q (MASDiff, Eq. 12) and two consistent routers beside it.

`astar_q` is the paper's hybrid: the open list is ordered by `f = g + h` with `g` the driven metres and
`h = L1(road, destination) - lambda * Q(s, a)`. With that bias h is neither admissible nor consistent, so the result is *a*
route, not the optimum of an additive objective; the closed set without re-opening is what guarantees that a route is found
whenever one exists. The paper prints an L2 norm and writes "Manhattan": L1 here.

`regret` (the default) is the optimum of `sum(length + lambda * (V(s) - Q(s, a)))`: a connection costs its metres and the
regret of not following the learnt policy there, which is never negative, so Dijkstra's route is exact. It trades distance
against the same Q as Eq. 12, without the level V(s) that biases the open list. Of a soft policy the regret is
`-T log pi(a|s)`: the route trades distance against its likelihood.

`consistent` is the optimum of `sum(max(length - lambda * reward, floor))`: Dijkstra on the rewards themselves, no Q.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from ..scenarios.demand import Routes
from ..scenarios.network import RoadNetwork

RouterName = Literal["regret", "astar_q", "consistent"]
FLOOR = 0.05  # consistent: a road costs at least this share of its length


@dataclass(frozen=True, eq=False)
class Bonus:
    """Metres by which drivers favour connections, made on the spot for the few that a search looks at.

    The bonus of connection e for the driver in row v is `gain * (base[v, e] + weight[v] * log(1 + queue of the road ahead))`;
    with `advantage`, less V of the road before it is scaled: the largest over its allowed connections, or at a `temperature`
    T above 0 `T log sum exp(. / T)` over them, so that what is scaled is `T log pi(e)`.
    """

    base: NDArray[np.float32]  # [drivers, connections]
    gain: float = 1.0
    advantage: bool = False
    weight: NDArray[np.float32] | None = None  # [drivers]
    queue: NDArray[np.float32] | None = None  # [roads] vehicles
    temperature: float = 0.0  # of the policy, in units of base


def route_vehicles(
    network: RoadNetwork,
    origin: NDArray[np.int32],
    destination: NDArray[np.int32],
    bonus: Bonus | None,
    router: RouterName = "regret",
    ahead: Ahead | None = None,
    drivers: NDArray[np.int32] | None = None,
) -> Routes:
    """One route for every vehicle, from its origin road to its destination road.

    Args:
        network: roads and allowed connections; road lengths in metres.
        origin, destination: `[vehicles] int32` road indices.
        bonus: of `Q` for `astar_q`, of `Q - V` for `regret`, of the reward for `consistent`, in metres. None: no
            preferences, the shortest distance.
        router: how the bonus enters (see the module).
        ahead: distances to the destinations, which guide `regret` (see `distances_ahead`); None: no guidance.
        drivers: `[vehicles] int32`, the row of the bonus that is each vehicle's; None: they are in order.

    Raises:
        ValueError: a vehicle's destination cannot be reached over the allowed connections (names its index).
    """
    if router not in ("regret", "astar_q", "consistent"):
        raise ValueError(f"unknown router {router!r}; choose regret, astar_q or consistent")
    if bonus is None:
        return _best_first(network, network.metres, origin, destination)
    if drivers is None:
        drivers = np.arange(origin.size, dtype=np.int32)
    guide = ahead if router == "regret" else None
    return _best_first(network, network.metres, origin, destination, bonus, drivers, guide, router == "astar_q")


def _arrays(
    network: RoadNetwork, bonus: Bonus
) -> tuple[NDArray[np.float32], np.float32, bool, np.float32, NDArray[np.float32], NDArray[np.float32]]:
    """The bonus as the compiled searches take it."""
    weight = np.zeros(len(bonus.base), np.float32) if bonus.weight is None else bonus.weight
    queue = np.zeros(network.road_count, np.float32) if bonus.queue is None else bonus.queue
    return bonus.base, np.float32(bonus.gain), bonus.advantage, np.float32(bonus.temperature), weight, queue


@dataclass(frozen=True, eq=False)
class Ahead:
    """Shortest metres from the end of each road to the end of each of some destinations."""

    metres: NDArray[np.float32]  # [destinations, roads], inf where there is no way
    row: NDArray[np.int32]  # [roads] row of a destination road, -1 for others


def distances_ahead(network: RoadNetwork, destination: NDArray[np.int32]) -> Ahead:
    """Distances to every distinct destination.

    As regret is never negative, they are a consistent heuristic of the regret router: A* with them returns the route that
    Dijkstra would, and visits little more than that route.
    """
    goals = np.unique(destination)
    row = np.full(network.road_count, -1, np.int32)
    row[goals] = np.arange(goals.size)
    arcs = network.connections[network.allowed]
    shape = (network.road_count, network.road_count)
    # Backwards: a step from road t to its predecessor s costs the metres of t.
    reverse = csr_array((network.length[arcs[:, 1]].astype(float), (arcs[:, 1], arcs[:, 0])), shape=shape)
    return Ahead(dijkstra(reverse, indices=goals).astype(np.float32) * np.float32(1 - 1e-5), row)


def fastest_routes(network: RoadNetwork, origin: NDArray[np.int32], destination: NDArray[np.int32]) -> Routes:
    """Fastest free-flow routes (length over speed limit) of all vehicles: a null of every comparison."""
    seconds = (network.length / network.speed)[network.to].astype(np.float32)
    return _best_first(network, seconds, origin, destination)


def _best_first(
    network: RoadNetwork,
    length: NDArray[np.float32],
    origin: NDArray[np.int32],
    destination: NDArray[np.int32],
    bonus: Bonus | None = None,
    drivers: NDArray[np.int32] | None = None,
    ahead: Ahead | None = None,
    equation_12: bool = False,
) -> Routes:
    if bonus is None or drivers is None:
        bonus, drivers = Bonus(np.zeros((1, length.size), np.float32)), np.zeros(origin.size, np.int32)
    if ahead is None:
        metres, row = np.zeros((1, network.road_count), np.float32), np.zeros(destination.size, np.int32)
    else:
        metres, row = ahead.metres, ahead.row[destination]
    found = _search(
        network.first, network.to, network.allowed, length, *_arrays(network, bonus), drivers, origin, destination,
        metres, row, network.end_xy, equation_12,
    )  # fmt: skip
    return _checked(*found)


def _checked(roads: NDArray[np.int32], offsets: NDArray[np.int64]) -> Routes:
    if (offsets[1:] == offsets[:-1]).any():
        missing = np.flatnonzero(offsets[1:] == offsets[:-1])
        raise ValueError(f"no route for {missing.size} vehicles, the first is vehicle number {missing[0]}")
    return Routes(roads, offsets)


@numba.njit(cache=True, nogil=True)
def _push(keys, items, size, key, item):  # type: ignore[no-untyped-def]
    i = size
    while i > 0:
        parent = (i - 1) >> 1
        if keys[parent] <= key:
            break
        keys[i] = keys[parent]
        items[i] = items[parent]
        i = parent
    keys[i] = key
    items[i] = item
    return size + 1


@numba.njit(cache=True, nogil=True)
def _pop(keys, items, size):  # type: ignore[no-untyped-def]
    """Smallest key first; returns the new size and leaves the popped pair at that index."""
    size -= 1
    top_key, top_item = keys[0], items[0]
    key, item = keys[size], items[size]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and keys[child + 1] < keys[child]:
            child += 1
        if keys[child] >= key:
            break
        keys[i] = keys[child]
        items[i] = items[child]
        i = child
    keys[i] = key
    items[i] = item
    keys[size] = top_key
    items[size] = top_item
    return size


@numba.njit(cache=True, nogil=True)
def _append(roads, used, previous, origin, destination, scratch):  # type: ignore[no-untyped-def]
    """Writes the path that ends at destination behind `used`; grows the array when it is full."""
    n = 0
    road = destination
    while True:
        scratch[n] = road
        n += 1
        if road == origin:
            break
        road = previous[road]
    if used + n > roads.shape[0]:
        grown = np.empty(max(2 * roads.shape[0], used + n), np.int32)
        grown[:used] = roads[:used]
        roads = grown
    for i in range(n):
        roads[used + i] = scratch[n - 1 - i]
    return roads, used + n


@numba.njit(cache=True, nogil=True)
def _waiting(queue):  # type: ignore[no-untyped-def]
    """The queue feature of the reward, by road."""
    waiting = np.empty_like(queue)
    for road in range(queue.size):
        waiting[road] = np.log1p(max(queue[road], np.float32(0.0)))
    return waiting


@numba.njit(cache=True, nogil=True, inline="always")
def _favour(  # type: ignore[no-untyped-def]
    base, gain, advantage, temperature, weight, waiting, v, to, allowed, begin, end, bonus
):
    """Writes the bonus of driver v for the connections begin..end of one road (see `Bonus`)."""
    best = np.float32(-np.inf)
    for e in range(begin, end):
        bonus[e] = base[v, e] + weight[v] * waiting[to[e]]
        if allowed[e]:
            best = max(best, bonus[e])
    if not advantage or best == -np.inf:
        best = np.float32(0.0)
    elif temperature > 0:
        total = np.float32(0.0)
        for e in range(begin, end):
            if allowed[e]:
                total += np.exp((bonus[e] - best) / temperature)
        best += temperature * np.log(total)
    for e in range(begin, end):
        bonus[e] = gain * (bonus[e] - best)


@numba.njit(cache=True, nogil=True)
def _search(  # type: ignore[no-untyped-def]
    first, to, allowed, length, base, gain, advantage, temperature, weight, queue, drivers, origin, destination, ahead,
    goal_row, xy, equation_12,
):  # fmt: skip
    """One route per vehicle by best-first search with a closed set.

    `equation_12`: what is open is ordered by driven length + L1 distance to the goal - bonus. Otherwise A* on the cost
    `max(length - bonus, FLOOR * length)` with heuristic `ahead [rows, roads]` (zeros: Dijkstra), which must be consistent,
    as a closed road is never opened again.
    """
    floor = np.float32(FLOOR)
    vehicles = origin.shape[0]
    m = first.shape[0] - 1
    roads = np.empty(vehicles * 16 + 64, np.int32)
    offsets = np.zeros(vehicles + 1, np.int64)
    cost = np.empty(m, np.float32)
    least = np.empty(m, np.float32)  # by which the ways to a road are compared
    previous = np.empty(m, np.int32)
    closed = np.empty(m, np.bool_)
    keys = np.empty(to.shape[0] + 2, np.float32)
    items = np.empty(to.shape[0] + 2, np.int32)
    scratch = np.empty(m, np.int32)
    bonus = np.empty(to.shape[0], np.float32)
    waiting = _waiting(queue)
    used = 0
    for i in range(vehicles):
        v, start, goal, row = drivers[i], origin[i], destination[i], goal_row[i]
        least[:] = np.inf
        closed[:] = False
        cost[start] = 0.0
        least[start] = 0.0
        size = _push(keys, items, 0, np.float32(0.0), start)
        found = False
        while size > 0:
            size = _pop(keys, items, size)
            s = items[size]
            if closed[s]:
                continue
            closed[s] = True
            if s == goal:
                found = True
                break
            _favour(base, gain, advantage, temperature, weight, waiting, v, to, allowed, first[s], first[s + 1], bonus)
            for e in range(first[s], first[s + 1]):
                t = to[e]
                if not allowed[e] or closed[t]:
                    continue
                if equation_12:
                    after = cost[s] + length[e]
                    key = after + abs(xy[t, 0] - xy[goal, 0]) + abs(xy[t, 1] - xy[goal, 1]) - bonus[e]
                    rank = key
                else:
                    after = cost[s] + max(length[e] - bonus[e], floor * length[e])
                    key = after + ahead[row, t]
                    rank = after
                if rank < least[t]:
                    least[t] = rank
                    cost[t] = after
                    previous[t] = s
                    size = _push(keys, items, size, key, t)
        if found:
            roads, used = _append(roads, used, previous, start, goal, scratch)
        offsets[i + 1] = used
    return roads[:used].copy(), offsets
