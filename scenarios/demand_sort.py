"""Who is learnt and who is background: the rules, applied vehicle by vehicle to what the files hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import dijkstra

from .demand_xml import ALWAYS, PEOPLE, Alternative, Contents, Entry, weights
from .errors import InputError
from .network import UTURN, RoadNetwork, reachable_from
from .sumo_xml import text_of

# Classes that drive like private cars; "ignoring" ones may use bus lanes and choose as the others do.
CAR_CLASSES = frozenset(
    {"passenger", "private", "taxi", "hov", "evehicle", "e-vehicle", "custom1", "custom2", "ignoring"}
)


@dataclass(slots=True)
class Learnt:
    """A vehicle whose route is learnt."""

    entry: Entry
    origin: int
    destination: int
    edges: str  # published route, SUMO edge ids; "" for a trip
    drawn_type: str | None  # where its type had to be drawn from a distribution


class Sorter:
    """Decides, vehicle by vehicle, who is learnt and who is background; then who can get there."""

    def __init__(
        self, contents: Contents, network: RoadNetwork, ignore_via: bool, generator: np.random.Generator
    ) -> None:
        self.learnt: list[Learnt] = []
        self.background: list[tuple[Entry, str | None]] = []  # with the type drawn for it, if any
        self.notes: Counter[str] = Counter()
        if contents.outside:
            self.notes["outside the window"] = contents.outside
        self._contents = contents
        self._network = network
        self._classes = CAR_CLASSES if network.vclass in CAR_CLASSES else frozenset({network.vclass})
        self._ignore_via = ignore_via
        self._generator = generator
        self._roads: dict[str, NDArray[np.int32]] = {}  # of published routes; -1: closed

    def add(self, entry: Entry) -> None:
        """Put one vehicle or person where it belongs; raises InputError for what is wrong with it."""
        if entry.element.tag in PEOPLE:
            self._keep(entry, entry.element.tag)
            return
        vclass, drawn = self._vehicle_class(entry)
        edges = self._published(entry)
        ends = self._ends(entry, edges)
        reason = self._reason(entry, vclass)
        if reason is None and ends is None:
            reason = "starts or ends at a junction or zone"
        elif reason is None and ends is not None and min(ends) < 0:
            reason = f"starts or ends on a road closed to {self._network.vclass}"
        if reason is not None or ends is None:
            self._keep(entry, str(reason), drawn)
        else:
            self.learnt.append(Learnt(entry, *ends, edges, drawn))

    def settle_reachability(self, unreachable: Literal["error", "drop"]) -> RoadNetwork:
        """Take out who cannot get to the destination; the network with the U-turns that others need.

        Raises InputError for trips that cannot be driven, unless they are to be dropped.
        """
        network = self._network
        if not self.learnt:
            return network
        origins, row = np.unique([one.origin for one in self.learnt], return_inverse=True)
        reached = reachable_from(network, origins.astype(np.int32))
        stuck = {
            (one.origin, one.destination)
            for one, i in zip(self.learnt, row, strict=True)
            if not reached[i, one.destination]
        }
        if not stuck:
            return network
        network, hopeless = with_needed_uturns(network, stuck)
        lost = [one for one in self.learnt if (one.origin, one.destination) in hopeless]
        self.learnt = [one for one in self.learnt if (one.origin, one.destination) not in hopeless]
        wrong = []
        for one in lost:
            if one.edges and self._roads[one.edges].min() < 0:
                self._keep(one.entry, f"reachable only by roads closed to {network.vclass}", one.drawn_type)
            else:
                wrong.append(one)
        if wrong and unreachable == "error":
            raise _cannot_be_driven(wrong, network)
        if wrong:
            self.notes["unreachable, dropped"] = len(wrong)
        return network

    def background_xml(self) -> str:
        """Named routes the background needs, then its vehicles and people by departure."""
        named: dict[str, str] = {}
        for entry, _ in self.background:
            self._collect_named(entry.element.get("route"), named)
        entries = sorted(self.background, key=lambda item: item[0].depart)
        return "\n".join([*named.values(), *(entry.xml(drawn) for entry, drawn in entries)])

    def rows(self, edges: str) -> NDArray[np.int32]:
        """Roads of a published route; none for a bare trip and where a road is closed to cars."""
        if not edges or self._roads[edges].min() < 0:
            return np.zeros(0, dtype=np.int32)
        return self._roads[edges]

    def _keep(self, entry: Entry, reason: str, drawn: str | None = None) -> None:
        self.background.append((entry, drawn))
        self.notes[reason] += 1

    def _collect_named(self, name: str | None, named: dict[str, str]) -> None:
        element = self._contents.routes.get(name or "")
        if name is None or element is None or name in named:
            return
        members = [part.get("refId") for part in element.iterfind("route")]
        for member in (*element.get("routes", "").split(), *members):
            self._collect_named(member, named)  # a distribution stands after its routes
        named[name] = text_of(element)

    def _vehicle_class(self, entry: Entry) -> tuple[str, str | None]:
        """Class of the vehicle, and its type where a mixed distribution had to be drawn from."""
        name = entry.element.get("type", "DEFAULT_VEHTYPE")
        vclasses = self._contents.vclass
        if name in vclasses:
            return vclasses[name], None
        members = self._contents.members.get(name, ())
        missing = [one.name for one in members if one.name not in vclasses] if members else [name]
        if missing:
            raise entry.fail(
                f"type {missing[0]!r} is not defined in the demand and additional files; "
                "list the file that defines it under `scenario.additional`"
            )
        found = {vclasses[one.name] for one in members}
        if found <= self._classes or not found & self._classes:
            return min(found), None  # SUMO may draw: whatever it draws, the vehicle stays on its side
        drawn = self._draw(members)
        return vclasses[drawn], drawn

    def _draw(self, members: Sequence[Alternative]) -> str:
        """A member's name, at random by weight."""
        weight = np.array([one.weight for one in members])
        chance = weight / weight.sum() if weight.any() else None
        return members[int(self._generator.choice(len(members), p=chance))].name

    def _published(self, entry: Entry) -> str:
        """Edge ids of the vehicle's route, checked against the network; "" for a trip."""
        own = entry.element.find("route")
        if own is None:
            own = entry.element.find("routeDistribution")
        if own is None and "route" in entry.element.attrib:
            own = self._named(entry, entry.element.attrib["route"])
        if own is None:
            return ""
        edges = " ".join(self._edges(entry, own).split())
        if edges not in self._roads:
            rows = [self._road(entry, edge) for edge in edges.split()]
            if not rows:
                raise entry.fail("its route has no road; give the route `edges`")
            self._roads[edges] = np.array(rows, dtype=np.int32)
        return edges

    def _named(self, entry: Entry, name: str) -> Element:
        route = self._contents.routes.get(name)
        if route is None:
            raise entry.fail(f"route {name!r} is not defined in the demand and additional files; define it")
        return route

    def _edges(self, entry: Entry, route: Element) -> str:
        """Edge list of a route; of a distribution, the member that `last` numbers or that is drawn."""
        if route.tag == "route":
            if "refId" in route.attrib:
                return self._edges(entry, self._named(entry, route.attrib["refId"]))
            return route.get("edges", "")
        parts = [
            *route.iterfind("route"),
            *(self._named(entry, one) for one in route.get("routes", "").split()),
        ]
        if not parts:
            raise entry.fail("its route distribution is empty; give it routes")
        if "last" in route.attrib:
            chosen = route.attrib["last"]
        else:
            given = [part.get("probability", "1") for part in parts]
            shares = weights(route.get("probabilities", "").split() or given, len(parts), entry.id, entry.file)
            chosen = self._draw([Alternative(str(i), share) for i, share in enumerate(shares)])
        if not chosen.isdecimal() or int(chosen) >= len(parts):
            raise entry.fail(f"last={chosen!r} of its route distribution; expected 0 to {len(parts) - 1}")
        return self._edges(entry, parts[int(chosen)])

    def _road(self, entry: Entry, edge: str) -> int:
        """Row of a road, -1 for one that is closed to cars."""
        row = self._network.index.get(edge)
        if row is None and edge not in self._network.closed_ids:
            raise entry.fail(f"road {edge!r} is not in the network {self._network.path}; correct one of them")
        return -1 if row is None else row

    def _ends(self, entry: Entry, edges: str) -> tuple[int, int] | None:
        """Origin and destination (-1: closed to cars), None where the file names no roads."""
        if edges:
            return int(self._roads[edges][0]), int(self._roads[edges][-1])
        attributes = entry.element.attrib
        given = [attributes[key].strip() for key in ("from", "to") if key in attributes]
        rows = [self._road(entry, edge) for edge in given]
        if len(rows) == 2:
            return rows[0], rows[1]
        if any(key.startswith(("from", "to")) and key not in ("from", "to") for key in attributes):
            return None  # fromTaz, toJunction, ...: SUMO finds the roads
        raise entry.fail("it has neither a route nor both from and to; add them")

    def _reason(self, entry: Entry, vclass: str) -> str | None:
        """Why the vehicle cannot be learnt, if so."""
        element = entry.element
        if entry.depart == ALWAYS:
            return "triggered"
        if vclass not in self._classes:
            return vclass
        named = self._contents.routes.get(element.get("route", ""))
        if element.find(".//stop") is not None or (named is not None and named.find(".//stop") is not None):
            return "has stops"
        if "via" in element.attrib and not self._ignore_via:
            return "via"
        if "departEdge" in element.attrib or "arrivalEdge" in element.attrib:
            return "starts or ends within its route"
        return None


def _cannot_be_driven(trips: list[Learnt], network: RoadNetwork) -> InputError:
    ids = network.road_ids
    first = ", ".join(
        f"{one.entry.id!r} in {one.entry.file} ({ids[one.origin]} to {ids[one.destination]})" for one in trips[:5]
    )
    return InputError(
        f"{len(trips)} trips cannot be driven, no way leads from origin to destination in {network.path}: "
        f"{first}{', ...' if len(trips) > 5 else ''}; correct them or set `scenario.unreachable: drop`"
    )


def with_needed_uturns(network: RoadNetwork, pairs: set[tuple[int, int]]) -> tuple[RoadNetwork, set[tuple[int, int]]]:
    """Allow the U-turns on the shortest ways (metres) of pairs (from, to); also the pairs without a way."""
    graph = network.graph(network.length, network.allowed | (network.turn == UTURN))
    origins = sorted({origin for origin, _ in pairs})
    allowed = network.allowed.copy()
    hopeless: set[tuple[int, int]] = set()
    for origin in origins:
        distance, before = dijkstra(graph, indices=origin, return_predecessors=True)
        for destination in sorted(d for o, d in pairs if o == origin):
            if not np.isfinite(distance[destination]):
                hopeless.add((origin, destination))
                continue
            road = destination
            while road != origin:
                allowed[network.find_connections(before[road], road)] = True
                road = int(before[road])
    return network.with_allowed(allowed), hopeless
