"""Methods side by side: the same case and drivers for all, nothing repeated, and each switch does what it says."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import cma
import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from throng.platform.case import load_case
from throng.platform.compare import Score, compare, curves, summarise, write
from throng.platform.config import Config, load_config
from throng.platform.evolution import Individual
from throng.platform.experiment import run
from throng.platform.methods import METHODS, PEERS, chosen
from throng.platform.proposals import CmaEs, Prior
from throng.platform.references import take_over
from throng.platform.store import RunStore
from throng.scenarios.errors import InputError

SMALL = [
    "scenario={town: {vehicles: 80, minutes: 3}}", "search.population=6", "search.screen=2", "search.elites=2",
    "search.budget=30", "search.generations=2", "diffusion.updates=10", "diffusion.width=32", "report.seeds=2",
    "report.reference_seeds=2", "workers.rollouts=0",
]  # fmt: skip
QUIET = Console(quiet=True)


def _individuals(z: np.ndarray, errors: list[float]) -> list[Individual]:
    tau = np.zeros((1, 1), np.float32)
    return [
        Individual(i, 0, "prior", -1, one, tau, estimate=error)
        for i, (one, error) in enumerate(zip(z, errors, strict=True))
    ]


def _sphere(z: np.ndarray) -> list[float]:
    return [float(np.square(one - 1.0).sum()) for one in z]


def test_cma_is_pycma_and_goes_on_where_it_stopped() -> None:
    """Against pycma driven by hand with the same random numbers; a restored one asks what the first would have asked."""
    rng = np.random.default_rng(5)
    direct = cma.CMAEvolutionStrategy(
        np.zeros(6), 1.0, {"popsize": 8, "seed": np.nan, "verbose": -9, "randn": lambda *s: rng.standard_normal(s)}
    )
    ours, taus = CmaEs((2, 3), 8, 5), np.zeros((8, 1, 1), np.float32)
    for generation in range(6):
        if generation == 3:
            restored = CmaEs((2, 3), 8, 5)
            restored.load(ours.tensors())
            ours = restored
        expected = direct.ask()
        asked = ours.ask(taus, 0).z
        np.testing.assert_allclose(asked.reshape(8, 6), np.stack(expected), rtol=1e-6)
        errors = _sphere(asked)
        direct.tell(expected, errors)
        ours.tell(_individuals(asked, errors), 0)
    assert np.square(np.asarray(direct.mean) - 1.0).sum() < 6.0  # nearer than the start: it was told the right errors


def test_a_failed_simulation_counts_as_the_worst() -> None:
    source, taus = CmaEs((4,), 6, 0), np.zeros((6, 1, 1), np.float32)
    asked = source.ask(taus, 0).z
    source.tell(_individuals(asked[[0, 1, 2, 4]], [3.0, 1.0, 2.0, 9.0]), 0)
    assert source.tensors()["errors"].tolist() == [[3.0, 1.0, 2.0, 9.0, 9.0, 9.0]]


def test_the_prior_is_standard_normal_and_follows_its_seed() -> None:
    source, taus = Prior((3, 5)), np.zeros((2000, 1, 1), np.float32)
    z = source.ask(taus, 1).z
    assert z.shape == (2000, 3, 5)
    assert abs(z.mean()) < 0.02
    assert abs(z.std() - 1) < 0.02
    np.testing.assert_array_equal(z, source.ask(taus, 1).z)
    assert not np.array_equal(z, source.ask(taus, 2).z)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Score]]:
    out = tmp_path_factory.mktemp("compare")
    methods = chosen(["masdiff", "astar-q"])
    return out, compare(None, SMALL, methods, [0], [0, 1], out, QUIET)


def test_all_methods_meet_the_same_drivers_and_nulls(compared: tuple[Path, list[Score]]) -> None:
    """One observation and one set of floors for all, whatever the search seed."""
    out, scores = compared
    assert len(scores) == 4
    for seed in (0, 1):
        of_seed = [one for one in scores if one.seed == seed]
        for name in ("seed-floor", "identifiability-floor", "shortest", "fastest"):
            assert len({one.references[name] for one in of_seed}) == 1
    observed = []
    for path in sorted(out.glob("truth0-seed*/*/journal/prepare-truth1.npz")):
        with np.load(path) as data:
            observed.append(data["queue"].tobytes())
    assert len(observed) == 4
    assert len(set(observed)) == 1


def test_what_is_taken_over_is_what_a_run_of_its_own_would_have_simulated(
    compared: tuple[Path, list[Score]], tmp_path: Path
) -> None:
    """A run by itself, with nothing taken over, ends with the same floors and the same result.

    `astar-q` has another router than the run it takes from: were the hidden drivers to change with it, this would differ.
    """
    out, _ = compared
    settings = RunStore.open(out / "truth0-seed0" / "astar-q").config()
    run(settings, tmp_path / "alone", resume=False, console=QUIET)
    alone = json.loads((tmp_path / "alone" / "evaluation.json").read_text())
    beside = json.loads((out / "truth0-seed0" / "astar-q" / "evaluation.json").read_text())
    assert json.dumps(alone["rows"]) == json.dumps(beside["rows"])


def test_draws_from_the_prior_are_taken_over_where_they_would_be_the_same(tmp_path: Path) -> None:
    keys = ("prepare-truth0", "reference-shortest-path-0", "reference-prior-0")
    taken = {}
    for name in ("masdiff", "cma", "astar-q", "ldm-imit", "table"):
        config = load_config(None, [*SMALL, *METHODS[name].settings])
        with contextlib.closing(RunStore.create(tmp_path / name, config)) as store:
            if name == "masdiff":
                for key in keys:
                    store.journal_put(key, {"x": np.zeros(1)})
            else:
                take_over(store, tmp_path / "masdiff")
                taken[name] = [store.journal_get(key) is not None for key in keys]
    others = [True, True, False]  # whoever routes, learns or decodes otherwise draws other drivers
    assert taken == {"cma": [True] * 3, "astar-q": others, "ldm-imit": others, "table": others}


def test_finished_runs_are_not_repeated(compared: tuple[Path, list[Score]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with another number of workers either: where a study runs does not change it."""
    out, scores = compared

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished run was begun again")

    monkeypatch.setattr("throng.platform.compare.run", refuse)
    again = compare(None, [*SMALL, "workers.rollouts=3"], chosen(["masdiff", "astar-q"]), [0], [0, 1], out, QUIET)
    assert again == scores
    with pytest.raises(AssertionError, match="begun again"):
        compare(None, [*SMALL, "report.seeds=3"], chosen(["masdiff"]), [0], [0], out, QUIET)


def test_the_table_says_what_the_runs_said(compared: tuple[Path, list[Score]], tmp_path: Path) -> None:
    _, scores = compared
    rows = {row["method"]: row for row in summarise(scores)}
    for name in ("masdiff", "astar-q"):
        errors = [one.rmse for one in scores if one.method == name]
        assert rows[name]["median"] == pytest.approx(sum(errors) / 2)
        assert rows[name]["high"] == max(errors)
    own = {one.seed: one.rmse for one in scores if one.method == "masdiff"}
    ratios = [one.rmse / own[one.seed] for one in scores if one.method == "astar-q"]
    assert rows["astar-q"]["to_own"] == pytest.approx(np.median(ratios))
    assert rows["masdiff"]["to_own"] == 1.0
    assert all(one.simulations <= 30 for one in scores)
    path = write(tmp_path, "rq1", "throng compare", scores, summarise(scores))
    assert all(name in path.read_text() for name in ("masdiff", "astar-q", "shortest", "`throng compare`"))
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_curve_never_rises(compared: tuple[Path, list[Score]]) -> None:
    """It is the best so far, and begins where a method has spent its first simulations."""
    _, scores = compared
    lines = curves(scores).axes[0].get_lines()
    for one in scores:
        assert (np.diff([error for _, error in one.curve]) <= 0).all()
    drawn = np.asarray(lines[0].get_ydata())
    assert drawn[-1] == pytest.approx(np.median([one.curve[-1][1] for one in scores if one.method == "masdiff"]))


def test_curves_of_several_truths_are_shares_between_prior_and_floor(compared: tuple[Path, list[Score]]) -> None:
    """Of the first method's prior, for all methods: a truth of another level and scale changes no line."""
    scores = [one for one in compared[1] if one.seed == 0]
    others = [
        replace(
            one,
            truth=1,
            curve=tuple((x, 3 * y + 5) for x, y in one.curve),
            references={name: 3 * error + 5 for name, error in one.references.items()},
        )
        for one in scores
    ]
    first = scores[0].references
    for method, line in zip(
        dict.fromkeys(one.method for one in scores), curves(scores + others).axes[0].get_lines(), strict=False
    ):
        (one,) = (one for one in scores if one.method == method)
        gap = (one.curve[-1][1] - first["seed-floor"]) / (first["prior"] - first["seed-floor"])
        assert np.asarray(line.get_ydata())[-1] == pytest.approx(gap)


@pytest.fixture(scope="module")
def sibling(compared: tuple[Path, list[Score]]) -> Path:
    """A run of the same case, whose floors and nulls need not be simulated again."""
    return compared[0] / "truth0-seed0" / "masdiff"


def _ledger(tmp_path: Path, sibling: Path, *more: str) -> list[dict]:
    run(load_config(None, [*SMALL, *more]), tmp_path / "run", False, QUIET, sibling)
    table = [pq.read_table(path) for path in sorted((tmp_path / "run" / "ledger").glob("*.parquet"))]
    return [{**row, "file": i} for i, part in enumerate(table) for row in part.to_pylist()]


def test_without_mutation_nobody_is_mutated(tmp_path: Path, sibling: Path) -> None:
    rows = _ledger(tmp_path, sibling, "search.mutation=false")
    assert {row["operator"] for row in rows} == {"prior", "diffusion"}


def test_without_elitism_nobody_outlives_a_generation_as_a_parent(tmp_path: Path, sibling: Path) -> None:
    """Parents are of the generation before at the latest; with retention the first best would still have children."""
    rows = _ledger(
        tmp_path,
        sibling,
        "search.elitism=false",
        "search.handover=resample",
        "search.generations=3",
        "search.budget=60",
    )
    born = {row["id"]: row["generation"] for row in rows}
    mine = [row for row in rows if row["generation"] == row["file"] and row["parent"] >= 0]
    assert max(row["generation"] for row in mine) == 2
    assert all(row["generation"] - born[row["parent"]] <= 1 for row in mine)


def test_without_learning_the_model_stays_the_prior(tmp_path: Path, sibling: Path) -> None:
    _ledger(tmp_path, sibling, "search.learning=false")
    tensors = RunStore.open(tmp_path / "run").checkpoint()
    last = tensors["reward.average.layers.4.weight"]  # zero: the residual to the exact denoiser of N(0, I)
    assert not last.any()


def test_line_5_simulates_the_population_again_and_pays_for_it(tmp_path: Path, sibling: Path) -> None:
    for name, more in (("again", ["search.reuse=false"]), ("reused", [])):
        run(load_config(None, [*SMALL, "search.budget=60", *more]), tmp_path / name, False, QUIET, sibling)
    spent = {
        name: json.loads((tmp_path / name / "result.json").read_text())["simulations"]["micro"]
        for name in ("again", "reused")
    }
    assert spent["again"] >= spent["reused"] + 6  # in the second generation, the population of six


@pytest.mark.parametrize(
    "settings",
    [["search.proposals=cma"], ["search.proposals=guided"], ["search.generator=gan"], ["search.guidance=false"]],
    ids=["cma", "guided", "gan", "no-guidance"],
)
def test_every_source_resumes_to_the_same_result(settings: list[str], tmp_path: Path, sibling: Path) -> None:
    """One generation, then another after a resume, against two at once: the checkpoint holds all that was learnt."""

    def config(generations: int) -> Config:
        return load_config(None, [*SMALL, *settings, f"search.generations={generations}"])

    run(config(1), tmp_path / "halted", False, QUIET, sibling)
    run(config(2), tmp_path / "halted", True, QUIET, sibling)
    run(config(2), tmp_path / "straight", False, QUIET, sibling)
    columns = ["id", "operator", "estimate", "samples", "genome"]
    halted, straight = (RunStore.open(tmp_path / name).ledger().select(columns) for name in ("halted", "straight"))
    assert halted.equals(straight)
    assert halted.num_rows >= 2 * 6


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["masdif"], "no method 'masdif'; known: masdiff"),
        (["cma", "cma"], "given twice"),
        (["shortest"], "beside every"),
    ],
)
def test_wrong_names_are_refused(names: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        chosen(names)


def test_every_method_is_a_valid_configuration() -> None:
    """All settings of the registry are known keys with values in range, and each changes something but the first."""
    plain = load_config(None, [])
    for method in METHODS.values():
        if method in PEERS:
            continue
        config = load_config(None, list(method.settings), method.profile)
        assert (config == plain) == (method.name == "masdiff")


def test_the_papers_path_runs_and_takes_every_departure_back(tmp_path: Path, sibling: Path) -> None:
    """`--profile paper` in small: line 5 simulates, nobody is kept, everything is microscopic, and a DQN learns."""
    config = load_config(None, [*SMALL, "search.population=3", "search.budget=60", "learner.updates=20"], "paper")
    assert (config.latent.kind, config.learner.kind, config.navigation.router) == ("token", "dqn", "astar_q")
    assert (config.search.weight, config.search.handover, config.search.ladder) == ("linear", "resample", ("micro",))
    run(
        config.model_copy(update={"search": config.search.model_copy(update={"screen": 1})}),
        tmp_path / "run",
        False,
        QUIET,
        sibling,
    )
    store = RunStore.open(tmp_path / "run")
    assert store.ledger().num_rows >= 2 * 6
    result = store.read_json("result.json")
    assert result is not None
    assert result["simulations"]["meso"] == 0
    # Per generation 2 x 3 candidates and 2 elites to name the result by; from the second on 3 more for line 5.
    assert result["simulations"]["micro"] >= 2 * 6 + 3


def test_a_case_and_set_go_on_top_of_a_profile(tmp_path: Path) -> None:
    (tmp_path / "case.yaml").write_text("latent: {tokens: 5}\nsearch: {population: 7}\n")
    config = load_config(tmp_path / "case.yaml", ["search.weight=rank"], "paper")
    assert (config.latent.kind, config.latent.tokens) == ("token", 5)
    assert (config.search.population, config.search.weight, config.search.handover) == (7, "rank", "resample")
    assert config.name == "case"
    with pytest.raises(InputError, match="no such profile; known: fast, paper"):
        load_config(None, [], "papre")


def test_a_peer_is_judged_beside_and_one_that_does_not_apply_is_left_out_with_the_reason(tmp_path: Path) -> None:
    """routeSampler needs counts, and queues were observed; duaIterate needs trips only."""
    (tmp_path / "queues.csv").write_text("road,minute,queue\n" + "".join(f"C3B3,{minute},1\n" for minute in range(3)))
    given = [*SMALL, f"target.observed={tmp_path / 'queues.csv'}", "search.budget=2"]
    console = Console(record=True, width=300, quiet=False, file=io.StringIO())
    scores = compare(None, given, chosen(["duaiterate", "routesampler"]), [0], [0], tmp_path / "out", console)
    assert [(one.method, one.simulations) for one in scores] == [("duaiterate", 2.0)]
    assert "routesampler left out: routeSampler.py needs counts" in console.export_text()
    folder = tmp_path / "out" / "truth0-seed0" / "duaiterate"
    road = load_case(load_config(None, given), tmp_path / "case").scenario.network.road_ids.index("C3B3")
    errors = []
    for i in range(2):
        with np.load(folder / "journal" / f"evaluate-duaiterate-{i}.npz") as data:
            errors.append(np.sqrt(np.mean(np.square(data["queue"][road] - 1.0))))
    assert scores[0].rmse == pytest.approx(np.mean(errors))
    assert json.loads((folder / "evaluation.json").read_text())["rows"][0]["method"] == "duaiterate"
    with pytest.raises(InputError, match="none of them applies"):
        compare(None, given, chosen(["routesampler"]), [0], [0], tmp_path / "none", QUIET)


def test_several_truths_of_an_observed_table_are_refused_before_any_run(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("road,minute,queue\n")
    with pytest.raises(InputError, match="--truths"):
        compare(
            None,
            [*SMALL, f"target.observed={tmp_path / 'x.csv'}"],
            chosen(["random"]),
            [0, 1],
            [0],
            tmp_path / "o",
            QUIET,
        )
    assert not (tmp_path / "o").exists()
