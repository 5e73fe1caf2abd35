"""What SUMO's demand and additional files hold: types, routes, who departs when; and what is left to SUMO.

Nothing here knows the road network; `demand.py` decides who is learnt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .sumo_xml import elements, seconds, text_of

VEHICLES = frozenset({"vehicle", "trip", "flow"})
PEOPLE = frozenset({"person", "personFlow", "container", "containerFlow"})
# Departures that other traffic triggers: such vehicles have no departure time of their own.
TRIGGERED = frozenset({"triggered", "containerTriggered", "split"})
ALWAYS = -math.inf  # departure of what must be there from the start, whatever the window
# SUMO's types that no file has to define.
BUILT_IN_TYPES = {
    "DEFAULT_VEHTYPE": "passenger",
    "DEFAULT_TAXITYPE": "taxi",
    "DEFAULT_BIKETYPE": "bicycle",
    "DEFAULT_RAILTYPE": "rail",
    "DEFAULT_PEDTYPE": "pedestrian",
    "DEFAULT_CONTAINERTYPE": "container",
}
_EXPECTED = "SUMO routes, trips, flows or additional elements"
_FLOW_ONLY = frozenset({"begin", "end", "number", "period", "vehsPerHour", "perHour", "probability"})
# Elements that only draw or write; they are left out of the copy that SUMO gets.
_OUTPUT_ONLY = frozenset({"edgeData", "laneData", "timedEvent", "vTypeProbe", "poly", "poi", "location", "param"})
_OUTPUT_ATTRIBUTES = {  # of elements that act on traffic too: their files are sent to nowhere
    "e1Detector": "file",
    "inductionLoop": "file",
    "instantInductionLoop": "file",
    "e2Detector": "file",
    "laneAreaDetector": "file",
    "e3Detector": "file",
    "entryExitDetector": "file",
    "routeProbe": "file",
    "calibrator": "output",
}


@dataclass(slots=True)
class Entry:
    """One vehicle as the files give it; the vehicles of a flow share its element."""

    id: str
    depart: float  # seconds, or ALWAYS
    element: Element  # <vehicle>, <trip>, <flow>, or one of PEOPLE
    file: Path

    def fail(self, problem: str) -> InputError:
        """The error to raise about this vehicle."""
        return InputError(f"{self.element.tag} {self.id!r} in {self.file}: {problem}")

    def xml(self, vehicle_type: str | None = None) -> str:
        """The element as text; a flow becomes the one vehicle, `vehicle_type` replaces its type."""
        element = self.element
        if element.tag == "flow" and self.depart != ALWAYS:
            kept = {key: value for key, value in element.attrib.items() if key not in _FLOW_ONLY}
            routed = "route" in kept or element.find("route") is not None
            kept |= {"id": self.id, "depart": f"{self.depart:.3f}"}
            element = Element("vehicle" if routed else "trip", kept)
            element.extend(list(self.element))
        if vehicle_type is not None:
            children = list(element)
            element = Element(element.tag, element.attrib | {"type": vehicle_type})
            element.extend(children)
        return text_of(element)


@dataclass(frozen=True)
class Alternative:
    """One member of a distribution of types (`name` is a type id) or of routes (`name` is the edge list)."""

    name: str
    weight: float


@dataclass
class Contents:
    """What the files hold, sorted by kind, not yet by departure."""

    types: dict[str, str] = field(default_factory=dict)  # top-level type or distribution id -> XML
    members: dict[str, tuple[Alternative, ...]] = field(default_factory=dict)  # distribution id -> type ids
    vclass: dict[str, str] = field(default_factory=BUILT_IN_TYPES.copy)  # type id -> SUMO vehicle class
    routes: dict[str, Element] = field(default_factory=dict)  # named <route> and <routeDistribution>
    entries: list[Entry] = field(default_factory=list)  # vehicles and people departing in the window
    infrastructure: list[str] = field(default_factory=list)  # XML of all else: stops, signals, detectors
    outside: int = 0  # vehicles, flows and people departing outside the window
    span: tuple[float, float] = (math.inf, -math.inf)  # seconds, first and last departure of all vehicles


def read_contents(files: list[Path], begin: float, end: float, generator: np.random.Generator) -> Contents:
    """Read additional and demand files; keep who departs in [begin, end) seconds.

    Raises InputError for files that are missing or malformed, ids given twice, and times that are none.
    """
    contents = Contents()
    seen: dict[tuple[str, str], Path] = {}
    for file in files:
        for element in elements(file, _EXPECTED):
            tag = element.tag
            if tag in VEHICLES or tag in PEOPLE:
                name = _id(element, file)
                kind = "person" if tag in PEOPLE else "flow" if tag == "flow" else "vehicle"
                _once(seen, (kind, name), file)
                _add_departures(contents, Entry(name, ALWAYS, element, file), begin, end, generator)
            elif tag in ("vType", "vTypeDistribution"):
                _add_type(contents, element, file)
            elif tag in ("route", "routeDistribution"):
                name = _id(element, file)
                _once(seen, ("route", name), file)
                contents.routes[name] = element
            elif tag in ("include", "interval"):
                raise InputError(f"{file}: <{tag}> is not supported; list the file itself, write the flows plainly")
            elif tag not in _OUTPUT_ONLY:
                contents.infrastructure.append(text_of(_without_output(element, file.parent)))
    return contents


def flow_departures(
    flow: Mapping[str, str], begin: float, end: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Departures (seconds, ascending) of a flow in [begin, end), as SUMO has them if it begins at `begin`.

    Equidistant flows (`number`, `period`, `vehsPerHour`) are SUMO's to the millisecond. Random ones
    (`probability`, `period="exp(rate)"`) follow its rule with our generator. An open flow lasts until `end`.
    Raises ValueError.
    """
    rates = [key for key in ("period", "vehsPerHour", "perHour", "probability") if key in flow]
    number = int(flow["number"]) if "number" in flow else None
    if len(rates) > 1 or (rates and number is not None and "end" in flow):
        raise ValueError("expected one of period, vehsPerHour and probability, with end or number, not both")
    if not rates and number is None:
        raise ValueError("expected one of number, period, vehsPerHour and probability, got none")
    start = seconds(flow["begin"]) if "begin" in flow else begin
    stop = seconds(flow["end"]) if "end" in flow else max(end, start)
    if not 0 <= start <= stop or (number is not None and number < 0):
        raise ValueError(f"begin {start:g}, end {stop:g}, number {number}: one is negative or end < begin")
    poisson = flow.get("period", "").startswith("exp(")
    text = flow[rates[0]].removeprefix("exp(").rstrip(") ") if rates else ""
    value = (seconds(text) if rates == ["period"] else float(text)) if rates else math.nan
    if value <= 0 or (rates == ["probability"] and value > 1):
        raise ValueError(f"{rates[0]} {text} is out of range")
    if poisson or rates == ["probability"]:
        span = (max(start, begin), max(start, begin, min(stop, end)))
        if poisson:  # given their number, Poisson arrivals are uniform
            times = np.sort(generator.uniform(*span, generator.poisson(value * (span[1] - span[0]))))
        else:
            clock = np.arange(*span)
            times = clock[generator.random(len(clock)) < value]
        return np.asarray(times[:number].round(3), dtype=np.float64)
    first, last = round(start * 1000), round(stop * 1000)  # SUMO counts in whole milliseconds
    if not rates:
        step = (last - first) // max(number or 0, 1)
    else:
        step = max(round(1000 * (value if rates == ["period"] else 3600 / value)), 1)
    count = number if number is not None else math.ceil((last - first) / step)
    times = (first + step * np.arange(count)) / 1000
    return times[(times >= begin) & (times < end)]


def _add_departures(contents: Contents, entry: Entry, begin: float, end: float, generator: np.random.Generator) -> None:
    """File a vehicle or person, or the vehicles of a flow, under their departures in the window."""
    attributes = dict(entry.element.attrib)
    tag = entry.element.tag
    key = "begin" if tag.lower().endswith("flow") else "depart"
    if attributes.get(key, "begin" if key == "begin" else "") == "begin":
        attributes[key] = str(float(begin))  # of the simulation
    if key not in attributes:
        raise entry.fail("it has no depart; give seconds or hours:minutes:seconds")
    if attributes[key] in TRIGGERED:
        contents.entries.append(entry)
        return
    if attributes[key] == "now":
        raise entry.fail('depart="now" is no time; give seconds or hours:minutes:seconds')
    try:
        start = seconds(attributes[key])
        stop = seconds(attributes["end"]) if key == "begin" and "end" in attributes else start
        if start < 0:
            raise ValueError(f"{key} {start:g} is negative")
        if tag == "flow":
            times = flow_departures(attributes, begin, end, generator)
        else:  # a flow of people stays one element, wherever in the window it begins
            times = np.array([start] if start < end and max(start, stop) >= begin else [])
    except ValueError as error:
        raise entry.fail(f"{error}; times are seconds or hours:minutes:seconds") from error
    if tag in VEHICLES:
        contents.span = (min(contents.span[0], start), max(contents.span[1], start, stop))
    contents.outside += not len(times)
    for number, depart in enumerate(times.tolist()):
        name = f"{entry.id}.{number}" if tag == "flow" else entry.id
        contents.entries.append(Entry(name, depart, entry.element, entry.file))


def _add_type(contents: Contents, element: Element, file: Path) -> None:
    """File a type or a distribution of types; the same definition in two files counts once."""
    name = _id(element, file)
    text = text_of(element)
    if contents.types.setdefault(name, text) != text:
        raise InputError(f"{element.tag} {name!r} in {file}: defined before and differently; keep one definition")
    if element.tag == "vType":
        contents.vclass[name] = element.get("vClass", "passenger")
        return
    names, shares = element.get("vTypes", "").split(), element.get("probabilities", "").split()
    members = [Alternative(*pair) for pair in zip(names, weights(shares, len(names), name, file), strict=True)]
    for child in element.iterfind("vType"):
        inner = _id(child, file)
        contents.vclass[inner] = child.get("vClass", "passenger")
        members.append(Alternative(inner, weights([child.get("probability", "1")], 1, name, file)[0]))
    contents.members[name] = tuple(members)


def weights(texts: list[str], count: int, name: str, file: Path) -> list[float]:
    """Probabilities of the `count` members of a distribution, equal if none are given."""
    try:
        values = [float(text) for text in texts] or [1.0] * count
    except ValueError:
        values = []
    if len(values) != count or any(not value >= 0 for value in values):
        raise InputError(
            f"distribution {name!r} in {file}: its probabilities are {texts}; expected {count} numbers >= 0"
        )
    return values


def _without_output(element: Element, folder: Path) -> Element:
    """The element with its output files sent to nowhere and its input files found from anywhere."""
    for part in element.iter():
        written = _OUTPUT_ATTRIBUTES.get(part.tag)
        if written is not None and written in part.attrib:
            part.set(written, "NUL")  # SUMO's name for it on every platform
        elif "file" in part.attrib:
            part.set("file", str((folder / part.attrib["file"]).resolve()))
    return element


def _id(element: Element, file: Path) -> str:
    name = element.get("id")
    if not name:
        raise InputError(f"{file}: a <{element.tag}> without id: {text_of(element)[:80]}; give it one")
    return name


def _once(seen: dict[tuple[str, str], Path], key: tuple[str, str], file: Path) -> None:
    if key in seen:
        raise InputError(f"{key[0]} {key[1]!r} in {file}: the id is taken in {seen[key]}; ids must be unique")
    seen[key] = file
