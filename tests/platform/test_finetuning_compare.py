"""Fine-tuners side by side: ordinary runs, nothing repeated, and numbers that are those of the runs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from driving_scenes import fine_tuning
from throng.platform.config import read_yaml, validated
from throng.platform.finetuning_compare import cells, headings, told, write
from throng.platform.finetuning_config import FineTuningConfig
from throng.platform.finetuning_scores import Axis, Score, ratios, score, summarise, trends
from throng.platform.store import RunStore

Run = Callable[..., int]
DISTANCE, CONFIDENCE = Axis("terms.distance_limit", ("11", "3", "7")), Axis("algorithm.confidence", ("0", "0.9"))


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A configuration of a made-up scene, whose world model knows nothing; one moment of driving, no gaps."""
    return fine_tuning(
        tmp_path,
        system="trafficgamer",
        scene={"horizon": 1},
        algorithm={"confidence": 0.5},
        training={"episodes": 2, "rollouts": 4},
        evaluation={"futures": 2, "pictures": 0, "iterations": 0},
        workers={"rollouts": 0},
    )


def _attempts(out: Path) -> dict[str, int]:
    """How often each run was begun or gone on with."""
    return {
        str(path.parent.relative_to(out)): int(path.read_text().split()[0]) for path in sorted(out.rglob("attempt"))
    }


def test_only_what_is_missing_is_done(case: Path, throng_here: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The case's own system and its baseline by default; another way of measuring does not train again."""
    out = case.parent / "out"
    command = ("compare", str(case), "--out", str(out))
    assert throng_here(*command, "--seeds", "0") == 0
    assert "mappo: without algorithm.confidence" in capsys.readouterr().out
    first = {"seed0/mappo": 1, "seed0/trafficgamer": 1}
    assert _attempts(out) == first
    assert read_yaml(out / "seed0" / "mappo" / "config.yaml")["algorithm"] == {}
    assert read_yaml(out / "seed0" / "trafficgamer" / "config.yaml")["algorithm"] == {"confidence": 0.5}
    assert throng_here(*command, "--seeds", "0,1", "--methods", "mappo", "--set", "workers.restarts=3") == 0
    assert _attempts(out) == first | {"seed1/mappo": 1}
    learnt = out / "seed0" / "mappo" / "ledger" / "0000.parquet"
    before = learnt.stat().st_mtime_ns
    for _ in range(2):  # the second time it is known to be measured so
        assert throng_here(*command, "--seeds", "0", "--methods", "mappo", "--set", "evaluation.futures=3") == 0
        assert _attempts(out)["seed0/mappo"] == 2
    assert json.loads((out / "seed0" / "mappo" / "evaluation.json").read_text())["futures"] == 3
    assert learnt.stat().st_mtime_ns == before
    capsys.readouterr()
    assert throng_here("status", str(out)) == 0
    assert capsys.readouterr().out.count("finished") == 3
    for words in (
        ("whatif", str(out / "seed0" / "mappo"), "--close", "x"),
        ("plan", str(case)),
        ("validate", str(case)),
    ):
        assert throng_here(*words) == 2
        assert "a fine-tuning (" in capsys.readouterr().err.replace("\n", " ")


def test_a_grid_has_a_run_for_each_pair_of_values(case: Path, throng_here: Run) -> None:
    out = case.parent / "out"
    vary = ("--vary", "terms.distance_limit=3,11", "--vary", "algorithm.confidence=0,0.9")
    assert throng_here("compare", str(case), "--out", str(out), "--seeds", "4", "--name", "g", *vary) == 0
    names = {
        f"seed4/trafficgamer-terms.distance_limit={d}-algorithm.confidence={c}": (d, c)
        for d in (3, 11)
        for c in (0, 0.9)
    }
    assert set(_attempts(out)) == set(names)
    for name, (distance, confidence) in names.items():
        path = out / name / "config.yaml"
        config = validated(FineTuningConfig, read_yaml(path), path)
        assert (config.terms.distance_limit, config.algorithm["confidence"], config.seed) == (distance, confidence, 4)
    for name in ("g", "g-scenes", "g-grid"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"({name}.png)" in (out / "g.md").read_text()
    scores = json.loads((out / "g.json").read_text())["scores"]
    cost = {tuple(one["cell"].values()): one["measures"]["cost"] for one in scores}
    assert cost["3", "0"] <= cost["11", "0"], "what is too near at 3 m is too near at 11 m"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--methods masdiff", "no fine-tuner 'masdiff'; known: mappo"),
        ("--methods mappo,mappo", "given twice"),
        ("--truths 0,1", "no hidden truth"),
        ("--vary terms.distance_limit=3", "at least two values"),
        ("--vary terms.distance_limit=3,3.0", "a value is given twice"),
        ("--vary terms.distance_limit=3,5 --vary terms.distance_limit=5,7", "terms.distance_limit is given twice"),
        ("--vary seed=1,2", "use --seeds"),
        ("--vary system=mappo,masac", "use --methods"),
        ("--vary terms.crash=1,2 --vary terms.off_road=1,2 --vary terms.per_metre=1,2", "at most 2 settings"),
        ("--vary terms.distance=3,5", "did you mean 'distance_limit'"),
        ("--vary terms.distance_limit=3,-1", "terms.distance_limit: Input should be greater than 0"),
        ("--vary algorithm.confidence=0,0.9 --methods trafficgamer,mappo", "mappo has no such setting"),
        ("--set algorithm.magnit=1", "algorithm.magnit: trafficgamer has no such setting"),
        ("--set algorithm.epochs=many", "algorithm.epochs"),
        ("--set system=mappa", "no fine-tuner 'mappa'"),
    ],
)
def test_what_is_wrong_is_named_before_anything_runs(
    case: Path, throng_here: Run, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    out = case.parent / "out"
    assert throng_here("compare", str(case), "--out", str(out), *words.split()) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not out.exists()


def test_searches_have_no_grid(tmp_path: Path, throng_here: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert throng_here("compare", "--vary", "search.population=4,8", "--out", str(tmp_path / "out")) == 2
    assert "no fine-tuning" in capsys.readouterr().err


def _left(out: Path, name: str, gaps: tuple[float, float], cost: float) -> None:
    """What a run of two drivers and two episodes leaves behind; gaps of the drivers, cost of the record."""
    config = FineTuningConfig.model_validate({"system": "mappo", "world_model": {"folder": "/model"}})
    store = RunStore.create(out / name, config)
    rows = [
        {"episode": e, "agent": a, "seconds": 1.0 + e, "return": -10.0 * (e + 1) - a, "cost": 0.1}
        | ({"multiplier": 0.2 * e} if name.endswith("trafficgamer") else {})
        for e in range(2) for a in range(2)
    ]  # fmt: skip
    store.commit(0, rows, {}, {"x": torch.zeros(1)}, {"episodes": 2})
    reward = {"own": [0.0, 0.0], "best": list(gaps), "gap": list(gaps), "restricted": [0.5, 1.5]}
    futures = {"crashes": 0.25, "cost": 0.1, "least_spacing_m": 4.0, "spacing_m": 6.0, "speed_m_s": 7.0}
    speed = {"kullback_leibler_nats": 1.0, "hellinger": 0.5, "wasserstein_m_s": 2.0}
    store.write_json(
        "evaluation.json",
        {
            "drivers": ["a", "b"], "futures": 2, **futures, "distances": {"speed": speed, "spacing": None},
            "gaps": {"reward": reward}, "record": {"drivers": ["a"], **futures, "speed_m_s": 8.0, "cost": cost},
        },
    )  # fmt: skip
    store.close()


def test_a_table_says_what_the_runs_said(tmp_path: Path) -> None:
    """Means over drivers and seeds, ratios of means, and the record once: against sums done by hand."""
    gaps = {
        ("trafficgamer", 0): (1.0, 2.0), ("mappo", 0): (2.0, 4.0), ("trafficgamer", 1): (3.0, 4.0), ("mappo", 1): (1.0, 4.0),
        ("trafficgamer", 2): (9.0, 9.0),
    }  # fmt: skip
    scores = []
    for (method, seed), of_drivers in gaps.items():
        _left(tmp_path, f"seed{seed}/{method}", of_drivers, cost=0.1 * (seed + 1))
        scores.append(score(method, {}, seed, tmp_path, f"seed{seed}/{method}"))
    assert [one.measures["gap"] for one in scores] == [1.5, 3.0, 3.5, 2.5, 9.0]
    first = scores[0].measures
    assert (first["return"], first["multiplier"], first["seconds"]) == pytest.approx((-15.5, 0.1, 1.5))
    own, other, record = rows = summarise(scores)
    assert own["values"]["gap"]["mean"] == pytest.approx(14 / 3)
    assert own["values"]["gap_less_cost"] == own["values"]["gap"], "multipliers that ended at 0 were not asked for anew"
    assert other["values"]["gap"]["sd"] == pytest.approx(0.125**0.5)
    assert own["values"]["spacing_hellinger"]["mean"] is None
    assert record["values"]["speed_m_s"]["mean"] == 8.0
    assert record["values"]["cost"]["mean"] is None, "it is not the same in all runs"
    found = {one["measure"]: one for one in ratios(scores)}
    assert found["gap"]["ratio"] == pytest.approx((1.5 + 3.5) / (3.0 + 2.5)), (
        "the seed without a partner does not count"
    )
    assert (found["gap"]["below"], found["gap"]["pairs"]) == (1, 2)
    assert found["restricted"]["ratio"] == 1.0
    shown, drives, apart = (
        dict(zip(*both, strict=True)) for both in zip(headings([]), cells(rows[1], []), strict=True)
    )
    assert (drives["fine-tuner"], drives["multiplier"]) == ("mappo", "–")
    assert (shown["CCE-gap"], shown["less cost"], shown["runs"]) == ("2.750 ± 0.354", "–", "2")
    assert (apart["speed: KL, H, W1"], apart["spacing: KL, H, W1"]) == ("1.000, 0.500, 2.000", "–")
    text = write(tmp_path, "all", "throng compare", scores, []).read_text()
    assert "CCE-gap, trafficgamer / mappo: 0.909 (ratio of means); below 1 in 1 of 2" in text


def _scores(spacing: Callable[[float, float], float], seed: int = 0) -> list[Score]:
    found = []
    for distance, confidence in itertools.product(DISTANCE.values, CONFIDENCE.values):
        cell = {DISTANCE.key: distance, CONFIDENCE.key: confidence}
        near = spacing(float(distance), float(confidence))
        known: dict[str, Any] = {"spacing_m": near, "least_spacing_m": near - 1.0, "multiplier": None}
        measures = known | {"speed_m_s": 9.0 - float(confidence), "cost": 0.5, "gap": None, "restricted": None}
        found.append(Score("trafficgamer", cell, seed, "", (), measures, {}, (), None))
    return found


def test_trends_go_from_the_least_value_to_the_greatest() -> None:
    """Whatever the order they were given in; a line that does not rise all the way is not counted."""
    scores = _scores(lambda distance, confidence: distance if confidence == 0 else {3: 2.0, 7: 1.0, 11: 6.0}[distance])
    axes = [DISTANCE, CONFIDENCE]
    found = {(one["key"], one["measure"]): one for one in trends(scores, axes)}
    spacing = found[DISTANCE.key, "spacing_m"]
    assert (spacing["from"], spacing["to"], spacing["first"], spacing["last"]) == ("3", "11", 2.5, 8.5)
    assert (spacing["ratio"], spacing["rises"], spacing["falls"], spacing["of"]) == (3.4, 1, 0, 2)
    speed = found[CONFIDENCE.key, "speed_m_s"]
    assert (speed["first"], speed["last"], speed["falls"], speed["of"]) == pytest.approx((9.0, 8.1, 3, 3))
    assert (DISTANCE.key, "multiplier") not in found
    assert any("spacing 2.50 to 8.50, ratio 3.40; rises at every step in 1 of 2" in one for one in told(scores, axes))


def test_trends_count_seeds_not_their_means() -> None:
    """Spacing rises in one seed and falls in the other, which also lacks a cell; the means would rise."""
    rising = _scores(lambda distance, _: 10.0 * distance)
    falling = _scores(lambda distance, _: 20.0 - distance, seed=1)[:-1]
    found = {(one["key"], one["measure"]): one for one in trends([*rising, *falling], [DISTANCE, CONFIDENCE])}
    spacing = found[DISTANCE.key, "spacing_m"]
    assert (spacing["rises"], spacing["falls"], spacing["of"]) == (2, 1, 3)
