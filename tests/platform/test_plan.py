"""What a run needs, on paper, against what runs of that configuration did."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import pytest
from rich.console import Console
from throng.platform.config import load_config
from throng.platform.experiment import run
from throng.platform.plan import Nodes, Rates, nodes_of, phases, plan, table
from throng.platform.progress import Progress
from throng.scenarios.errors import InputError

LAUNCH = Path(__file__).parents[2] / "cluster" / "launch"
RATES = Rates(2.0, 0.25, 0.05, 0.1, 1.0, memory=600 << 20, message=100_000, problem=10 << 20)
TOWN = load_config(None)


def test_the_counts_are_those_of_a_run(tmp_path: Path) -> None:
    """Simulations by phase, from the journal's keys and the result, of a run that its budget alone ended."""
    sets = [
        "scenario={town: {vehicles: 80, minutes: 3}}", "search.population=6", "search.screen=1", "search.elites=2",
        "search.budget=30", "search.patience=100", "diffusion.updates=3", "diffusion.width=16", "report.seeds=2",
        "report.reference_seeds=2", "workers.rollouts=0",
    ]  # fmt: skip
    config = load_config(None, sets)
    run(config, tmp_path, resume=False, console=Console(quiet=True))
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    keys = [event["key"] for event in events if event["event"] == "simulation"]
    done = {start: sum(key.startswith(start) for key in keys) for start in ("prepare", "reference", "g", "evaluate")}
    planned = {part.name.partition(":")[0]: part for part in phases(config, RATES, 4)}
    assert planned["observing"].simulations == done["prepare"]
    assert planned["floors and nulls"].simulations == done["reference"]
    assert planned["evaluating"].simulations == done["evaluate"]
    # The first generation has no elites to simulate again, the end simulates them more often, and the last may not fit.
    assert planned["searching"].simulations == pytest.approx(done["g"], rel=0.3)
    assert planned["searching"].name.startswith("searching: ")


def test_more_workers_take_less_time_until_there_is_no_more_to_share() -> None:
    time = [sum(part.seconds for part in phases(TOWN, RATES, workers)) for workers in (1, 2, 8, 24, 500, 1000)]
    assert time == sorted(time, reverse=True)
    assert time[0] > 1.7 * time[1]
    assert time[-1] == time[-2]
    work = {round(sum(part.core_seconds for part in phases(TOWN, RATES, workers)), 6) for workers in (1, 24, 1000)}
    assert len(work) == 1, "the work itself does not depend on who does it"


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("aws", Nodes(10, 16, 45_000_000_000)),
        ("gcp", Nodes(10, 22, 60_000_000_000)),
        ("azure", Nodes(10, 16, 45_000_000_000)),
        ("kuberay-cluster", Nodes(10, 16, 32 << 30)),
        ("kuberay-job", Nodes(10, 16, 32 << 30)),
    ],
)
def test_nodes_are_those_for_rollouts(name: str, nodes: Nodes) -> None:
    assert nodes_of(LAUNCH / f"{name}.yaml", TOWN) == nodes


@pytest.mark.parametrize(
    "text", ["name: town", "available_node_types: {head: {resources: {CPU: 0}}}", "apiVersion: v1"]
)
def test_a_file_without_nodes_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"some\.yaml: no nodes for rollouts there"):
        nodes_of(path, TOWN)


def test_a_node_that_is_too_small_is_noticed() -> None:
    def memory(gibibytes: int) -> str:
        return dict(table(TOWN, RATES, Nodes(2, 16, gibibytes << 30))[1])["memory of a node"]

    assert memory(8).endswith("(MORE THAN IT HAS)")
    assert memory(16).endswith("(it has that)")


def test_a_plan_measures_the_case() -> None:
    config = load_config(None, ["scenario={town: {vehicles: 80, minutes: 3}}", "search.population=4"])
    said = io.StringIO()
    with Progress(Console(file=said)) as progress:
        rows, sums = plan(config, None, progress)
    assert "simulating it" in said.getvalue()
    assert [row[0].partition(":")[0] for row in rows] == ["observing", "floors and nulls", "searching", "evaluating"]
    assert rows[0][-2] == "0:00:00"
    assert all(before[-1] == after[-2] for before, after in itertools.pairwise(rows))
    assert "full simulation" in dict(sums)["measured here"]
