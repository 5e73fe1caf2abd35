"""As much of TFRecord and of protocol buffers' wire format as reading needs."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError

Message = dict[int, list[int | bytes]]
_LENGTH, _CHECK = 8, 4  # bytes of a record's length and of a checksum


def records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file. Checksums are not looked at.

    Raises:
        InputError: the file ends within a record.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        number = 0
        while head := file.read(_LENGTH + _CHECK):
            length = int.from_bytes(head[:_LENGTH], "little")
            if len(head) < _LENGTH + _CHECK or file.tell() + length + _CHECK > size:
                raise InputError(f"ends within record {number}: the file is truncated, or no TFRecord")
            yield file.read(length)
            file.read(_CHECK)
            number += 1


def message(data: bytes) -> Message:
    """Fields by number, each with its values in order: integers of varints, bytes of all else.

    Raises:
        InputError: it is no protocol buffer.
    """
    found: Message = defaultdict(list)
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            found[key >> 3].append(value)
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise InputError(f"no protocol buffer: wire type {kind} at byte {at}")
        if at + length > end:
            raise InputError(f"no protocol buffer: a field of {length} bytes at byte {at} of {end}")
        found[key >> 3].append(data[at : at + length])
        at += length
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise InputError("no protocol buffer: it ends within a number")


def integers(values: list[int | bytes]) -> list[int]:
    """Of a repeated integer field, packed or not."""
    found: list[int] = []
    for value in values:
        if isinstance(value, int):
            found.append(value)
            continue
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            found.append(number)
    return found


def doubles(values: list[int | bytes]) -> list[float]:
    """Of a repeated double field, packed or not."""
    joined = b"".join(value for value in values if isinstance(value, bytes))
    if len(joined) % 8:
        raise InputError("not the protocol buffer that was expected: a list of real numbers has another length")
    return [number for (number,) in struct.iter_unpack("<d", joined)]


def real(given: Message, number: int) -> float:
    """A float or double field; 0 where it is left out."""
    if number not in given:
        return 0.0
    value = given[number][-1]
    if not isinstance(value, bytes) or len(value) not in (4, 8):
        raise InputError(f"not the protocol buffer that was expected: field {number} is no real number")
    return float(struct.unpack("<d" if len(value) == 8 else "<f", value)[0])


def integer(given: Message, number: int) -> int:
    """An integer field; 0 where it is left out."""
    value = given[number][-1] if number in given else 0
    if not isinstance(value, int):
        raise InputError(f"not the protocol buffer that was expected: field {number} is no integer")
    return value


def messages(given: Message, number: int) -> list[Message]:
    """A repeated message field."""
    return [message(value) for value in given.get(number, []) if isinstance(value, bytes)]
