"""A scenario: everything that stays fixed while preferences are learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .demand import Demand
from .network import RoadNetwork


@dataclass(frozen=True, eq=False)
class Scenario:
    """A road network, the vehicles to learn, what else drives there, and the time window."""

    name: str
    network: RoadNetwork
    demand: Demand
    infrastructure: str = ""  # XML of a SUMO additional file: bus stops, signal programs
    begin: float = 0.0  # s
    minutes: int = 30  # T
    step_length: float = 1.0  # s
    options: tuple[str, ...] = ()  # further options of the sumo command line, "--name", "value", …
    observe_speed: bool = False  # also record mean speeds and counts (for LCC, speed or count targets)
    observe_trips: bool = False  # also record when learnt vehicles arrive
    lanes: Literal["max", "sum"] = "max"  # queue of a road: "max" over its lanes (jam length in vehicles) or "sum"

    @property
    def end(self) -> float:
        return self.begin + 60.0 * self.minutes
