"""The launch files: what Ray and KubeRay take, without work for the head, and scaled up and down by Ray's own autoscaler."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

LAUNCH = Path(__file__).parents[2] / "cluster" / "launch"
CLOUDS = ("aws", "gcp", "azure")
KUBERNETES = ("kuberay-cluster", "kuberay-job")
RAY = Path(sys.executable).with_name("ray")
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # what Ray's fake provider calls the head
PATIENCE = 180.0  # seconds
OPEN = {"RAY_AUTH_MODE": "disabled"}  # a cluster without a token


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / f"{name}.yaml").read_text())


def _closed(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    """A JSON schema of an object with these fields and no others."""
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def _kuberay() -> dict[str, Any]:
    """Schemas of RayCluster and RayJob, after the field reference of KubeRay 1.6's ray.io/v1; of pods, what is used here."""
    text, number, flag = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
    texts = {"type": "object", "additionalProperties": text}
    amounts = _closed(limits=texts, requests=texts)
    container = _closed(
        ("name", "image", "resources"), name=text, image=text, resources=amounts,
        volumeMounts={"type": "array", "items": _closed(("name", "mountPath"), name=text, mountPath=text)},
    )  # fmt: skip
    claim = _closed(("claimName",), claimName=text)
    pod = _closed(
        ("containers",), nodeSelector=texts, terminationGracePeriodSeconds=number,
        containers={"type": "array", "items": container, "minItems": 1},
        volumes={"type": "array", "items": _closed(("name",), name=text, persistentVolumeClaim=claim)},
    )  # fmt: skip
    template = _closed(("spec",), spec=pod)
    group = {"rayStartParams": texts, "template": template, "labels": texts, "resources": texts}
    worker = _closed(
        ("groupName", "template", "maxReplicas"), groupName=text, replicas=number, minReplicas=number,
        maxReplicas=number, idleTimeoutSeconds=number, numOfHosts=number, suspend=flag, **group,
    )  # fmt: skip
    scaling = _closed(
        version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=number,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    )  # fmt: skip
    cluster = _closed(
        ("headGroupSpec",), rayVersion=text, authOptions=_closed(mode={"enum": ["token", "disabled"]}),
        enableInTreeAutoscaling=flag, autoscalerOptions=scaling, headGroupSpec=_closed(("template",), **group),
        workerGroupSpecs={"type": "array", "items": worker},
    )  # fmt: skip
    job = _closed(
        ("entrypoint", "rayClusterSpec"), entrypoint=text, backoffLimit=number, shutdownAfterJobFinishes=flag,
        ttlSecondsAfterFinished=number, rayClusterSpec=cluster,
    )  # fmt: skip
    return {
        kind: _closed(
            ("apiVersion", "kind", "metadata", "spec"), apiVersion={"const": "ray.io/v1"}, kind={"const": kind},
            metadata=_closed(("name",), name=text), spec=spec,
        )
        for kind, spec in (("RayCluster", cluster), ("RayJob", job))
    }  # fmt: skip


def _cluster_spec(name: str) -> dict[str, Any]:
    spec = _read(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def _node_types(name: str) -> dict[str, dict[str, Any]]:
    """The node types of a launch file, Kubernetes' groups among them, as Ray's autoscaler takes them."""
    if name in CLOUDS:
        return _read(name)["available_node_types"]
    spec = _cluster_spec(name)
    found: dict[str, dict[str, Any]] = {"head": {"resources": {"CPU": 0}, "max_workers": 0}}
    for group in spec["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        resources = {"CPU": int(limits["cpu"]), "GPU": int(limits.get("nvidia.com/gpu", 0))}
        found[group["groupName"]] = {
            "resources": {key: value for key, value in resources.items() if value},
            "labels": group["labels"],
            "min_workers": group["minReplicas"],
            "max_workers": group["maxReplicas"],
        }
    return found


@pytest.mark.parametrize("name", [*CLOUDS, "onprem"])
def test_ray_takes_the_file(name: str) -> None:
    """Its own schema, and the checks of `ray up` before anything is asked of a cloud."""
    from ray.autoscaler._private.util import validate_config

    config = _read(name)
    validate_config({**config, "cluster_synced_files": []})
    if name in CLOUDS:
        assert config["head_node_type"] in config["available_node_types"]
    start = {kind: config[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker")}
    assert "--num-cpus=0" in start["head"]
    for command in start.values():
        assert "ulimit -n 65536" in command
        assert "RAY_AUTH_MODE=token" in command
    assert any("nofile=65536" in option for option in config["docker"]["run_options"])
    assert any("/shared:/shared" in option for option in config["docker"]["run_options"])
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert config["idle_timeout_minutes"] >= 5


@pytest.mark.parametrize("name", KUBERNETES)
def test_kuberay_takes_the_file(name: str) -> None:
    document = _read(name)
    jsonschema.validate(document, _kuberay()[document["kind"]])
    spec = _cluster_spec(name)
    assert spec["rayVersion"] == ray.__version__
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] >= 300
    broken = copy.deepcopy(document)
    broken["spec"]["headGroupSpecs"] = {}
    with pytest.raises(jsonschema.ValidationError):  # the schema is closed
        jsonschema.validate(broken, _kuberay()[document["kind"]])


def test_the_two_of_kubernetes_agree() -> None:
    cluster, job = (_cluster_spec(name) for name in KUBERNETES)
    assert cluster == job


@pytest.mark.parametrize("name", [*CLOUDS, *KUBERNETES])
def test_only_rollouts_are_on_spot_machines(name: str) -> None:
    """Learners and the reward service hold what all others wait for."""
    types = _node_types(name)
    assert types["head"]["resources"].get("CPU", 0) == 0
    assert types["rollout"]["labels"] == {"ray.io/market-type": "spot"}
    assert types["rollout"]["min_workers"] == 0
    assert types["learner"]["labels"] == {"ray.io/market-type": "on-demand"}
    assert types["learner"]["resources"]["GPU"] == 1


def test_the_image_has_what_the_nodes_need() -> None:
    """The system libraries that the README names, and the pins that everything else is installed with."""
    text = (LAUNCH / "Dockerfile").read_text()
    readme = (LAUNCH.parents[1] / "README.md").read_text()
    wanted = readme.partition("`apt-get install ")[2].partition("`")[0].split()
    assert wanted
    assert all(package in text for package in wanted)
    assert "--constraint /opt/throng/constraints.txt" in text


# -- through Ray's autoscaler, with nodes that are processes of this machine ------------------------------------------


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def autoscaled(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """(name) -> the address of a head of our own that scales by the node types of this launch file."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(name: str) -> str:
        ports = [_free_port() for _ in range(2)]
        address = f"{ray.util.get_node_ip_address()}:{ports[0]}"
        types = {}
        for kind, given in _node_types(name).items():
            # The fake provider takes no memory: its nodes have this machine's.
            resources = {key: value for key, value in given["resources"].items() if key != "memory"}
            types["ray.head.default" if kind == "head" else kind] = {**given, "resources": resources, "node_config": {}}
        config = {
            "cluster_name": name, "max_workers": 12, "upscaling_speed": 2.0, "idle_timeout_minutes": 0.05,
            "provider": {
                "type": "fake_multinode", "gcs_address": address, "head_node_id": HEAD_ID,
                "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True,
            },
            "available_node_types": types, "head_node_type": "ray.head.default", "docker": {}, "auth": {},
            "file_mounts": {}, "cluster_synced_files": [], "setup_commands": [], "initialization_commands": [],
            "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [],
            "worker_start_ray_commands": [], "rsync_exclude": [], "rsync_filter": [],
            "file_mounts_sync_continuously": False,
        }  # fmt: skip
        path = tmp_path / "autoscaler.json"
        path.write_text(json.dumps(config))
        command = [
            str(RAY), "start", "--head", "--block", f"--port={ports[0]}", "--num-cpus=0",
            f"--autoscaling-config={path}", "--include-dashboard=False", f"--dashboard-agent-listen-port={ports[1]}",
            f"--object-store-memory={100 * 2**20}",
        ]  # fmt: skip
        env = os.environ | OPEN | {  # version 2 lacks a file of the fake provider in Ray's wheel
            "RAY_FAKE_CLUSTER": "1", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "0",
        }  # fmt: skip
        with (tmp_path / "log").open("w") as log:
            processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, process_group=0))
        return address

    yield start
    for process in processes:
        process.terminate()
        process.wait(60)
        with contextlib.suppress(ProcessLookupError):  # the fake provider's nodes outlive who made them
            os.killpg(process.pid, signal.SIGKILL)


def _nodes(label: str) -> int:
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return sum(node["Labels"].get("ray.io/market-type") == label for node in alive)


def _until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until, "the cluster never came to that size"
        time.sleep(0.5)


SLOW = [pytest.param(name, marks=pytest.mark.long) for name in ("gcp", "azure", *KUBERNETES)]


@pytest.mark.parametrize("name", ["aws", *SLOW])
def test_a_cluster_grows_with_its_work_and_shrinks_without(name: str, autoscaled: Callable[[str], str]) -> None:
    """Workers that find no room bring spot machines, which go when they are idle; what holds the learners stays.

    In a process of its own: Ray remembers for good how a process proves who it is, and here it need not.
    """
    driver = [sys.executable, "-W", "ignore", __file__, name, autoscaled(name)]
    done = subprocess.run(driver, env=os.environ | OPEN, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _grow_and_shrink(name: str, address: str) -> None:
    from throng.workers.placement import Reservation, rollout_options

    class Idle:  # local, so that Ray sends it by value
        def where(self) -> str:
            labels = ray.get_runtime_context().get_node_labels()
            return labels.get("ray.io/market-type", "none")

    until = time.monotonic() + PATIENCE
    while not ray.is_initialized():
        try:
            ray.init(address, logging_level="ERROR", log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError):
            assert time.monotonic() < until, "the head does not come up"
            time.sleep(1.0)
    _until(lambda: _nodes("on-demand") == 1)
    assert _nodes("spot") == 0
    actor = ray.remote(Idle)
    reservation = Reservation(["cpu", "cpu"])
    reward = actor.options(**reservation.options("cpu")).remote()
    assert ray.get(reward.where.remote(), timeout=PATIENCE) == "on-demand"
    size = _node_types(name)["rollout"]["resources"]["CPU"]
    # Each as many as fill a node; and no memory, of which the autoscaler knows none on nodes that are not there yet.
    options = {key: value for key, value in rollout_options().items() if key != "memory"} | {"num_cpus": size}
    workers = [actor.options(**options).remote() for _ in range(2)]
    assert ray.get([one.where.remote() for one in workers], timeout=PATIENCE) == ["spot", "spot"]
    assert _nodes("spot") == 2
    for one in workers:
        ray.kill(one)
    _until(lambda: _nodes("spot") == 0)
    assert _nodes("on-demand") == 1
    assert ray.get(reward.where.remote()) == "on-demand"


if __name__ == "__main__":
    _grow_and_shrink(*sys.argv[1:])
