"""Sweeps as they are written, and how points are chosen: all before anything runs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from throng.platform.config import load_config
from throng.platform.finetuning_config import FineTuningConfig
from throng.scenarios.errors import InputError
from throng.tune.choice import Choice, choice
from throng.tune.experiments import GAP, RETURN, budget, objective
from throng.tune.spec import Point, Range, Spec, load_spec

SPACES = Path(__file__).parents[2] / "tune" / "spaces"
TWO = {"navigation.lambda_metres": {"low": 100.0, "high": 1600.0, "scale": "log"}, "search.population": [4, 8, 16]}


FOUR = TWO | {
    "search.kept_first": {"low": 0.1, "high": 0.8},
    "search.kept_spread": {"low": 0.0, "high": 2.5},
    "search.promote": {"low": 0.05, "high": 0.5, "scale": "log"},
}


TUNED = "set: [system=mappo, world_model.folder=model]\n"


def _spec(search: str = "random", **given: object) -> Spec:
    return Spec.model_validate({"space": TWO, "search": search} | given)


def _file(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text)
    return path


def _error(point: Point) -> float:
    """Best at 200 metres, a population of 8, and, where they vary, at some shares of the other ranges."""
    best = {"search.kept_first": 0.3, "search.kept_spread": 1.5, "search.promote": 0.2}
    error = 0.5 * (point["search.population"] != 8)
    for key, value in ({"navigation.lambda_metres": 200.0} | best).items():
        axis = Range.model_validate(FOUR[key])
        error += 4 * (axis.share(point.get(key, value)) - axis.share(value)) ** 2  # type: ignore[arg-type]
    return error


def _search(way: Choice, count: int) -> list[float]:
    errors = []
    for number in range(count):
        point = way.ask(number)
        assert point is not None
        errors.append(_error(point))
        way.tell(point, errors[-1])
    return errors


def test_ranges_have_ends_and_scales() -> None:
    log, whole = Range(low=100, high=1600, scale="log"), Range(low=2, high=5)
    assert [log.at(share) for share in (0, 0.5, 1)] == [100, 400, 1600]
    assert {whole.at(share) for share in np.linspace(0, 1, 50)} == {2, 3, 4, 5}
    for share in (0.0, 0.3, 1.0):
        assert Range(low=0.1, high=2.5, scale="log").share(Range(low=0.1, high=2.5, scale="log").at(share)) == (
            pytest.approx(share, abs=1e-3)
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("space: {search.populaton: [4, 8]}", "populaton.*did you mean 'population'"),
        ("space: {search.population: [4, 1]}", "search.population.*greater than or equal to 2"),
        ("space: {search.kept_first: {low: 0.1, high: 1.2}}", "kept_first.*less than 1"),
        ("space: {search.population: {low: 8, high: 4}}", "low must be below high"),
        ("space: {search.population: {low: 0, high: 4, scale: log}}", "log scale needs low above 0"),
        ("space: {search.population: {low: 4, hihg: 8}}", "space.search.population.*hihg"),
        ("space: {search.population: 8}", "space.search.population"),
        ("space: {}", "names no setting"),
        ("space: {search.population: []}", "the list is empty"),
        (
            "space: {search.population: {low: 4, high: 8}}\nsearch: grid",
            "grid needs lists.*search.population is a range",
        ),
        ("spaces: {search.population: [4]}", "unknown key 'spaces'; did you mean 'space'"),
        ("case: no.yaml\nspace: {search.population: [4]}", "no.yaml: cannot read"),
        ("set: [search.budgett=4]\nspace: {search.population: [4]}", "budgett"),
        (f"{TUNED}space: {{algorithm.magnit: [0.1, 0.2]}}", "algorithm.magnit: mappo has no such setting"),
        (f"{TUNED}space: {{system: [trafficgamer, mappo], algorithm.magnet: [0.1]}}", "mappo has no such setting"),
        (f"{TUNED}space: {{terms.distance_limit: {{low: -1, high: 4}}}}", "terms.distance_limit.*greater than 0"),
        (f"{TUNED}space: {{search.population: [4, 8]}}", "unknown key 'search'"),
        (f"{TUNED}space: {{evaluation.iterations: [0, 4]}}", "0 measures no gaps"),
        (f"{TUNED}profile: paper\nspace: {{terms.crash: [1]}}", "profile: paper is one of MASDiff"),
    ],
)
def test_a_sweep_is_checked_before_it_runs(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_spec(_file(tmp_path, text))
    assert "my.yaml" in str(caught.value)


@pytest.mark.parametrize("path", sorted(SPACES.glob("*.yaml")), ids=lambda path: path.stem)
def test_ready_sweeps_are_right(path: Path) -> None:
    spec = load_spec(path)
    assert spec.name == path.stem
    assert choice(spec, 0).ask(0) is not None


def test_hidden_drivers_do_not_vary_with_what_is_searched(tmp_path: Path) -> None:
    """With lambda swept, the truth would otherwise be another one in each trial; who sweeps the truth itself may."""
    spec = load_spec(_file(tmp_path, "space: {navigation.lambda_metres: [100, 900], learner.kind: [vi, soft_vi]}"))
    config = spec.config({"navigation.lambda_metres": 900, "learner.kind": "soft_vi"})
    before = load_config(None)
    assert config.navigation.lambda_metres == 900
    assert config.learner.kind == "soft_vi"
    assert config.target.navigation == before.navigation
    assert config.target.learner == before.learner
    of_truth = load_spec(_file(tmp_path, "space: {target.navigation.lambda_metres: [100, 900]}"))
    truth = of_truth.config({"target.navigation.lambda_metres": 900}).target.navigation
    assert truth is not None
    assert truth.lambda_metres == 900


def test_cases_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "case.yaml").write_text("search: {budget: 7}")
    spec = load_spec(_file(tmp_path, "case: case.yaml\nspace: {search.population: [4]}"), ["search.elites=1"])
    config = spec.config({"search.population": 4})
    assert (config.search.budget, config.search.elites, config.search.population) == (7, 1, 4)


def test_a_sweep_of_fine_tunings_is_judged_by_what_is_measured(tmp_path: Path) -> None:
    """A case with a system, relative to its file; without one, what `set` says is relative to where the command runs."""
    (tmp_path / "case.yaml").write_text("{system: mappo, world_model: {folder: model}, training: {episodes: 7}}")
    spec = load_spec(_file(tmp_path, "case: case.yaml\nspace: {algorithm.clip: [0.1, 0.2]}"), ["evaluation.futures=4"])
    config = spec.config({"algorithm.clip": 0.1})
    assert isinstance(config, FineTuningConfig)
    assert (config.world_model.folder, config.algorithm["clip"]) == (tmp_path / "model", 0.1)
    assert (config.evaluation.futures, budget(config), objective(config)) == (4, 7, GAP)
    assert objective(load_spec(_file(tmp_path, TUNED + "space: {evaluation.iterations: [0]}")).config({})) is GAP
    without = load_spec(_file(tmp_path, TUNED + "space: {terms.crash: [1]}"), ["evaluation.iterations=0"]).config({})
    assert objective(without) is RETURN
    assert isinstance(without, FineTuningConfig)
    assert without.world_model.folder == Path.cwd() / "model"


def test_a_grid_has_every_combination_once() -> None:
    spec = Spec.model_validate({"space": {"search.population": [4, 8], "search.screen": [1, 2, 3]}, "search": "grid"})
    way = choice(spec, 0)
    points = [way.ask(number) for number in range(7)]
    assert points[6] is None
    assert len({tuple(point.values()) for point in points[:6] if point is not None}) == 6


@pytest.mark.parametrize("search", ["optuna", "population"])
def test_they_learn(search: str) -> None:
    """Told what earlier points came to, their best of fifty is better than that of chance."""
    learnt, chance = (
        np.mean([min(_search(choice(_spec(way, space=FOUR, seed=seed), 0), 50)) for seed in range(5)])
        for way in (search, "random")
    )
    assert learnt < 0.6 * chance


@pytest.mark.parametrize("search", ["random", "optuna", "population"])
def test_a_sweep_that_goes_on_chooses_something_new(search: str) -> None:
    """Told what is known, it neither begins with the points of the beginning again nor forgets what they taught."""
    spec = _spec(search)
    first = choice(spec, 0)
    known = []
    for number in range(12):
        point = first.ask(number)
        assert point is not None
        known.append(point)
        first.tell(point, _error(point))
    later = choice(spec, 12)
    for point in known:
        later.tell(point, _error(point))
    later.tell({"navigation.lambda_metres": 300.0, "search.population": 4}, math.inf)
    following = [later.ask(number) for number in range(12, 24)]
    assert len([point for point in following if point in known]) <= 1
    assert len({tuple(point.values()) for point in following if point is not None}) >= 11
