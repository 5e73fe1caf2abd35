"""What-ifs of a small finished run: an edit of nothing changes nothing, interruptions lose nothing, nonsense is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from throng.platform import cli, figures
from throng.platform.case import load_case
from throng.platform.config import Config, load_config
from throng.platform.counterfactual import Counterfactual, Drivers, ensemble, hidden, simulate
from throng.platform.experiment import Solution, run
from throng.platform.progress import Progress
from throng.platform.store import RunStore
from throng.platform.summary import ENSEMBLE_FILE
from throng.platform.whatif import what_if
from throng.platform.workbench import Workbench, workbench
from throng.policies.reward_model import load_rewards
from throng.scenarios.edited import apply_edits
from throng.scenarios.edits import Edits
from throng.scenarios.errors import InputError
from throng.scenarios.network import load_network
from throng.scenarios.town import write_town
from throng.workers.pool import LocalPool
from throng.workers.simulator import Job

SMALL = [
    "search.population=4", "search.screen=2", "search.elites=1", "search.budget=8", "search.generations=2",
    "diffusion.updates=5", "diffusion.width=16", "report.seeds=2", "report.reference_seeds=2", "workers.rollouts=0",
]  # fmt: skip
QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DPI", 60)


def make_run(folder: Path, *more: str) -> Path:
    write_town(folder, vehicles=150, minutes=5)
    text = f"name: small\nscenario:\n  net: {folder}/town.net.xml\n  demand: [{folder}/town.rou.xml]\n  minutes: 5\n"
    (folder / "case.yaml").write_text(text)
    directory = folder / "run"
    run(load_config(folder / "case.yaml", [*SMALL, *more]), directory, resume=False, console=QUIET)
    cli._finish(directory)
    return directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("small"))


def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


class Bench:
    """A run opened as a study would open it."""

    def __init__(self, directory: Path, bench: Workbench) -> None:
        self.bench = bench
        self.models = load_rewards(directory / ENSEMBLE_FILE)
        self.solution = Solution.load(directory / "solution.safetensors")

    def simulate(self, edits: Edits, drivers: list[Drivers], folder: Path, seeds: int = 2) -> list[Counterfactual]:
        edited = apply_edits(self.bench.case.scenario, edits, folder)
        return simulate(self.bench, edited, drivers, seeds, self.models.bias_scale)


def opened(directory: Path, tmp_path: Path, *more: str) -> Iterator[Bench]:
    config = RunStore.open(directory).config()
    if more:
        config = Config.model_validate(config.model_dump() | {"target": {"truth": more[0]}})
    case = load_case(config, tmp_path)
    with Progress(QUIET) as progress, workbench(config, None, progress, case) as bench:
        yield Bench(directory, bench)


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Iterator[Bench]:
    yield from opened(finished, tmp_path)


def test_before_is_the_runs_own_and_an_edit_of_nothing_changes_nothing(study: Bench, tmp_path: Path) -> None:
    drivers = [*ensemble(study.models, study.solution, 2), hidden(study.bench)]
    pairs = study.simulate(Edits(), drivers, tmp_path)
    for pair in pairs:
        before, after = pair.queues
        np.testing.assert_array_equal(before, after)
        for one, other in zip(pair.before, pair.after, strict=True):
            np.testing.assert_array_equal(one.travel_time, other.travel_time)
    bench = study.bench
    for i in range(2):
        latent = {"z": study.solution.z[i], "queue": study.solution.tau[i]}
        own = bench.must([Job("own", bench.seed("whatif", 1), **latent)])[0]
        np.testing.assert_array_equal(own.macro.queue, pairs[i].before[1].macro.queue)  # type: ignore[union-attr]
    assert bench.truth_routes is not None
    true = bench.must([Job("true", bench.seed("whatif", 0), routes=bench.truth_routes)])[0]
    np.testing.assert_array_equal(true.macro.queue, pairs[2].before[0].macro.queue)  # type: ignore[union-attr]


def test_nobody_drives_where_it_is_closed_and_all_explanations_are_asked(study: Bench, tmp_path: Path) -> None:
    drivers = [*ensemble(study.models, study.solution, 3), hidden(study.bench)]
    pairs = study.simulate(Edits.parse(close=["C1C2", "B3C3"]), drivers, tmp_path)
    old, new = study.bench.case.scenario.network, load_network(tmp_path / "edited.net.xml")
    for pair in pairs:
        before, after = pair.queues
        assert before.shape == (2, old.road_count, 5)
        assert after.shape == (2, new.road_count, 5) == (2, old.road_count - 2, 5)
        assert np.isfinite(after).all()
        assert not np.array_equal(before[:, [old.index[road] for road in new.road_ids]], after)
    worlds = [pair.queues[0] for pair in pairs]
    assert not np.array_equal(worlds[0], worlds[3])


def test_hidden_drivers_with_a_table_of_rewards_keep_it_on_the_roads_that_stay(finished: Path, tmp_path: Path) -> None:
    for study in opened(finished, tmp_path, "iid"):
        truth, scenario = study.bench.truth, study.bench.case.scenario
        assert truth is not None
        edited = apply_edits(scenario, Edits.parse(close=["C1C2"], demand_scale=1.2), tmp_path)
        old, new = scenario.network, edited.scenario.network
        before, after = truth.rewards().static, truth.under(edited).rewards().static
        assert after.shape == (180, new.connection_count)
        for row, (a, b) in enumerate(new.connections):
            there = old.find_connections(old.index[new.road_ids[a]], old.index[new.road_ids[b]])
            np.testing.assert_array_equal(after[:, row], before[edited.source, there])


def test_copies_of_a_vehicle_want_what_it_wants(study: Bench, tmp_path: Path) -> None:
    edited = apply_edits(study.bench.case.scenario, Edits.parse(demand_scale=2.0), tmp_path)
    driver = ensemble(study.models, study.solution, 1)[0]
    given = driver.plan(edited, driver.state)["z"]
    names = {name: i for i, name in enumerate(study.models.vehicles)}
    for i, name in enumerate(edited.scenario.demand.ids):
        np.testing.assert_array_equal(given[i], study.models.members[0].weights[names[name.partition(".copy")[0]]])


def test_observed_or_published_drivers_cannot_be_asked(study: Bench) -> None:
    with pytest.raises(InputError, match="no hidden preferences here"):
        hidden(replace(study.bench, truth=None))


EDITS = Edits.parse(close=["C1C2"], ban_left_onto=["C3D3"], one_way=["D1E1"], speed=["B2B3=30"], demand_scale=1.2)


@pytest.fixture(scope="module")
def asked(finished: Path) -> Path:
    """The folder of a finished what-if."""
    return what_if(finished, EDITS, None, 2, 3, QUIET).parent


def test_a_what_if_leaves_its_numbers_and_they_agree(finished: Path, asked: Path) -> None:
    assert asked == finished / "whatif" / EDITS.name()
    summary = json.loads((asked / "whatif.json").read_text())
    roads = pq.read_table(asked / "roads.parquet").to_pydict()
    series = pq.read_table(asked / "series.parquet")
    old = load_network(finished.parent / "town.net.xml")
    assert roads["road"] == list(old.road_ids)
    before, after = (np.array(series[name]).reshape(-1, 5) for name in ("before", "after"))
    np.testing.assert_allclose(before.mean(axis=1), roads["before"], rtol=1e-5)
    assert np.isnan(after[old.index["C1C2"]]).all() and np.isnan(after[old.index["E1D1"]]).all()
    np.testing.assert_allclose(after.mean(axis=1) - before.mean(axis=1), roads["change"], rtol=1e-4, atol=1e-5)
    total = summary["effects"]["total queue"]
    assert total["after"] == pytest.approx(np.nansum(after, axis=0).mean(), rel=1e-4)
    assert total["change"] == pytest.approx(total["after"] - total["before"], rel=1e-6)
    assert total["low"] <= total["change"] <= total["high"]
    known = np.isfinite(roads["change"])
    clear = (np.array(roads["low"]) > 0) | (np.array(roads["high"]) < 0)
    assert summary["roads"] == {"compared": int(known.sum()), "excluding_zero": int(clear[known].sum())}
    assert summary["vehicles"] == {"before": 150, "after": 180}
    assert summary["recovery"]["r2"] == pytest.approx(1.0)
    everybody = summary["effects"]["time under way, all"]
    assert 0 < everybody["before"] < 300
    assert summary["moved"] == pq.read_table(asked / "moved.parquet").num_rows
    marks = {road: edit for road, edit in zip(roads["road"], roads["edit"], strict=True) if edit}
    assert set(marks) == {"C1C2", "C3D3", "D1E1", "E1D1", "B2B3"}


def test_the_fit_before_is_the_error_of_the_simulations_before(finished: Path, asked: Path) -> None:
    """From the journaled simulations and the observed series, on our own."""
    store = RunStore.open(finished)
    files = sorted((finished / "journal").glob("whatif-before-*.npz"))
    assert len(files) == 3 * 2
    observed = store.journal_get("prepare-truth1")["queue"]  # type: ignore[index]  # the truth's last round
    errors = [np.sqrt(np.square(np.load(file)["queue"] - observed).mean()) for file in files]
    assert json.loads((asked / "whatif.json").read_text())["fit"]["before"] == pytest.approx(np.mean(errors), rel=1e-5)


def test_the_report_shows_both_sides_and_what_is_not_known(asked: Path) -> None:
    page = (asked / "report.html").read_text()
    for words in (
        "What if: no left turn onto C3D3, one-way D1E1, C1C2 closed, B2B3 30 km/h, demand × 1.2",
        "not identified by an aggregate series", "How sure", "3 accepted explanations × 2 seeds", "Every road",
        "Vehicles that had to move", "time under way, all",
    ):  # fmt: skip
        assert words in page
    assert "The search" not in page and "{{" not in page and "of a run -->" not in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert {data["ids"][int(row)] for row in data["marks"]} == {"C1C2", "C3D3", "D1E1", "E1D1", "B2B3"}
    closed = data["ids"].index("C1C2")
    assert set(data["mean"][closed]) == {None}
    assert None not in data["observed"][closed]
    for name in ("network", "curves", "heatmap", "changes"):
        assert (asked / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_what_if_goes_on_and_repeats_nothing(
    finished: Path, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = copied(finished, tmp_path)
    shutil.rmtree(directory / "whatif")
    for path in (directory / "journal").glob("whatif-*"):
        path.unlink()
    original = LocalPool.simulate
    simulated: list[str] = []

    def dying(self: LocalPool, jobs):  # type: ignore[no-untyped-def]
        for key, result in original(self, jobs):
            simulated.append(key)
            yield key, result
            if len(simulated) % 7 == 0:
                raise KeyboardInterrupt

    monkeypatch.setattr(LocalPool, "simulate", dying)
    crashes = 0
    while True:
        try:
            again = what_if(directory, EDITS, None, 2, 3, QUIET).parent
            break
        except KeyboardInterrupt:
            crashes += 1
    assert crashes >= 2
    assert len(simulated) - len(set(simulated)) <= crashes  # the one that came as the process died
    assert (again / "whatif.json").read_bytes() == (asked / "whatif.json").read_bytes()


def test_another_what_if_of_the_run_simulates_what_is_new(finished: Path, asked: Path, tmp_path: Path) -> None:
    directory = copied(finished, tmp_path)
    before = set((directory / "journal").glob("whatif-before-*"))
    what_if(directory, Edits.parse(close=["B3B4"]), "other", 2, 2, QUIET)
    assert set((directory / "journal").glob("whatif-before-*")) == before
    assert (directory / "whatif" / "other" / "report.html").exists()
    with pytest.raises(InputError, match=r"other: holds another what-if .*--name"):
        what_if(directory, Edits.parse(close=["B3B2"]), "other", 2, 2, QUIET)


def test_ray_gives_what_one_process_gives(finished: Path, asked: Path, tmp_path: Path) -> None:
    directory = copied(finished, tmp_path)
    shutil.rmtree(directory / "whatif")
    for path in (directory / "journal").glob("whatif-*"):
        path.unlink()
    config = directory / "config.yaml"
    config.write_text(config.read_text().replace("rollouts: 0", "rollouts: 2"))
    again = what_if(directory, EDITS, None, 2, 3, QUIET).parent
    assert (again / "whatif.json").read_bytes() == (asked / "whatif.json").read_bytes()


@pytest.mark.parametrize("more", [("latent.kind=token", "latent.tokens=4"), ("navigation.replan=junction",)])
def test_other_latents_and_live_routing_have_what_ifs(tmp_path: Path, more: tuple[str, ...]) -> None:
    directory = make_run(tmp_path, *more)
    path = what_if(directory, Edits.parse(ban_turn=["B1C1:C1C2"]), None, 1, 2, QUIET)
    r2 = json.loads((path.parent / "whatif.json").read_text())["recovery"]["r2"]
    page = path.read_text()
    assert ("reproduce a share" in page) == (r2 < 0.999)


def test_one_explanation_and_one_seed_have_a_report_without_intervals(finished: Path, tmp_path: Path) -> None:
    path = what_if(copied(finished, tmp_path), Edits.parse(demand_scale=0.8), None, 1, 1, QUIET)
    summary = json.loads((path.parent / "whatif.json").read_text())
    assert summary["effects"]["total queue"]["low"] is None
    assert summary["effects"]["arrived"]["change"] < 0
    assert "One explanation only" in path.read_text()
    assert "nan" not in path.read_text().partition('<script type="application/json"')[0]


def test_a_damaged_export_is_written_anew(finished: Path, tmp_path: Path) -> None:
    directory = copied(finished, tmp_path)
    (directory / ENSEMBLE_FILE).write_bytes(b"torn")
    with pytest.raises(InputError, match="writes it anew"):
        what_if(directory, Edits.parse(close=["C1C2"]), None, 1, 1, QUIET)
    cli._finish(directory)
    assert load_rewards(directory / ENSEMBLE_FILE).vehicles == load_rewards(finished / ENSEMBLE_FILE).vehicles


# ---- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: LocalPool, jobs):  # type: ignore[no-untyped-def]
        raise AssertionError("simulated before the inputs were checked")

    monkeypatch.setattr(LocalPool, "simulate", refuse)


@pytest.mark.usefixtures("no_simulation")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "no edit given"),
        ({"close": ["C1C9"]}, "no such road"),
        ({"close": ["B1C1"], "one_way": ["B1C1"]}, "drop one of them"),
        ({"close": [f"{a}{r}{b}{r}" for r in (0, 1, 3, 4) for a, b in ("CD", "DC")]}, "disconnect the network"),
    ],
)
def test_wrong_edits_are_refused_before_any_simulation(finished: Path, given: dict, said: str) -> None:
    before = set(finished.rglob("*"))
    with pytest.raises(InputError, match=said):
        what_if(finished, Edits.parse(**given), "wrong", 2, 2, QUIET)
    assert set(finished.rglob("*")) == before


@pytest.mark.usefixtures("no_simulation")
def test_a_network_that_changed_since_the_run_is_refused(finished: Path, tmp_path: Path) -> None:
    directory = copied(finished, tmp_path)
    net = tmp_path / "changed.net.xml"
    net.write_text((finished.parent / "town.net.xml").read_text().replace('speed="8.33"', 'speed="13.89"'))
    config = directory / "config.yaml"
    config.write_text(config.read_text().replace(str(finished.parent / "town.net.xml"), str(net)))
    with pytest.raises(InputError, match=r"changed\.net\.xml: not the network that .*was learnt on.*--net"):
        what_if(directory, Edits.parse(close=["C1C2"]), None, 2, 2, QUIET)
    with pytest.raises(InputError, match=r"not the network that"):  # nor may a new export cover it up
        cli._finish(directory)


@pytest.mark.usefixtures("no_simulation")
def test_unfinished_older_and_half_exported_runs_are_refused(finished: Path, tmp_path: Path) -> None:
    edits = Edits.parse(close=["C1C2"])
    with pytest.raises(InputError, match="no run here"):
        what_if(tmp_path, edits, None, 2, 2, QUIET)
    directory = copied(finished, tmp_path)
    other = Solution.load(directory / "solution.safetensors")
    Solution(other.z[1:], other.tau[1:], other.estimate[1:]).save(RunStore.open(directory))
    with pytest.raises(InputError, match="of an earlier result of this run; `throng report"):
        what_if(directory, edits, None, 2, 2, QUIET)
    (directory / ENSEMBLE_FILE).unlink()
    with pytest.raises(InputError, match="`throng report RUN` writes it"):
        what_if(directory, edits, None, 2, 2, QUIET)
    (directory / "solution.safetensors").unlink()
    with pytest.raises(InputError, match="the run is not finished"):
        what_if(directory, edits, None, 2, 2, QUIET)


def test_the_command_line_speaks_of_what_changed(
    finished: Path, asked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def throng(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["throng", "whatif", str(finished), *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    edits = ["--close", "C1C2", "--ban-left-onto", "C3D3", "--one-way", "D1E1", "--speed", "B2B3=30"]
    code, out, _ = throng(*edits, "--demand-scale", "1.2", "--seeds", "2", "--ensemble", "3")  # journaled
    assert code == 0
    assert "total queue" in out and str(asked / "report.html") in out.replace("\n", "")
    code, _, err = throng("--close", "C1C9")
    assert (code, "no such road" in err, "Traceback" in err) == (2, True, False)
    code, _, err = throng("--close", "C1C2", "--name", "../../elsewhere")
    assert (code, "--name ../../elsewhere: expected" in err) == (2, True)
