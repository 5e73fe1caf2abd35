"""`throng scenario check`: is this a case that can be learnt from?"""

from __future__ import annotations

import math

import numpy as np

from . import references as refs
from .config import Config
from .progress import Progress
from .workbench import workbench

TELEPORTS = 0.02  # of the vehicles: above, SUMO dissolves gridlock and queues mean little
UNFINISHED = 0.5  # of the vehicles still driving or waiting at the end: above, the network is over capacity
SIGNAL = 1.2  # prior error over seed floor: below, preferences leave no trace above the noise


def check_scenario(config: Config, progress: Progress) -> tuple[list[tuple[str, str]], str, bool]:
    """Rows of the table, the verdict, and whether the case can be learnt from.

    Raises:
        InputError: the inputs are wrong.
    """
    with workbench(config, None, progress) as bench:
        case = bench.case
        network, demand = case.scenario.network, case.scenario.demand
        progress.phase("floors and nulls")
        model = case.problem.preference_model()
        known = refs.measure(bench, model, config.report.reference_seeds)
    moved = known[refs.PRIOR]
    vehicles = len(demand)
    driving = float(np.mean([score["unfinished"] for score in moved.traffic])) / (vehicles + demand.background_count)
    teleports = float(np.mean([score["teleports"] for score in moved.traffic]))
    floor = known[refs.SEED_FLOOR].mean if refs.SEED_FLOOR in known else math.nan
    dropped = ", ".join(f"{count} {reason}" for reason, count in demand.notes.items()) or "none"
    rows = [
        ("roads", f"{network.road_count} ({int(network.choice_roads().sum())} with a choice)"),
        ("junctions", f"{network.junction_count} ({network.signal_count} with signals)"),
        ("connections", f"{network.connection_count} ({int(network.allowed.sum())} allowed)"),
        ("vehicles to learn", f"{vehicles:,} in {case.scenario.minutes} minutes from {case.scenario.begin:.0f} s"),
        ("background", f"{demand.background_count:,}"),
        ("left out or background, why", dropped),
        ("latent", f"{config.latent.kind}, {' x '.join(map(str, model.shape))}"),
        ("teleports (prior drivers)", f"{teleports:.1f}"),
        ("still driving or waiting at the end", f"{100 * driving:.0f} %"),
        *((f"{name}, RMSE", f"{one.mean:.3f} ± {one.sd:.3f} {bench.target.unit}") for name, one in known.items()),
    ]
    problems = []
    if teleports > TELEPORTS * vehicles:
        problems.append("gridlock: SUMO teleports many vehicles; lower the demand or mend signals and connections")
    if driving > UNFINISHED:
        problems.append("over capacity: most vehicles never arrive; lower the demand or simulate longer")
    if math.isfinite(floor) and moved.mean < SIGNAL * floor:
        problems.append("no signal: what drivers prefer moves the queues less than chance does; raise the demand")
    if problems:
        return rows, "cannot be learnt from: " + "; ".join(problems), False
    return rows, "can be learnt from", True
