"""Macro observables: queues, speeds and counts per road and minute; the functional cluster; scores.

Sources: MQL is MASDiff's maximum queue length of a road in a minute; LCC follows Zeng et al., PNAS
117:17528 (2020), and Li et al., PNAS 112:669 (2015). MASDiff leaves open LCC's threshold, its connectivity
and the reference speed; the defaults here are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree.ElementTree import Element
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import connected_components

from .errors import InputError
from .network import UTURN, RoadNetwork
from .sumo_xml import elements, seconds

MINUTE = 60.0  # seconds; everything macro is per minute
HALTING = 0.1  # metres per second; slower is halting, SUMO's definition
_TOP_ROADS = 50
_THRESHOLDS = np.arange(1, 20) / 20  # 0.05 ... 0.95


@dataclass(frozen=True, eq=False)
class Macro:
    """What the roads looked like: m roads, T minutes."""

    queue: NDArray[np.float32]  # [m, T] vehicles, the most that halted at once in the minute
    speed: NDArray[np.float32] | None = None  # [m, T] metres per second, NaN where nobody drove
    count: NDArray[np.float32] | None = None  # [m, T] vehicles that entered the road or started on it


@dataclass(frozen=True, eq=False)
class EdgeData:
    """SUMO's edgeData by minute."""

    speed: NDArray[np.float32]  # [m, T] metres per second, NaN where nobody drove
    count: NDArray[np.float32]  # [m, T] vehicles that entered the road or started on it
    waiting_time: NDArray[np.float32]  # [m, T] vehicle-seconds spent halting
    sampled_seconds: NDArray[np.float32]  # [m, T] vehicle-seconds spent on the road


def reference_speed(speeds: Sequence[NDArray[np.float32]], speed_limit: NDArray[np.float32]) -> NDArray[np.float32]:
    """[m] metres per second that count as free flow: the 95th percentile of each road's speeds.

    `speeds` ([m, T] each, any T, NaN where nobody drove) are pooled: observed and simulated, so that both are
    measured by one rule. Where nobody ever drove, or nobody ever moved, it is the `speed_limit` [m].
    """
    result = speed_limit.astype(np.float32)
    pooled = np.concatenate([np.asarray(speed, dtype=np.float32) for speed in speeds], axis=1)
    driven = np.isfinite(pooled).any(axis=1)
    measured = np.nanpercentile(pooled[driven], 95, axis=1)
    result[driven] = np.where(measured > 0, measured, result[driven])
    return result


def largest_functional_cluster(
    speed: NDArray[np.float32],
    reference: NDArray[np.float32],
    network: RoadNetwork,
    q: float = 0.5,
    connectivity: Literal["weak", "strong"] = "weak",
    hold: int = 3,
) -> NDArray[np.float32]:
    """[T] share of all roads in the largest cluster of functional roads (LCC).

    A road is functional in a minute if its `speed` [m, T] is at least `q` times its `reference` [m], both in
    metres per second. A minute without vehicles (NaN) keeps the last speed for up to `hold` minutes, then
    the road counts as functional. Clusters are components, weakly or strongly connected, of the functional
    roads under the network's connections: the allowed ones, and U-turns, for they join the two sides of a
    street though drivers may not choose them. Free roads give 1 if they all hang together.
    """
    functional = _functional(speed, reference, q, hold)
    largest = [_two_largest(network, minute, connectivity)[0] for minute in functional.T]
    return np.array(largest, dtype=np.float32) / np.float32(network.road_count)


def critical_threshold(
    speed: NDArray[np.float32],
    reference: NDArray[np.float32],
    network: RoadNetwork,
    connectivity: Literal["weak", "strong"] = "weak",
    hold: int = 3,
) -> float:
    """The q at which the second-largest cluster is largest, on average over the minutes: the network breaks.

    Tries 0.05, 0.10, ..., 0.95 and takes the first of equals. Arguments: `largest_functional_cluster`.
    """
    second = [
        np.mean([_two_largest(network, minute, connectivity)[1] for minute in _functional(speed, reference, q, hold).T])
        for q in _THRESHOLDS
    ]
    return float(_THRESHOLDS[int(np.argmax(second))])


def errors(x: ArrayLike, observed: ArrayLike) -> dict[str, float]:
    """How far simulated `x` is from `observed`, both [m, T] (or [T], one row).

    Cells that are NaN on either side are left out. Returns, in the unit of the series,
    `rmse` and `mae` over road-minutes, `road_rmse` over the roads' means, and without unit `top50_corr`, the
    correlation of the means of the 50 roads with the largest observed means (NaN if they do not vary).
    """
    left, right = np.atleast_2d(np.asarray(x, dtype=float)), np.atleast_2d(np.asarray(observed, dtype=float))
    if left.shape != right.shape:
        raise ValueError(f"simulated {left.shape} and observed {right.shape} differ in shape")
    seen = np.isfinite(left) & np.isfinite(right)
    if not seen.any():
        raise ValueError("no road-minute is known on both sides")
    gap = np.where(seen, left - right, 0.0)
    cells = seen.sum()
    roads = seen.any(axis=1)
    per_road = seen[roads].sum(axis=1)
    means = [np.where(seen, side, 0.0)[roads].sum(axis=1) / per_road for side in (left, right)]
    top = np.argsort(-means[1], kind="stable")[:_TOP_ROADS]
    return {
        "rmse": float(np.sqrt((gap**2).sum() / cells)),
        "mae": float(np.abs(gap).sum() / cells),
        "road_rmse": float(np.sqrt(((means[0] - means[1]) ** 2).mean())),
        "top50_corr": _correlation(means[0][top], means[1][top]),
    }


def noise_gap(error: float, floor: float, prior: float) -> float:
    """Share of the reachable improvement still missing: 0 at the noise `floor`, 1 at the `prior`'s error.

    NaN where the prior is no worse than the noise.
    """
    return (error - floor) / (prior - floor) if prior > floor else float("nan")


def read_edge_data(path: str | Path, network: RoadNetwork, begin: float, minutes: int) -> EdgeData:
    """Read SUMO's `<edgeData freq="60">` output for the `minutes` after `begin` (seconds).

    Roads and minutes that SUMO left out count as empty. Raises InputError if the file is no such output.
    """
    path = Path(path)
    shape = (network.road_count, minutes)
    speed = np.full(shape, np.nan, dtype=np.float32)
    count, waiting, sampled = (np.zeros(shape, dtype=np.float32) for _ in range(3))
    known = 0
    for minute, interval in _minutes(path, 'SUMO\'s output of <edgeData freq="60">', begin, minutes):
        for edge in interval.iterfind("edge"):
            road = network.index.get(edge.get("id", ""))
            if road is None:
                continue
            known += 1
            cell = (road, minute)
            sampled[cell] = _number(edge, "sampledSeconds", path)
            count[cell] = _number(edge, "entered", path) + _number(edge, "departed", path)
            if sampled[cell] > 0:  # SUMO leaves the rest out where nobody drove
                waiting[cell] = _number(edge, "waitingTime", path)
                speed[cell] = _number(edge, "speed", path)
    _require(known, path, "road", begin, minutes)
    return EdgeData(speed, count, waiting, sampled)


def read_lane_area(
    path: str | Path,
    network: RoadNetwork,
    begin: float,
    minutes: int,
    reduce: Literal["max", "sum"] = "max",
) -> NDArray[np.float32]:
    """Queues [m, T] in vehicles from lane-area detectors that are named after their lanes.

    Reads the `maxJamLengthInVehicles` of detectors defined as `lane_area_detectors` does, and takes the max
    or the sum over a road's lanes. It can differ by one vehicle from the halting vehicles that SUMO reports
    for the lane (measured: in one cell of fifteen). Roads and minutes without a report are NaN. Raises
    InputError if the file is no such output.
    """
    path = Path(path)
    road_of = {lane: road for road, lanes in enumerate(network.lane_ids) for lane in lanes}
    combine = np.fmax if reduce == "max" else np.add
    queue = np.full((network.road_count, minutes), np.nan, dtype=np.float32)
    known = 0
    for minute, interval in _minutes(path, "SUMO's output of lane-area detectors, freq 60", begin, minutes):
        road = road_of.get(interval.get("id", ""))
        if road is None:
            continue
        known += 1
        jam = np.float32(_number(interval, "maxJamLengthInVehicles", path))
        before = queue[road, minute]
        queue[road, minute] = jam if np.isnan(before) else combine(before, jam)
    _require(known, path, "lane", begin, minutes)
    return queue


def lane_area_detectors(network: RoadNetwork, file: str, freq: int = 60) -> str:
    """An additional file that puts a lane-area detector over every lane, writing `file` every `freq` s.

    The thresholds make its longest jam the number of halting vehicles, as we count queues: SUMO's defaults
    call 5 km/h halting and start a new jam where two halting vehicles are 10 m apart.
    """
    lines = [
        f'    <laneAreaDetector id={quoteattr(lane)} lane={quoteattr(lane)} pos="0" endPos="-0.01" '
        f'friendlyPos="true" freq="{freq}" file={quoteattr(file)} timeThreshold="0" '
        f'speedThreshold="{HALTING}" jamThreshold="100000"/>'
        for lanes in network.lane_ids
        for lane in lanes
    ]
    return "\n".join(["<additional>", *lines, "</additional>", ""])


def _functional(speed: NDArray[np.float32], reference: NDArray[np.float32], q: float, hold: int) -> NDArray[np.bool_]:
    """[m, T] whether a road works."""
    filled = np.array(speed, dtype=np.float32)
    minutes = np.arange(filled.shape[1])
    last = np.maximum.accumulate(np.where(np.isnan(filled), -1, minutes), axis=1)
    held = (last >= 0) & (minutes - last <= hold)
    filled = np.where(held, np.take_along_axis(filled, np.maximum(last, 0), axis=1), np.inf)
    return np.asarray(filled >= q * reference[:, None])


def _two_largest(
    network: RoadNetwork, functional: NDArray[np.bool_], connectivity: Literal["weak", "strong"]
) -> tuple[int, int]:
    """Roads in the largest and the second-largest cluster of one minute's functional roads ([m])."""
    open_ = (network.allowed | (network.turn == UTURN)) & functional[network.connections].all(axis=1)
    _, label = connected_components(network.graph(mask=open_), directed=True, connection=connectivity)
    sizes = np.sort(np.append(np.bincount(label[functional]), [0, 0]))
    return int(sizes[-1]), int(sizes[-2])


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _minutes(path: Path, expected: str, begin: float, minutes: int) -> Iterable[tuple[int, Element]]:
    """The file's one-minute intervals that lie in the window, with the minute they are."""
    for interval in elements(path, expected):
        if interval.tag != "interval":
            raise InputError(f"{path}: <{interval.tag}> where <interval> should be; expected {expected}")
        try:
            start, stop = (seconds(interval.get(key, "")) for key in ("begin", "end"))
        except ValueError as error:
            raise InputError(f"{path}: an interval without begin and end; expected {expected}") from error
        minute, rest = divmod(start - begin, MINUTE)
        if stop - start > MINUTE or rest:
            raise InputError(
                f"{path}: interval {start:g} to {stop:g} s is not one of the minutes after {begin:g} s; "
                'write the file with freq="60" from a simulation that begins there'
            )
        if 0 <= minute < minutes:
            yield int(minute), interval


def _number(element: Element, key: str, path: Path) -> float:
    try:
        return float(element.attrib[key])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path}: {element.tag} {element.get('id')!r} has {key}={element.get(key)!r}, expected a number; "
            "write the file with SUMO's defaults, not its aggregated or lane-wise forms"
        ) from error


def _require(known: int, path: Path, what: str, begin: float, minutes: int) -> None:
    if not known:
        raise InputError(
            f"{path}: no {what} of the network in the {minutes} minutes after {begin:g} s; "
            "check that file, network and window belong together"
        )
