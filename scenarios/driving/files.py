"""Scenes from files of any of the formats that are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pyarrow as pa

from ..errors import InputError
from . import av2, interaction, scenarionet, womd, womd_json
from .scene import SUFFIX, Scene, load_scene


@dataclass(frozen=True)
class Reader:
    """How files of a format are named, and read."""

    name: str
    patterns: tuple[str, ...]
    read: Callable[[Path], Iterator[Scene]]
    what: str


def _own(path: Path) -> Iterator[Scene]:
    yield load_scene(path)


READERS = (  # the first whose pattern fits
    Reader("throng", (f"*{SUFFIX}",), _own, "a scene that throng wrote"),
    Reader(av2.MOTION, ("scenario_*.parquet",), av2.read_motion, "Argoverse 2 motion forecasting, its map beside it"),
    Reader(av2.SENSOR, ("annotations.feather",), av2.read_sensor, "Argoverse 2 sensor log, poses and map beside it"),
    Reader(womd.SOURCE, ("*.tfrecord*",), womd.read_tfrecord, "Waymo Open Motion, scenario protocol buffers"),
    Reader(scenarionet.SOURCE, ("*.npz",), scenarionet.read_npz, "ScenarioDescription (MetaDrive) as npz"),
    Reader(interaction.SOURCE, ("*_tracks_*.csv", "*_tracks_*.csv.gz"), interaction.read_csv, "INTERACTION, no map"),
    Reader(womd_json.SOURCE, ("*.json", "*.json.gz"), womd_json.read_json, "Waymo Open Motion as JSON (GPUDrive)"),
)
NOT_SCENES = ("log_map_archive_*.json", "*.partial")


def reader_of(path: Path) -> Reader | None:
    """Who reads a file of this name."""
    if any(fnmatch(path.name, pattern) for pattern in NOT_SCENES):
        return None
    return next((one for one in READERS if any(fnmatch(path.name, pattern) for pattern in one.patterns)), None)


def scene_files(paths: Iterable[Path]) -> list[Path]:
    """Files as they are given, and of folders all that somebody reads, in order of their names.

    Raises:
        InputError: a path that is not there, a file that nobody reads, or a folder without scenes.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(one for one in path.rglob("*") if one.is_file() and reader_of(one))
            if not inside:
                raise InputError(f"{path}: no scenes there; {_known()}")
            found += inside
        elif not path.exists():
            raise InputError(f"{path}: no such file")
        elif reader_of(path) is None:
            raise InputError(f"{path}: no reader for a file of this name; {_known()}")
        else:
            found.append(path)
    return found


def _known() -> str:
    return "read are " + "; ".join(f"{', '.join(one.patterns)} ({one.what})" for one in READERS)


def read_scenes(path: Path) -> Iterator[Scene]:
    """The scenes of a file, one at a time.

    Raises:
        InputError: naming the file; scenes before the fault have been given.
    """
    reader = reader_of(path)
    if reader is None:
        raise InputError(f"{path}: no reader for a file of this name; {_known()}")
    try:
        yield from reader.read(path)
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error
    except (pa.ArrowException, OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read, it may be truncated ({str(error).splitlines()[0]})") from error
