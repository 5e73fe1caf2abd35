"""Wrong input gets a clear message before any simulation; a user's own three files are enough."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from throng.platform import store as store_module
from throng.platform.case import load_case
from throng.platform.check import check_scenario
from throng.platform.config import load_config
from throng.platform.experiment import run
from throng.platform.progress import Progress
from throng.platform.store import RunStore, write_atomic
from throng.policies.learners import LearnerSettings
from throng.scenarios.errors import InputError
from throng.scenarios.network import load_network
from throng.scenarios.observed import Observed, save_observed
from throng.scenarios.town import write_town


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("town")
    write_town(directory, vehicles=120, minutes=4)
    return directory


def config_file(directory: Path, text: str) -> Path:
    path = directory / "case.yaml"
    path.write_text(text)
    return path


def own_case(town: Path, tmp_path: Path, extra: str = "") -> Path:
    text = f"scenario:\n  net: {town}/town.net.xml\n  demand: [{town}/town.rou.xml]\n  minutes: 4\n{extra}"
    return config_file(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("serach:\n  budget: 3\n", r"unknown key 'serach'; did you mean 'search'"),
        ("search:\n  budgt: 3\n", r"unknown key 'search.budgt'; did you mean 'budget'"),
        ("search:\n  budget: -3\n", r"search.budget: .*greater than 0"),
        ("search:\n  ladder: [micro, meso]\n", r"ladder lists meso, quiet, micro in this order"),
        ("search: [1, 2\n", r"not valid YAML"),
        ("- a\n- b\n", r"expected `key: value`"),
        ("scenario:\n  minutes: 30\n", r"give either `town`"),
        ("scenario:\n  net: a.net.xml\n", r"`net` needs `demand`"),
        ("target:\n  truth: published\n", r"the town has bare trips"),
        ("learner:\n  discount: 1.0\n", r"learner.discount"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_config(config_file(tmp_path, text))


def test_overrides_are_yaml_and_checked() -> None:
    assert load_config(None, ["search.ladder=[meso, micro]"]).search.ladder == ("meso", "micro")
    with pytest.raises(InputError, match="expected key=value"):
        load_config(None, ["search.population"])
    with pytest.raises(InputError, match="is a value, not a group"):
        load_config(None, ["name=x", "name.y=3"])


def test_paths_are_relative_to_the_configuration(town: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    text = "scenario:\n  net: ../town.net.xml\n  demand: [../town.rou.xml]\n"
    config = load_config(config_file(tmp_path / "sub", text))
    assert config.scenario.net == tmp_path / "town.net.xml"
    assert config.name == "case"


def test_a_missing_net_is_named_before_anything_is_written(tmp_path: Path) -> None:
    path = config_file(tmp_path, "scenario:\n  net: no.net.xml\n  demand: [no.rou.xml]\n")
    with pytest.raises(InputError, match=r"no\.net\.xml: no such file"):
        run(load_config(path), tmp_path / "run", resume=False, console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_published_truth_needs_routes(town: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are bare trips"):
        load_case(load_config(own_case(town, tmp_path, "target:\n  truth: published\n")), tmp_path)


def test_the_learner_is_the_one_that_was_asked_for(town: Path, tmp_path: Path) -> None:
    path = own_case(town, tmp_path, "learner: {kind: iql, discount: 0.7, updates: 50, expectile: 0.9, hidden: 8}\n")
    learner = load_case(load_config(path), tmp_path).problem.learner
    assert learner == LearnerSettings("iql", discount=0.7, updates=50, expectile=0.9, hidden=8)
    assert load_case(load_config(own_case(town, tmp_path)), tmp_path).problem.learner == LearnerSettings()


@pytest.mark.parametrize(("key", "workers"), [("learner", 1), ("diffusion", 0)])
def test_a_device_that_is_not_there_is_refused_before_anything_is_simulated(
    key: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for Ray; torch may have looked already
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = load_config(
        None, ["scenario={town: {vehicles: 40, minutes: 2}}", f"{key}.device=cuda", f"workers.rollouts={workers}"]
    )
    with pytest.raises(InputError, match=rf"{key}\.device: 'cuda' cannot be used here"):
        run(config, tmp_path / "run", False, Console(quiet=True))
    assert not list((tmp_path / "run").glob("journal/*.npz"))


def test_an_empty_window_says_when_vehicles_depart(town: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no vehicle to learn departs"):
        load_case(load_config(own_case(town, tmp_path, "  begin: 90000\n")), tmp_path)


def test_a_network_without_alternatives_is_refused(tmp_path: Path) -> None:
    """Two roads in a row: whatever drivers want, they drive the same."""
    import subprocess

    import sumo

    nodes = "".join(f'<node id="{n}" x="{300 * i}" y="0"/>' for i, n in enumerate("abc"))
    edges = (
        '<edge id="ab" from="a" to="b" numLanes="1" speed="14"/><edge id="bc" from="b" to="c" numLanes="1" speed="14"/>'
    )
    (tmp_path / "n.nod.xml").write_text(f"<nodes>{nodes}</nodes>")
    (tmp_path / "n.edg.xml").write_text(f"<edges>{edges}</edges>")
    binary = Path(sumo.SUMO_HOME) / "bin" / "netconvert"
    command = [str(binary), "-n", "n.nod.xml", "-e", "n.edg.xml", "-o", "n.net.xml"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "n.rou.xml").write_text('<routes><trip id="0" depart="0" from="ab" to="bc"/></routes>')
    path = config_file(tmp_path, "scenario:\n  net: n.net.xml\n  demand: [n.rou.xml]\n  minutes: 2\n")
    with pytest.raises(InputError, match="nothing to learn"):
        load_case(load_config(path), tmp_path)


def test_a_users_own_three_inputs_are_enough(town: Path, tmp_path: Path) -> None:
    """Net, demand and an observed table with gaps: the table comes from another run's traffic."""
    network = load_network(town / "town.net.xml")
    queue = np.random.default_rng(0).integers(0, 3, (network.road_count, 4)).astype(np.float32)
    queue[::3] = np.nan
    save_observed(Observed("queue", queue, Path("x")), network, tmp_path / "observed.csv")
    small = "search: {population: 4, screen: 1, budget: 12, generations: 1}\nreport: {seeds: 2, reference_seeds: 2}\n"
    extra = f"target:\n  observed: observed.csv\nworkers: {{rollouts: 0}}\n{small}"
    config = load_config(own_case(town, tmp_path, extra))
    store = run(config, tmp_path / "run", resume=False, console=Console(quiet=True))
    evaluation = json.loads((store.directory / "evaluation.json").read_text())
    methods = {row["method"] for row in evaluation["rows"]}
    assert {"throng", "prior mean", "shortest path", "fastest path"} == methods  # nobody knows the truth here
    assert "spread of the best policies" in evaluation["floor_is"]
    assert evaluation["floor"] > 0


def test_an_observed_table_with_an_unknown_road_is_refused(town: Path, tmp_path: Path) -> None:
    (tmp_path / "observed.csv").write_text("road,minute,queue\nA4B5,0,3\n")
    config = load_config(own_case(town, tmp_path, "target:\n  observed: observed.csv\n"))
    with pytest.raises(InputError, match=r"observed\.csv.*A4B5"):
        load_case(config, tmp_path)


def test_scenario_check_tells_a_case_without_signal() -> None:
    """Drivers who care for distance alone leave nothing to find, whatever is said to be their preferences."""
    sets = ["scenario={town: {vehicles: 150, minutes: 10}}", "workers.rollouts=0", "report.reference_seeds=2"]
    sets.append("navigation.lambda_metres=0")
    with Progress(Console(quiet=True)) as progress:
        rows, verdict, learnable = check_scenario(load_config(None, sets), progress)
    facts = dict(rows)
    assert facts["roads"].startswith("114 ")
    assert facts["junctions"].startswith("45 ")
    assert not learnable
    assert "no signal" in verdict


def test_a_simulation_that_sumo_refuses_stops_with_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(None, ["workers.rollouts=0", 'scenario={town: {vehicles: 10}, options: ["--nonsense", "1"]}'])
    with pytest.raises(InputError, match="nonsense"):
        run(config, tmp_path / "run", resume=False, console=Console(quiet=True))


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "PAUSES", (0.0, 0.0))
    path = tmp_path / "manifest.json"
    path.write_text("old")

    def fill(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match=r"manifest\.json: the disk is full.*run the same command again"):
        write_atomic(path, fill)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_journal_entry_is_named(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", load_config(None))
    (tmp_path / "run" / "journal" / "g0000-a.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(InputError, match=r"g0000-a\.npz: damaged"):
        store.journal_get("g0000-a")
    store.close()


def test_untrusted_journals_are_not_unpickled(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", load_config(None))
    np.savez(tmp_path / "run" / "journal" / "evil.npz", queue=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="damaged"):
        _ = store.journal_get("evil")
    store.close()


def test_storage_that_fails_for_a_moment_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network file systems do; what does not pass is named, and what cannot pass is not waited for."""
    monkeypatch.setattr(store_module, "PAUSES", (0.0, 0.0))
    path, tries = tmp_path / "ledger", [errno.EIO, errno.ENOSPC]

    def flaky(temporary: Path) -> None:
        temporary.write_text("whole")
        if tries:
            raise OSError(tries.pop(), "for now")

    write_atomic(path, flaky)
    assert path.read_text() == "whole"
    tries += [errno.EIO] * 3
    with pytest.raises(InputError, match=r"ledger: .*for now; nothing that was finished is lost\. Mend the storage"):
        write_atomic(path, flaky)
    tries.append(errno.EACCES)
    with pytest.raises(PermissionError):
        write_atomic(path, flaky)
    assert not tries
    assert list(tmp_path.iterdir()) == [path]


def test_who_was_followed_writes_no_more(tmp_path: Path) -> None:
    """A driver cut off from the others comes back after its job was begun again elsewhere: it must not mix with that."""
    cut_off = RunStore.create(tmp_path, load_config(None))
    cut_off.journal_put("before", {"x": np.ones(1)})
    assert cut_off._lock is not None
    cut_off._lock.close()  # on another machine nobody sees the lock
    second = RunStore.create(tmp_path, load_config(None))
    with pytest.raises(InputError, match=rf"process {os.getpid()} on .* has taken over this run \(attempt 2\)"):
        cut_off.journal_put("late", {"x": np.ones(1)})
    with pytest.raises(InputError, match="has taken over"):
        cut_off.write_json("evaluation.json", {})
    second.journal_put("later", {"x": np.ones(1)})
    second.close()
    assert sorted(path.name for path in (tmp_path / "journal").iterdir()) == ["before.npz", "later.npz"]
