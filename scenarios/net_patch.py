"""Closing roads and turns and changing speed limits in a SUMO network file, and nothing else in it.

Edits are written as permissions and speeds of single lanes and connections; every other byte of the file stays what it was.
netconvert, which could do the same, builds the network anew: reading cologne8 (RESCO) and writing it unedited with
netconvert 1.28 changes lengths by up to 11 m, so that before and after would differ by the conversion as well as by the
edit. As no connection goes away, the link numbers of signal programs, in the network or in additional
files, stay valid.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr, unescape

from .errors import InputError

# Tags that matter here; comments are matched so that what stands in them is not.
_TAG = re.compile(r"<!--.*?-->|<(edge|lane|connection)\b((?:[^>\"']|\"[^\"]*\"|'[^']*')*)>", re.DOTALL)
_ATTRIBUTE = re.compile(r"([\w:.-]+)\s*=\s*(\"[^\"]*\"|'[^']*')")
_ENTITIES = {"&quot;": '"', "&apos;": "'"}


@dataclass(frozen=True)
class Street:
    """Where a road of the file begins and ends."""

    start: str  # junction ids
    end: str


def read_text(path: Path) -> str:
    """The file as text, unpacked if it is gzipped; raises InputError if it cannot be read."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a SUMO network") from error


def streets(text: str) -> dict[str, Street]:
    """Every road of a network file, whoever may use it."""
    found = {}
    for tag, attributes, _ in _tags(text):
        if tag == "edge" and "from" in attributes and attributes.get("function", "normal") in ("", "normal"):
            found[attributes["id"]] = Street(attributes["from"], attributes["to"])
    return found


def patch(
    text: str,
    closed: Collection[str],
    banned: Collection[tuple[str, str]],
    speeds: Mapping[str, float],
    classes: Collection[str],
) -> str:
    """The network file with roads and turns closed to some vehicle classes, and with other speed limits.

    Args:
        text: of a .net.xml.
        closed: roads that `classes` may no longer use.
        banned: turns (from road, to road) that they may no longer make.
        speeds: metres per second, by road; on lanes that any of `classes` may use.
        classes: SUMO's vehicle classes; all others keep their rights.
    """
    inside = {  # the lanes across the junction by which banned turns are made
        attributes["via"]
        for tag, attributes, _ in _tags(text)
        if tag == "connection" and (attributes["from"], attributes["to"]) in banned and "via" in attributes
    }
    parts, done, edge = [], 0, ""
    for tag, attributes, match in _tags(text):
        changes: dict[str, str | None] = {}
        if tag == "edge":
            edge = attributes["id"]
        elif tag == "lane":
            if edge in closed or attributes["id"] in inside:
                changes = _without(attributes, classes)
            elif edge in speeds and _permits(attributes, classes):
                changes = {"speed": f"{speeds[edge]:.2f}"}
        elif (attributes["from"], attributes["to"]) in banned:
            changes = _without(attributes, classes)
        if changes:
            parts += [text[done : match.start()], _rewritten(match[0], changes)]
            done = match.end()
    return "".join([*parts, text[done:]])


def _tags(text: str) -> Iterator[tuple[str, dict[str, str], re.Match[str]]]:
    for match in _TAG.finditer(text):
        if match[1] is not None:
            yield match[1], {k: unescape(v[1:-1], _ENTITIES) for k, v in _ATTRIBUTE.findall(match[2])}, match


def _permits(attributes: Mapping[str, str], classes: Collection[str]) -> bool:
    allow, disallow = attributes.get("allow", ""), attributes.get("disallow", "")
    if allow:
        return allow == "all" or bool(set(allow.split()) & set(classes))
    return disallow != "all" and not set(classes) <= set(disallow.split())


def _without(attributes: Mapping[str, str], classes: Collection[str]) -> dict[str, str | None]:
    """New values of `allow` and `disallow` (None: the attribute goes)."""
    allow, disallow = attributes.get("allow", ""), attributes.get("disallow", "")
    if allow and allow != "all":
        rest = [name for name in allow.split() if name not in classes]
        return {"allow": " ".join(rest)} if rest else {"allow": None, "disallow": "all"}
    if disallow == "all":
        return {}
    return {"allow": None, "disallow": " ".join(sorted({*disallow.split(), *classes}))}


def _rewritten(tag: str, changes: Mapping[str, str | None]) -> str:
    for name, value in changes.items():
        pattern = re.compile(rf"(\s){name}\s*=\s*(\"[^\"]*\"|'[^']*')")
        written = "" if value is None else f" {name}={quoteattr(value)}"
        if pattern.search(tag):
            tag = pattern.sub(lambda _, written=written: written, tag, count=1)  # type: ignore[misc]
        elif value is not None:
            end = len(tag) - (2 if tag.endswith("/>") else 1)
            tag = tag[:end].rstrip() + written + tag[end:]
    return tag
