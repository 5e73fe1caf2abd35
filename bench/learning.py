"""Learning and routing of all vehicles.

The networks of `dqn` and `iql` are compared with a loop over vehicles of torch modules: the same architecture, the same
data in full batches, the same losses, targets and number of updates, and the fastest of torch's Adams.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from measure import Result, compared, here, in_turns, ratio
from numpy.typing import NDArray
from throng.policies.learners import LearnerKind, LearnerSettings, make_learner
from throng.policies.navigation import Bonus, RouterName, route_vehicles
from throng.policies.stacked import Q_MOMENTS, RENEWED, V_MOMENTS
from throng.policies.value_iteration import value_iteration
from throng.scenarios.network import RoadNetwork
from town import SEED, town

Array = NDArray[np.float32]
DISCOUNT, TOLERANCE = 0.8, 1e-4
GAP, AGREEMENT = 0.05, 0.99  # choices with a larger action gap have to agree with the exact ones, so many of them


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


class Network(torch.nn.Module):
    """One vehicle's network: a row per road, tanh, a value per slot; `[roads, slots]`."""

    def __init__(self, roads: int, hidden: int, slots: int) -> None:
        super().__init__()
        self.rows = torch.nn.Embedding(roads, hidden)
        self.head = torch.nn.Linear(hidden, slots)

    def forward(self) -> torch.Tensor:
        return self.head(torch.tanh(self.rows.weight))


class ModuleLoop:
    """`dqn` or `iql` of one vehicle after another: the baseline. What depends on the network alone is prepared here."""

    def __init__(self, network: RoadNetwork, settings: LearnerSettings) -> None:
        self.settings = settings
        self.roads, self.slots = network.road_count, int(np.diff(network.first).max())
        source = network.connections[:, 0]
        self.source = torch.from_numpy(source.astype(np.int64))
        self.slot = torch.from_numpy((np.arange(source.size) - network.first[source]).astype(np.int64))
        cells = (self.roads, self.slots)
        self.following, self.known = torch.zeros(cells, dtype=torch.long), torch.zeros(cells)
        self.allowed = torch.zeros(cells, dtype=torch.bool)
        self.following[self.source, self.slot] = torch.from_numpy(network.to.astype(np.int64))
        self.known[self.source, self.slot] = 1.0
        self.allowed[self.source, self.slot] = torch.from_numpy(network.allowed)
        self.goes_on = self.allowed.any(1)
        self.shut = torch.zeros(cells).masked_fill(~self.allowed & self.goes_on[:, None], -torch.inf)

    def adam(self, net: Network, betas: tuple[float, float]) -> torch.optim.Adam:
        return torch.optim.Adam(net.parameters(), lr=self.settings.learning_rate, betas=betas, fused=True)

    def __call__(self, reward: Array) -> Array:
        given = self.settings
        scale = float(np.sqrt(np.mean(np.square(reward))))
        table = torch.zeros(self.known.shape)
        table[self.source, self.slot] = torch.from_numpy(reward / scale)
        torch.manual_seed(0)
        q = Network(self.roads, given.hidden, self.slots)
        adam = self.adam(q, Q_MOMENTS)
        implicit = given.kind == "iql"
        if implicit:
            v = Network(self.roads, given.hidden, 1)
            adam_v = self.adam(v, V_MOMENTS)
            above, below = self.allowed * given.expectile, self.allowed * (1 - given.expectile)
        for update in range(given.updates):
            rate = given.learning_rate * (1 - update / given.updates)
            out = q()
            with torch.no_grad():
                if update % RENEWED == 0:
                    target = out.detach().clone()
                    if not implicit:
                        best = (target + self.shut).amax(1) * self.goes_on
                        wanted = table + given.discount * best[self.following]
            if implicit:
                value = v()
                wanted = table + given.discount * (value.detach()[:, 0] * self.goes_on)[self.following]
                short = target - value
                adam_v.param_groups[0]["lr"] = rate
                adam_v.zero_grad()
                (0.5 * torch.where(short < 0, below, above) * short.square()).sum().backward()
                adam_v.step()
            adam.param_groups[0]["lr"] = rate
            adam.zero_grad()
            (0.5 * self.known * (out - wanted).square()).sum().backward()
            adam.step()
        with torch.no_grad():
            return np.asarray(scale * q()[self.source, self.slot].numpy(), np.float32)


def agreement(network: RoadNetwork, q: Array, exact: Array) -> float:
    """Share of (vehicle, road) pairs with an action gap above `GAP` whose best action is the exact one."""
    same = decided = 0
    for begin, end in zip(network.first[:-1], network.first[1:], strict=True):
        rows = np.arange(begin, end)[network.allowed[begin:end]]
        if rows.size > 1:
            best = np.sort(exact[:, rows], axis=1)
            clear = best[:, -1] - best[:, -2] > GAP
            same += int((q[clear][:, rows].argmax(1) == exact[clear][:, rows].argmax(1)).sum())
            decided += int(clear.sum())
    return same / decided


def dqn_training(quick: bool) -> list[Result]:
    return _training("dqn", quick)


def iql_training(quick: bool) -> list[Result]:
    return _training("iql", quick)


def _training(kind: LearnerKind, quick: bool) -> list[Result]:
    """Networks of all vehicles in stacks against the loop over modules, one thread each; both must have learnt."""
    home = town(1557)
    network, navigator = home.case.scenario.network, home.learner.navigator
    rewards = navigator.reward_table(home.learner.model.decode(home.z), home.queue, navigator.minute)
    settings = LearnerSettings(kind)
    learner, loop = make_learner(settings, network), ModuleLoop(network, settings)
    exact = make_learner(settings.exact(), network).q(rewards)
    # Alone in their stacks, ours would fill them less: all vehicles, and the loop on a sample of them.
    sample = np.linspace(0, len(rewards) - 1, 4 if quick else 16).astype(int)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found: dict[str, Array] = {}
    modules, stacked = [], []
    for _ in range(1 if quick else 3):  # nothing is compiled: no round to warm up
        modules.append(here(lambda: found.update(modules=np.stack([loop(rewards[i]) for i in sample]))))
        stacked.append(here(lambda: found.update(ours=learner.q(rewards))))
    torch.set_num_threads(threads)
    ours, theirs = agreement(network, found["ours"], exact), agreement(network, found["modules"], exact[sample])
    if min(ours, theirs) < AGREEMENT:
        raise RuntimeError(
            f"{kind}: ours agrees with vi on {ours:.2%}, the modules on {theirs:.2%}: one has not learnt"
        )
    scale = len(rewards) / len(sample)
    pairs = [scale * a.cpu / b.cpu for a, b in zip(modules, stacked, strict=True)]
    seconds = median(cost.cpu for cost in stacked)
    each = median(cost.cpu for cost in modules) / len(sample)
    per_update = 1e6 / settings.updates
    detail = (
        f"{len(rewards)} vehicles, {settings.updates} updates, one thread; modules timed on {len(sample)} vehicles and "
        f"scaled; median of {len(pairs)} paired CPU ratios ({min(pairs):.1f} to {max(pairs):.1f}); ours {seconds:.1f} s, "
        f"{per_update * seconds / len(rewards):.0f} microseconds per vehicle and update, modules {per_update * each:.0f}; "
        f"agreement with vi {ours:.2%}, modules {theirs:.2%}"
    )
    bar = {"dqn": 10.0, "iql": 8.0}[kind]
    return [Result(f"loop over torch modules / {kind} training", median(pairs), bar, "higher", detail)]


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
