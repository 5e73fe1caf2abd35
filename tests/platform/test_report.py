"""The report: one offline page with the right numbers, whatever the names, there as a whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import re
import struct
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest
from throng.platform import figures, report
from throng.platform.report import ReportData, write_report

PICTURES = {"network.png", "curves.png", "error.png", "preferences.png", "heatmap.png"}
HOSTILE = ["</script><script>alert(1)</script>", "a\"b'c\\d", "<!--<script>", "&amp;{{config}}\u2028$x$"]

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DPI", 60)  # five pictures take a second at full size


def example(roads: int = 4, minutes: int = 6, seeds: int = 3, points: int = 5, **changes: Any) -> ReportData:
    draw = np.random.default_rng(0)
    observed = draw.poisson(4, (roads, minutes)).astype(float)
    generations = 5
    fields: dict[str, Any] = {
        "title": "town: a test",
        "summary": [("best error", "0.87")],
        "road_ids": [f"road{i}" for i in range(roads)],
        "shapes": [np.cumsum(draw.normal(20, 40, (points, 2)), axis=0) + 500 for _ in range(roads)],
        "lanes": draw.integers(1, 4, roads),
        "kind": "queue",
        "unit": "vehicles",
        "observed": observed,
        "simulated": observed + draw.normal(0, 1, (seeds, roads, minutes)),
        "prior": observed * 1.5,
        "lcc": (np.linspace(1, 0.5, minutes), np.tile(np.linspace(1, 0.6, minutes), (seeds, 1))),
        "history": {
            "generation": np.arange(generations),
            "simulations": np.arange(1, generations + 1) * 16.0,
            "best": np.linspace(1.5, 0.9, generations),
            "best_sd": np.full(generations, 0.05),
            "median": np.linspace(2, 1.2, generations),
            "ess": np.full(generations, 12.0),
            "latent_sd": np.linspace(1, 0.3, generations),
        },
        "levels": [
            ("seed floor", 0.72, 0.03),
            ("prior mean", 1.5, 0.06),
            ("fastest path", 1.51, float("nan")),
        ],
        "preferences": [
            {"feature": "queue ahead", "mean": -0.6, "low": -0.8, "high": -0.4, "truth": -0.5},
            {"feature": "lanes", "mean": 0.2, "low": -0.1, "high": 0.5, "truth": None},
        ],
        "evaluation": [{"method": "Throng", "rmse": 0.871, "rmse_sd": None, "mae": 0.4, "seeds": 8}],
        "notes": ["Preferences are not identified individually."],
        "config": "population:\n  size: 64\n",
    }
    return ReportData(**(fields | changes))


class Page(HTMLParser):
    """Scripts, resources and text of a page as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words: list[str] = []
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._script = tag == "script"
        if self._script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._script = self._script and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[-1] += data
        else:
            self.words.append(data)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def carried(page: str) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(Page(page).scripts[0], parse_constant=refuse)
    return shown


def test_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    text = write_report(example(), tmp_path).read_text(encoding="utf-8")
    assert not re.search(r"https?:|//cdn|@import|url\(|fetch\(|XMLHttpRequest|innerHTML", text)
    page = Page(text)
    assert not [a for a in page.attributes if a[1] in ("src", "href", "srcset", "onload", "onclick")]
    assert (
        "meta",
        "content",
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'",
    ) in (page.attributes)
    assert not re.search(r"\{\{\w+\}\}", text), "a placeholder was left"


def test_page_carries_the_numbers() -> None:
    nan = float("nan")
    observed = np.array([[1.0, 2.0, 4.0], [3.0, nan, 10.0]])
    simulated = np.array([[[1.0, 3.0, 4.0], [2.0, 7.0, 8.0]], [[2.0, 3.0, 5.0], [4.0, 8.0, 9.0]]])
    data = example(roads=2, minutes=3, observed=observed, simulated=simulated, prior=None, lcc=None)
    shown = carried(report.render(data))
    assert shown["observed"] == [[1, 2, 4], [3, None, 10]]
    assert shown["mean"] == [[1.5, 3, 4.5], [3, 7.5, 8.5]]
    assert shown["range"] == [[[1, 3, 4], [2, 7, 8]], [[2, 3, 5], [4, 8, 9]]]
    # minute 1 counts the first road only, on both sides: the second was not observed
    assert shown["total"]["observed"] == [4, 2, 14]
    assert shown["total"]["mean"] == [4.5, 3, 13]
    assert shown["total"]["range"] == [[3, 3, 12], [6, 3, 14]]
    assert shown["peak"] == 2
    assert shown["order"] == [1, 0]
    assert shown["ids"] == data.road_ids
    assert shown["history"]["best"] == [1.5, 1.35, 1.2, 1.05, 0.9]
    assert shown["levels"][2] == ["fastest path", 1.51, None]
    corner = np.min([s.min(axis=0) for s in data.shapes], axis=0)
    for shape, flat in zip(data.shapes, shown["shapes"], strict=True):
        np.testing.assert_allclose(np.reshape(flat, (-1, 2)) / 10, shape - corner, atol=0.051)


def test_speeds_are_averaged_and_the_slow_roads_come_first() -> None:
    observed = np.array([[13.0, 12.0], [3.0, 2.0]])
    data = example(
        roads=2,
        minutes=2,
        kind="speed",
        unit="m/s",
        observed=observed,
        simulated=observed[None] + 1,
        prior=None,
        lcc=None,
    )
    shown = carried(report.render(data))
    assert shown["total"] == {"observed": [8, 7], "mean": [9, 8], "range0": None, "range": None, "prior": None}
    assert shown["order"] == [1, 0]
    assert shown["peak"] == 1
    slow, fast = (sum(matplotlib.colors.to_rgb(shown["sequential"]["light"][i])) for i in (0, -1))
    assert slow < fast, "on white, the slow roads are the ones that must stand out"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    row: dict[str, Any] = {
        "feature": HOSTILE[0] + "$a$b$",
        "mean": 1.0,
        "low": 0.0,
        "high": 2.0,
        "truth": None,
    }
    data = example(
        road_ids=HOSTILE,
        title=HOSTILE[0] + HOSTILE[3],
        summary=[(HOSTILE[0], HOSTILE[2])],
        preferences=[row],
        levels=[(HOSTILE[3], 1.0, 0.1)],
        evaluation=[{"method": HOSTILE[0], "rmse": 1.0}],
        notes=[HOSTILE[2]],
        config=HOSTILE[0],
    )
    text = report.render(data)
    page = Page(text)
    assert len(page.scripts) == 2
    shown = json.loads(page.scripts[0])
    assert shown["ids"] == HOSTILE
    assert shown["preferences"][0]["feature"] == row["feature"]
    assert "<" not in page.scripts[0]
    for word in (data.title, HOSTILE[0], HOSTILE[2], row["feature"], HOSTILE[3]):
        assert word in "".join(page.words)
    assert {path.name for path in figures.draw(data, tmp_path)} == PICTURES  # no formula between dollar signs


def test_pictures_are_png_with_something_on_them(tmp_path: Path) -> None:
    write_report(example(), tmp_path)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == PICTURES
    for path in (tmp_path / "figures").iterdir():
        head = path.read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", head[16:])
        assert width >= 400 and height >= 80, path.name
        image = matplotlib.image.imread(path)
        assert image.shape[:2] == (height, width)
        assert np.unique(image.reshape(-1, image.shape[2]), axis=0).shape[0] > 20, f"{path.name} is empty"


@pytest.mark.parametrize("broken", ["draw", "render"])
def test_failure_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    write_report(example(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    draw = figures.draw

    def fail(data: ReportData, folder: Path | None = None) -> list[Path]:
        if folder is not None:
            draw(data, folder)  # the pictures are there, the page is not
        raise OSError("disk full")

    monkeypatch.setattr(*((figures, "draw") if broken == "draw" else (report, "render")), fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(example(title="another"), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "figures"}, "a hidden folder was left"


def gaps() -> ReportData:
    observed = example().observed.copy()
    observed[1] = np.nan
    observed[:, 2] = np.nan
    simulated = example().simulated.copy()
    simulated[:, 3, 4] = np.nan
    return example(observed=observed, simulated=simulated)


EDGES: dict[str, Callable[[], ReportData]] = {
    "gaps": gaps,
    "nothing observed": lambda: example(observed=np.full((4, 6), np.nan)),
    "no queue anywhere": lambda: example(observed=np.zeros((4, 6)), simulated=np.zeros((3, 4, 6)), prior=None),
    "one minute, one seed": lambda: example(minutes=1, seeds=1),
    "one generation": lambda: example(history={k: v[:1] for k, v in example().history.items()}),
    "no generation": lambda: example(history={}),
    "errors unknown": lambda: example(history=example().history | {"best_sd": np.array([None] * 5)}),
    "bare": lambda: example(
        preferences=[], evaluation=[], levels=[], notes=[], summary=[], config="", lcc=None, prior=None
    ),
    "one road of one point": lambda: example(roads=1, points=1),
}


@pytest.mark.parametrize("case", EDGES)
def test_edge_cases_are_drawn(tmp_path: Path, case: str) -> None:
    data = EDGES[case]()
    shown = carried(write_report(data, tmp_path).read_text(encoding="utf-8"))
    missing = np.array([[value is None for value in row] for row in shown["observed"]])
    np.testing.assert_array_equal(missing, np.isnan(data.observed))
    assert 0 <= shown["peak"] < data.minutes
    assert {path.name for path in (tmp_path / "figures").iterdir()} == PICTURES
    if case == "nothing observed":  # but the cluster
        assert shown["errorUnit"] == "share of all roads"
        np.testing.assert_allclose(
            shown["total"]["mean"],
            data.simulated.mean(axis=0).sum(axis=0),
            atol=0.01,
            err_msg="all roads count",
        )
    if case == "gaps":
        assert shown["total"]["observed"][2] is None
        assert shown["order"][-1] == 1, "a road that was never observed is not among the congested"


def test_size_for_nine_hundred_roads() -> None:
    data = example(roads=900, minutes=30, points=10)
    assert len(report.render(data).encode()) < 2.5e6


def test_same_data_same_page() -> None:
    assert report.render(example()) == report.render(example())


def test_numbers_are_compact_and_close() -> None:
    values = np.array([0.0, -0.0, 123.456, -1 / 3, 7.0, np.nan, np.inf])
    assert json.dumps(report.numbers(values)) == "[0, 0, 123.5, -0.3, 7, null, null]"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"observed": np.zeros((3, 6))}, "observed"),
        ({"simulated": np.zeros((4, 6))}, "simulated"),
        ({"prior": np.zeros((4, 5))}, "prior"),
        ({"shapes": []}, "shapes"),
        ({"history": {"best": np.zeros(2), "median": np.zeros(3)}}, "history"),
        ({"lcc": (np.zeros(5), np.zeros((3, 6)))}, "lcc"),
    ],
)
def test_arrays_that_do_not_fit_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(example(), **change)


def test_labels_keep_their_order_and_do_not_overlap() -> None:
    draw = np.random.default_rng(3)
    for _ in range(200):
        heights = draw.uniform(0.02, 0.1, 8)
        centres = draw.uniform(0, 1, 8) ** 3
        places = np.array(figures.spread(list(centres), list(heights), 0.0, 1.0))
        order = np.argsort(centres)
        lower, upper = (places - heights / 2)[order], (places + heights / 2)[order]
        assert (lower[1:] >= upper[:-1] - 1e-9).all()
        assert lower[0] >= -1e-9 and upper[-1] <= 1 + 1e-9
    assert figures.spread([0.2, 0.8], [0.1, 0.1], 0, 1) == pytest.approx([0.2, 0.8]), "labels with room stay"


def test_roads_are_moved_to_their_right() -> None:
    corner = np.array([[0.0, 0.0], [0.0, 0.0], [10.0, 0.0], [10.0, 10.0]])  # east, then north
    np.testing.assert_allclose(figures.beside(corner, 1.0), [[0, -1], [11, -1], [11, 10]])
    np.testing.assert_allclose(figures.beside(corner[::-1], 1.0), [[9, 10], [9, 1], [0, 1]])
