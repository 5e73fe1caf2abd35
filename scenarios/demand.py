"""The demand: whose routes are learnt, from where to where and when; and everybody else, who drives as given.

Learnt are the cars that depart in the window on roads of the network and have no stop or via to keep. Their
published routes, if the files have any, are kept apart: the learner must not see them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from .demand_sort import Learnt, Sorter
from .demand_xml import PEOPLE, Contents, read_contents
from .errors import InputError
from .network import RoadNetwork

# What of a vehicle's attributes is repeated when its route is written: all that does not say where or when.
_REPEATED = (
    "type", "color", "line", "speedFactor", "insertionChecks", "personNumber", "containerNumber",
    "departLane", "departPos", "departPosLat", "departSpeed",
    "arrivalLane", "arrivalPos", "arrivalPosLat", "arrivalSpeed",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Routes:
    """One route per vehicle, as rows of the network's `road_ids`."""

    roads: NDArray[np.int32]  # [total] all routes, one after the other
    offsets: NDArray[np.int64]  # [N + 1] route i is roads[offsets[i]:offsets[i + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def route(self, vehicle: int) -> NDArray[np.int32]:
        """The roads of one vehicle, from origin to destination (a view)."""
        return self.roads[self.offsets[vehicle] : self.offsets[vehicle + 1]]

    @classmethod
    def from_lists(cls, routes: Sequence[Sequence[int] | NDArray[np.int32]]) -> Routes:
        """Routes given one by one."""
        offsets = np.zeros(len(routes) + 1, dtype=np.int64)
        np.cumsum([len(route) for route in routes], out=offsets[1:])
        parts = [np.asarray(route, dtype=np.int32) for route in routes]
        return cls(np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32), offsets)


@dataclass(frozen=True, eq=False)
class Demand:
    """N vehicles whose routes are learnt, by departure (then as in the files), and all others as XML."""

    ids: tuple[str, ...]  # [N]
    origin: NDArray[np.int32]  # [N] road
    destination: NDArray[np.int32]  # [N] road
    depart: NDArray[np.float64]  # [N] seconds, absolute simulation time
    attributes: tuple[str, ...]  # [N] XML attributes to repeat, escaped: 'type="private" departLane="best"'
    types: str  # XML of every <vType> and <vTypeDistribution>
    background: str  # XML of all other vehicles and people, their named routes first, sorted by departure
    background_count: int  # elements in it: vehicles, persons, flows of persons
    notes: dict[str, int]  # why vehicles are background or gone, and how many: {"bus": 25, "has stops": 3}

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class PublishedRoutes:
    """What the files say the learnt vehicles drove: to judge results and to replay, never to learn from.

    They may use connections that `allowed` masks: U-turns that no trip needs.
    """

    edges: tuple[str, ...]  # [N] SUMO edge ids, one space between; "" for a bare trip
    routes: Routes  # [N] as rows of the network; empty for bare trips and where a road is closed to the class
    known: NDArray[np.bool_]  # [N] the route is in `routes`


@dataclass(frozen=True, eq=False)
class LoadedDemand:
    """What `load_demand` returns."""

    demand: Demand
    published: PublishedRoutes | None  # None: the files give trips only
    network: RoadNetwork  # the given one, with the U-turns allowed that some trip cannot do without
    infrastructure: str  # XML of what else the files hold (bus stops, signals), for an additional file


def load_demand(
    files: Sequence[str | Path],
    network: RoadNetwork,
    begin: float,
    end: float,
    additional: Sequence[str | Path] = (),
    unreachable: Literal["error", "drop"] = "error",
    via: Literal["background", "ignore"] = "background",
    seed: int = 0,
) -> LoadedDemand:
    """Read SUMO demand (.rou.xml, .trips.xml, flows; plain or gzipped) for the window [begin, end) seconds.

    `additional` files are searched for types, routes and vehicles too. A simulation of the result loads
    `types`, `background` and `infrastructure`, not the files: what they define would be defined twice.
    Detectors in them stay, their output does not. `unreachable` says what becomes of trips that cannot be
    driven. `via="ignore"` learns vehicles with via roads as well, by origin and destination alone. What SUMO
    would draw at run time (random flows, distributions of routes, distributions of types that mix cars with
    others) is drawn here, from `seed`.

    Raises InputError naming file and vehicle for what the files get wrong, and if nobody is left to learn.
    """
    if not begin < end:
        raise InputError(f"the window [{begin:g}, {end:g}) s is empty; expected begin < end")
    paths = [Path(file) for file in (*additional, *files)]  # types first, as SUMO reads them
    flow_seed, draw_seed = np.random.SeedSequence(seed).spawn(2)
    contents = read_contents(paths, begin, end, np.random.default_rng(flow_seed))
    sorter = Sorter(contents, network, via == "ignore", np.random.default_rng(draw_seed))
    for entry in contents.entries:
        sorter.add(entry)
    network = sorter.settle_reachability(unreachable)
    if not sorter.learnt:
        raise _nobody(contents, sorter.notes, paths, begin, end)
    order = np.argsort([one.entry.depart for one in sorter.learnt], kind="stable")
    learnt = [sorter.learnt[i] for i in order]
    _check_unique(learnt, sorter)
    demand = Demand(
        ids=tuple(one.entry.id for one in learnt),
        origin=np.array([one.origin for one in learnt], dtype=np.int32),
        destination=np.array([one.destination for one in learnt], dtype=np.int32),
        depart=np.array([one.entry.depart for one in learnt], dtype=np.float64),
        attributes=tuple(_attributes(one.entry.element.attrib, one.drawn_type) for one in learnt),
        types="\n".join(contents.types.values()),
        background=sorter.background_xml(),
        background_count=len(sorter.background),
        notes=dict(sorter.notes),
    )
    return LoadedDemand(demand, _published(learnt, sorter), network, "\n".join(contents.infrastructure))


def _check_unique(learnt: list[Learnt], sorter: Sorter) -> None:
    """Flows number their vehicles, and may hit upon the id of another vehicle."""
    others = (entry for entry, _ in sorter.background if entry.element.tag not in PEOPLE)
    count = Counter(entry.id for entry in (*(one.entry for one in learnt), *others))
    twice = [name for name, times in count.items() if times > 1]
    if twice:
        raise InputError(f"vehicle {twice[0]!r}: two vehicles get this id, one from a flow; rename one")


def _published(learnt: list[Learnt], sorter: Sorter) -> PublishedRoutes | None:
    if not any(one.edges for one in learnt):
        return None
    routes = Routes.from_lists([sorter.rows(one.edges) for one in learnt])
    return PublishedRoutes(tuple(one.edges for one in learnt), routes, np.diff(routes.offsets) > 0)


def _attributes(attributes: dict[str, str], drawn_type: str | None) -> str:
    chosen = attributes if drawn_type is None else attributes | {"type": drawn_type}
    return " ".join(f"{key}={quoteattr(chosen[key])}" for key in _REPEATED if key in chosen)


def _nobody(contents: Contents, notes: Counter[str], paths: list[Path], begin: float, end: float) -> InputError:
    first, last = contents.span
    span = f"vehicles depart between {first:g} and {last:g} s" if first <= last else "they hold no vehicle"
    why = ", ".join(f"{reason}: {count}" for reason, count in notes.items()) or "nothing"
    return InputError(
        f"{', '.join(map(str, paths))}: no vehicle to learn departs in [{begin:g}, {end:g}) s; {span}; "
        f"left out or background: {why}. Choose another window or other files"
    )
