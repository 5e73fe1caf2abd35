"""SUMO's own tools on the same case: what its users have for matching traffic, at the same number of simulations.

`duaIterate.py` knows the trips and no observation: it looks for the routes on which nobody could be faster (a stochastic
user equilibrium). `routeSampler.py` looks for vehicles that pass the roads as often as was counted; it knows counts that
no other method sees, and no preferences that could be carried to another network.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import numpy as np
import sumo
from numpy.typing import NDArray

from ..scenarios.demand import Routes
from ..scenarios.demand_xml import PEOPLE
from ..scenarios.errors import InputError
from ..scenarios.scenario import Scenario
from ..scenarios.sumo_xml import elements
from ..workers.simulator import Job
from ..workers.sumo_files import SumoFiles
from .workbench import Workbench, observation_seed

BIN, TOOLS = Path(sumo.SUMO_HOME) / "bin", Path(sumo.SUMO_HOME) / "tools"
# Options of sumo that duaIterate.py passes itself: they are given to it under its own names.
_DUA_OPTIONS = frozenset({"--time-to-teleport", "--time-to-teleport.highways", "--eager-insert", "--route-steps"})
# Seconds that make a U-turn the last resort, as it is for the learnt drivers: 4 % of the town's would turn at dead ends.
U_TURNS = "--weights.turnaround-penalty=100000"
# routeSampler, chosen on the town (truths 0 and 1, RMSE of queues): counts per minute 1.06 and 1.10, per 5 minutes 1.11
# and 1.23; random factors of 1.5 and 3 differ by 0.02. Given the counts of origins and destinations too, it was not done
# within nine minutes.
DRAWS = 4  # candidate routes drawn for each trip
RANDOM_FACTOR = 1.5  # duarouter multiplies each travel time by a random number from 1 to this
SHOWN = 12  # lines of a failed tool's output that the message repeats


class DoesNotApply(InputError):
    """The case lacks what the peer needs; the message says what."""


# -- user equilibrium -------------------------------------------------------------------------------------------------


def duaiterate(bench: Workbench, iterations: int, seed: int, folder: Path) -> Routes:
    """The routes of the last iteration of `duaIterate.py`: stochastic user equilibrium, nothing observed goes in.

    Each iteration routes all trips by the travel times of the iteration before (the first: free flow) and simulates them
    microscopically once, with the case's background traffic, additional files, step length and window. What is returned
    are the routes that the last iteration simulated. Method and parameters are the tool's defaults (Gawron's; travel times
    averaged over 15 minutes, which was no worse than over 5 on the town).

    Args:
        iterations: microscopic simulations to spend.
        seed: of the route choice and of the simulations.
        folder: for the tool's files (megabytes per iteration), made if it is not there; the caller removes it.

    Raises:
        InputError: the tool failed (with its last words), or left a vehicle without a route.
    """
    if iterations < 1:
        raise InputError(f"duaIterate.py: {iterations} iterations; give at least 1, each costs one simulation")
    scenario, folder = bench.case.scenario, _made(folder)
    files, trips, types = SumoFiles(scenario, folder), _write_trips(scenario, folder), _write_types(scenario, folder)
    additional = ",".join(map(str, (files.types[False], files.infrastructure, files.background)))
    command = [
        f"--net-file={scenario.network.path}",
        f"--trips={trips}",
        f"--additional={additional}",
        f"--begin={scenario.begin}",
        f"--end={scenario.end}",
        f"--last-step={iterations}",
        f"--path={BIN}",
        "--no-gzip",
        "--clean-alt",
        "--disable-summary",
        "--disable-tripinfos",
        *_dua_options(scenario),
        f"duarouter--additional-files={types}",
        f"duarouter--vtype-output={folder / 'routed_types.xml'}",
        f"duarouter{U_TURNS}",
        f"duarouter--seed={seed % 2**31}",
        f"sumo--seed={seed % 2**31}",
        f"sumo--step-length={scenario.step_length}",
        "sumo--xml-validation=never",
    ]
    deadline = iterations * (bench.case.config.workers.deadline + 60.0)
    _run_tool("assign/duaIterate.py", command, folder, deadline, folder / "dua.log")
    last = iterations - 1
    result = folder / f"{last:03d}" / f"trips_{last:03d}.rou.xml"
    return _rows({vehicle: edges for vehicle, _, edges in _vehicles(result)}, scenario, result)


def _dua_options(scenario: Scenario) -> list[str]:
    """The case's further options of sumo, as duaIterate.py wants them: its own first, then `sumo--name=value`."""
    words: list[str] = []
    for word in scenario.options:
        if word.startswith("--"):
            words.append(word)
        elif words:
            words[-1] += f"={word}"
    own = [word for word in words if word.split("=")[0] in _DUA_OPTIONS]
    return own + [f"sumo{word}" for word in words if word not in own]


def _rows(edges: dict[str, str], scenario: Scenario, source: Path) -> Routes:
    """Routes of the scenario's vehicles as rows of the network, from edge ids by vehicle."""
    ids, index = scenario.demand.ids, scenario.network.index
    missing = [vehicle for vehicle in ids if vehicle not in edges]
    if missing:
        raise InputError(
            f"duaIterate.py left {len(missing)} of {len(ids)} vehicles without a route, {missing[0]!r} first ({source}); "
            "check that their types may use the roads of their trips"
        )
    try:
        return Routes.from_lists([[index[edge] for edge in edges[vehicle].split()] for vehicle in ids])
    except KeyError as error:
        raise InputError(
            f"duaIterate.py uses road {error.args[0]!r}, which is closed to {scenario.network.vclass}: some learnt "
            "vehicle has a built-in type that may use it; define a type of your own for it"
        ) from error


# -- vehicles sampled to counts ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Sampled:
    """Other vehicles in place of the learnt ones; background traffic stays."""

    scenario: Scenario
    routes: tuple[str, ...]  # [sampled vehicles] SUMO edge ids, one space between
    world: str  # the scenario's name in the pool

    def job(self, key: str, seed: int) -> Job:
        """One simulation of them."""
        return Job(key, seed, routes=self.routes, world=self.world)


def route_sampler(bench: Workbench, seed: int, folder: Path) -> Sampled:
    """Vehicles that `routeSampler.py --optimize full` puts on the roads to meet counts; it spends no simulation.

    Candidates are routes between the origins and destinations of the case's trips, DRAWS for each trip, fastest at
    travel times that duarouter multiplies at random. The counts are those of the observed table or, in a synthetic study,
    those of the very simulation that stands for the observation: **this peer sees counts of all roads, which the other
    methods do not see** (they see the target alone). The counts of the background alone, from a simulation of its own, are
    taken off. How many vehicles there are and when they depart it decides itself.
    A sampled vehicle takes its type and other attributes from the trip of the same origin and destination that
    departs nearest to it.

    Args:
        seed: of the candidates and of the sampling.
        folder: for the tools' files, made if it is not there; the caller removes it.

    Raises:
        DoesNotApply: the observed table holds no counts.
        InputError: a tool failed (with its last words), or no vehicle fits into the counts: to the tool a vehicle passes
            all roads of its route within one minute.
    """
    case = bench.case
    scenario, deadline = case.scenario, case.config.workers.deadline
    entered = _counts(bench)
    folder = _made(folder)
    counts = folder / "counts.xml"
    counts.write_text(_edge_counts(entered, scenario))
    trips, types = _write_trips(scenario, folder), _write_types(scenario, folder)
    candidates = []
    for draw in range(DRAWS):
        candidates.append(folder / f"candidates{draw}.rou.xml")
        options = [
            f"--net-file={scenario.network.path}",
            f"--route-files={trips}",
            f"--additional-files={types}",
            f"--vtype-output={folder / 'routed_types.xml'}",
            f"--output-file={candidates[-1]}",
            f"--weights.random-factor={RANDOM_FACTOR}",
            U_TURNS,
            f"--seed={(seed + draw) % 2**31}",
            f"--begin={scenario.begin}",
            f"--end={scenario.end}",
            "--no-step-log",
            "--xml-validation=never",
        ]
        _run([str(BIN / "duarouter"), *options], "duarouter", folder, deadline)
    result = folder / "sampled.rou.xml"
    options = [
        f"--route-files={','.join(map(str, candidates))}",
        f"--edgedata-files={counts}",
        f"--output-file={result}",
        f"--begin={scenario.begin}",
        f"--end={scenario.end}",
        f"--seed={seed % 2**31}",
        "--prefix=sampled",
        "--optimize=full",
    ]
    _run_tool("routeSampler.py", options, folder, scenario.minutes * deadline)  # a linear programme for each minute
    sampled = _sampled(result, scenario)
    _elsewhere(bench, sampled.world, sampled.scenario)
    return sampled


def _counts(bench: Workbench) -> NDArray[np.float32]:
    """`[roads, minutes]` vehicles to be sampled on each road: those counted less the background; NaN: not counted."""
    case = bench.case
    if case.observed is not None:
        if case.observed.kind != "count":
            raise DoesNotApply(
                f"routeSampler.py needs counts, and {case.observed.path} holds {case.observed.kind}; "
                "observe counts to compare with it"
            )
        counts = case.observed.values
    else:
        assert bench.truth_routes is not None
        # The observed simulation once more, this time with its counts: the same routes and seed give the same traffic.
        counts = _simulated_counts(bench, "peer-counts", case.scenario, bench.truth_routes)
    demand, nobody = case.scenario.demand, np.zeros(0, np.int32)
    if _drives_on(demand.background, case.scenario):
        alone = replace(demand, ids=(), origin=nobody, destination=nobody, depart=np.zeros(0), attributes=())
        counts = counts - _simulated_counts(bench, "peer-background", replace(case.scenario, demand=alone), ())
    return np.maximum(counts, 0.0)


def _simulated_counts(
    bench: Workbench, key: str, scenario: Scenario, routes: Routes | tuple[str, ...]
) -> NDArray[np.float32]:
    seed = observation_seed(bench.case.config)
    _elsewhere(bench, key, replace(scenario, observe_speed=True))
    macro = bench.must([Job(key, seed, routes=routes, world=key)])[0].macro
    assert macro is not None
    assert macro.count is not None
    return macro.count


def _elsewhere(bench: Workbench, world: str, scenario: Scenario) -> None:
    """Lets the workers simulate given routes in another scenario."""
    bench.simulations.pool.add(world, replace(bench.case.problem, scenario=scenario))


def _drives_on(background: str, scenario: Scenario) -> bool:
    """Whether some of the background uses roads of the network; pedestrians and trams may not."""
    index = scenario.network.index
    named = (
        element.get(key, "").split()
        for element in ElementTree.fromstring(f"<routes>{background}</routes>").iter()
        if element.tag not in PEOPLE
        for key in ("edges", "from")
    )
    return any(road in index for roads in named for road in roads)


def _edge_counts(counts: NDArray[np.float32], scenario: Scenario) -> str:
    """SUMO's edgeData by minute, of the roads that were counted in it."""
    lines, names = ["<data>"], [quoteattr(road) for road in scenario.network.road_ids]
    for minute in range(scenario.minutes):
        begin = scenario.begin + 60.0 * minute
        lines.append(f'<interval begin="{begin}" end="{begin + 60.0}">')
        for road in np.flatnonzero(np.isfinite(counts[:, minute])):
            lines.append(f'<edge id={names[road]} entered="{round(float(counts[road, minute]))}"/>')
        lines.append("</interval>")
    return "\n".join([*lines, "</data>\n"])


def _sampled(source: Path, scenario: Scenario) -> Sampled:
    """The scenario with the vehicles of a route file in place of the learnt ones."""
    demand, index = scenario.demand, scenario.network.index
    known: dict[tuple[int, int], list[int]] = {}
    for row, trip in enumerate(zip(demand.origin.tolist(), demand.destination.tolist(), strict=True)):
        known.setdefault(trip, []).append(row)
    vehicles = sorted((depart, vehicle, edges) for vehicle, depart, edges in _vehicles(source))
    if not vehicles:
        raise InputError(
            "routeSampler.py fits no vehicle into the counts: in no minute was somebody counted on all roads of a route; "
            "it needs denser traffic"
        )
    depart = np.array([one[0] for one in vehicles])
    routes = tuple(one[2] for one in vehicles)
    ends = [(index[edges[0]], index[edges[-1]]) for edges in (route.split() for route in routes)]
    attributes = []
    for time, trip in zip(depart, ends, strict=True):
        rows = known[trip]
        attributes.append(demand.attributes[rows[int(np.abs(demand.depart[rows] - time).argmin())]])
    sampled = replace(
        demand,
        ids=tuple(one[1] for one in vehicles),
        origin=np.array([trip[0] for trip in ends], np.int32),
        destination=np.array([trip[1] for trip in ends], np.int32),
        depart=depart,
        attributes=tuple(attributes),
    )
    elsewhere = replace(scenario, name=f"{scenario.name}, sampled", demand=sampled)
    return Sampled(elsewhere, routes, f"sampled-{zlib.crc32(source.read_bytes()):08x}")


# -- the tools --------------------------------------------------------------------------------------------------------


def _made(folder: Path) -> Path:
    """The folder, there and absolute: the tools run inside it."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def _write_trips(scenario: Scenario, folder: Path) -> Path:
    """The learnt vehicles as bare trips."""
    demand, names = scenario.demand, [quoteattr(road) for road in scenario.network.road_ids]
    lines = [
        f'<trip id={quoteattr(name)} depart="{depart:.2f}" from={names[origin]} to={names[destination]} {attributes}/>'
        for name, depart, origin, destination, attributes in zip(
            demand.ids, demand.depart, demand.origin, demand.destination, demand.attributes, strict=True
        )
    ]
    path = folder / "trips.trips.xml"
    path.write_text("\n".join(["<routes>", *lines, "</routes>\n"]))
    return path


def _write_types(scenario: Scenario, folder: Path) -> Path:
    """The vehicle types as duarouter is to see them: all of the network's class, so that nobody is sent over roads that
    learnt vehicles do not use (Bologna's residents may take bus roads, and duarouter would send them there)."""
    root = ElementTree.fromstring(f"<additional>{scenario.demand.types}</additional>")
    for element in root.iter("vType"):
        element.set("vClass", scenario.network.vclass)
    path = folder / "routing_types.add.xml"
    path.write_text(ElementTree.tostring(root, encoding="unicode"))
    return path


def _vehicles(path: Path) -> Iterator[tuple[str, float, str]]:
    """Id, departure (seconds) and SUMO edge ids of every vehicle with a route in a file that a tool wrote."""
    for element in elements(path, "vehicles with routes"):
        route = element.find("route")
        if element.tag == "vehicle" and route is not None:
            yield element.attrib["id"], float(element.attrib["depart"]), route.attrib["edges"]


def _run_tool(script: str, options: Sequence[str], folder: Path, deadline: float, log: Path | None = None) -> None:
    command = [sys.executable, str(TOOLS / script), *options]
    _run(command, script.split("/")[-1], folder, deadline, log)


def _run(command: list[str], name: str, folder: Path, deadline: float, log: Path | None = None) -> None:
    """Runs a program in `folder`, in a process group of its own: what it starts ends with it.

    Raises:
        InputError: it cannot be started, fails, or takes longer than `deadline` seconds; with its last words.
    """
    environment = os.environ | {"SUMO_HOME": str(sumo.SUMO_HOME), "PYTHONHASHSEED": "0"}
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
        )
    except OSError as error:
        raise InputError(f"{name} cannot be started ({error}); reinstall the eclipse-sumo package") from error
    try:
        said, _ = process.communicate(timeout=deadline)
    except BaseException as error:  # too late, or Ctrl-C
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise InputError(f"{name} took longer than {deadline:.0f} s; raise workers.deadline") from error
        raise
    if process.returncode:
        if log is not None and log.is_file():
            said += log.read_text(errors="replace")
        lines = [line for line in said.splitlines() if line.strip()]
        wrong = [line for line in lines if "error" in line.lower()] or lines
        shown = "\n  ".join(wrong[-SHOWN:])
        raise InputError(f"{name} failed (exit {process.returncode}):\n  {shown}\nIts files: {folder}")
