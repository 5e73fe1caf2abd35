"""INTERACTION: recordings of a quarter of an hour as CSV, plain or gzipped, cut into scenes.

Its maps are files of their own (Lanelet2) and are not read: scenes have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from ..errors import InputError
from .recording import empty, scene_of
from .scene import Kind, Scene

SOURCE = "interaction"
SECONDS = 9.0  # of a scene, as Waymo's
HISTORY = 10  # steps, a second
LONGEST = 1_000_000  # frames of a recording
LEAST = 20  # steps of the last scene of a recording
KINDS = {
    "car": Kind.VEHICLE, "bus": Kind.VEHICLE, "truck": Kind.VEHICLE, "motorcycle": Kind.CYCLIST, "bicycle": Kind.CYCLIST,
    "pedestrian": Kind.PEDESTRIAN, "pedestrian/bicycle": Kind.PEDESTRIAN,
}  # fmt: skip
NUMBERS = ("frame_id", "timestamp_ms", "x", "y", "vx", "vy")
OPTIONAL = ("psi_rad", "length", "width")  # not of pedestrians


def read_csv(path: Path) -> Iterator[Scene]:
    """Scenes of nine seconds, one after the other."""
    as_text = pa.csv.ConvertOptions(column_types={"track_id": pa.string(), "agent_type": pa.string()})
    table = pa.csv.read_csv(path, convert_options=as_text)
    missing = [name for name in (*NUMBERS, "track_id", "agent_type") if name not in table.column_names]
    if missing:
        raise InputError(f"no column {missing[0]!r}; found {', '.join(table.column_names)}")
    column = {
        name: table.column(name).cast(pa.float64()).to_numpy()
        for name in (*NUMBERS, *OPTIONAL)
        if name in table.column_names
    }
    for name in ("frame_id", "timestamp_ms"):
        if not np.isfinite(column[name]).all():
            raise InputError(f"row {int(np.argmin(np.isfinite(column[name]))) + 2} has no {name}")
    tracks, types = (
        table.column(name).to_numpy(zero_copy_only=False).astype(str) for name in ("track_id", "agent_type")
    )
    frame = column["frame_id"].astype(np.int64)
    known, first = np.unique(frame, return_index=True)
    if len(known) < 2:
        raise InputError("a single moment is no scene: expected at least two frames")
    if known[-1] - known[0] >= LONGEST:
        raise InputError(f"frames {known[0]} to {known[-1]}: expected {LONGEST} at most")
    stamps = column["timestamp_ms"][first] / 1000.0
    frames = np.arange(known[0], known[-1] + 1)  # in some of them there may be nobody
    times = np.interp(frames, known, stamps)
    length = max(LEAST, round(SECONDS / float(np.median(np.diff(times)))))
    index = frame - known[0]
    for begin in range(0, len(frames), length):
        end = min(begin + length, len(frames))
        rows = np.flatnonzero((index >= begin) & (index < end))
        if (begin and end - begin < LEAST) or not len(rows):
            continue
        ids, where, agent = np.unique(tracks[rows], return_index=True, return_inverse=True)
        kinds = [KINDS.get(types[row], Kind.OTHER) for row in rows[where]]
        name = f"{path.name.split('.')[0]}@{times[begin]:g}s"
        found = empty(name, SOURCE, times[begin:end], min(HISTORY, end - begin), list(ids), kinds)
        at = index[rows] - begin
        found.xy[agent, at] = np.column_stack([column["x"][rows], column["y"][rows]])
        found.velocity[agent, at] = velocity = np.column_stack([column["vx"][rows], column["vy"][rows]])
        found.yaw[agent, at] = np.arctan2(velocity[:, 1], velocity[:, 0])
        if "psi_rad" in column:
            known = np.isfinite(column["psi_rad"][rows])
            found.yaw[agent[known], at[known]] = column["psi_rad"][rows][known]
        if {"length", "width"} <= column.keys():
            found.size[agent, at] = np.column_stack([column["length"][rows], column["width"][rows]])
        found.valid[agent, at] = True
        yield scene_of(found)
