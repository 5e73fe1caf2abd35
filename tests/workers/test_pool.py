"""Pools in this process and on Ray: the same jobs, the same results, whoever dies in between."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from numpy.typing import NDArray
from throng.policies.diffusion import DiffusionSettings
from throng.policies.problem import Problem
from throng.policies.screening import road_flows
from throng.scenarios.demand import Routes
from throng.scenarios.macro import Macro
from throng.scenarios.scenario import Scenario
from throng.workers import pipeline as pipeline_module
from throng.workers import pool as pool_module
from throng.workers.fleet import Failure, Fleet, Rules
from throng.workers.learner import Learner
from throng.workers.pipeline import Actor
from throng.workers.pool import ALLOCATOR, LocalPool, RayPool
from throng.workers.reward import RewardClient
from throng.workers.simulator import Job
from throng.workers.sumo import GiveUp, Rollout, SumoRollout

Array = NDArray[np.float32]
DEADLINE = 300.0
CPUS = 6  # of Ray: one pool stays while tests begin others


@pytest.fixture(scope="module")
def problem(town: Scenario, make_few: Callable[..., Scenario], make_problem: Callable[..., Problem]) -> Problem:
    return make_problem(replace(make_few(town, 120, 4), observe_speed=True))


@pytest.fixture(scope="module")
def candidates(problem: Problem) -> list[tuple[Array, Array]]:
    """Latents with the traffic they are learnt at."""
    shape = problem.preference_model().shape
    rng = np.random.default_rng(0)
    scenario = problem.scenario
    queues = rng.poisson(1.0, (4, scenario.network.road_count, scenario.minutes)).astype(np.float32)
    return [(rng.standard_normal(shape, dtype=np.float32), queue) for queue in queues]


@pytest.fixture(scope="module")
def jobs(problem: Problem, candidates: list[tuple[Array, Array]]) -> list[Job]:
    """Every kind of job: learnt, given, mesoscopic, quiet, given up, and one that SUMO refuses."""
    scenario = problem.scenario
    target = np.zeros((scenario.network.road_count, scenario.minutes), np.float32)
    routes = Learner(problem).routes(*candidates[0])
    broken = Routes(routes.roads.copy(), routes.offsets)
    broken.roads[1] = broken.roads[0]
    learnt = [Job(f"learnt{i}", 10 + i, z=z, queue=queue) for i, (z, queue) in enumerate(candidates)]
    return [
        Job("given", 1, routes=routes),
        *learnt,
        Job("meso", 2, "meso", z=candidates[1][0], queue=candidates[1][1]),
        Job("quiet", 3, "micro", True, candidates[2][0], candidates[2][1]),
        Job("broken", 4, routes=broken),
        Job("hopeless", 5, z=candidates[0][0], queue=candidates[0][1], give_up=GiveUp(target, 0.5, 99)),
    ]


@pytest.fixture(scope="module")
def expected(problem: Problem, jobs: list[Job]) -> dict[str, Rollout | Failure]:
    pool = LocalPool(problem, "pretrip", DEADLINE)
    try:
        return dict(pool.simulate(jobs))
    finally:
        pool.close()


@pytest.fixture(scope="module")
def ray_pool(a_ray: None, problem: Problem) -> Iterator[RayPool]:
    """Of all tests that do not need one of their own."""
    pool = RayPool(problem, "pretrip", Rules(DEADLINE), lambda: 2)
    yield pool
    pool.close()


def _assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for key, one in expected.items():
        other = found[key]
        assert type(other) is type(one), key
        if isinstance(one, Failure):
            # SUMO's words agree; the options that follow them name each process's own files.
            assert other.error.partition(" Its options")[0] == one.error.partition(" Its options")[0]
            continue
        for name in ("seed", "fidelity", "quiet", "arrived", "running", "waiting", "teleports", "minutes"):
            assert getattr(other, name) == getattr(one, name), (key, name)
        for name in ("queue", "speed", "count"):
            np.testing.assert_array_equal(getattr(other.macro, name), getattr(one.macro, name), err_msg=key)


def test_a_pool_learns_then_simulates(
    problem: Problem, jobs: list[Job], candidates: list[tuple[Array, Array]], expected: dict[str, Any]
) -> None:
    """What comes back for a latent is the traffic of its own routes, with its own seed and fidelity."""
    learner = Learner(problem)
    with SumoRollout(problem.scenario) as rollout:
        for i, (z, queue) in enumerate(candidates):
            own = rollout.run(learner.routes(z, queue), 10 + i)
            np.testing.assert_array_equal(expected[f"learnt{i}"].macro.queue, own.macro.queue)
        quiet = rollout.run(learner.routes(*candidates[2]), 3, quiet=True)
    np.testing.assert_array_equal(expected["quiet"].macro.queue, quiet.macro.queue)
    assert isinstance(expected["broken"], Failure)
    assert "no valid route" in expected["broken"].error
    assert expected["hopeless"].minutes < problem.scenario.minutes


def test_ray_gives_what_one_process_gives(
    ray_pool: RayPool,
    problem: Problem,
    jobs: list[Job],
    candidates: list[tuple[Array, Array]],
    expected: dict[str, Any],
) -> None:
    """Bit for bit, the failure included: a run does not depend on how many workers it has.

    Flows come back in the order of asking: screening pairs them with candidates by position.
    """
    before = ray_pool.restarts
    listed = list(ray_pool.simulate(iter(jobs)))
    assert len(listed) == len(jobs)
    _assert_same(dict(listed), expected)
    assert ray_pool.restarts == before
    learner, local = Learner(problem), LocalPool(problem, "pretrip", DEADLINE)
    by_hand = [road_flows(problem.scenario, learner.routes(z, queue), queue) for z, queue in candidates]
    for flows in (ray_pool.flows(iter(candidates)), local.flows(candidates)):
        np.testing.assert_array_equal(np.stack(flows), np.stack(by_hand))
    local.close()
    assert ray_pool.flows([]) == []


def test_jobs_may_be_of_another_problem(
    ray_pool: RayPool,
    town: Scenario,
    problem: Problem,
    make_few: Callable[..., Scenario],
    make_problem: Callable[..., Problem],
    candidates: list[tuple[Array, Array]],
    expected: dict[str, Any],
) -> None:
    """Worlds must not be mixed up: each job gets the traffic that a pool of its own problem would give it."""
    other = make_problem(make_few(town, 60, 4))
    z, queue = candidates[0]
    theirs = z[: int(np.prod(other.preference_model().shape))]
    alone = LocalPool(other, "pretrip", DEADLINE)
    wanted = dict(alone.simulate([Job("there", 7, z=theirs, queue=queue)]))["there"]
    alone.close()
    local = LocalPool(problem, "pretrip", DEADLINE)
    for pool in (ray_pool, local):
        pool.add("elsewhere", other)
        mixed = [Job("learnt0", 10, z=z, queue=queue), Job("there", 7, z=theirs, queue=queue, world="elsewhere")]
        found = dict(pool.simulate([mixed[1], mixed[0]]))
        _assert_same({"learnt0": found["learnt0"]}, {"learnt0": expected["learnt0"]})
        np.testing.assert_array_equal(found["there"].macro.queue, wanted.macro.queue)
    local.close()


@pytest.mark.parametrize(("learning", "simulating"), [(0.06, 0.0), (0.0, 0.12)], ids=["slow learner", "slow rollouts"])
def test_whoever_is_slower_the_object_store_stays_small(
    learning: float, simulating: float, a_ray: None, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Routes of 2 MiB for each of 40 jobs: only those that a rollout works on or waits for are kept."""
    size = 2 << 20

    class Lavish(Actor):
        def __init__(self, *_: Any) -> None:
            pass

        @ray.method(num_returns=2)
        def routes(self, *_: Any) -> Any:
            time.sleep(learning)
            return None, [np.ones(size, np.uint8)]

    class Sink(Lavish):
        def simulate(self, message: bytes, learnt: tuple[Any, ...], _: Any) -> list[Rollout]:
            time.sleep(simulating)
            (routes,) = ray.get(learnt[0])
            return [
                Rollout(Macro(routes[:4].reshape(2, 2)), 0, "micro", False, routes.nbytes, 0, 0, 0, 2, 0.0, simulating)
            ]

        def close(self) -> None:
            pass

    for name, fake in (("LearnerActor", Lavish), ("RolloutActor", Sink)):
        monkeypatch.setattr(pool_module, name, fake)

    def stored() -> float:
        return ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"]

    z, queue = np.zeros(3, np.float32), np.zeros((2, 2), np.float32)
    most, before = 0.0, stored()

    def look(_: Fleet) -> None:
        nonlocal most
        most = max(most, stored() - before)

    rules = Rules(DEADLINE)
    pool = RayPool(problem, "pretrip", rules, lambda: 2, pulse=look)
    try:
        found = list(pool.simulate(Job(str(i), 0, z=z, queue=queue) for i in range(40)))
    finally:
        pool.close()
    assert sorted(int(key) for key, _ in found) == list(range(40))
    assert all(not isinstance(answer, Failure) and answer.arrived == size for _, answer in found)
    held = rules.in_flight * (2 + 1) + 1  # by two rollouts and a learner, and one that is being handed over
    assert size / 2 < most <= (held + 2) * size  # and as much again as Ray may be late to hear of


def test_rollouts_have_the_allocator_and_nobody_else(ray_pool: RayPool) -> None:
    """An `LD_PRELOAD` that does not reach a process is lost in silence."""
    rollout = ray.get(ray_pool.rollouts._members[0].actor.process.remote())
    assert ALLOCATOR, "Ray no longer brings its allocator"
    assert ALLOCATOR["LD_PRELOAD"] in Path(f"/proc/{rollout}/maps").read_text()
    assert ALLOCATOR["LD_PRELOAD"] not in Path("/proc/self/maps").read_text()


def test_actors_that_train_no_network_do_without_torch(ray_pool: RayPool, jobs: list[Job]) -> None:
    """It would take most of the time that they need to start, and a third of their memory."""
    assert len(list(ray_pool.simulate(jobs[:2]))) == 2
    for fleet in (ray_pool.rollouts, ray_pool.learners):
        actor = fleet._members[0].actor
        process, memory = ray.get([actor.process.remote(), actor.memory.remote()])
        print(fleet.name, memory >> 20)
        assert "libtorch" not in Path(f"/proc/{process}/maps").read_text()


def test_a_killed_worker_changes_nothing(ray_pool: RayPool, jobs: list[Job], expected: dict[str, Any]) -> None:
    """SIGKILL to a rollout process in the middle: its simulations are done again, with the same seeds."""
    before = ray_pool.restarts
    victims = [ray.get(member.actor.process.remote()) for member in ray_pool.rollouts._members]
    results = ray_pool.simulate(jobs)
    found = dict([next(results)])
    os.kill(victims[0], signal.SIGKILL)
    found |= dict(results)
    _assert_same(found, expected)
    again = dict(ray_pool.simulate(jobs))
    _assert_same(again, expected)
    assert ray_pool.restarts == before + 1, "a process was killed, and its actor replaced"


def test_one_bad_job_of_a_message_harms_no_other(
    ray_pool: RayPool, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results are those of one process, job by job, though messages carried up to six."""
    here, shape = LocalPool(problem, "pretrip", DEADLINE), problem.preference_model().shape
    queue = np.zeros((114, 4), np.float32)
    rng = np.random.default_rng(0)
    jobs = [Job(str(i), i, "meso", z=rng.standard_normal(shape, np.float32), queue=queue) for i in range(18)]
    jobs[7] = Job("7", 7, "meso", z=np.zeros((3, 3), np.float32), queue=queue)  # nobody can learn from it
    jobs += [Job(f"given{i}", i, "meso", routes=("A0B0",) * 120) for i in range(2)]  # nobody can drive it
    ((_, first),) = ray_pool.simulate(jobs[:1])
    assert not isinstance(first, Failure)
    monkeypatch.setattr(pipeline_module, "MESSAGES", 0.01)
    assert ray_pool._pipeline._at_once(2) > 20
    messages: list[int] = []
    flaw = pipeline_module._flaw
    monkeypatch.setattr(pipeline_module, "_flaw", lambda found: messages.append(len(found)) or flaw(found))
    before = ray_pool.rollouts._answered
    found = dict(ray_pool.simulate(jobs))
    assert len(messages) < 18
    done = sum(not isinstance(one, Failure) for one in found.values())
    assert ray_pool.rollouts._answered - before == sum(messages) == done, "budgets count simulations"
    assert sorted(found) == sorted(job.key for job in jobs)
    expected = {}
    for job in jobs:
        try:
            expected |= dict(here.simulate([job]))
        except ValueError as error:  # in this process, a mistake of the caller
            expected[job.key] = Failure(str(error))
    here.close()
    assert [key for key, one in found.items() if isinstance(one, Failure)] != []
    for key, one in expected.items():
        other = found[key]
        assert isinstance(other, Failure) == isinstance(one, Failure), key
        if not isinstance(one, Failure) and not isinstance(other, Failure):
            np.testing.assert_array_equal(other.macro.queue, one.macro.queue, err_msg=key)


def test_junction_routing_is_the_same_on_ray(
    a_ray: None, problem: Problem, candidates: list[tuple[Array, Array]], expected: dict[str, Any]
) -> None:
    """The policies travel with the job, and a job with given routes is driven as given."""
    jobs = [
        Job("live", 10, z=candidates[0][0], queue=candidates[0][1]),
        Job("given", 1, routes=Learner(problem).routes(*candidates[0])),
    ]
    local = LocalPool(problem, "junction", DEADLINE)
    alone = dict(local.simulate(jobs))
    local.close()
    pool = RayPool(problem, "junction", Rules(DEADLINE), lambda: 1)
    try:
        _assert_same(dict(pool.simulate(jobs)), alone)
    finally:
        pool.close()
    np.testing.assert_array_equal(alone["given"].macro.queue, expected["given"].macro.queue)  # type: ignore[union-attr]
    assert not np.array_equal(alone["live"].macro.queue, expected["learnt0"].macro.queue)  # type: ignore[union-attr]


SETTINGS = DiffusionSettings(width=32, updates=15, batch=32)


def _samples(seed: int) -> tuple[Array, Array, NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    queues = rng.gamma(1.0, 2.0, (24, 10, 12)).astype(np.float32)
    return rng.standard_normal((24, 5), dtype=np.float32), queues, rng.random(24)


def _session(client: RewardClient, disturb: Callable[[RewardClient], None]) -> list[Array]:
    """Trainings with draws between them, disturbed before and after the first and during the last."""
    z, queues, weight = _samples(0)
    answers = [client.sample(queues[:6], 1).z]
    client.fit_encoder(queues)
    disturb(client)
    answers.append(np.float32([client.train(z, queues, weight, 2)()]))
    disturb(client)
    answers.append(client.sample(queues[:6], 3).z)
    answers.append(client.mutate(z[:6], queues[:6], 0.5, 4).z)
    answers.append(np.float32([client.train(z, queues, weight, 5)()]))
    answers.append(client.sample(queues[:6], 6).z)
    training = client.train(z, queues, weight, 7)
    disturb(client)
    answers.append(np.float32([training()]))
    answers.append(client.sample(queues[:6], 8).z)
    return answers


def _kill(client: RewardClient) -> None:
    assert client._fleet is not None
    ray.kill(client._fleet._members[0].actor)


def test_a_lost_reward_service_comes_back_as_it_was(a_ray: None) -> None:
    """Killed before, during and after a training, it must answer as one in this process that nothing ever happened to."""
    local = RewardClient((5,), None, SETTINGS, 3, remote=False)
    remote = RewardClient((5,), None, SETTINGS, 3, remote=True)
    try:
        for calm, killed in zip(_session(local, lambda _: None), _session(remote, _kill), strict=True):
            np.testing.assert_array_equal(killed, calm)
        assert remote.restarts == 3
    finally:
        remote.close()


def test_a_checkpoint_of_the_reward_service_goes_on() -> None:
    """Loaded into a fresh service, and again, it trains on as the first did: using a checkpoint does not wear it out."""
    z, queues, weight = _samples(1)
    first = RewardClient((5,), None, SETTINGS, 3, remote=False)
    first.fit_encoder(queues)
    first.train(z, queues, weight, 1)()
    assert first.tensors is not None
    saved = {name: tensor.clone() for name, tensor in first.tensors.items()}
    checkpoint = dict(first.tensors)
    loss = first.train(z, queues, weight, 2)()
    drawn = first.sample(queues[:4], 3).z
    for _ in range(2):
        second = RewardClient((5,), None, SETTINGS, 77, remote=False)
        second.load(checkpoint)
        assert second.train(z, queues, weight, 2)() == loss
        np.testing.assert_array_equal(second.sample(queues[:4], 3).z, drawn)
        second.close()
    for name, tensor in saved.items():
        assert (checkpoint[name] == tensor).all(), name


@pytest.mark.parametrize("remote", [False, True])
def test_a_reward_service_that_refuses_is_heard(a_ray: None, remote: bool) -> None:
    """Weights of NaN are the caller's mistake: no restart, the service's words, and it can be asked again."""
    z, queues, weight = _samples(2)
    client = RewardClient((5,), None, SETTINGS, 3, remote=remote)
    with pytest.raises((RuntimeError, ValueError), match="weights must be non-negative"):
        client.train(z, queues, weight * np.nan, 1)()
    assert client.restarts == 0
    assert np.isfinite(client.train(z, queues, weight, 1)())
    client.close()


def test_before_the_encoder_is_fitted_traffic_says_nothing() -> None:
    """The first population is drawn from the prior, whatever the reference traffic."""
    _z, queues, _ = _samples(3)
    client = RewardClient((5,), None, SETTINGS, 3, remote=False)
    np.testing.assert_array_equal(client.sample(queues[:4], 1).z, client.sample(queues[4:8], 1).z)
