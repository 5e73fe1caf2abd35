"""Directed lines as segments, with a grid that says which can be nearest to a point: for fast exact distances."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from .recording import Array

Ints = NDArray[np.int32]
CELL = 2.0  # metres
STRAIGHT = 0.01  # metres by which a line may be straightened


@dataclass(frozen=True, eq=False)
class LineIndex:
    """Segments of directed lines, and for each cell of a grid those that may be nearest."""

    start: Array  # [segments, 2]
    along: Array  # [segments, 2] from the start to the end
    start_normal: Array  # [segments, 2] to the left at the start: between this segment's and that before
    end_normal: Array  # [segments, 2]
    low: Array  # [2] corner of the grid
    cells: tuple[int, int]  # columns and rows
    candidates: Ints  # [columns * rows, most]: segments, the last repeated


def line_index(lines: Iterable[Array], low: Array, high: Array) -> LineIndex:
    """Of directed polylines `[points, 2]`, for points between `low` and `high` `[2]`; exact there."""
    parts = [_segments(np.asarray(line, np.float64)) for line in lines]
    start, along, start_normal, end_normal = (np.concatenate(part) for part in zip(*parts, strict=True))
    columns, rows = (max(1, int(n)) for n in np.ceil((high - low) / CELL))
    x, y = np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5, indexing="ij")
    centres = low + CELL * np.column_stack([x.ravel(), y.ravel()])
    reach = CELL * np.sqrt(2.0)  # of two points of a cell, at most
    points = shapely.points(centres)
    tree = shapely.STRtree(shapely.linestrings(np.stack([start, start + along], axis=1)))
    (which, _), nearest = tree.query_nearest(points, all_matches=False, return_distance=True)
    distance = np.empty(len(points))
    distance[which] = nearest
    # Distances change by no more than the way, so only these can be nearest to any point of the cell.
    cell, segment = tree.query(points, predicate="dwithin", distance=distance + reach)
    count = np.bincount(cell, minlength=len(points))
    order = np.argsort(cell, kind="stable")
    place = np.arange(len(cell)) - np.repeat(np.cumsum(count) - count, count)
    candidates = np.repeat(segment[order][np.cumsum(count) - 1][:, None], count.max(), axis=1)
    candidates[cell[order], place] = segment[order]
    return LineIndex(start, along, start_normal, end_normal, low, (columns, rows), candidates.astype(np.int32))


def _segments(line: Array) -> tuple[Array, Array, Array, Array]:
    """Starts, directions, and normals to the left at both ends, which neighbours share."""
    line = np.asarray(shapely.LineString(line).simplify(STRAIGHT).coords) if len(line) > 1 else line
    line = line[np.concatenate([[True], np.any(np.diff(line, axis=0) != 0, axis=1)])]
    if len(line) < 2:
        return (np.zeros((0, 2)),) * 4
    along = np.diff(line, axis=0)
    normal = np.column_stack([-along[:, 1], along[:, 0]]) / np.linalg.norm(along, axis=1, keepdims=True)
    before, after = np.roll(normal, 1, axis=0), np.roll(normal, -1, axis=0)
    if not np.array_equal(line[0], line[-1]):  # it ends somewhere
        before[0], after[-1] = normal[0], normal[-1]
    return line[:-1], along, normal + before, normal + after
