"""Driving scenes from SUMO: a case of Throng's, or any SUMO configuration, simulated and cut into scenes."""

from __future__ import annotations

import contextlib
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ..scenarios.driving.fcd import recorded_moments
from ..scenarios.driving.moments import Cut, scenes_of
from ..scenarios.driving.scene import SUFFIX, Scene, save_scene
from ..scenarios.driving.sumo_map import SumoMap
from ..scenarios.errors import InputError
from ..workers.learner import Learner
from ..workers.libsumo_binding import RolloutError, connection, simulation
from ..workers.scene_source import moments
from ..workers.sumo_files import SumoFiles
from .case import load_case
from .config import load_config
from .progress import Progress
from .seeds import child_seed

SMOOTH = ("--lanechange.duration", "2")  # seconds; SUMO's vehicles jump to the lane beside theirs otherwise


@dataclass(frozen=True)
class Wanted:
    """Which scenes; seconds and metres."""

    count: int
    begin: float = 300.0  # after the first moment
    history: float = 5.0
    future: float = 6.0
    radius: float = 100.0  # around a junction
    pause: float = 30.0  # between scenes at different times
    seed: int = 0

    def cut(self, step: float) -> Cut:
        past = max(1, round(self.history / step))
        steps = past + max(1, round(self.future / step))
        return Cut(steps, past, self.radius, pause=round(self.pause / step))


def scenes_from_sumo(
    config: Path | None, overrides: list[str] | None, step: float, wanted: Wanted, out: Path, progress: Progress
) -> list[Path]:
    """Simulates in steps of `step` seconds and writes scenes into `out`, each as soon as it is complete.

    Returns:
        Their files; fewer than wanted where the simulation ended before.

    Raises:
        InputError: the configuration or the network is at fault, or nothing happens in it.
    """
    name = "town" if config is None else config.name.split(".")[0]
    progress.phase("reading")
    with (
        tempfile.TemporaryDirectory(prefix="throng-") as scratch,
        _options(config, overrides, Path(scratch), step, wanted.seed) as (net, options),
    ):
        network = SumoMap(net)
        try:
            with simulation([*options, *SMOOTH], Path(scratch) / "sumo.log"):
                seen = moments(connection, connection.simulation.getTime() + wanted.begin)
                scenes = scenes_of(seen, network, name, wanted.cut(step), np.random.default_rng(wanted.seed))
                return _written(scenes, name, wanted, out, progress)
        except RolloutError as error:
            raise InputError(str(error)) from error


def scenes_from_record(fcd: Path, net: Path, wanted: Wanted, out: Path, progress: Progress) -> list[Path]:
    """The same from what a simulation has recorded (`sumo --fcd-output FILE`), in its own time steps."""
    progress.phase("reading")
    network = SumoMap(net)
    first = list(islice(recorded_moments(fcd), 2))
    if len(first) < 2:
        raise InputError(f"{fcd}: fewer than two time steps")
    step = round(first[1].time - first[0].time, 3)
    if not 0 < step <= 1.0:
        raise InputError(f"{fcd}: time steps of {step:g} s; scenes need a second or less (sumo --step-length 0.1)")
    seen = (one for one in recorded_moments(fcd, step) if one.time >= first[0].time + wanted.begin)
    name = fcd.name.split(".")[0]
    scenes = scenes_of(seen, network, name, wanted.cut(step), np.random.default_rng(wanted.seed))
    return _written(scenes, name, wanted, out, progress)


def _written(scenes: Iterator[Scene], name: str, wanted: Wanted, out: Path, progress: Progress) -> list[Path]:
    progress.phase("cutting")
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for scene in islice(scenes, wanted.count):
        path = out / f"{scene.stem}{SUFFIX}"
        save_scene(scene, path)
        written.append(path)
        progress.advance(len(written) / wanted.count, f"{len(written)} of {wanted.count} scenes")
    if not written:
        raise InputError(
            f"{name}: no junction with at least {Cut.least} agents within {wanted.radius:g} m from {wanted.begin:g} s on, "
            f"for {wanted.history + wanted.future:g} s; try another --begin, or a larger --radius"
        )
    return written


@contextlib.contextmanager
def _options(
    config: Path | None, overrides: list[str] | None, scratch: Path, step: float, seed: int
) -> Iterator[tuple[Path, list[str]]]:
    """The network, and SUMO's arguments."""
    common = ["--step-length", f"{step}", "--seed", f"{seed}", "--no-step-log", "true", "--no-warnings", "true"]
    if config is not None and config.name.endswith(".sumocfg"):
        if overrides:
            raise InputError(f"--set is for Throng's configurations; {config} is SUMO's")
        yield _net_of(config), ["--configuration-file", str(config), *common]
        return
    settings = load_config(config, overrides)
    finer = settings.scenario.model_copy(update={"step_length": step})
    settings = settings.model_copy(update={"scenario": finer})
    case = load_case(settings, scratch)
    scenario = case.scenario
    files = SumoFiles(scenario, scratch)
    if case.published is not None and "" not in case.published.edges:
        files.write_routes(case.published.edges)
    else:  # drivers of all tastes
        learner = Learner(case.problem)
        rng = np.random.default_rng(child_seed(seed, "scenes"))
        z = rng.standard_normal(learner.model.shape, dtype=np.float32)
        files.write_routes(learner.routes(z, np.zeros((scenario.network.road_count, scenario.minutes), np.float32)))
    yield scenario.network.path, files.options(seed, "micro", False, False)


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
