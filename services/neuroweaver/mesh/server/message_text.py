"""Which text of a request is not UTF-8, where protobuf says only that one is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from neuroweaver.mesh.server.wire_format import BYTES, MAX_DEPTH, Malformed, is_map_entry, map_key, records
from neuroweaver.mesh.wire.errors import InvalidArgument

_TEXT: Final = FieldDescriptor.TYPE_STRING


def check_utf8(kind: Descriptor, data: bytes) -> None:
    """Raises InvalidArgument naming the first text that is not UTF-8; Malformed for what is no message."""
    path = _Search(data).path(kind, 0, len(data))
    if path is not None:
        raise InvalidArgument(path, "is not UTF-8")


@dataclass(frozen=True)
class _Search:
    data: bytes

    def path(self, kind: Descriptor, at: int, end: int, depth: int = 0) -> str | None:
        """Of the first text that is wrong."""
        if depth > MAX_DEPTH:
            raise Malformed
        shape, seen = _texts(kind), Counter[int]()
        for number, wire_type, start, stop in records(self.data, at, end):
            field = shape.get(number)
            if field is None or wire_type != BYTES:
                continue
            inner = self._inner(field, start, stop, depth)
            if inner is not None:
                return self._name(field, seen[number], start, stop) + inner
            seen[number] += 1
        return None

    def _inner(self, field: FieldDescriptor, start: int, stop: int, depth: int) -> str | None:
        if field.message_type is None:
            return None if _is_utf8(self.data[start:stop]) else ""
        path = self.path(field.message_type, start, stop, depth + 1)
        return "." + path.removeprefix(".") if path else path

    def _name(self, field: FieldDescriptor, index: int, start: int, stop: int) -> str:
        if is_map_entry(field.containing_type):
            return ""
        if is_map_entry(field.message_type):
            return f"{field.name}[{map_key(self.data, start, stop)}]"
        return f"{field.name}[{index}]" if field.is_repeated else field.name


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


@cache
def _texts(kind: Descriptor) -> Mapping[int, FieldDescriptor]:
    """The fields that are or may hold texts, by number."""
    return {field.number: field for field in kind.fields if _may_hold_text(field)}


def _may_hold_text(field: FieldDescriptor, above: tuple[Descriptor, ...] = ()) -> bool:
    kind = field.message_type
    if kind is None or kind in above:
        return field.type == _TEXT
    return any(_may_hold_text(inner, (*above, kind)) for inner in kind.fields)
