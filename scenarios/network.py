"""The road network as arrays: roads, the connections between them, and which connections may be used.

A road is an edge of the SUMO network with at least one lane for the vehicle class; a connection is a pair
of roads that such lanes join (MASDiff's |E|, A.1). Everything that depends on the network is indexed by
`road_ids` and by the rows of `connections`. Edits that close a turn are masks on them (`with_allowed`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.sax import SAXException, SAXParseException

import numpy as np
import sumolib
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order

from .errors import InputError

TURNS = ("straight", "left", "right", "uturn", "slight_left", "slight_right")
UTURN = TURNS.index("uturn")
# SUMO's <connection dir>; "T" is the U-turn of left-hand traffic. Anything else counts as straight.
_TURN_OF_DIR = {"s": 0, "l": 1, "r": 2, "t": UTURN, "T": UTURN, "L": 4, "R": 5}
_SIGNAL = "traffic_light"  # so begin the types of junctions with lights: traffic_light_unregulated, ...


@dataclass(frozen=True, eq=False, repr=False)
class RoadNetwork:
    """A road network for one vehicle class: m roads, E connections.

    Compare networks by `hash`, not by `==`.
    """

    path: Path  # the .net.xml or .net.xml.gz it was read from
    vclass: str  # SUMO's vehicle class that may use every road
    road_ids: tuple[str, ...]  # [m] SUMO edge ids, sorted
    connections: NDArray[np.int32]  # [E, 2] (from road, to road), sorted, unique
    first: NDArray[np.int32]  # [m + 1] connections of road s are rows first[s]:first[s + 1]
    turn: NDArray[np.int8]  # [E] index into TURNS
    allowed: NDArray[np.bool_]  # [E] False: nobody may choose it; U-turns start False
    length: NDArray[np.float32]  # [m] metres
    speed: NDArray[np.float32]  # [m] metres per second, the limit of the fastest usable lane
    lanes: NDArray[np.int16]  # [m] lanes the class may use
    start_xy: NDArray[np.float32]  # [m, 2] metres, first point of the road
    end_xy: NDArray[np.float32]  # [m, 2] metres, last point of the road
    signal: NDArray[np.bool_]  # [m] a traffic light at the junction where the road ends
    priority: NDArray[np.int16]  # [m] SUMO's edge priority, larger is more important
    shapes: tuple[NDArray[np.float32], ...]  # [m] of [points, 2] metres, for drawing
    lane_ids: tuple[tuple[str, ...], ...]  # [m] of [lanes] SUMO lane ids the class may use
    closed_ids: frozenset[str]  # SUMO edges of the same file that the class may not use
    junction_count: int  # junctions of the file, whoever uses them; those inside junctions do not count
    signal_count: int  # of these, with a traffic light

    def __repr__(self) -> str:
        return f"RoadNetwork({str(self.path)!r}, {self.road_count} roads, {self.connection_count} connections)"

    @property
    def road_count(self) -> int:
        """m."""
        return len(self.road_ids)

    @property
    def connection_count(self) -> int:
        """E, allowed or not."""
        return len(self.connections)

    @cached_property
    def to(self) -> NDArray[np.int32]:
        """[E] the road each connection leads to: the second column of `connections`, contiguous."""
        return np.ascontiguousarray(self.connections[:, 1])

    @cached_property
    def metres(self) -> NDArray[np.float32]:
        """[E] length of the road each connection leads to."""
        return self.length[self.to]

    @cached_property
    def index(self) -> dict[str, int]:
        """Road id -> row."""
        return {road: row for row, road in enumerate(self.road_ids)}

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of all that decides what can be driven: networks with one hash have the same rows."""
        digest = hashlib.sha256("\n".join((self.vclass, *self.road_ids)).encode())
        for array in (self.connections, self.turn, self.allowed, self.length, self.speed, self.lanes):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def with_allowed(self, allowed: ArrayLike) -> RoadNetwork:
        """The same network under another mask ([E] bool)."""
        mask = np.array(allowed, dtype=bool)
        if mask.shape != self.allowed.shape:
            raise ValueError(f"allowed has shape {mask.shape}, not [{self.connection_count}]")
        return replace(self, allowed=mask)

    def successors(self, road: int) -> NDArray[np.int32]:
        """Rows of the roads that may be chosen at the end of `road`, ascending."""
        rows = slice(self.first[road], self.first[road + 1])
        return self.connections[rows, 1][self.allowed[rows]]

    def choice_roads(self) -> NDArray[np.bool_]:
        """[m] True where a driver has more than one allowed way to go on."""
        out = np.bincount(self.connections[self.allowed, 0], minlength=self.road_count)
        return out > 1

    def find_connections(self, from_road: ArrayLike, to_road: ArrayLike) -> NDArray[np.int32]:
        """Rows of `connections` for pairs of roads (any common shape); -1 where no connection joins them."""
        key = np.asarray(from_road, dtype=np.int64) * self.road_count + np.asarray(to_road, dtype=np.int64)
        known = self.connections[:, 0].astype(np.int64) * self.road_count + self.connections[:, 1]
        if not len(known):
            return np.full(key.shape, -1, dtype=np.int32)
        row = np.minimum(np.searchsorted(known, key), len(known) - 1)
        return np.where(known[row] == key, row, -1).astype(np.int32)

    def graph(self, cost: ArrayLike | None = None, mask: ArrayLike | None = None) -> csr_array:
        """The roads as nodes of a sparse [m, m] graph, one arc per connection of `mask` (default: `allowed`).

        An arc costs what `cost` [m] (positive; default 1) says of the road it leads to.
        """
        arcs = self.connections[self.allowed if mask is None else np.asarray(mask, dtype=bool)]
        weight = np.ones(self.road_count) if cost is None else np.asarray(cost, dtype=float)
        shape = (self.road_count, self.road_count)
        return csr_array((weight[arcs[:, 1]], (arcs[:, 0], arcs[:, 1])), shape=shape)


def load_network(path: str | Path, vclass: str = "passenger") -> RoadNetwork:
    """Read a SUMO network (.net.xml or .net.xml.gz, any version sumolib reads) for one vehicle class.

    Raises InputError if the file is missing, is not a SUMO network, or has no road for the class.
    """
    path = Path(path)
    net = _read(path, vclass)
    edges = [edge for edge in net.getEdges(withInternal=False) if edge.getFunction() in ("", "normal")]
    if not edges:
        raise InputError(f"{path}: no road in it; expected a SUMO network (<net> with <edge>), made with netconvert")
    roads = sorted((edge for edge in edges if edge.allows(vclass)), key=lambda edge: edge.getID())
    if not roads:
        raise InputError(
            f"{path}: none of its {len(edges)} roads allows vehicle class {vclass!r}; "
            "choose another class or check the lanes' `allow` and `disallow`"
        )
    usable = [[lane for lane in road.getLanes() if lane.allows(vclass)] for road in roads]
    shapes = tuple(np.array(road.getShape(), dtype=np.float32) for road in roads)
    signals = {node.getID() for node in net.getNodes() if node.getType().startswith(_SIGNAL)}
    connections, turn = _connections(roads, vclass)
    return RoadNetwork(
        path=path,
        vclass=vclass,
        road_ids=tuple(road.getID() for road in roads),
        connections=connections,
        first=np.searchsorted(connections[:, 0], np.arange(len(roads) + 1)).astype(np.int32),
        turn=turn,
        allowed=turn != UTURN,
        length=np.array([lanes[0].getLength() for lanes in usable], dtype=np.float32),
        speed=np.array([max(lane.getSpeed() for lane in lanes) for lanes in usable], dtype=np.float32),
        lanes=np.array([len(lanes) for lanes in usable], dtype=np.int16),
        start_xy=np.array([shape[0] for shape in shapes], dtype=np.float32),
        end_xy=np.array([shape[-1] for shape in shapes], dtype=np.float32),
        signal=np.array([road.getToNode().getID() in signals for road in roads], dtype=bool),
        priority=np.array([road.getPriority() for road in roads], dtype=np.int16),
        shapes=shapes,
        lane_ids=tuple(tuple(lane.getID() for lane in lanes) for lanes in usable),
        closed_ids=frozenset(edge.getID() for edge in edges if not edge.allows(vclass)),
        junction_count=len(net.getNodes()),
        signal_count=len(signals),
    )


def reachable_from(network: RoadNetwork, sources: Sequence[int] | NDArray[np.int32]) -> NDArray[np.bool_]:
    """[sources, m] True where a vehicle on the source road can get to the end road by allowed connections.

    A road reaches itself. One breadth-first search per source: take the distinct origins, not the vehicles.
    """
    graph = network.graph()
    reached = np.zeros((len(sources), network.road_count), dtype=bool)
    for row, source in enumerate(sources):
        reached[row, breadth_first_order(graph, int(source), return_predecessors=False)] = True
    return reached


def _read(path: Path, vclass: str) -> Any:
    known = sumolib.net.lane.SUMO_VEHICLE_CLASSES
    if vclass not in known:
        raise InputError(f"SUMO knows no vehicle class {vclass!r}; expected one of {', '.join(sorted(known))}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a SUMO network (.net.xml or .net.xml.gz)")
    try:  # lxml=False: one parser, one kind of error, whatever else is installed
        return sumolib.net.readNet(str(path), withFoes=False, lxml=False, maxcache=0)
    except SAXParseException as error:
        raise InputError(
            f"{path}, line {error.getLineNumber()}: not well-formed XML ({error.getMessage()}); expected a SUMO network"
        ) from error
    except (SAXException, OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a SUMO network") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: not a SUMO network that sumolib understands ({type(error).__name__}: {error}); "
            "write it anew with netconvert"
        ) from error


def _connections(roads: list[Any], vclass: str) -> tuple[NDArray[np.int32], NDArray[np.int8]]:
    """Connections [E, 2] and turns [E] of the roads, over lanes which the class may use on both sides."""
    index = {road.getID(): row for row, road in enumerate(roads)}
    turns: dict[tuple[int, int], int] = {}
    for row, road in enumerate(roads):
        for target, joints in road.getOutgoing().items():
            column = index.get(target.getID())
            found = [_TURN_OF_DIR.get(joint.getDirection(), 0) for joint in joints if _permits(joint, vclass)]
            if column is not None and found:
                turns[row, column] = min(found)  # where the lanes of a pair disagree, the plainest name wins
    pairs = sorted(turns)
    return (
        np.array(pairs, dtype=np.int32).reshape(-1, 2),
        np.array([turns[pair] for pair in pairs], dtype=np.int8),
    )


def _permits(joint: Any, vclass: str) -> bool:
    """Whether the class may use a lane-to-lane connection and the lanes on both sides of it."""
    return all(part.allows(vclass) for part in (joint, joint.getFromLane(), joint.getToLane()))
