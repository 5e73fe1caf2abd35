"""Scenes as files of other formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ..errors import InputError
from .export_fcd import write_fcd
from .export_openscenario import write_openscenario
from .export_scenarionet import write_json, write_npz
from .scene import Scene


@dataclass(frozen=True)
class Format:
    """How files of a format end, and are written."""

    suffix: str
    write: Callable[[Scene, Path], None]


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "scenarionet": Format(".sd.npz", write_npz),
        "scenarionet-json": Format(".sd.json", write_json),
        "openscenario": Format(".xosc", write_openscenario),
        "fcd": Format(".fcd.xml", write_fcd),
    }
)


def export(scene: Scene, to: str, folder: Path, stem: str) -> Path:
    """Writes a scene into a folder, as a file that appears when it is complete; returns it.

    Agents that are never seen, which generated scenes may have, are left out.

    Args:
        to: a key of `FORMATS`.
        stem: the file's name, without what it ends with.

    Raises:
        InputError: no such format, or one whose package is not installed.
    """
    require_format(to)
    form = FORMATS[to]
    path = folder / f"{stem}{form.suffix}"
    partial = path.with_name(path.name + ".partial")
    form.write(_seen(scene), partial)
    partial.replace(path)
    return path


def require_format(to: str) -> None:
    """Raises InputError."""
    if to not in FORMATS:
        raise InputError(f"no format {to!r} to write scenes in; expected one of {', '.join(FORMATS)}")


def _seen(scene: Scene) -> Scene:
    agents = np.flatnonzero(scene.valid.any(axis=1)).tolist()
    return replace(
        scene, ids=tuple(scene.ids[agent] for agent in agents), tracks=scene.tracks[agents], valid=scene.valid[agents],
        goals=scene.goals[agents], focal=scene.focal[agents], ego=agents.index(scene.ego) if scene.ego in agents else -1,
    )  # fmt: skip
