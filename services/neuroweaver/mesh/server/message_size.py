"""How much a request holds, counted in its bytes before anything is made of them.

Four megabytes can hold two million empty messages, which would take 200 MB and minutes to validate. So the
elements of a message, which are what its repeated fields and maps hold, are counted first: in each field
against the rule of the .proto file, and all together against the memory that they would take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from buf.validate import validate_pb2
from neuroweaver.mesh.server.wire_format import BYTES, MAX_DEPTH, Malformed, is_map_entry, map_key, records
from neuroweaver.mesh.wire.errors import InvalidArgument

# What a message's elements may take in memory: some bytes for each of its own, and a little more where it is
# small. Only messages of nearly empty elements come near it. The most of it takes 30 ms to parse.
_FREE_BYTES: Final = 64 * 1024
_BYTES_A_BYTE: Final = 10
_MAX_BYTES: Final = 16 * 1024 * 1024

# Of elements that are no numbers: as many as the largest batch of assignments has. The validator takes 1.5 µs
# for each, and no other thread runs meanwhile.
_MOST_ELEMENTS: Final = 70_000
_TOO_MANY: Final = f"holds too many elements: at most {_MOST_ELEMENTS} in all"

MAX_UNKNOWN_BYTES: Final = 64 * 1024
"""Of fields that this server does not know, such as a newer client's."""
UNKNOWN_RULE: Final = f"holds more than {MAX_UNKNOWN_BYTES} bytes of fields that this server does not know"

# Protobuf's own types, for which no .proto file of ours has a rule.
_LIMITS: Final = {
    "google.protobuf.FieldMask.paths": 100,
    "google.protobuf.ListValue.values": 10_000,
    "google.protobuf.Struct.fields": 10_000,
}

# What a field costs that holds no element: what is read of a message is bounded as well.
_FIELD_BYTES: Final = 8

_FIXED_BYTES: Final = {
    FieldDescriptor.TYPE_DOUBLE: 8,
    FieldDescriptor.TYPE_FIXED64: 8,
    FieldDescriptor.TYPE_SFIXED64: 8,
    FieldDescriptor.TYPE_FLOAT: 4,
    FieldDescriptor.TYPE_FIXED32: 4,
    FieldDescriptor.TYPE_SFIXED32: 4,
}
_TEXTS: Final = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
# The bytes of a number in varint form that are not its last.
_CONTINUED: Final = bytes(range(0x80, 0x100))


def count_elements(kind: Descriptor, data: bytes) -> int:
    """How many elements an encoded message of this type holds.

    Raises InvalidArgument naming the field that holds too many, and Malformed for bytes that are no message.
    """
    if not _shape(kind):
        return 0
    count = _Count(data)
    try:
        count.walk(kind, 0, len(data), {}, 0)
    except _TooManyError as error:
        raise InvalidArgument(error.path.rstrip("."), error.rule) from error
    return count.elements


@dataclass(frozen=True, slots=True)
class _Field:
    """A field that may hold elements, itself or further down."""

    name: str
    """Empty for the value of a map's entry, which a path does not name."""
    is_repeated: bool
    is_map: bool
    limit: int | None
    rule: str
    element_bytes: int
    """About what one element takes in memory."""
    packed_bytes: int | None
    """What one takes in the packed form; 0 if that varies, None if the field has no such form."""
    message: Descriptor | None
    """What it holds, if that may hold elements itself."""


_Shape = Mapping[int, _Field]


class _TooManyError(Exception):
    def __init__(self, path: str, rule: str) -> None:
        self.path = path
        self.rule = rule


class _Count:
    def __init__(self, data: bytes) -> None:
        self.elements = 0
        self._data = data
        self._left = min(_FREE_BYTES + _BYTES_A_BYTE * len(data), _MAX_BYTES)
        self._unknown = 0
        self._heavy = 0

    def walk(self, kind: Descriptor, at: int, end: int, seen: dict[int, Any], depth: int) -> None:
        """seen: by field, the elements so far, or the same of a message, which may come in several parts."""
        if depth > MAX_DEPTH:
            raise Malformed
        shape, known = _shape(kind), kind.fields_by_number
        for number, wire_type, start, stop in records(self._data, at, end):
            field = shape.get(number)
            if field is None:
                self._take("", _FIELD_BYTES)
                if number not in known:
                    self._pass_over(stop - start)
                continue
            added = 1 if field.packed_bytes is None else self._packed(field, wire_type, start, stop)
            self._take(field.name, added * field.element_bytes)
            if field.is_repeated:
                self.elements += added
                self._heavy += field.packed_bytes is None
                if self._heavy > _MOST_ELEMENTS:
                    raise _TooManyError(field.name, _TOO_MANY)
                seen[number] = seen.get(number, 0) + added
                if field.limit is not None and seen[number] > field.limit:
                    raise _TooManyError(field.name, field.rule)
            if field.message is not None and wire_type == BYTES:
                inner = {} if field.is_repeated else seen.setdefault(number, {})
                try:
                    self.walk(field.message, start, stop, inner, depth + 1)
                except _TooManyError as error:
                    error.path = self._path(field, seen[number], start, stop) + error.path
                    raise

    def _packed(self, field: _Field, wire_type: int, start: int, stop: int) -> int:
        if wire_type != BYTES:
            return 1
        if field.packed_bytes:
            return (stop - start) // field.packed_bytes
        return len(self._data[start:stop].translate(None, _CONTINUED))

    def _path(self, field: _Field, seen: Any, start: int, stop: int) -> str:
        if field.is_map:
            return f"{field.name}[{map_key(self._data, start, stop)}]."
        if field.is_repeated:
            return f"{field.name}[{seen - 1}]."
        return f"{field.name}." if field.name else ""

    def _pass_over(self, size: int) -> None:
        self._unknown += size
        if self._unknown > MAX_UNKNOWN_BYTES:
            raise _TooManyError("", UNKNOWN_RULE)

    def _take(self, name: str, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise _TooManyError(name, "holds too many small elements")


@cache
def _shape(kind: Descriptor) -> _Shape:
    """The fields of a message type under which there may be elements, by number."""
    return {field.number: _field(field) for field in kind.fields if _may_hold_elements(field)}


def _may_hold_elements(field: FieldDescriptor, above: tuple[Descriptor, ...] = ()) -> bool:
    if field.is_repeated or _is_alternative(field):
        return True
    kind = field.message_type
    if kind is None or kind in above:
        return False
    return any(_may_hold_elements(inner, (*above, kind)) for inner in kind.fields)


def _is_alternative(field: FieldDescriptor) -> bool:
    """Whether it is a message that another field replaces, and that is then made anew each time it comes."""
    oneof = field.containing_oneof
    return field.message_type is not None and oneof is not None and len(oneof.fields) > 1


def _field(field: FieldDescriptor) -> _Field:
    kind = field.message_type
    limit, rule = _limit(field)
    holds = kind is not None and any(map(_may_hold_elements, kind.fields))
    return _Field(
        name="" if is_map_entry(field.containing_type) else field.name,
        is_repeated=field.is_repeated,
        is_map=is_map_entry(kind),
        limit=limit,
        rule=rule,
        element_bytes=_element_bytes(field) if field.is_repeated or _is_alternative(field) else _FIELD_BYTES,
        packed_bytes=None if kind or field.type in _TEXTS else _FIXED_BYTES.get(field.type, 0),
        message=kind if holds else None,
    )


def _limit(field: FieldDescriptor) -> tuple[int | None, str]:
    """The most elements, and the rule in the words of protovalidate."""
    rules = field.GetOptions().Extensions[validate_pb2.field]
    if rules.map.HasField("max_pairs"):
        return rules.map.max_pairs, f"map must be at most {rules.map.max_pairs} entries"
    most = rules.repeated.max_items if rules.repeated.HasField("max_items") else _LIMITS.get(field.full_name)
    return most, f"must contain no more than {most} item(s)"


def _element_bytes(field: FieldDescriptor) -> int:
    """Measured: a pointer, a header and a word for each field; for a map, a place in its table."""
    kind = field.message_type
    if kind is None:
        return 24 if field.type in _TEXTS else 8
    if is_map_entry(kind):
        return 96 + _element_bytes(kind.fields_by_name["value"])
    alternatives = sum(len(oneof.fields) - 2 for oneof in kind.oneofs if len(oneof.fields) > 2)
    return 32 + 8 * (len(kind.fields) - alternatives)
