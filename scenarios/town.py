"""The built-in town: 45 intersections, 114 directed roads, trips whose queues depend on how drivers choose.

It is the scenario that needs no data: SUMO's own netconvert writes it in under a second from the plan below.
It has the size of MASDiff's study (45 intersections, 114 roads; 1557, 2758 and 4423 vehicles in 30, 60 and 90
minutes). The paper's network is not published, so the town is ours: a 5 x 5 grid of unequal blocks, 20
streets that leave it, and three streets of the grid that were never built.

         n0   n1   n2   n3   n4
          |    |    |    |    |
    w4 - A4 - B4 - C4 - D4 - E4 - e4     columns A to E from west to east, rows 0 to 4 from south to
          |    |    |         |          north; the road from A4 to B4 is "A4B4", the one back "B4A4"
    w3 - A3 - B3 - C3 - D3 - E3 - e3
          |    |    |    |    |
    w2 - A2 - B2 - C2   D2 - E2 - e2
               |    |    |    |
    w1 - A1 - B1 - C1 - D1 - E1 - e1
          |    |    |    |    |
    w0 - A0 - B0 - C0 - D0 - E0 - e0
          |    |    |    |    |
         s0   s1   s2   s3   s4

The plan never changes. `seed` changes the demand alone: how strongly each place attracts, and the single
trips. The load is chosen so that route choice shows in the queues: over shortest, fastest and randomly
preferred routes, two seeds of one set of routes differ by 0.8 to 0.9 vehicles on average (RMSE per
road-minute of the longest queue), two sets of routes by about twice that, and none is gridlocked.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sumo

from .errors import InputError

MINUTES = {1557: 30, 2758: 60, 4423: 90}  # vehicles -> horizon of the paper's three cases
CENTRE = "C2"

# Metres; unequal blocks, so that no two ways round a block are of one length.
_X = {
    "A": (0, 18, -22, 10, -8),
    "B": (214, 192, 226, 201, 220),
    "C": (452, 470, 438, 474, 446),
    "D": (655, 640, 668, 648, 672),
    "E": (905, 930, 894, 918, 886),
}
_Y = {
    "A": (0, 236, 418, 640, 861),
    "B": (-16, 205, 440, 662, 842),
    "C": (12, 222, 402, 671, 868),
    "D": (-8, 246, 431, 648, 880),
    "E": (20, 214, 452, 656, 838),
}
_STUB = {"s": (0, -1), "n": (0, 1), "w": (-1, 0), "e": (1, 0)}
_STUB_LENGTH = (210, 245, 190, 260, 225)
_NOT_BUILT = frozenset({("A1", "A2"), ("C2", "D2"), ("D3", "D4")})

# Kinds of street: lanes, metres per second, priority at the junctions. Width and speed are not aligned (a
# wide slow avenue, a narrow express), or a taste for wide roads could not be told from one for fast roads.
_ARTERIAL, _BYPASS, _EXPRESS, _MAIN = (2, 13.89, 9), (2, 16.67, 8), (1, 16.67, 8), (2, 11.11, 6)
_AVENUE, _LOCAL, _QUIET = (2, 8.33, 6), (1, 11.11, 4), (1, 8.33, 3)
_ROWS = {0: _EXPRESS, 1: _MAIN, 2: _AVENUE, 3: _ARTERIAL, 4: _LOCAL}
_COLUMNS = {"A": _LOCAL, "B": _ARTERIAL, "C": _AVENUE, "D": _QUIET, "E": _BYPASS}
_SIGNALS = ("B0", "E0", "B1", "C1", "D1", "B2", "A3", "B3", "C3", "D3", "E3", "B4", "D4")

_FEWEST_ROADS = 4  # of any trip, first and last included: a shorter one leaves nothing to choose
_USUAL = 600.0  # metres between the ends of a trip where the deterrence d * exp(-d / _USUAL) is largest
_PEAK = 0.35  # the busiest minute departs this much above the mean
_NETCONVERT_SECONDS = 120


@dataclass(frozen=True)
class Town:
    """Where a written town lies, and how long it lasts."""

    net: Path  # SUMO network
    trips: Path  # vehicle type and bare trips: origin, destination, departure
    config: Path  # runs with `sumo -c`
    minutes: int  # departures fall in [0, minutes * 60) seconds


_Nodes = dict[str, tuple[float, float]]  # position of each node, metres


@dataclass(frozen=True)
class _Road:
    id: str
    start: str
    end: str
    lanes: int
    speed: float
    priority: int


def write_town(
    directory: str | os.PathLike[str], vehicles: int = 1557, minutes: int | None = None, seed: int = 0
) -> Town:
    """Write `town.net.xml`, `town.rou.xml` and `town.sumocfg` into `directory` and say where they are.

    `minutes` defaults to the paper's horizon for its three numbers of vehicles and to 30 otherwise; `seed`
    changes the demand, never the streets. The same arguments give the same bytes. Each file appears complete
    or not at all, the configuration last. Raises InputError for numbers that make no town, RuntimeError where
    netconvert fails.
    """
    vehicles = _whole("vehicles", vehicles, least=1)
    minutes = MINUTES.get(vehicles, 30) if minutes is None else _whole("minutes", minutes, least=1)
    seed = _whole("seed", seed, least=0)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    town = Town(folder / "town.net.xml", folder / "town.rou.xml", folder / "town.sumocfg", minutes)
    nodes, roads = _plan()
    network = _convert(nodes, roads)
    trips = _trips(nodes, roads, vehicles, minutes, seed)
    for path, text in ((town.net, network), (town.trips, trips), (town.config, _config(minutes))):
        _write(path, text)
    return town


def _whole(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{name}={value!r}: a town needs a whole number of at least {least}")
    return int(value)


# ------------------------------------------------------------------------------------------ the plan


def _plan() -> tuple[_Nodes, list[_Road]]:
    """Positions of the 45 nodes in metres and the 114 roads, in a fixed order."""
    nodes = {f"{c}{r}": (float(_X[c][r]), float(_Y[c][r])) for c in "ABCDE" for r in range(5)}
    streets = [(f"{c}{r}", f"{c}{r + 1}") for c in "ABCDE" for r in range(4)]
    streets += [(f"{c}{r}", f"{d}{r}") for c, d in zip("ABCD", "BCDE", strict=True) for r in range(5)]
    streets = [street for street in streets if street not in _NOT_BUILT]
    for side, (dx, dy) in _STUB.items():
        for i in range(5):
            inner = {"s": f"{'ABCDE'[i]}0", "n": f"{'ABCDE'[i]}4", "w": f"A{i}", "e": f"E{i}"}[side]
            x, y = nodes[inner]
            nodes[f"{side}{i}"] = (x + dx * _STUB_LENGTH[i], y + dy * _STUB_LENGTH[i])
            streets.append((f"{side}{i}", inner))
    roads = [_Road(a + b, a, b, *_kind(a, b)) for street in streets for a, b in (street, street[::-1])]
    return nodes, roads


def _kind(a: str, b: str) -> tuple[int, float, int]:
    """Lanes, speed and priority: a street is of the kind of the row or column it continues."""
    inner = [node for node in (a, b) if node[0] in _X]
    along_row = a[0] in "we" or b[0] in "we" or (len(inner) == 2 and a[1] == b[1])
    return _ROWS[int(inner[0][1])] if along_row else _COLUMNS[inner[0][0]]


def _convert(nodes: _Nodes, roads: list[_Road]) -> str:
    """The network as netconvert makes it, without the comment that holds a date and the paths of this run."""
    node_lines = [
        f'<node id="{name}" x="{x:.2f}" y="{y:.2f}" type="{"traffic_light" if name in _SIGNALS else "priority"}"/>'
        for name, (x, y) in nodes.items()
    ]
    edge_lines = [
        f'<edge id="{r.id}" from="{r.start}" to="{r.end}" numLanes="{r.lanes}" speed="{r.speed}" '
        f'priority="{r.priority}"/>'
        for r in roads
    ]
    with tempfile.TemporaryDirectory(prefix="throng-town-") as name:
        work = Path(name)
        (work / "plan.nod.xml").write_text(_document("nodes", node_lines), encoding="utf-8")
        (work / "plan.edg.xml").write_text(_document("edges", edge_lines), encoding="utf-8")
        options = {
            "node-files": "plan.nod.xml",
            "edge-files": "plan.edg.xml",
            "output-file": "town.net.xml",
            "offset.disable-normalization": "true",
            "no-turnarounds.except-deadend": "true",
            "tls.cycle.time": "80",
            "tls.default-type": "static",
            "xml-validation": "never",
        }
        command = [
            _binary("netconvert"),
            *(word for key, value in options.items() for word in (f"--{key}", value)),
        ]
        try:
            done = subprocess.run(
                command, cwd=work, capture_output=True, text=True, timeout=_NETCONVERT_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeError(f"netconvert did not run: {error}; reinstall the eclipse-sumo package") from error
        if done.returncode != 0:
            raise RuntimeError(f"netconvert failed (exit {done.returncode}):\n{done.stderr.strip()}")
        text = (work / "town.net.xml").read_text(encoding="utf-8")
    return re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)


def _binary(name: str) -> str:
    path = shutil.which(name, path=str(Path(sumo.SUMO_HOME) / "bin"))
    if path is None:
        raise RuntimeError(f"{name} is missing under {sumo.SUMO_HOME}: reinstall the eclipse-sumo package")
    return path


# ------------------------------------------------------------------------------------------ the demand


def _trips(nodes: _Nodes, roads: list[_Road], vehicles: int, minutes: int, seed: int) -> str:
    """Vehicle type and trips, sorted by departure."""
    places, single, clock = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    weight = _gravity(nodes, roads, places)
    pick = single.choice(weight.size, size=vehicles, p=weight.ravel() / weight.sum())
    origin, destination = np.divmod(pick, len(roads))
    depart = np.sort(_departures(clock, vehicles, minutes))
    lines = ['<vType id="car" vClass="passenger"/>']
    lines += [
        f'<trip id="{i}" type="car" depart="{depart[i]}" from="{roads[origin[i]].id}" '
        f'to="{roads[destination[i]].id}" departLane="best" departSpeed="max"/>'
        for i in range(vehicles)
    ]
    return _document("routes", lines)


def _gravity(nodes: _Nodes, roads: list[_Road], rng: np.random.Generator) -> np.ndarray:
    """How likely a trip goes from road o to road d, [roads, roads] float64, not normalised.

    A gravity model: what the origin sends, times what the destination attracts, times a deterrence
    d * exp(-d / _USUAL) that is small for the shortest and the longest trips.
    """
    middle = np.array([[(nodes[r.start][k] + nodes[r.end][k]) / 2 for k in (0, 1)] for r in roads])
    reach = np.hypot(*(middle - np.array(nodes[CENTRE])).T)
    wide = np.array([r.lanes > 1 for r in roads])
    enters = np.array([r.start[0] not in _X for r in roads])
    leaves = np.array([r.end[0] not in _X for r in roads])
    inner = ~(enters | leaves)
    centred = np.exp(-reach / 400.0)
    varied = rng.lognormal(0.0, 0.3, size=(2, len(roads)))
    sends = varied[0] * np.where(enters, np.where(wide, 1.6, 1.0), np.where(inner, 0.25, 0.0))
    attracts = varied[1] * np.where(leaves, np.where(wide, 1.6, 1.0), np.where(inner, 0.6 * centred, 0.0))
    apart = np.hypot(*(middle[:, None] - middle[None]).transpose(2, 0, 1))
    deterrence = apart / _USUAL * np.exp(-apart / _USUAL)
    chosen: np.ndarray = np.outer(sends, attracts) * deterrence * (_roads_between(roads) >= _FEWEST_ROADS)
    return chosen


def _roads_between(roads: list[_Road]) -> np.ndarray:
    """Roads on the route of fewest roads, both ends included, no U-turns, [roads, roads]; 0: no route."""
    follow = [[j for j, s in enumerate(roads) if s.start == r.end and s.end != r.start] for r in roads]
    count = np.zeros((len(roads), len(roads)), dtype=np.int64)
    for origin in range(len(roads)):
        count[origin, origin] = 1
        queue = deque([origin])
        while queue:
            road = queue.popleft()
            for after in follow[road]:
                if count[origin, after] == 0:
                    count[origin, after] = count[origin, road] + 1
                    queue.append(after)
    return count


def _departures(rng: np.random.Generator, vehicles: int, minutes: int) -> np.ndarray:
    """Whole seconds in [0, minutes * 60), [vehicles] int64, from 1 - _PEAK cos(2 pi t): one mild peak."""
    grid = np.linspace(0.0, 1.0, 4097)
    share = grid - _PEAK / (2 * math.pi) * np.sin(2 * math.pi * grid)
    time = np.interp(rng.random(vehicles), share, grid)
    return np.minimum((time * minutes * 60).astype(np.int64), minutes * 60 - 1)


# ------------------------------------------------------------------------------------------ the files


def _config(minutes: int) -> str:
    return _document(
        "configuration",
        [
            '<input><net-file value="town.net.xml"/><route-files value="town.rou.xml"/></input>',
            f'<time><begin value="0"/><end value="{minutes * 60}"/></time>',
            '<report><no-step-log value="true"/></report>',
        ],
    )


def _document(tag: str, lines: list[str]) -> str:
    body = "".join(f"    {line}\n" for line in lines)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{tag}>\n{body}</{tag}>\n'


def _write(path: Path, text: str) -> None:
    """Write beside the place and rename: a reader sees the old file or the new one, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
