"""Observed series: tables of road, minute and queue, speed or count (or minute and LCC), as measured.

A table may have gaps; they stay NaN and are never compared. Units are checked as far as numbers can tell.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from .errors import InputError
from .network import RoadNetwork

Kind = Literal["queue", "speed", "count", "lcc"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_MISSING = ["", "NaN", "nan", "NA", "null"]
_EXPECTED = "columns road, minute and one of queue, speed (m/s) and count, or columns minute and lcc"
_CAR_SPACE = 4.0  # metres; cars standing closer than that do not exist
_FASTER_THAN_LIMIT = 1.3  # 95th percentiles: drivers exceed limits, but not by the 3.6 of a wrong unit


@dataclass(frozen=True, eq=False)
class Observed:
    """One macro series from the street."""

    kind: Kind
    values: NDArray[np.float32]  # [m, T] vehicles, m/s, vehicles per minute; lcc: [T] share; NaN: a gap
    path: Path | None  # where it was read from


def load_observed(path: str | Path, network: RoadNetwork, begin: float, minutes: int) -> Observed:
    """Read observations from CSV (.csv, .csv.gz) or Parquet (.parquet).

    The table has the columns road, minute and exactly one of queue (vehicles, the most that halted at once),
    speed (m/s) and count (vehicles per minute); or, without road, minute and lcc (share of the roads). The
    minute counts from `begin` (seconds), 0 to `minutes` - 1; rows outside are left out. Other columns are
    ignored.

    Raises InputError naming file, column and first bad row.
    """
    path = Path(path)
    table = _read(path)
    kinds = [kind for kind in KINDS if kind in table.column_names]
    if len(kinds) != 1:
        raise InputError(
            f"{path}: has {', '.join(kinds) or 'no column of values'} among its columns "
            f"{', '.join(table.column_names)}; expected {_EXPECTED}"
        )
    kind = kinds[0]
    for name in ("minute",) if kind == "lcc" else ("road", "minute"):
        if name not in table.column_names:
            raise InputError(f"{path}: column {name!r} is missing; expected {_EXPECTED}")
    values = _numbers(table, kind, path)
    minute = _minutes(table, path)
    road = np.zeros(len(minute), dtype=np.int64) if kind == "lcc" else _roads(table, network, path)
    _check_range(kind, values, path)
    _check_unique(road, minute, kind, table, path)
    inside = (minute >= 0) & (minute < minutes)
    if not (inside & np.isfinite(values)).any():
        raise _no_overlap(path, kind, values, minute, begin, minutes)
    _check_units(kind, values, road, network, path)
    full = np.full((1 if kind == "lcc" else network.road_count, minutes), np.nan, dtype=np.float32)
    full[road[inside], minute[inside]] = values[inside]
    return Observed(kind, full[0] if kind == "lcc" else full, path)


def save_observed(observed: Observed, network: RoadNetwork, path: str | Path) -> None:
    """Write observations as `load_observed` reads them, without the gaps; CSV or Parquet by the suffix."""
    path = Path(path)
    _check_suffix(path)
    values = np.atleast_2d(observed.values)
    road, minute = np.nonzero(np.isfinite(values))
    columns: dict[str, Any] = {}
    if observed.kind != "lcc":
        columns["road"] = pa.array(network.road_ids, pa.string()).take(pa.array(road))
    columns["minute"] = pa.array(minute, pa.int32())
    columns[observed.kind] = pa.array(values[road, minute])
    table = pa.table(columns)
    partial = path.with_name(f".{os.getpid()}.{path.name}")  # complete or not there at all
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, partial)
    else:
        with pa.output_stream(partial, compression="gzip" if path.suffix == ".gz" else None) as stream:
            pyarrow.csv.write_csv(table, stream)
    partial.replace(path)


def _check_suffix(path: Path) -> None:
    if not path.name.endswith((".csv", ".csv.gz", ".parquet")):
        raise InputError(f"{path}: unknown kind of file; expected .csv, .csv.gz or .parquet")


def _read(path: Path) -> pa.Table:
    _check_suffix(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected {_EXPECTED}")
    try:
        if path.suffix == ".parquet":
            with pyarrow.parquet.ParquetFile(path) as file:
                table = file.read()
        else:  # everything as text: "007" is a road, and a bad number is to be named, not guessed at
            names = ("road", "minute", *KINDS)
            options = pyarrow.csv.ConvertOptions(
                column_types={name: pa.string() for name in names},
                strings_can_be_null=True,
                null_values=_MISSING,
                quoted_strings_can_be_null=False,
            )
            table = pyarrow.csv.read_csv(path, convert_options=options)
            for i, column in enumerate(table.columns):  # "B1C1, 3, 2.5": after a comma many write a space
                if pa.types.is_string(column.type):
                    name, text = table.column_names[i], pc.utf8_trim_whitespace(column)
                    empty = pc.is_in(text, value_set=pa.array([""] if name == "road" else _MISSING))
                    table = table.set_column(i, name, pc.if_else(empty, None, text))
    except (pa.ArrowException, OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected {_EXPECTED}") from error
    if not table.num_rows:
        raise InputError(f"{path}: has no rows; expected {_EXPECTED}")
    return table


def _numbers(table: pa.Table, name: str, path: Path) -> NDArray[np.float64]:
    """A column as numbers, NaN where it is empty."""
    column = table.column(name).combine_chunks()
    try:
        numbers = column.cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        for row, text in enumerate(column.to_pylist()):
            if text is not None and not _is_number(text):
                raise _bad(path, name, row, f"{text!r} is not a number") from error
        raise InputError(f"{path}, column {name!r}: of type {column.type}, expected numbers") from error
    values = np.array(numbers.fill_null(float("nan")).to_numpy(zero_copy_only=False), dtype=np.float64)
    if np.isinf(values).any():
        raise _bad(path, name, int(np.argmax(np.isinf(values))), "infinite, expected a number")
    return values


def _is_number(value: Any) -> bool:
    """By Arrow's rule, which is stricter than Python's: 1_000 is none."""
    try:
        pa.scalar(value).cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return True


def _minutes(table: pa.Table, path: Path) -> NDArray[np.int64]:
    values = _numbers(table, "minute", path)
    wrong = ~np.isfinite(values) | (values != np.floor(values))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise _bad(path, "minute", row, f"{values[row]:g}, expected a whole number of minutes since begin")
    return values.astype(np.int64)


def _roads(table: pa.Table, network: RoadNetwork, path: Path) -> NDArray[np.int64]:
    """Rows of the roads."""
    column = table.column("road").combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        column = column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{path}, column 'road': of type {column.type}, expected the ids of roads") from error
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise _bad(path, "road", row, "empty, expected the id of a road")
    rows = pc.index_in(column, value_set=pa.array(network.road_ids, pa.string()))
    if rows.null_count:
        unknown = column.filter(rows.is_null()).unique().to_pylist()
        first = rows.is_null().to_pylist().index(True)
        named = "; ".join(_nearest(road, network) for road in unknown[:5])
        problem = f"{len(unknown)} roads are not in the network {network.path}: {named}"
        raise _bad(path, "road", first, problem + (", ..." if len(unknown) > 5 else "; correct the ids"))
    return np.asarray(rows.to_numpy(zero_copy_only=False), dtype=np.int64)


def _nearest(road: str, network: RoadNetwork) -> str:
    if road in network.closed_ids:
        return f"{road!r} (closed to {network.vclass})"
    close = difflib.get_close_matches(road, network.road_ids, n=1)
    return f"{road!r} (nearest: {close[0]!r})" if close else repr(road)


def _check_range(kind: Kind, values: NDArray[np.float64], path: Path) -> None:
    if not np.isfinite(values).any():
        raise InputError(f"{path}, column {kind!r}: every value is empty; expected numbers")
    wrong = values < 0
    if wrong.any():
        row = int(np.argmax(wrong))
        raise _bad(path, kind, row, f"{values[row]:g} is negative; leave out what was not observed")
    if kind == "lcc" and (values > 1).any():
        row = int(np.argmax(values > 1))
        raise _bad(path, kind, row, f"{values[row]:g}, expected a share of the roads between 0 and 1")


def _check_unique(road: NDArray[np.int64], minute: NDArray[np.int64], kind: Kind, table: pa.Table, path: Path) -> None:
    order = np.lexsort((np.arange(len(road)), minute, road))
    same = (np.diff(road[order]) == 0) & (np.diff(minute[order]) == 0)
    if same.any():
        row = int(order[1:][same].min())
        what = f"minute {minute[row]}" if kind == "lcc" else f"road {table['road'][row]} minute {minute[row]}"
        raise _bad(path, "minute", row, f"{what} is there twice; keep one row")


def _check_units(
    kind: Kind, values: NDArray[np.float64], road: NDArray[np.int64], network: RoadNetwork, path: Path
) -> None:
    seen = np.isfinite(values)
    if kind == "speed":
        fast = np.percentile(values[seen], 95)
        limit = np.percentile(network.speed[road[seen]], 95)
        if fast > _FASTER_THAN_LIMIT * limit:
            raise InputError(
                f"{path}, column 'speed': its 95th percentile is {fast:.1f}, that of the speed limits "
                f"{limit:.1f} m/s; this looks like km/h: divide by 3.6"
            )
    if kind == "queue":  # one more per lane: a vehicle counts on the road where its front is
        room = network.lanes[road] * (network.length[road] / _CAR_SPACE + 1)
        wrong = seen & (values > room)
        if wrong.any():
            row = int(np.argmax(wrong))
            problem = f"{values[row]:g} vehicles do not fit on road {network.road_ids[road[row]]!r} "
            advice = f"(room for {room[row]:.0f}); this looks like metres: divide by 7.5 m for each queueing car"
            raise _bad(path, kind, row, problem + advice)


def _no_overlap(
    path: Path,
    kind: Kind,
    values: NDArray[np.float64],
    minute: NDArray[np.int64],
    begin: float,
    minutes: int,
) -> InputError:
    seen = minute[np.isfinite(values)]
    hint = f"; if it counts from midnight, subtract {begin / 60:g}" if begin else ""
    return InputError(
        f"{path}, column 'minute': {kind} is given for minutes {seen.min()} to {seen.max()}, "
        f"expected minutes 0 to {minutes - 1} after begin ({begin:g} s){hint}"
    )


def _bad(path: Path, column: str, row: int, problem: str) -> InputError:
    """`row` counts from 0; a CSV's line 1 is its header."""
    return InputError(f"{path}, column {column!r}, row {row + 1}: {problem}")
