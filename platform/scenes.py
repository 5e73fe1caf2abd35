"""Driving scenes from SUMO: a case of Throng's, or any SUMO configuration, simulated and cut into scenes."""

from __future__ import annotations

import contextlib
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libsumo
import numpy as np

from ..scenarios.driving.moments import Cut, scenes_of
from ..scenarios.driving.scene import SUFFIX, Scene, save_scene
from ..scenarios.driving.sumo_map import SumoMap
from ..scenarios.errors import InputError
from ..workers.learner import Learner
from ..workers.libsumo_binding import RolloutError, simulation
from ..workers.scene_source import moments
from ..workers.sumo_files import SumoFiles
from .case import load_case
from .config import load_config
from .progress import Progress
from .seeds import child_seed

SMOOTH = ("--lanechange.duration", "2")  # seconds; SUMO's vehicles jump to the lane beside theirs otherwise


@dataclass(frozen=True)
class Wanted:
    """Which scenes."""

    count: int
    step: float  # seconds
    begin: float  # seconds after the simulation's begin
    seed: int
    cut: Cut


def scenes_from_sumo(
    config: Path | None, overrides: list[str] | None, out: Path, wanted: Wanted, progress: Progress
) -> list[Path]:
    """Simulates and writes scenes into `out`, each as soon as it is complete; returns their files.

    Raises:
        InputError: the configuration or the network is at fault, or nothing happens in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    name = "town" if config is None else config.name.split(".")[0]
    written: list[Path] = []
    progress.phase("reading")
    with (
        tempfile.TemporaryDirectory(prefix="throng-") as scratch,
        _options(config, overrides, Path(scratch), wanted) as (net, options),
    ):
        network = SumoMap(net)
        progress.phase("simulating")
        for scene in _simulated(network, options, name, Path(scratch) / "sumo.log", wanted):
            path = out / f"{scene.stem}{SUFFIX}"
            save_scene(scene, path)
            written.append(path)
            progress.advance(len(written) / wanted.count, f"{len(written)} of {wanted.count} scenes")
            if len(written) == wanted.count:
                break
    if not written:
        raise InputError(
            f"{config or 'the town'}: no junction with at least {wanted.cut.least} agents within {wanted.cut.radius:g} m "
            f"for {wanted.cut.steps * wanted.step:g} s; try another --begin, or a larger --radius"
        )
    return written


def _simulated(network: SumoMap, options: list[str], name: str, log: Path, wanted: Wanted) -> Iterator[Scene]:
    rng = np.random.default_rng(wanted.seed)
    try:
        with simulation([*options, *SMOOTH], log):
            began = libsumo.simulation.getTime()
            seen = moments(libsumo, began + wanted.begin, np.inf)
            yield from scenes_of(seen, network, name, wanted.cut, rng)
    except RolloutError as error:
        raise InputError(str(error)) from error


@contextlib.contextmanager
def _options(
    config: Path | None, overrides: list[str] | None, scratch: Path, wanted: Wanted
) -> Iterator[tuple[Path, list[str]]]:
    """The network, and SUMO's arguments."""
    common = [
        "--step-length",
        f"{wanted.step}",
        "--seed",
        f"{wanted.seed}",
        "--no-step-log",
        "true",
        "--no-warnings",
        "true",
    ]
    if config is not None and config.name.endswith(".sumocfg"):
        if overrides:
            raise InputError(f"--set is for Throng's configurations; {config} is SUMO's")
        yield _net_of(config), ["--configuration-file", str(config), *common]
        return
    settings = load_config(config, overrides)
    finer = settings.scenario.model_copy(update={"step_length": wanted.step})
    settings = settings.model_copy(update={"scenario": finer})
    case = load_case(settings, scratch)
    scenario = case.scenario
    files = SumoFiles(scenario, scratch)
    if case.published is not None and "" not in case.published.edges:
        files.write_routes(case.published.edges)
    else:  # drivers of all tastes
        learner = Learner(case.problem)
        rng = np.random.default_rng(child_seed(wanted.seed, "scenes"))
        z = rng.standard_normal(learner.model.shape, dtype=np.float32)
        files.write_routes(learner.routes(z, np.zeros((scenario.network.road_count, scenario.minutes), np.float32)))
    yield scenario.network.path, files.options(wanted.seed, "micro", False, False)


def _net_of(config: Path) -> Path:
    """The network that a SUMO configuration names."""
    try:
        root = ElementTree.parse(config).getroot()
    except OSError as error:
        raise InputError(f"{config}: cannot be read ({error})") from error
    except ElementTree.ParseError as error:
        raise InputError(f"{config}: not well-formed XML ({error}); expected a SUMO configuration") from error
    named = next((element for tag in ("net-file", "net", "n") for element in root.iter(tag)), None)
    if named is None or not named.get("value"):
        raise InputError(f"{config}: names no net-file; expected a SUMO configuration")
    return config.parent / str(named.get("value"))
