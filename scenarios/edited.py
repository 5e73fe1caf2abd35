"""A scenario after what-if edits: the edited network, and the demand that fits it.

Vehicles whose origin or destination is gone, or who cannot get there any more, start or end on the nearest road from which
or to which there is a way; each of them is named. Vehicles that are not learnt keep their routes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order

from .demand import Demand
from .demand_sort import with_needed_uturns
from .edits import Edits, Plan, closed_classes, make_plan
from .errors import InputError
from .net_patch import patch, read_text, streets
from .network import UTURN, RoadNetwork, load_network, reachable_from
from .scenario import Scenario

JITTER = 60.0  # seconds by which a copy of a vehicle departs earlier or later, at most
CUT_OFF = 0.1  # of the vehicles: where more lose their way between open roads, an edit disconnects the network
SHIFTED = 50.0  # metres that kept roads of another network file may lie elsewhere
# Where on a road a vehicle starts or ends, given in numbers: another road may be shorter or narrower.
_PLACE = re.compile(r'\s*\b(?:depart|arrival)(?:Lane|Pos|PosLat|Speed)="-?[\d.]+"')


@dataclass(frozen=True)
class Moved:
    """A vehicle that could not keep its origin or destination."""

    vehicle: str
    why: str
    origin: tuple[str, str]  # road ids, before and after
    destination: tuple[str, str]
    metres: float  # by which both ends moved together, between the middles of the roads


@dataclass(frozen=True, eq=False)
class Edited:
    """What `apply_edits` returns."""

    scenario: Scenario
    source: NDArray[np.int64]  # [vehicles] row of the vehicle (or of the one it is a copy of) before the edit
    kept: NDArray[np.int64]  # [roads] row of the road before the edit, -1 for a new one
    marks: dict[str, str]  # edited roads, and what was done to them in words
    moved: list[Moved]
    notes: list[str]  # what else is worth knowing


def apply_edits(scenario: Scenario, edits: Edits, directory: Path, seed: int = 0) -> Edited:
    """The scenario with the edits made; the edited network is written to `directory` as `edited.net.xml`.

    `seed` decides which vehicles a demand scale copies or leaves out.

    Raises InputError for unknown roads and turns, contradictions, background vehicles that lose their route, and edits
    that disconnect the network.
    """
    before = scenario.network
    base = before if edits.net is None else _other_network(edits.net, before)
    text = read_text(base.path)
    plan = make_plan(edits, base, streets(text))
    after = base
    if not plan.empty or edits.net is not None:
        _require_background_ways(scenario.demand, plan, base)
    if not plan.empty:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "edited.net.xml"
        path.write_text(patch(text, plan.closed, plan.banned, plan.speeds, closed_classes(base)), encoding="utf-8")
        after = load_network(path, before.vclass)
    after = _with_uturns_of(before, after)
    kept = np.array([before.index.get(road, -1) for road in after.road_ids], dtype=np.int64)
    demand, source = _scaled(scenario.demand, edits.demand_scale, scenario.begin, scenario.end, seed)
    demand, after, moved = _fitted(demand, before, after, plan)
    notes = []
    if scenario.demand.background_count and (plan.closed or plan.banned):
        notes.append(
            f"Roads and turns are closed to cars alone. The {scenario.demand.background_count:,} background vehicles and "
            "people drive as the demand files say, buses and lorries also where cars may not."
        )
    edited = replace(scenario, network=after, demand=demand)
    return Edited(edited, source, kept, _marks(plan, before, after, edits), moved, notes)


def _marks(plan: Plan, before: RoadNetwork, after: RoadNetwork, edits: Edits) -> dict[str, str]:
    if edits.net is None:
        return plan.marks
    gone = {road: "removed" for road in before.road_ids if road not in after.index and road not in plan.marks}
    new = {road: "new" for road in after.road_ids if road not in before.index}
    return {**gone, **new, **plan.marks}


def _other_network(path: Path, before: RoadNetwork) -> RoadNetwork:
    """A network of the user's in place of the run's; checked to be an edit of it."""
    network = load_network(path, before.vclass)
    kept = [road for road in before.road_ids if road in network.index]
    if 2 * len(kept) < before.road_count:
        raise InputError(
            f"--net {path}: has {len(kept)} of the {before.road_count} roads of {before.path}; an edited network keeps "
            "the ids of the roads it keeps"
        )
    old = before.end_xy[[before.index[road] for road in kept]]
    new = network.end_xy[[network.index[road] for road in kept]]
    shift = float(np.median(np.linalg.norm(new - old, axis=1)))
    if shift > SHIFTED:
        raise InputError(
            f"--net {path}: its roads lie {shift:.0f} m from where they lie in {before.path} (median); write it without "
            "a new offset (netconvert --offset.disable-normalization true), or preferences for the centre mislead"
        )
    return network


def _with_uturns_of(before: RoadNetwork, after: RoadNetwork) -> RoadNetwork:
    """U-turns that some trip needed before the edit stay allowed."""
    allowed = after.allowed.copy()
    for row in np.flatnonzero(before.allowed & (before.turn == UTURN)):
        start, end = (after.index.get(before.road_ids[road], -1) for road in before.connections[row])
        if start >= 0 and end >= 0 and (connection := int(after.find_connections(start, end))) >= 0:
            allowed[connection] = True
    return after.with_allowed(allowed)


def _scaled(demand: Demand, factor: float, begin: float, end: float, seed: int) -> tuple[Demand, NDArray[np.int64]]:
    """The demand with `factor` times its vehicles, and the row each of them comes from.

    Below 1, vehicles are left out at random; above, some are copied, a copy departing up to `JITTER` earlier or later.
    """
    count = len(demand)
    rows = np.arange(count)
    if factor == 1.0:
        return demand, rows
    rng = np.random.default_rng([seed, 3])
    wanted = max(1, round(factor * count))
    if wanted <= count:
        return _rows_of(demand, np.sort(rng.choice(count, wanted, replace=False)))
    whole, part = divmod(wanted, count)
    copies = np.concatenate([*[rows] * (whole - 1), np.sort(rng.choice(count, part, replace=False))])
    depart = demand.depart[copies] + rng.uniform(-JITTER, JITTER, copies.size).round()
    depart = np.clip(depart, begin, np.nextafter(end, begin) // 1)
    names = [f"{demand.ids[row]}.copy{i}" for i, row in enumerate(copies.tolist())]
    everybody = replace(
        demand,
        ids=(*demand.ids, *names),
        origin=demand.origin[np.concatenate([rows, copies])],
        destination=demand.destination[np.concatenate([rows, copies])],
        depart=np.concatenate([demand.depart, depart]),
        attributes=(*demand.attributes, *(demand.attributes[row] for row in copies.tolist())),
    )
    order = np.argsort(everybody.depart, kind="stable")
    return _rows_of(everybody, order)[0], np.concatenate([rows, copies])[order]


def _rows_of(demand: Demand, rows: NDArray[np.int64]) -> tuple[Demand, NDArray[np.int64]]:
    chosen = replace(
        demand,
        ids=tuple(demand.ids[row] for row in rows.tolist()),
        origin=demand.origin[rows],
        destination=demand.destination[rows],
        depart=demand.depart[rows],
        attributes=tuple(demand.attributes[row] for row in rows.tolist()),
    )
    return chosen, rows


def _require_background_ways(demand: Demand, plan: Plan, network: RoadNetwork) -> None:
    """Who is not learnt keeps the given route: SUMO would refuse one that is gone, or closed to a background car."""
    vclass = _classes_of_types(demand.types)
    root = ElementTree.fromstring(f"<routes>{demand.background}</routes>")
    named = {one.get("id", ""): one.get("edges", "").split() for one in root.iterfind("route")}
    cars, closed, banned = set(closed_classes(network)), set(plan.closed), set(plan.banned)
    there = network.index.keys() | network.closed_ids
    wrong = []
    for one in root:
        if one.tag not in ("vehicle", "trip", "flow"):
            continue
        own = one.find("route")
        roads = own.get("edges", "").split() if own is not None else named.get(one.get("route", ""), [])
        visited = {*roads, *" ".join(one.get(key, "") for key in ("from", "to", "via")).split()}
        car = vclass.get(one.get("type", "DEFAULT_VEHTYPE"), "passenger") in cars
        if visited - there or (car and (closed & visited or banned & set(pairwise(roads)))):
            wrong.append(one.get("id", ""))
    if wrong:
        raise InputError(
            f"{len(wrong)} vehicles that are not learnt (with stops or via roads, for example) drive where the edits close "
            f"or remove roads or turns: {', '.join(map(repr, wrong[:5]))}{', …' if len(wrong) > 5 else ''}; their routes are "
            "taken as given, so reroute them or take them out of the demand files, or choose another edit"
        )


def _classes_of_types(types: str) -> dict[str, str]:
    """Vehicle class of every type and distribution of types (that of its first member)."""
    root = ElementTree.fromstring(f"<types>{types}</types>")
    vclass = {one.get("id", ""): one.get("vClass", "passenger") for one in root.iter("vType")}
    for group in root.iter("vTypeDistribution"):
        members = [*group.get("vTypes", "").split(), *(one.get("id", "") for one in group.iterfind("vType"))]
        vclass[group.get("id", "")] = vclass.get(members[0], "passenger") if members else "passenger"
    return vclass


def _fitted(
    demand: Demand, before: RoadNetwork, after: RoadNetwork, plan: Plan
) -> tuple[Demand, RoadNetwork, list[Moved]]:
    """The demand on the rows of the edited network, with everybody who lost an end or the way moved."""
    row = np.array([after.index.get(road, -1) for road in before.road_ids], dtype=np.int32)
    pairs, who = np.unique(np.column_stack([demand.origin, demand.destination]), axis=0, return_inverse=True)
    ends = np.column_stack([row[pairs[:, 0]], row[pairs[:, 1]]])
    after, lost = _without_way(after, ends)
    count = np.bincount(who.ravel(), minlength=len(pairs))
    _require_connected(pairs[lost], count[lost], len(demand), before)
    reach = _Reach(before, after)
    for i in np.flatnonzero((ends < 0).any(axis=1) | lost):
        ends[i] = reach.nearest_pair(pairs[i], ends[i])
    moved = []
    attributes = list(demand.attributes)
    new_limits = {before.index[road] for road in plan.speeds if road in before.index}
    for vehicle, pair in enumerate(who.ravel().tolist()):
        old = [before.road_ids[road] for road in pairs[pair]]
        new = [after.road_ids[road] for road in ends[pair]]
        if old != new:
            why = " and ".join(
                f"{name} {'closed' if road not in after.index else 'without a way'}"
                for name, road, other in zip(("origin", "destination"), old, new, strict=True)
                if road != other
            )
            metres = sum(reach.metres(int(a), int(b)) for a, b in zip(pairs[pair], ends[pair], strict=True))
            moved.append(Moved(demand.ids[vehicle], why, (old[0], new[0]), (old[1], new[1]), metres))
        if old != new or pairs[pair, 0] in new_limits:
            attributes[vehicle] = _PLACE.sub("", attributes[vehicle])
    fitted = replace(
        demand,
        origin=ends[who.ravel(), 0].astype(np.int32),
        destination=ends[who.ravel(), 1].astype(np.int32),
        attributes=tuple(attributes),
    )
    return fitted, after, moved


def _without_way(network: RoadNetwork, ends: NDArray[np.int32]) -> tuple[RoadNetwork, NDArray[np.bool_]]:
    """The network with the U-turns that pairs of roads cannot do without; which pairs [n] have no way even so."""
    lost = np.zeros(len(ends), dtype=bool)
    both = np.flatnonzero((ends >= 0).all(axis=1))
    if not both.size:
        return network, lost
    origins, at = np.unique(ends[both, 0], return_inverse=True)
    stuck = both[~reachable_from(network, origins)[at, ends[both, 1]]]
    network, hopeless = with_needed_uturns(network, {(int(o), int(d)) for o, d in ends[stuck]})
    lost[stuck] = [(int(o), int(d)) in hopeless for o, d in ends[stuck]]
    return network, lost


def _require_connected(lost: NDArray[np.int32], count: NDArray[np.int64], vehicles: int, before: RoadNetwork) -> None:
    cut = int(count.sum())
    if cut <= CUT_OFF * vehicles:
        return
    first = "; ".join(f"{before.road_ids[o]} to {before.road_ids[d]}" for o, d in lost[:3])
    raise InputError(
        f"the edits disconnect the network: {cut:,} of {vehicles:,} vehicles have no way from origin to destination any "
        f"more though both roads are open ({first}); leave another way open, or close the roads that are cut off as well"
    )


class _Reach:
    """Nearest roads with a way, by the straight line between the middles of roads."""

    def __init__(self, before: RoadNetwork, after: RoadNetwork) -> None:
        self._old = (before.start_xy + before.end_xy) / 2
        self._new = (after.start_xy + after.end_xy) / 2
        self._path = after.path
        self._onward = after.graph()
        self._back = self._onward.T.tocsr()

    def metres(self, old: int, new: int) -> float:
        return float(np.linalg.norm(self._old[old] - self._new[new]))

    def nearest_pair(self, old: NDArray[np.int32], new: NDArray[np.int32]) -> tuple[int, int]:
        """Origin and destination after the edit for a pair `old`, of which `new` says what is left (-1: gone).

        One end moves if that is enough, the one that moves less far; both if both are gone.
        """
        start, end = int(new[0]), int(new[1])
        options = []
        if start >= 0 and (there := self._nearest(old[1], self._onward, start)) >= 0:
            options.append((self.metres(int(old[1]), there), start, there))
        if end >= 0 and (here := self._nearest(old[0], self._back, end)) >= 0:
            options.append((self.metres(int(old[0]), here), here, end))
        if not options:
            entered = np.flatnonzero(np.diff(self._back.indptr) > 0)
            for there in sorted(entered.tolist(), key=lambda road: self.metres(int(old[1]), road)):
                if (here := self._nearest(old[0], self._back, there)) >= 0:
                    options.append((0.0, here, there))
                    break
        if not options:
            raise InputError(f"{self._path}: no road leads to another after the edits; nobody can drive")
        return min(options)[1:]

    def _nearest(self, old: np.int32, graph: csr_array, road: int) -> int:
        """The road nearest to where `old` was, of those that `road` leads to in the graph; -1 if it leads nowhere."""
        there = breadth_first_order(graph, road, return_predecessors=False)[1:]
        if not there.size:
            return -1
        return int(there[np.argmin(np.linalg.norm(self._new[there] - self._old[old], axis=1))])
