"""An encoded protobuf message, read field by field without making anything of it.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from google.protobuf.descriptor import Descriptor

BYTES: Final = 2
_VARINT: Final = 0
# 64 bits, 32 bits, and the two ends of a group, which are marks without content.
_SIZES: Final = {1: 8, 5: 4, 3: 0, 4: 0}

# Protobuf's parser goes no deeper either.
MAX_DEPTH: Final = 100

_MAX_VARINT_BYTES: Final = 10


class Malformed(ValueError):
    """The bytes are no message."""


def records(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, and where the content begins and ends, of each field from `at` to `end`.

    What is in a group comes as if it stood beside it. Raises Malformed.
    """
    while at < end:
        key = data[at]
        at += 1
        if key > 0x7F:
            key, at = _varint(data, at - 1, end)
        kind = key & 7
        start = at
        if kind == BYTES:
            if at >= end:
                raise Malformed
            size = data[at]
            at += 1
            if size > 0x7F:
                size, at = _varint(data, at - 1, end)
            start = at
            at += size
        elif kind == _VARINT:
            while at < end and data[at] > 0x7F:
                at += 1
            at += 1
        else:
            at += _SIZES.get(kind, len(data))
        if at > end:
            raise Malformed
        yield key >> 3, kind, start, at


def is_map_entry(kind: Descriptor | None) -> bool:
    return kind is not None and kind.GetOptions().map_entry


def map_key(data: bytes, at: int, end: int) -> str:
    """The key of a map's entry, as it stands in the path of a field."""
    content = next(
        (data[start:stop] for number, _, start, stop in records(data, at, end) if number == 1), b""
    )
    return json.dumps(content.decode(errors="replace"), ensure_ascii=False)


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        if at + index >= end:
            break
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte <= 0x7F:
            return value, at + index + 1
    raise Malformed
