"""Learning and routing of all vehicles."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import numpy as np
from measure import Result, compared, here, in_turns, ratio
from numpy.typing import NDArray
from throng.policies.navigation import Bonus, RouterName, route_vehicles
from throng.policies.value_iteration import value_iteration
from throng.scenarios.network import RoadNetwork
from town import SEED, town

Array = NDArray[np.float32]
DISCOUNT, TOLERANCE = 0.8, 1e-4


def numpy_solver(network: RoadNetwork) -> Callable[[Array], Array]:
    """Value iteration of one vehicle in numpy, vectorised over connections: the baseline.

    All that depends on the network alone is prepared here, outside of the clock. Same stop as ours.
    """
    to = network.connections[:, 1]
    usable = np.flatnonzero(network.allowed)
    source = network.connections[usable, 0]
    roads, begin = np.unique(source, return_index=True)  # they are sorted
    ahead = to[usable]
    step = TOLERANCE * (1.0 - DISCOUNT) / DISCOUNT
    gamma = np.float32(DISCOUNT)

    def solve(reward: Array) -> Array:
        value = np.zeros(network.road_count, np.float32)
        gain = reward[usable]
        while True:
            best = np.maximum.reduceat(gain + gamma * value[ahead], begin)
            change = np.abs(best - value[roads]).max()
            value[roads] = best
            if change <= step:
                return np.asarray(reward + gamma * value[to], np.float32)

    return solve


def learn(quick: bool) -> list[Result]:
    """Exact Q of all vehicles in one call against the loop over vehicles."""
    home = town(1557)
    network = home.case.scenario.network
    navigator = home.learner.navigator
    rewards = navigator.reward_table(home.learner.model.decode(home.z), home.queue, navigator.minute)
    to = network.to
    solve = numpy_solver(network)
    sample = np.linspace(0, len(rewards) - 1, 32 if quick else 256).astype(int)

    def ours() -> Array:
        return value_iteration(rewards, network.first, to, network.allowed, DISCOUNT, TOLERANCE)

    apart = float(np.abs(ours()[sample] - np.stack([solve(rewards[i]) for i in sample])).max())
    if apart > 2 * TOLERANCE:
        raise RuntimeError(f"the two solvers disagree by {apart:g}; the comparison means nothing")
    costs = in_turns(
        3 if quick else 9,
        {"numpy": lambda: here(lambda: [solve(rewards[i]) for i in sample]), "ours": lambda: here(ours)},
    )
    scale = len(rewards) / len(sample)
    value = scale * ratio(costs["numpy"], costs["ours"])
    times = [cost.cpu * 1e3 for cost in costs["ours"]]
    detail = (
        f"{rewards.shape[0]} vehicles x {rewards.shape[1]} connections; numpy loop timed on {len(sample)} "
        f"vehicles and scaled; median of {len(times)} paired CPU ratios; ours {median(times):.2f} ms; "
        f"largest difference of Q {apart:.1e}"
    )
    return [Result("numpy loop / value iteration", value, 100.0, "higher", detail)]


def routing(quick: bool) -> list[Result]:
    """Routes of all vehicles, given Q, as a share of the simulation that follows; both routers."""
    home = town(1557)
    scenario = home.case.scenario
    network, demand = scenario.network, scenario.demand
    navigator = home.learner.navigator
    q = navigator.q_values(home.learner.model.decode(home.z), home.queue, navigator.minute)
    gain = navigator.gain

    def regret() -> object:
        return route_vehicles(network, demand.origin, demand.destination, Bonus(q, gain, advantage=True), "regret")

    def astar_q() -> object:
        return route_vehicles(network, demand.origin, demand.destination, Bonus(q, gain), "astar_q")

    costs = in_turns(
        2 if quick else 7,
        {
            "micro": lambda: here(lambda: home.rollout.run(home.routes, SEED)),
            "regret": lambda: here(regret),
            "astar_q": lambda: here(astar_q),
        },
    )
    routers: tuple[RouterName, ...] = ("regret", "astar_q")
    results = []
    for router in routers:
        detail = f"from Q to routes of {len(demand)} vehicles; {compared(costs[router], costs['micro'])}"
        value = ratio(costs[router], costs["micro"])
        results.append(Result(f"routes by {router} / micro rollout", value, 0.1, "lower", detail))
    return results
