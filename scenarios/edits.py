"""What-if edits: what is asked for, and what that means for roads and turns of a network.

Everything is checked before anything is written: unknown roads and turns, and edits that contradict each other.
"""

from __future__ import annotations

import difflib
import math
import re
import shlex
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .demand_sort import CAR_CLASSES
from .errors import InputError
from .net_patch import Street
from .network import TURNS, RoadNetwork

SIGNS = (5.0, 150.0)  # km/h that a speed sign can show
SCALES = (0.1, 5.0)
_LEFT = [TURNS.index("left"), TURNS.index("slight_left")]


@dataclass(frozen=True)
class Edits:
    """What is changed. Roads are SUMO edge ids. Several edits combine; those of roads apply to `net` if that is given."""

    ban_turn: tuple[str, ...] = ()  # "FROM:TO": nobody may go from one road to the other
    ban_left_onto: tuple[str, ...] = ()  # roads onto which nobody may turn left
    one_way: tuple[str, ...] = ()  # roads whose opposite direction is closed
    close: tuple[str, ...] = ()  # roads
    speed: tuple[tuple[str, float], ...] = ()  # road and its new limit, km/h
    demand_scale: float = 1.0  # vehicles to learn, times this
    net: Path | None = None  # an edited network, in which roads that were kept have kept their ids

    @classmethod
    def parse(
        cls,
        ban_turn: Collection[str] = (),
        ban_left_onto: Collection[str] = (),
        one_way: Collection[str] = (),
        close: Collection[str] = (),
        speed: Collection[str] = (),
        demand_scale: float = 1.0,
        net: Path | None = None,
    ) -> Edits:
        """Edits as the command line gives them: `one_way` with commas between roads, `speed` as ROAD=KM/H.

        Raises InputError for what no network is needed to know to be wrong.
        """
        limits: dict[str, float] = {}
        for text in speed:
            road, _, value = text.rpartition("=")
            try:
                limit = float(value)
            except ValueError:
                limit = math.nan
            if not road or not math.isfinite(limit):
                raise InputError(f"--speed {text}: expected ROAD=KM/H, e.g. --speed C1C2=30")
            if not SIGNS[0] <= limit <= SIGNS[1]:
                raise InputError(
                    f"--speed {text}: {limit:g} km/h is no speed limit; expected {SIGNS[0]:g} to {SIGNS[1]:g} km/h, as on "
                    "a sign"
                )
            if limits.setdefault(road, limit) != limit:
                raise InputError(f"--speed: road {road!r} is given {limits[road]:g} and {limit:g} km/h; give it one")
        if not SCALES[0] <= demand_scale <= SCALES[1]:
            raise InputError(
                f"--demand-scale {demand_scale:g}: expected a factor from {SCALES[0]:g} to {SCALES[1]:g}, e.g. 1.2"
            )
        for text in ban_turn:
            if not text.strip(":").count(":"):
                raise InputError(f"--ban-turn {text}: expected FROM:TO, two road ids, e.g. --ban-turn B1C1:C1C2")
        roads = tuple(road.strip() for text in one_way for road in text.split(",") if road.strip())
        if one_way and not roads:
            raise InputError("--one-way: expected road ids with commas between them, e.g. --one-way 'C1C2,C2C3'")
        # dict.fromkeys: twice the same is once
        return cls(
            tuple(dict.fromkeys(ban_turn)),
            tuple(dict.fromkeys(ban_left_onto)),
            tuple(dict.fromkeys(roads)),
            tuple(dict.fromkeys(close)),
            tuple(limits.items()),
            demand_scale,
            net,
        )

    @property
    def empty(self) -> bool:
        return self == Edits()

    def words(self) -> list[str]:
        """Each edit in words, as a report says it."""
        return [
            *(["network " + str(self.net)] if self.net is not None else []),
            *(f"no turn from {turn}" for turn in self.ban_turn),
            *(f"no left turn onto {road}" for road in self.ban_left_onto),
            *(f"one-way {road}" for road in self.one_way),
            *(f"{road} closed" for road in self.close),
            *(f"{road} {limit:g} km/h" for road, limit in self.speed),
            *([f"demand × {self.demand_scale:g}"] if self.demand_scale != 1.0 else []),
        ]

    def options(self) -> str:
        """The command line that asks for these edits."""
        parts = [
            *(["--net", str(self.net)] if self.net is not None else []),
            *(part for turn in self.ban_turn for part in ("--ban-turn", turn)),
            *(part for road in self.ban_left_onto for part in ("--ban-left-onto", road)),
            *(["--one-way", ",".join(self.one_way)] if self.one_way else []),
            *(part for road in self.close for part in ("--close", road)),
            *(part for road, limit in self.speed for part in ("--speed", f"{road}={limit:g}")),
            *(["--demand-scale", f"{self.demand_scale:g}"] if self.demand_scale != 1.0 else []),
        ]
        return shlex.join(parts)

    def name(self) -> str:
        """A folder's name made of the edits; long ones are cut and numbered."""
        parts = [
            *([f"net-{self.net.name.split('.')[0]}"] if self.net is not None else []),
            *(f"ban-turn-{turn}" for turn in self.ban_turn),
            *(f"ban-left-onto-{road}" for road in self.ban_left_onto),
            *([f"one-way-{'-'.join(self.one_way)}"] if self.one_way else []),
            *(f"close-{road}" for road in self.close),
            *(f"speed-{road}-{limit:g}" for road, limit in self.speed),
            *([f"demand-{self.demand_scale:g}"] if self.demand_scale != 1.0 else []),
        ]
        text = "_".join(parts) or "nothing"
        safe = re.sub(r"[^\w.+-]+", "-", text)
        if safe == text and len(safe) <= 80:
            return safe
        return f"{safe[:70]}-{zlib.crc32(text.encode()):08x}"


@dataclass(frozen=True)
class Plan:
    """What edits mean for one network file."""

    closed: tuple[str, ...]  # roads, sorted
    banned: tuple[tuple[str, str], ...]  # turns (from road, to road), sorted
    speeds: dict[str, float]  # metres per second, by road
    marks: dict[str, str]  # edited road -> what was done, in words

    @property
    def empty(self) -> bool:
        return not (self.closed or self.banned or self.speeds)


def closed_classes(network: RoadNetwork) -> tuple[str, ...]:
    """SUMO's vehicle classes that edits close roads and turns to: those that are learnt. All others keep driving there."""
    ours = CAR_CLASSES if network.vclass in CAR_CLASSES else {network.vclass}
    return tuple(
        sorted(ours - {"ignoring", "e-vehicle"})
    )  # SUMO lets "ignoring" pass everywhere; e-vehicle is evehicle


def make_plan(edits: Edits, network: RoadNetwork, ends: Mapping[str, Street]) -> Plan:
    """Resolves the edits of roads on a network; `ends` are the junctions of its roads.

    Raises InputError for unknown roads and turns, and for edits that contradict each other.
    """
    for option, roads in (
        ("--ban-left-onto", edits.ban_left_onto),
        ("--one-way", edits.one_way),
        ("--close", edits.close),
        ("--speed", [road for road, _ in edits.speed]),
    ):
        for road in roads:
            _require_road(option, road, network)
    marks: dict[str, list[str]] = {}

    def mark(road: str, words: str) -> None:
        marks.setdefault(road, []).append(words)

    closed: dict[str, str] = {}  # road -> the option that closes it
    for road in edits.close:
        closed[road] = f"--close {road}"
        mark(road, "closed")
    for road in edits.one_way:
        opposite = _opposite(road, network, ends)
        if opposite in edits.one_way:
            raise InputError(
                f"--one-way: {road!r} and {opposite!r} are the two directions of one street, and each would close the "
                "other; list the direction that stays"
            )
        if road in edits.close:
            raise InputError(f"--one-way {road} keeps the road that --close {road} closes; drop one of them")
        closed.setdefault(opposite, f"--one-way {road}")
        mark(road, "one-way")
        mark(opposite, f"closed: {road} is one-way")
    for road, limit in edits.speed:
        if road in closed:
            raise InputError(f"--speed {road}={limit:g} is of a road that {closed[road]} closes; drop one of them")
        mark(road, f"{limit:g} km/h")
    banned: set[tuple[str, str]] = set()
    for text in edits.ban_turn:
        start, end = _turn(text, network)
        banned.add((start, end))
        mark(start, f"no turn to {end}")
    for road in edits.ban_left_onto:
        row = network.index[road]
        found = np.flatnonzero((network.to == row) & np.isin(network.turn, _LEFT))
        if not found.size:
            raise InputError(f"--ban-left-onto {road}: no left turn leads onto it in {network.path}")
        for connection in found:
            banned.add((network.road_ids[network.connections[connection, 0]], road))
        mark(road, "no left turn onto it")
    return Plan(
        tuple(sorted(closed)),
        tuple(sorted(banned)),
        {road: limit / 3.6 for road, limit in edits.speed},
        {road: "; ".join(words) for road, words in marks.items()},
    )


def _require_road(option: str, road: str, network: RoadNetwork) -> None:
    if road in network.index:
        return
    if road in network.closed_ids:
        raise InputError(f"{option} {road}: the road is closed to {network.vclass} already in {network.path}")
    close = difflib.get_close_matches(road, network.road_ids, n=3)
    hint = f"; did you mean {', '.join(map(repr, close))}?" if close else "; road ids are those of SUMO's edges"
    raise InputError(f"{option} {road}: no such road in {network.path}{hint}")


def _turn(text: str, network: RoadNetwork) -> tuple[str, str]:
    """The two roads of "FROM:TO"; ids may hold colons themselves."""
    parts = text.split(":")
    splits = [(":".join(parts[:i]), ":".join(parts[i:])) for i in range(1, len(parts))]
    known = [pair for pair in splits if pair[0] in network.index and pair[1] in network.index]
    if not known:
        for road in splits[0]:
            _require_road("--ban-turn", road, network)
    start, end = known[0]
    from_row = network.index[start]
    if network.find_connections(from_row, network.index[end]) < 0:
        rows = network.to[network.first[from_row] : network.first[from_row + 1]]
        ways = ", ".join(network.road_ids[row] for row in rows) or "nowhere"
        raise InputError(f"--ban-turn {text}: no turn leads from {start} to {end}; {start} leads to {ways}")
    return start, end


def _opposite(road: str, network: RoadNetwork, ends: Mapping[str, Street]) -> str:
    """The other direction of a road's street: the road between the same junctions the other way round.

    Of several, the one whose middle is nearest.
    """
    way = ends[road]
    found = [other for other in network.road_ids if ends[other] == Street(way.end, way.start)]
    if not found:
        raise InputError(
            f"--one-way {road}: no road for {network.vclass} leads back between its junctions; it is one-way already, or "
            "its other carriageway ends elsewhere: name that one with --close"
        )
    middle = (network.start_xy + network.end_xy) / 2

    def apart(other: str) -> float:
        return float(np.linalg.norm(middle[network.index[other]] - middle[network.index[road]]))

    return min(found, key=apart)
