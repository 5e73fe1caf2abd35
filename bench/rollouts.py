"""Single rollouts against the plain sumo binary."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

from measure import Result, compared, here, in_turns, plain_sumo, ratio, side_by_side, spread
from throng.scenarios.demand import Routes
from throng.workers import libsumo_binding
from throng.workers.junction import JunctionControl
from throng.workers.sumo import SumoRollout
from throng.workers.sumo_files import Fidelity, SumoFiles
from town import SEED, Town, scratch, town


def options(
    home: Town, routes: Routes | tuple[str, ...], name: str, fidelity: Fidelity = "micro", quiet: bool = False
) -> list[str]:
    """Arguments with which the plain binary drives these routes, from files of its own in `name`."""
    directory = scratch() / name
    directory.mkdir(exist_ok=True)
    files = SumoFiles(home.case.scenario, directory)
    files.write_routes(routes)
    return files.options(SEED, fidelity, quiet, home.case.scenario.observe_speed)


def pretrip(quick: bool) -> list[Result]:
    """A whole `SumoRollout.run` in a warm process against the whole process of the plain binary."""
    home = town(1557)
    arguments = options(home, home.routes, "pretrip")
    ours, plain = side_by_side(2 if quick else 11, lambda: home.rollout.run(home.routes, SEED), arguments)
    return [Result("pretrip rollout / plain sumo", ratio(ours, plain), 1.15, "lower", spread(ours, plain))]


def junction(quick: bool) -> list[Result]:
    """Junction routing against the plain binary that replays the routes the vehicles drove in the end."""
    home = town(1557)
    scenario = home.case.scenario
    policy = home.learner.junction_policy(home.z, home.queue)
    decisions: list[int] = []

    def ours() -> None:
        control = JunctionControl(scenario, policy, home.routes)
        home.rollout.run(home.routes, SEED, control=control)
        decisions.append(len(control.decisions))

    rounds = 2 if quick else 9
    mine, driven = side_by_side(rounds, ours, options(home, _driven(home), "driven"))
    again, planned = side_by_side(rounds, ours, options(home, home.routes, "planned"))
    detail = (
        f"floor: the driven routes (SUMO's vehroute output), replayed; {spread(mine, driven)}; "
        f"against the planned routes {ratio(again, planned):.3f}; {decisions[-1]} decisions"
    )
    return [Result("junction rollout / plain sumo", ratio(mine, driven), 1.4, "lower", detail)]


def _driven(home: Town) -> tuple[str, ...]:
    """The roads every vehicle had on its route at the end of a junction rollout, driven ones first."""
    path = scratch() / "driven.xml"
    told = ("--vehroute-output", str(path), "--vehroute-output.last-route", "true",
            "--vehroute-output.write-unfinished", "true")  # fmt: skip
    scenario = replace(home.case.scenario, options=(*home.case.scenario.options, *told))
    policy = home.learner.junction_policy(home.z, home.queue)
    with SumoRollout(scenario) as rollout:
        rollout.run(home.routes, SEED, control=JunctionControl(scenario, policy, home.routes))
    libsumo_binding.close()  # completes the file
    vehicles = ET.parse(path).getroot().iter("vehicle")
    edges = {vehicle.attrib["id"]: vehicle[-1].attrib["edges"] for vehicle in vehicles}
    network, demand = scenario.network, scenario.demand
    planned = (" ".join(network.road_ids[road] for road in home.routes.route(i)) for i in range(len(demand)))
    return tuple(edges.get(name, plan) for name, plan in zip(demand.ids, planned, strict=True))


def mesoscopic(quick: bool) -> list[Result]:
    """How much cheaper a candidate's first judgement is."""
    home = town(1557)
    arguments = options(home, home.routes, "meso", "meso")
    costs = in_turns(
        2 if quick else 7,
        {
            "micro": lambda: here(lambda: home.rollout.run(home.routes, SEED)),
            "meso": lambda: here(lambda: home.rollout.run(home.routes, SEED, "meso")),
            "plain": lambda: plain_sumo(arguments),
        },
    )
    value = ratio(costs["micro"], costs["meso"])
    detail = (
        f"{compared(costs['micro'], costs['meso'])}; "
        f"ours / plain sumo --mesosim {ratio(costs['meso'], costs['plain']):.3f}"
    )
    return [Result("micro rollout / mesoscopic rollout", value, 5.0, "higher", detail)]
