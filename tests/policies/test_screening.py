"""Flows without a simulation, and queues guessed from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray
from throng.policies.navigation import route_vehicles
from throng.policies.screening import DISCHARGE, SIGNAL_WAIT, FlowSurrogate, road_flows
from throng.scenarios.demand import Demand, Routes
from throng.scenarios.network import RoadNetwork
from throng.scenarios.scenario import Scenario

Array = NDArray[np.float32]


def _drive(scenario: Scenario, routes: Routes, queue: Array) -> Array:
    """One vehicle after another, one road after another."""
    network = scenario.network
    flows = np.zeros((network.road_count, scenario.minutes), np.float32)
    for i in range(len(routes)):
        clock = scenario.demand.depart[i] - scenario.begin
        for road in routes.route(i):
            minute = int(clock // 60)
            if minute >= scenario.minutes:
                break
            flows[road, minute] += 1
            found = queue[road, min(minute, queue.shape[1] - 1)]
            lanes = 1 if scenario.lanes == "max" else network.lanes[road]
            clock += network.length[road] / network.speed[road] + DISCHARGE * found / lanes
            clock += SIGNAL_WAIT if network.signal[road] else 0.0
    return flows


@pytest.mark.parametrize("lanes", ["max", "sum"])
@pytest.mark.parametrize("minutes", [5, 1])
def test_flows_are_those_of_driving_everybody_by_hand(town: Scenario, lanes: str, minutes: int) -> None:
    """A queue of the wrong road or minute would delay somebody into another minute."""
    scenario = replace(town, lanes=lanes, begin=0.0)
    network, demand = town.network, town.demand
    routes = route_vehicles(network, demand.origin, demand.destination, None)
    queue = np.random.default_rng(0).poisson(4, (network.road_count, minutes)).astype(np.float32)
    difference = road_flows(scenario, routes, queue) - _drive(scenario, routes, queue)
    assert np.abs(difference).sum() <= 4, "float32 seconds may put a vehicle on the other side of a minute, no more"


def test_flows_at_exact_times(hand_made: Callable[..., RoadNetwork], make_demand: Callable[..., Demand]) -> None:
    """100 m at 10 m/s take 10 s, ten queued vehicles 20 s more, a light 15 s; the window begins at 600 s."""
    network = hand_made(3, [(0, 1), (1, 2)], signal=[False, True, False])
    demand = make_demand([0, 0], [2, 2], [600.0, 625.0])
    scenario = Scenario("line", network, demand, begin=600.0, minutes=2)
    queue = np.array([[10, 0], [0, 0], [0, 0]], np.float32)
    routes = Routes.from_lists([[0, 1, 2], [0, 1, 2]])
    # First: road 0 at 0 s, 1 at 30 s, 2 at 55 s. Second: 25 s, 55 s, 80 s.
    np.testing.assert_array_equal(road_flows(scenario, routes, queue), [[2, 0], [2, 0], [1, 1]])


def test_no_vehicle_is_lost_or_doubled(town: Scenario) -> None:
    """With time enough, every road of every route is entered once; within the window, each departs in its minute."""
    network, demand = town.network, town.demand
    routes = route_vehicles(network, demand.origin, demand.destination, None)
    free = np.zeros((network.road_count, 5), np.float32)
    long = road_flows(replace(town, minutes=60), routes, free)
    np.testing.assert_array_equal(long.sum(axis=1), np.bincount(routes.roads, minlength=network.road_count))
    first = Routes.from_lists([route[:1] for route in (routes.route(i) for i in range(len(routes)))])
    departures = road_flows(town, first, free)
    expected = np.zeros_like(departures)
    np.add.at(expected, (demand.origin, (demand.depart // 60).astype(int)), 1)
    np.testing.assert_array_equal(departures, expected)


def _flows(rng: np.random.Generator, samples: int) -> Array:
    return rng.poisson(6, (samples, 8, 6)).astype(np.float32)


def _known(flows: Array, rng: np.random.Generator, noise: float) -> Array:
    """Queues that follow from flows as the surrogate can see: of the minute, the two before, and so far."""
    one = np.concatenate([np.zeros_like(flows[:, :, :1]), flows[:, :, :-1]], axis=2)
    two = np.concatenate([np.zeros_like(flows[:, :, :2]), flows[:, :, :-2]], axis=2)
    slope = np.linspace(0.2, 1.2, flows.shape[1])[:, None]
    level = np.linspace(0, 5, flows.shape[2])
    exact = level + slope * flows + 0.3 * (one + two) + 0.5 * np.sqrt(np.cumsum(flows, axis=2)) - 0.01 * flows**2
    return (exact + noise * rng.standard_normal(flows.shape)).astype(np.float32)


def test_a_known_relation_is_recovered() -> None:
    """Queues that are linear in what the surrogate looks at must be predicted but for its ridge."""
    rng = np.random.default_rng(0)
    flows, held_out = _flows(rng, 300), _flows(rng, 50)
    surrogate = FlowSurrogate(flows, _known(flows, rng, 0.0), np.zeros(300, np.int64), ridge=1e-3)
    exact = _known(held_out, rng, 0.0)
    error = np.sqrt(np.mean((surrogate.predict(held_out) - exact) ** 2))
    assert error < 0.02 * exact.std()


def test_held_out_candidates_are_ranked() -> None:
    """What it is for: the order of errors against an observation, from 60 noisy simulations."""
    rng = np.random.default_rng(1)
    flows, held_out = _flows(rng, 60), _flows(rng, 80)
    surrogate = FlowSurrogate(flows, _known(flows, rng, 0.5), np.zeros(60, np.int64))
    observed = _known(_flows(rng, 1), rng, 0.0)[0]
    true = np.sqrt(np.mean((_known(held_out, rng, 0.0) - observed) ** 2, axis=(1, 2)))
    guessed = np.sqrt(np.mean((surrogate.predict(held_out) - observed) ** 2, axis=(1, 2)))
    assert scipy.stats.spearmanr(true, guessed).statistic > 0.8


def test_the_level_is_that_of_the_best_fidelity() -> None:
    """Mesoscopic queues lie lower: mixed in, they may teach slopes, never the level."""
    rng = np.random.default_rng(2)
    flows = _flows(rng, 200)
    rung = np.where(np.arange(200) < 150, 0, 2)
    values = _known(flows, rng, 0.0) - 4.0 * (rung == 0)[:, None, None]
    surrogate = FlowSurrogate(flows, values.astype(np.float32), rung, ridge=1e-3)
    best = rung == 2
    np.testing.assert_allclose(
        surrogate.predict(flows[best].mean(axis=0, keepdims=True)).mean(), values[best].mean(), atol=0.3
    )
    held_out = _flows(rng, 40)
    bias = (surrogate.predict(held_out) - _known(held_out, rng, 0.0)).mean()
    assert abs(bias) < 0.3


def test_roads_that_never_vary_are_predicted_at_their_mean() -> None:
    """Most roads of a town have the same flow in every candidate: no division by their zero spread."""
    flows = np.ones((12, 3, 4), np.float32)
    values = np.random.default_rng(3).random((12, 3, 4)).astype(np.float32)
    guess = FlowSurrogate(flows, values, np.zeros(12, np.int64)).predict(flows[:2])
    np.testing.assert_allclose(guess, np.repeat(values.mean(axis=0)[None], 2, axis=0), rtol=1e-5)
