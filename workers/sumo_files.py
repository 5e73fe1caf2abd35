"""The files and options with which SUMO runs a scenario: written once per worker, routes once per rollout."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import quoteattr

from ..scenarios.demand import Routes
from ..scenarios.scenario import Scenario

Fidelity = Literal["micro", "meso"]
# Chosen on one demand of the town, held out on another: candidates rank as in micro (Spearman 0.92 to 0.96).
MESO = (
    "--mesosim", "true", "--meso-junction-control", "true", "--meso-tauff", "1.8", "--meso-taufj", "1.8",
    "--meso-taujf", "2.4", "--meso-minor-penalty", "2", "--meso-jam-threshold", "0.3",
)  # fmt: skip
QUIET_TYPE = {"sigma": "0", "speedDev": "0"}


class SumoFiles:
    """SUMO inputs of one scenario in one directory (which belongs to the caller)."""

    def __init__(self, scenario: Scenario, directory: Path) -> None:
        self.scenario = scenario
        self.directory = directory
        self.routes = directory / "routes.rou.xml"
        self.edge_data = directory / "edges.out.xml"
        self.trip_data = directory / "trips.out.xml"
        demand = scenario.demand
        self._heads = [
            f'<vehicle id={quoteattr(name)} depart="{depart:.2f}" {attributes}><route edges="'
            for name, depart, attributes in zip(demand.ids, demand.depart, demand.attributes, strict=True)
        ]
        self._names = [quoteattr(road)[1:-1] for road in scenario.network.road_ids]
        self.infrastructure = directory / "infrastructure.add.xml"
        self.background = directory / "background.rou.xml"
        self.types = {quiet: directory / f"types-{quiet}.add.xml" for quiet in (False, True)}
        self.infrastructure.write_text(f"<additional>\n{scenario.infrastructure}\n</additional>\n")
        self.background.write_text(f"<routes>\n{demand.background}\n</routes>\n")
        self.types[False].write_text(f"<additional>\n{demand.types}\n</additional>\n")
        self.types[True].write_text(_quiet_types(demand.types))
        self._measure = directory / "measure.add.xml"
        self._measure.write_text(
            '<additional><edgeData id="throng" freq="60" excludeEmpty="true" file='
            f"{quoteattr(str(self.edge_data))}/></additional>\n"
        )

    def write_routes(self, routes: Routes | tuple[str, ...]) -> None:
        """Writes the learnt vehicles in departure order, with routes as rows of the network or as SUMO edge ids."""
        lines = ["<routes>\n"]
        for head, edges in zip(self._heads, self._edges(routes), strict=True):
            lines += (head, edges, '"/></vehicle>\n')
        lines.append("</routes>\n")
        self.routes.write_text("".join(lines))

    def _edges(self, routes: Routes | tuple[str, ...]) -> Iterable[str]:
        if isinstance(routes, tuple):
            return (quoteattr(edges)[1:-1] for edges in routes)
        names = self._names
        ids = [names[road] for road in routes.roads.tolist()]
        offsets = routes.offsets.tolist()
        return (" ".join(ids[offsets[i] : offsets[i + 1]]) for i in range(len(routes)))

    def options(self, seed: int, fidelity: Fidelity, quiet: bool, measure: bool) -> list[str]:
        """Arguments of the sumo command (without its name) for the routes written last."""
        scenario = self.scenario
        additional = [self.types[quiet], self.infrastructure, *([self._measure] if measure else [])]
        return [
            "--net-file", str(scenario.network.path),
            "--route-files", f"{self.routes},{self.background}",
            "--additional-files", ",".join(map(str, additional)),
            "--begin", str(scenario.begin),
            "--end", str(scenario.end),
            "--step-length", str(scenario.step_length),
            "--seed", str(seed % 2**31),
            "--no-step-log", "true",
            "--no-warnings", "true",
            "--duration-log.disable", "true",
            "--xml-validation", "never",
            *(("--tripinfo-output", str(self.trip_data)) if scenario.observe_trips else ()),
            *(MESO if fidelity == "meso" else ()),
            *scenario.options,
        ]  # fmt: skip


def _quiet_types(types: str) -> str:
    """The vehicle types without driver noise: no dawdling, everybody drives at the type's mean speed factor."""
    root = ET.fromstring(f"<additional>{types}</additional>")
    for element in root.iter("vType"):
        element.attrib.update(QUIET_TYPE)
        factor = element.get("speedFactor", "")
        if factor.startswith("norm"):  # normc(mean, deviation, min, max)
            element.set("speedFactor", factor.split("(")[1].split(",")[0].strip(" )"))
    if root.find("./vType[@id='DEFAULT_VEHTYPE']") is None:
        ET.SubElement(root, "vType", {"id": "DEFAULT_VEHTYPE", **QUIET_TYPE})
    return ET.tostring(root, encoding="unicode")
