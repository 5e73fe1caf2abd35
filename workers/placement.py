"""What each kind of actor takes of a cluster, and which nodes it would rather be on.

Learners and the reward service hold what others wait for. They find room together, in a placement group, before rollout
workers take what is left, and not on spot machines where there are others. Rollout workers go anywhere: they are replaced.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

PRECEDENCE = 10.0  # seconds in which nobody else asks for what learners and the reward service may find at once
PATIENCE = 300.0  # seconds that an actor waits for resources before it is asked for anew
SHARE = 0.25  # CPUs of a learner and of the reward service: they work while rollouts wait for them, or in the gaps
ROLLOUTS_EACH = 16  # that one exact learner keeps at work
MEMORY = 512  # MiB of an actor, unless it is known better
# Ray labels nodes so on Kubernetes; launch files of the cluster launcher do it themselves.
STEADY = {"ray.io/market-type": "!spot"}


def rollout_options(memory: int = MEMORY) -> dict[str, Any]:
    """Ray's options of a rollout actor; a call that died with it is the fleet's to repeat."""
    return {"num_cpus": 1, "memory": memory << 20, "max_task_retries": 0}


def learners_for(rollouts: int) -> int:
    """How many exact learners keep so many rollout workers at work."""
    return 1 + rollouts // ROLLOUTS_EACH


def cpus_for(rollouts: int, learners: int | None) -> int:
    """CPUs of so many rollout workers with their learners (None: as many as they need) and the reward service."""
    return rollouts + math.ceil(SHARE * (1 + (learners or learners_for(rollouts))))


def rollouts_on(cpus: int, learners: int | None) -> int:
    """The most rollout workers that so many CPUs serve; at least one."""
    return next((n for n in range(cpus, 0, -1) if cpus_for(n, learners) <= cpus), 1)


class Reservation:
    """Room for learners and the reward service.

    Where no room is found within `patience` seconds on nodes that are no spot machines, any will do.

    Args:
        devices: of each of them, as torch names them: cpu or cuda. Those that want a GPU share those that there are.
        memory: MiB of each.
    """

    def __init__(self, devices: Sequence[str], memory: int = MEMORY, patience: float = PATIENCE) -> None:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        wanting = sum(_wants_gpu(device) for device in devices)
        self._gpu = 1.0 / math.ceil(wanting / max(1.0, resources.get("GPU", 0.0))) if wanting else 0.0
        self._memory = memory << 20
        self._bundles = [
            {"CPU": SHARE, "memory": float(self._memory)} | ({"GPU": self._gpu} if _wants_gpu(device) else {})
            for device in devices
        ]
        self._patience = patience
        self._steady = True
        self._waits_since: float | None = None
        self._group = self._reserve()
        self._group.wait(PRECEDENCE)

    def _reserve(self) -> Any:
        selectors = [STEADY] * len(self._bundles) if self._steady else None
        return placement_group(self._bundles, "PACK", bundle_label_selector=selectors)

    def options(self, device: str) -> dict[str, Any]:
        """Ray's options of one of them, asked when it is created: wherever there is room for one in the group."""
        now = time.monotonic()
        if placement_group_table(self._group)["state"] == "CREATED":
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = now
        elif self._steady and now - self._waits_since >= self._patience:
            self._steady, self._waits_since = False, None
            self.release()
            self._group = self._reserve()
        return {
            "num_cpus": SHARE,
            "num_gpus": self._gpu if _wants_gpu(device) else 0,
            "memory": self._memory,
            "max_task_retries": 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group),
        }

    def release(self) -> None:
        remove_placement_group(self._group)


def _wants_gpu(device: str) -> bool:
    return device.startswith("cuda")
