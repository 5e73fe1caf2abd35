"""Predicted effects against those of hidden drivers: scores by hand, nulls that do what they say, one study end to end."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from throng.platform import cli, validation
from throng.platform.case import Case, load_case
from throng.platform.config import load_config
from throng.platform.experiment import Solution
from throng.platform.nulls import kept_routes, literal
from throng.platform.validation import CEILING, NAME, PRIOR, Prediction, Scores, summarise, validate
from throng.policies.navigation import fastest_routes, route_vehicles
from throng.scenarios.edited import apply_edits
from throng.scenarios.edits import Edits
from throng.scenarios.errors import InputError

SMALL = [
    "scenario={town: {vehicles: 80, minutes: 3}}", "search.population=4", "search.screen=2", "search.elites=1",
    "search.budget=8", "search.generations=1", "diffusion.updates=5", "diffusion.width=16", "report.seeds=2",
    "report.reference_seeds=2", "workers.rollouts=0",
]  # fmt: skip
QUIET = Console(quiet=True)
LOOP = Edits.parse(one_way=["B1C1,C1D1"])


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return load_case(load_config(None, SMALL), tmp_path)


def test_routes_are_kept_where_the_edit_lets_them(case: Case, tmp_path: Path) -> None:
    old, demand = case.scenario.network, case.scenario.demand
    routes = fastest_routes(old, demand.origin, demand.destination)
    edited = apply_edits(
        case.scenario, Edits.parse(one_way=["B1C1"], ban_turn=["C3C2:C2B2"], demand_scale=1.5), tmp_path
    )
    new, there = edited.scenario.network, edited.scenario.demand
    detour = route_vehicles(new, there.origin, there.destination, None)
    kept = kept_routes(routes, edited)
    assert len(kept) == 120
    same = 0
    for i, source in enumerate(edited.source):
        before = [old.road_ids[road] for road in routes.route(source)]
        after = [new.road_ids[road] for road in kept.route(i)]
        turns = list(pairwise(before))
        possible = "C1B1" not in before and ("C3C2", "C2B2") not in turns
        assert after == (before if possible else [new.road_ids[road] for road in detour.route(i)])
        same += possible
    assert 0 < same < 120


def test_a_literal_table_keeps_its_entries(case: Case, tmp_path: Path) -> None:
    table = load_case(load_config(None, [*SMALL, "latent.kind=table"]), tmp_path / "table")
    model = table.problem.preference_model()
    z = np.random.default_rng(0).standard_normal((1, *model.shape), dtype=np.float32)
    queue = np.zeros((1, case.scenario.network.road_count, 3), np.float32)
    driver = literal(table, Solution(z, queue, np.zeros(1)))
    before = driver.plan(None, queue[0])["routes"]
    nothing = apply_edits(table.scenario, Edits(), tmp_path / "nothing")
    np.testing.assert_array_equal(before.roads, driver.plan(nothing, queue[0])["routes"].roads)
    edited = apply_edits(table.scenario, LOOP, tmp_path / "loop")
    after = driver.plan(edited, queue[0])["routes"]
    old, new = table.scenario.network, edited.scenario.network
    moved = {one.vehicle for one in edited.moved}
    free = closed = 0
    for i, vehicle in enumerate(table.scenario.demand.ids):
        ids = [old.road_ids[road] for road in before.route(i)]
        if {"C1B1", "D1C1"} & set(ids):
            closed += 1
        elif vehicle not in moved:
            # Closing what one would not have driven anyway can change V on the way, so not all stay; most do.
            free += ids == [new.road_ids[road] for road in after.route(i)]
    assert closed > 0
    assert free > 0.8 * (80 - closed - len(moved))


def _prediction(change: list[float]) -> Prediction:
    before = np.array([[4.0, 6.0], [1.0, 1.0], [2.0, 0.0], [3.0, 3.0]], np.float32)
    return Prediction(before, before + np.array(change, np.float32)[:, None])


def test_scores_by_hand() -> None:
    closed = np.array([True, False, False, False])
    true = _prediction([-5, 1, 2, 3])
    perfect = validation._score("a", 0, 0, true, true, closed)
    np.testing.assert_allclose(
        [perfect.level, perfect.change, perfect.change_all, perfect.error], [1, 1, 1, 0], atol=1e-6
    )
    wrong = validation._score("b", 0, 0, true, _prediction([-5, 3, 2, 1]), closed)
    assert wrong.change == pytest.approx(-1)  # on open roads the order is turned round; the closed road hides it
    assert wrong.change_all == pytest.approx(np.corrcoef([-5, 1, 2, 3], [-5, 3, 2, 1])[0, 1])
    assert wrong.error == pytest.approx(np.sqrt(8 / 3))
    flat = validation._score("c", 0, 0, true, _prediction([0, 0, 0, 0]), closed)
    assert flat.change == 0.0  # nothing changes: no correlation, and no NaN


def test_draws_from_the_prior_are_one_row_and_wins_are_counted() -> None:
    def scores(truth: int, own: float, draws: tuple[float, float], shortest: float) -> list[Scores]:
        values = {CEILING: 0.8, NAME: own, f"{PRIOR} 0": draws[0], f"{PRIOR} 1": draws[1], "shortest path": shortest}
        return [Scores(name, truth, 0, 0.5, change, change, 1.0) for name, change in values.items()]

    rows = {
        row.predictor: row for row in summarise([*scores(0, 0.6, (0.1, 0.3), 0.7), *scores(1, 0.4, (0.5, 0.1), 0.2)])
    }
    assert list(rows) == [CEILING, NAME, PRIOR, "shortest path"]
    assert rows[PRIOR].change[0] == pytest.approx(0.25)
    assert rows[NAME].of_ceiling == pytest.approx((0.625, 0.5))
    assert rows[PRIOR].beaten == "2 of 2"
    assert rows["shortest path"].beaten == "1 of 2"
    assert rows[NAME].beaten == "–"


def test_a_study_from_searches_to_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(validation, "MEMBERS", 2)
    sets = [part for setting in SMALL for part in ("--set", setting)]

    def throng(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["throng", "validate", *words, *sets, "--out", str(tmp_path / "out")])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    words = ("--one-way", "B1C1,C1D1", "--truths", "0", "--seeds", "0", "--simulations", "2")
    code, out, err = throng(*words)
    assert code == 0, err
    data = json.loads((tmp_path / "out" / "one-way-B1C1-C1D1.json").read_text())
    rows = {row["predictor"]: row for row in data["rows"]}
    nulls = {PRIOR, "prior, mean of draws", "shortest path", "fastest path", "static routes", "literal table"}
    assert set(rows) == {CEILING, validation.POPULATION, NAME, validation.BEST, *nulls}
    assert data["removed"] == 11
    for row in rows.values():
        assert -1 <= row["change"][0] <= 1
        assert -1 <= row["level"][0] <= 1
    assert rows[CEILING]["of_ceiling"] == [1.0, 1.0]
    assert rows[CEILING]["level"][0] < 1  # other seeds than the truth's
    assert (tmp_path / "out" / "one-way-B1C1-C1D1.png").stat().st_size > 10_000
    assert data["command"].startswith("throng validate --one-way B1C1,C1D1 --truths 0 --seeds 0")
    journal = set((tmp_path / "out/truth0-seed0/masdiff/journal").iterdir())
    code, out, _ = throng(*words)  # again: nothing is simulated twice
    assert code == 0
    assert "run 1 of" not in out
    assert set((tmp_path / "out/truth0-seed0/masdiff/journal").iterdir()) == journal
    assert throng("--truths", "0")[0] == 2  # no edit
    code, _, err = throng("--close", "Nowhere")
    assert (code, "no such road" in err) == (2, True)


def test_only_hidden_drivers_can_be_asked_what_they_would_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--set target\.truth=structured"):
        validate(None, [*SMALL, "target.observed=queues.csv"], LOOP, [0], [0], 2, tmp_path, QUIET)
    assert not any(tmp_path.iterdir())
