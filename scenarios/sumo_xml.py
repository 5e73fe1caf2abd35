"""SUMO's XML files as streams of elements, plain or gzipped, and SUMO's notation of time."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from .errors import InputError

_NOT_DATA = ("net", "configuration", "sumoConfiguration")


def elements(path: Path, expected: str) -> Iterator[Element]:
    """The children of the root one by one; the file is never held whole.

    Raises InputError, which says that the file should hold what is `expected`.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected {expected}")
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    depth = 0
    root = Element("nothing")
    try:
        with cast("IO[bytes]", gzip.open(path) if packed else path.open("rb")) as stream:
            for event, element in ElementTree.iterparse(stream, events=("start", "end")):
                if event == "start":
                    if depth == 0:
                        root = element
                        if root.tag in _NOT_DATA:
                            raise InputError(f"{path}: a SUMO <{root.tag}>; expected {expected}")
                    depth += 1
                    continue
                depth -= 1
                if depth == 1:
                    yield element
                    root.clear()
    except ElementTree.ParseError as error:
        line, column = error.position
        raise InputError(
            f"{path}, line {line}, column {column}: not well-formed XML ({error}); expected {expected}"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected {expected}") from error


def seconds(text: str) -> float:
    """SUMO time -> seconds: "3600", "3600.5", "1:00:00" or "0:1:00:00" (days first). Raises ValueError."""
    parts = [float(part) for part in text.split(":")]
    if len(parts) not in (1, 3, 4) or not all(math.isfinite(part) for part in parts):
        raise ValueError(f"{text!r} is not a time; expected seconds or hours:minutes:seconds")
    if len(parts) == 1:
        return parts[0]
    value = 0.0
    for part, size in zip(reversed(parts), (1, 60, 3600, 86400), strict=False):
        value += part * size
    return value


def text_of(element: Element) -> str:
    """An element as one piece of XML, without the white space that followed it."""
    return ElementTree.tostring(element, encoding="unicode").strip()
