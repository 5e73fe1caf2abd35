"""Where actors go: learners and the reward service together and first, on steady nodes while there are any."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table
from throng.policies.problem import Problem
from throng.scenarios.scenario import Scenario
from throng.workers import pool as pool_module
from throng.workers.fleet import Fleet, Rules
from throng.workers.pipeline import LearnerActor, RolloutActor, packed
from throng.workers.placement import Reservation, cpus_for, learners_for, rollout_options, rollouts_on
from throng.workers.pool import LocalPool
from throng.workers.simulator import Job

QUICK = {
    "health_check_period_ms": 500, "health_check_failure_threshold": 2, "health_check_timeout_ms": 500,
    "health_check_initial_delay_ms": 0,
}  # fmt: skip
PATIENCE = 120.0  # seconds that a test waits at most


@pytest.mark.parametrize("learners", [None, 1, 40])
def test_rollouts_fill_what_learners_leave(learners: int | None) -> None:
    for cpus in range(1, 1200, 7):
        count = rollouts_on(cpus, learners)
        assert count == 1 or cpus_for(count, learners) <= cpus
        assert cpus_for(count + 1, learners) > cpus
    assert (learners_for(1), learners_for(15), learners_for(16), learners_for(1000)) == (1, 1, 2, 63)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without work and a spot machine; tests add the machine that stays, and take it away."""
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK}
    )
    try:
        made.add_node(num_cpus=3, labels={"ray.io/market-type": "spot"})
        ray.init(made.address, logging_level="ERROR", log_to_driver=False)
        yield made
    finally:
        gc.collect()
        ray.shutdown()
        made.shutdown()


def _class() -> Any:
    class Settled:  # local, so that Ray sends it by value
        def where(self) -> tuple[str, list[int]]:
            context = ray.get_runtime_context()
            return context.get_node_id(), context.get_accelerator_ids().get("GPU", [])

    return ray.remote(Settled)


def test_they_keep_to_steady_nodes_while_there_are_any(
    cluster: Cluster, town: Scenario, make_few: Callable[..., Scenario], make_problem: Callable[..., Problem]
) -> None:
    """Two share a GPU of the steady node. When that node dies, what a learner there had lent is learnt again where it is
    needed; and when no other comes, its successors go to the spot machine, though rollouts want more than there is."""
    steady = cluster.add_node(num_cpus=2, num_gpus=1)
    problem = make_problem(make_few(town, 120, 4))
    shape = problem.preference_model().shape
    job = Job("one", 3, z=np.ones(shape, np.float32), queue=np.zeros((114, 4), np.float32))
    settled = _class()

    shared = Reservation(["cuda", "cuda", "cpu"])
    both = [settled.options(**shared.options("cuda")).remote() for _ in range(2)]
    (where, gpus), (there, others) = ray.get([one.where.remote() for one in both], timeout=PATIENCE)
    assert where == there == steady.node_id
    assert gpus == others
    assert len(gpus) == 1
    for one in both:
        ray.kill(one)
    shared.release()

    reservation = Reservation(["cpu", "cpu"], patience=2.0)
    problem_there = ray.put(problem)
    learner_class = ray.remote(LearnerActor)

    def create() -> Any:
        return learner_class.options(**reservation.options("cpu")).remote(problem_there)

    rules = Rules(300.0, patience=2.0, restarts=0)
    fleet = Fleet("learner", create, 1, rules, lambda: ("process", ()))
    try:
        ((_, lent),) = fleet.run("routes", [("one", (packed([(job.z, job.queue)]),))], lent=True)
        assert isinstance(lent, ray.ObjectRef)
        rollout_class = ray.remote(RolloutActor).options(**rollout_options())
        rollouts = [rollout_class.remote(problem_there, "pretrip", 300.0) for _ in range(3)]  # one finds no room
        ready, _ = ray.wait([one.process.remote() for one in rollouts], num_returns=2, timeout=PATIENCE)
        assert len(ready) == 2
        cluster.remove_node(steady, allow_graceful=False)
        pool = LocalPool(problem, "pretrip", 300.0)
        ((_, expected),) = pool.simulate([job])
        pool.close()
        placed = next(one for one in rollouts if ray.wait([one.process.remote()], timeout=5.0)[0])
        (found,) = ray.get(placed.simulate.remote(packed([job]), (lent,)), timeout=PATIENCE)
        np.testing.assert_array_equal(found.macro.queue, expected.macro.queue)
        for one in rollouts:  # they leave; the learner comes before who would fill the place
            ray.kill(one)
        ((_, again),) = fleet.run("routes", [("one", (packed([(job.z, job.queue)]),))], lent=True)
        (routes,), direct = ray.get(again), LocalPool(problem, "pretrip", 300.0)._simulators[""].learner()
        np.testing.assert_array_equal(routes.roads, direct.routes(job.z, job.queue).roads)
        assert fleet.restarts >= 1
        assert placement_group_table(reservation._group)["state"] == "CREATED"
    finally:
        fleet.close()
        reservation.release()


def test_rollouts_make_room_for_a_learner(
    cluster: Cluster,
    town: Scenario,
    make_few: Callable[..., Scenario],
    make_problem: Callable[..., Problem],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its node dies; those whom it works for hold all that is left, and wait for more."""
    monkeypatch.setattr(pool_module, "ROOM_EVERY", 7.0)
    monkeypatch.setattr(pool_module, "Reservation", partial(Reservation, patience=1.0))
    learning = cluster.add_node(num_cpus=1)  # half of it is for the learner and the reward service
    problem = make_problem(make_few(town, 120, 4))
    shape, queue = problem.preference_model().shape, np.zeros((114, 4), np.float32)
    jobs = [Job(f"{i}", i, z=np.full(shape, i / 4, np.float32), queue=queue) for i in range(6)]
    sizes = set()
    pool = pool_module.RayPool(
        problem, "pretrip", Rules(300.0, patience=5.0), lambda: 4, pulse=lambda _: sizes.add(len(pool.rollouts))
    )
    try:
        before = dict(pool.simulate(jobs[:3]))
        assert sizes == {4}  # though only three find room
        cluster.remove_node(learning, allow_graceful=False)
        ray.kill(pool.learners._members[0].actor)  # it would live a little longer than its node
        after = dict(pool.simulate(jobs[3:]))
        assert {4, 2} <= sizes
        assert pool.learners.restarts >= 1
    finally:
        pool.close()
    local = LocalPool(problem, "pretrip", 300.0)
    expected = dict(local.simulate(jobs))
    local.close()
    for key, one in expected.items():
        found = (before | after)[key]
        np.testing.assert_array_equal(found.macro.queue, one.macro.queue)


def test_who_waits_too_long_asks_anew(cluster: Cluster) -> None:
    """The age that is shown counts from the first time."""
    asked: list[float] = []
    settled = _class()

    def create() -> Any:
        asked.append(time.monotonic())
        return settled.options(num_cpus=1, resources={} if len(asked) > 2 else {"unheard of": 1}).remote()

    fleet = Fleet("seeker", create, 1, Rules(60.0, patience=1.0), lambda: ("where", ()))
    ages: list[float] = []
    fleet._pulse = lambda one: ages.append(one.waiting()[1])
    ((_, answer),) = fleet.run("where", [("one", ())])
    assert len(asked) == 3
    assert answer[0] in {node.node_id for node in cluster.worker_nodes}
    assert max(ages) > 1.5
    assert fleet.restarts == 0
    fleet.close()
