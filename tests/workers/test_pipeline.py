"""How many jobs go into one message, where the driver would otherwise be busy with messages alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from throng.workers.pipeline import Pipeline
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
