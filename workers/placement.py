"""What each kind of actor takes of a node, and which nodes it would rather be on."""

from __future__ import annotations

from typing import Any

# Learners and the reward service hold what others wait for: not on spot machines, where there are others. Ray labels
# nodes so on Kubernetes; launch files of the cluster launcher do it themselves.
STEADY: dict[str, Any] = {
    "label_selector": {"ray.io/market-type": "!spot"},
    "fallback_strategy": [{"label_selector": {}}],
}
# A call that died with its actor is the fleet's to repeat.
ROLLOUT: dict[str, Any] = {"num_cpus": 1, "max_task_retries": 0}
LEARNER: dict[str, Any] = {"num_cpus": 0.25, "max_task_retries": 0, **STEADY}
REWARD: dict[str, Any] = {"num_cpus": 0.25, "max_task_retries": 0, **STEADY}
