"""Texts of a request that are none: with a NUL, which PostgreSQL does not keep, or not UTF-8."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from neuroweaver.mesh.server.wire_format import BYTES, MAX_DEPTH, Malformed, is_map_entry, map_key, records
from neuroweaver.mesh.wire.errors import InvalidArgument

_TEXT: Final = FieldDescriptor.TYPE_STRING


def check_no_nul(kind: Descriptor, data: bytes) -> None:
    """Raises InvalidArgument naming the first text with a NUL, and Malformed for what is no message."""
    _refuse(_Search(data, re.compile(rb"\x00"), lambda _: True), kind, "holds a NUL character")


def check_utf8(kind: Descriptor, data: bytes) -> None:
    """Raises InvalidArgument naming the first text that is not UTF-8, and Malformed as `check_no_nul`."""
    _refuse(_Search(data, re.compile(rb"[\x80-\xff]"), _is_not_utf8), kind, "is not UTF-8")


def _refuse(search: _Search, kind: Descriptor, rule: str) -> None:
    path = search.path(kind, 0, len(search.data))
    if path is not None:
        raise InvalidArgument(path, rule)


def _is_not_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return True
    return False


@dataclass(frozen=True)
class _Search:
    data: bytes
    suspect: re.Pattern[bytes]
    """A byte without which nothing is wrong."""
    is_wrong: Callable[[bytes], bool]
    """Of a text that holds one."""

    def path(self, kind: Descriptor, at: int, end: int, depth: int = 0) -> str | None:
        """Of the first text that is wrong."""
        if depth > MAX_DEPTH:
            raise Malformed
        shape, seen = _texts(kind), Counter[int]()
        suspect = self._next(at, end)
        for number, wire_type, start, stop in records(self.data, at, end):
            if stop <= suspect:
                if number in shape:
                    seen[number] += 1
                continue
            field = shape.get(number)
            if field is not None and wire_type == BYTES:
                inner = self._inner(field, start, stop, depth)
                if inner is not None:
                    return self._name(field, seen[number], start, stop) + inner
                seen[number] += 1
            suspect = self._next(stop, end)
            if suspect == end:
                break
        return None

    def _next(self, at: int, end: int) -> int:
        """Where the next suspicious byte is; `end` if there is none."""
        found = self.suspect.search(self.data, at, end)
        return found.start() if found else end

    def _inner(self, field: FieldDescriptor, start: int, stop: int, depth: int) -> str | None:
        if self._next(start, stop) == stop:
            return None  # what is suspicious is a length
        if field.message_type is None:
            return "" if self.is_wrong(self.data[start:stop]) else None
        path = self.path(field.message_type, start, stop, depth + 1)
        return "." + path.removeprefix(".") if path else path

    def _name(self, field: FieldDescriptor, index: int, start: int, stop: int) -> str:
        if is_map_entry(field.containing_type):
            return ""
        if is_map_entry(field.message_type):
            return f"{field.name}[{map_key(self.data, start, stop)}]"
        return f"{field.name}[{index}]" if field.is_repeated else field.name


@cache
def _texts(kind: Descriptor) -> Mapping[int, FieldDescriptor]:
    """The fields that are or may hold texts, by number."""
    return {field.number: field for field in kind.fields if _may_hold_text(field)}


def _may_hold_text(field: FieldDescriptor, above: tuple[Descriptor, ...] = ()) -> bool:
    kind = field.message_type
    if kind is None or kind in above:
        return field.type == _TEXT
    return any(_may_hold_text(inner, (*above, kind)) for inner in kind.fields)
