"""Observations are read as written; what does not fit is refused with the place of the mistake."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from throng.scenarios.errors import InputError
from throng.scenarios.network import RoadNetwork
from throng.scenarios.observed import KINDS, Observed, load_observed, save_observed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.parquet"])
def test_round_trip_keeps_values_and_gaps(tmp_path: Path, block: RoadNetwork, kind: str, name: str) -> None:
    random = np.random.default_rng(0)
    values = random.random((block.road_count, 6)).astype(np.float32)
    values[random.random(values.shape) < 0.3] = np.nan
    values[0, :2] = [0, np.nan]
    written = Observed(kind, values[0] if kind == "lcc" else values, None)  # type: ignore[arg-type]
    save_observed(written, block, tmp_path / name)
    read = load_observed(tmp_path / name, block, 0, 6)
    assert (read.kind, read.path) == (kind, tmp_path / name)
    assert np.array_equal(read.values, written.values, equal_nan=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # no half-written file is left


def test_tables_as_people_write_them(tmp_path: Path, block: RoadNetwork) -> None:
    """Any order, further columns, empty cells, minutes outside the window, whole minutes as decimals."""
    path = tmp_path / "x.csv"
    path.write_text("speed,sensor,minute,road\n8.5,7,1.0,bc\n,7,0,bc\n3,8,0,ab\n4,9,99,ab\nNaN,9,1,ab\n")
    observed = load_observed(path, block, 25200, 2)
    assert observed.kind == "speed" and observed.values.shape == (block.road_count, 2)
    expected = np.full((block.road_count, 2), np.nan, dtype=np.float32)
    expected[block.index["bc"], 1], expected[block.index["ab"], 0] = 8.5, 3
    assert np.array_equal(observed.values, expected, equal_nan=True)


def test_parquet_columns_of_other_types(tmp_path: Path, block: RoadNetwork) -> None:
    table = pa.table(
        {
            "road": pa.array(["ab", "bc"]).dictionary_encode(),
            "minute": pa.array([0, 1], pa.uint8()),
            "count": pa.array([3, None], pa.int64()),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    values = load_observed(tmp_path / "x.parquet", block, 0, 2).values
    assert values[block.index["ab"], 0] == 3 and np.isfinite(values).sum() == 1


def test_spaces_after_commas_are_no_part_of_values(block: RoadNetwork, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('road,minute,queue\nab, 0, 3\n ab ,1 ,2.5\nab,2, \nab,3, NaN\nab,4," 4"\n')
    values = load_observed(tmp_path / "x.csv", block, 0, 5).values
    np.testing.assert_array_equal(values[block.index["ab"]], [3, 2.5, np.nan, np.nan, 4])


MISTAKES = [
    ("road,minute\nab,0\n", "has no column of values among its columns road, minute"),
    ("road,minute,queue,speed\nab,0,1,2\n", "has queue, speed among its columns"),
    ("minute,queue\n0,1\n", "column 'road' is missing"),
    ("road,queue\nab,1\n", "column 'minute' is missing"),
    ("road,minute,queue\n", "has no rows"),
    ("", "cannot be read"),
    ("road,minute,queue\nab,0,1\nab,1\n", "cannot be read"),
    ("road,minute,queue\nab,0,1\nab,1,many\n", "column 'queue', row 2: 'many' is not a number"),
    ("road,minute,queue\nab,0,1\nab,1,1_000\n", "column 'queue', row 2: '1_000' is not a number"),
    ("road,minute,queue\nab,0,inf\n", "column 'queue', row 1: infinite"),
    ("road,minute,queue\nab,0,1\nab,1,-2\n", "column 'queue', row 2: -2 is negative"),
    ("road,minute,queue\nab,0,\nab,1,NaN\n", "column 'queue': every value is empty"),
    ("road,minute,queue\nab,x,1\n", "column 'minute', row 1: 'x' is not a number"),
    ("road,minute,queue\nab,0.5,1\n", "column 'minute', row 1: 0.5, expected a whole number"),
    ("road,minute,queue\nab,,1\n", "column 'minute', row 1: nan, expected a whole number"),
    ("road,minute,queue\n,0,1\n", "column 'road', row 1: empty"),
    ("road,minute,queue\n  ,0,1\n", "column 'road', row 1: empty"),
    (
        "road,minute,queue\nab,0,1\ncdd,0,1\n",
        "column 'road', row 2: 1 roads are not in .*'cdd' \\(nearest: 'cd'\\)",
    ),
    ("road,minute,queue\nbf,0,1\n", "'bf' \\(closed to passenger\\)"),
    (
        "road,minute,queue\n" + "".join(f"q{i},0,1\n" for i in range(8)),
        "8 roads are not in .*'q4', \\.\\.\\.",
    ),
    (
        "road,minute,queue\nab,0,1\nbc,0,1\nab,0,2\n",
        "column 'minute', row 3: road ab minute 0 is there twice",
    ),
    ("road,minute,queue\nab,420,1\nab,421,1\n", "minutes 420 to 421, expected minutes 0 to 4 .*subtract 420"),
    ("road,minute,queue\nab,0,\nab,9,1\n", "minutes 9 to 9"),
    (
        "road,minute,speed\nab,0,50\nab,1,48\nbc,0,50\n",
        "95th percentile is 50.0, .* 13.9 m/s; this looks like km/h",
    ),
    (
        "road,minute,queue\nab,0,3\nab,1,120\n",
        "row 2: 120 vehicles do not fit on road 'ab' .*looks like metres",
    ),
    ("minute,lcc\n0,0.5\n1,55\n", "column 'lcc', row 2: 55, expected a share"),
    ("minute,lcc\n0,0.5\n0,0.6\n", "row 2: minute 0 is there twice"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_mistakes_name_file_column_and_row(tmp_path: Path, block: RoadNetwork, text: str, message: str) -> None:
    path = tmp_path / "x.csv.gz"
    with gzip.open(path, "wt") as stream:
        stream.write(text)
    with pytest.raises(InputError, match=message) as caught:
        load_observed(path, block, 25200, 5)
    assert str(path) in str(caught.value)


def test_files_that_are_none(tmp_path: Path, block: RoadNetwork) -> None:
    with pytest.raises(InputError, match=r"x\.csv: no such file"):
        load_observed(tmp_path / "x.csv", block, 0, 5)
    with pytest.raises(InputError, match=r"expected \.csv, \.csv\.gz or \.parquet"):
        load_observed(tmp_path / "x.xlsx", block, 0, 5)
    (tmp_path / "x.parquet").write_text("not Parquet")
    with pytest.raises(InputError, match="cannot be read"):
        load_observed(tmp_path / "x.parquet", block, 0, 5)
    pyarrow.parquet.write_table(pa.table({"road": [1.5], "minute": [0], "queue": [True]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="roads are not in the network"):
        load_observed(tmp_path / "t.parquet", block, 0, 5)


def test_full_roads_and_brisk_drivers_are_believed(tmp_path: Path, block: RoadNetwork) -> None:
    """The checks of units must not refuse a jammed street or drivers above the limit."""
    row = block.index["ab"]
    jam = int(block.length[row] / 7.5) + 1
    path = tmp_path / "x.csv"
    path.write_text(f"road,minute,queue\nab,0,{jam}\n")
    assert load_observed(path, block, 0, 1).values[row, 0] == jam
    path.write_text(f"road,minute,speed\nab,0,{1.2 * block.speed[row]}\n")
    assert load_observed(path, block, 0, 1).values[row, 0] == pytest.approx(1.2 * block.speed[row])
