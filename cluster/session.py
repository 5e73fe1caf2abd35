"""A Ray session for the length of a block."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

# Read by Ray when its processes start. Workers at Ray's default niceness of 15 crawl on a busy machine.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it (it is called so) for the entrypoint of a submitted job
OBJECT_STORE = 512 * 2**20  # bytes, local sessions: what travels is columnar and small


def cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def session(address: str, local_cpus: int) -> Iterator[Callable[[], int]]:
    """Connects to Ray and yields what tells how many CPUs it has when asked: clusters grow and shrink.

    Args:
        address: "local" starts a private Ray in this machine's background (never a cluster left over from before), or is,
            in a job of a cluster, that cluster; anything else is an address of a running cluster, as for `ray.init`.
        local_cpus: logical CPUs of a private Ray. Actors that mostly wait for others make it more than the machine has.
    """
    if ray.is_initialized():  # a trial of a sweep: the session is the sweep's
        yield _cpus
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local" and JOB in os.environ:
        address = "auto"
    if address == "local":
        _start(num_cpus=local_cpus, object_store_memory=OBJECT_STORE, include_dashboard=False, **quiet)
    else:
        try:
            ray.init(address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConnectionError(f"no Ray cluster at {address!r}: {error}") from error
    try:
        yield _cpus
    finally:
        gc.collect()  # Ray numbers actors alike in each session: a handle that outlived its own would end one of the next
        ray.shutdown()


def _start(**options: Any) -> None:
    """Starts a private Ray, on a busy machine at the second or third try: it gives itself half a minute."""
    for last in (False, False, True):
        try:
            ray.init("local", **options)
            return
        except Exception as error:  # Ray raises no other
            if last or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


def _cpus() -> int:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("CPU", 0))
