"""Several jobs in one message, where the driver would otherwise be busy with messages alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from throng.policies.problem import Problem
from throng.scenarios.scenario import Scenario
from throng.workers import pipeline as pipeline_module
from throng.workers.fleet import Failure, Rules
from throng.workers.pipeline import Pipeline
from throng.workers.pool import LocalPool, RayPool
from throng.workers.simulator import Job


def _sizes(workers: int, seconds: float, jobs: Any) -> list[int]:
    fleet: Any = range(workers)  # its length is all that is asked
    pipeline = Pipeline(fleet, fleet, {})
    pipeline._seconds = seconds
    messages = [message.jobs for message in pipeline._messages(jobs)]
    alike = [{(job.world, job.z is None) for job in message} for message in messages]
    assert all(len(kinds) == 1 for kinds in alike)
    sent = [job.key for message in messages for job in message]
    assert sent == [str(i) for i in range(len(sent))]
    return [len(message) for message in messages]


def test_messages_carry_more_where_workers_are_many_and_quick() -> None:
    """And fewer towards the end; one where there is time for it, or nobody knows how many there will be."""
    jobs = [Job(str(i), 0) for i in range(20_000)]
    sizes = _sizes(1000, 1.0, jobs)
    assert (sum(sizes), sizes[0], sizes[-1]) == (20_000, 5, 1)
    assert sizes == sorted(sizes, reverse=True)
    assert sum(size == 1 for size in sizes) >= 1000
    assert sum(_sizes(1000, 0.5, jobs)) == 20_000
    assert max(_sizes(1000, 0.5, jobs)) == 10
    assert max(_sizes(1000, 0.001, jobs)) == 20  # no worker gets more than its share
    drawn = (job for job in jobs)
    for workers, seconds, some in ((1000, 5.0, jobs), (200, 1.0, jobs), (1000, 1.0, jobs[:1999]), (1000, 1.0, drawn)):
        assert set(_sizes(workers, seconds, some)) == {1}
    assert set(_sizes(1000, np.inf, jobs)) == {1}


def test_messages_are_of_one_world_and_kind() -> None:
    z = np.zeros(3, np.float32)
    jobs = [
        Job(str(i), 0, z=z if i % 9 else None, queue=z, world="elsewhere" if i % 20 > 10 else "") for i in range(400)
    ]
    assert max(_sizes(10, 0.01, jobs)) == 5


@pytest.fixture
def pool(
    a_ray: None, town: Scenario, make_few: Callable[..., Scenario], make_problem: Callable[..., Problem]
) -> Iterator[tuple[RayPool, LocalPool]]:
    problem = make_problem(make_few(town, 120, 4))
    there, here = RayPool(problem, "pretrip", Rules(300.0), lambda: 2), LocalPool(problem, "pretrip", 300.0)
    yield there, here
    there.close()
    here.close()


def test_one_bad_job_of_a_message_harms_no_other(
    pool: tuple[RayPool, LocalPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results are those of one process, job by job, though messages carried up to six."""
    there, here = pool
    shape = here._simulators[""].learner().model.shape
    queue = np.zeros((114, 4), np.float32)
    rng = np.random.default_rng(0)
    jobs = [Job(str(i), i, "meso", z=rng.standard_normal(shape, np.float32), queue=queue) for i in range(18)]
    jobs[7] = Job("7", 7, "meso", z=np.zeros((3, 3), np.float32), queue=queue)  # nobody can learn from it
    jobs += [Job(f"given{i}", i, "meso", routes=("A0B0",) * 120) for i in range(2)]  # nobody can drive it
    ((_, first),) = there.simulate(jobs[:1])
    assert not isinstance(first, Failure)
    monkeypatch.setattr(pipeline_module, "MESSAGES", 0.01)
    assert there._pipeline._at_once(2) > 20
    messages: list[int] = []
    flaw = pipeline_module._flaw
    monkeypatch.setattr(pipeline_module, "_flaw", lambda found: messages.append(len(found)) or flaw(found))
    before = there.rollouts._answered
    found = dict(there.simulate(jobs))
    assert len(messages) < 18
    done = sum(not isinstance(one, Failure) for one in found.values())
    assert there.rollouts._answered - before == sum(messages) == done, "budgets count simulations"
    assert sorted(found) == sorted(job.key for job in jobs)
    expected = {}
    for job in jobs:
        try:
            expected |= dict(here.simulate([job]))
        except ValueError as error:  # in this process, a mistake of the caller
            expected[job.key] = Failure(str(error))
    assert [key for key, one in found.items() if isinstance(one, Failure)] != []
    for key, one in expected.items():
        other = found[key]
        assert isinstance(other, Failure) == isinstance(one, Failure), key
        if not isinstance(one, Failure) and not isinstance(other, Failure):
            np.testing.assert_array_equal(other.macro.queue, one.macro.queue, err_msg=key)
