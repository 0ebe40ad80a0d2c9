"""Timestamps and durations that protobuf's own types can hold and no clock can show."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from neuroweaver.mesh.server.wire_format import is_map_entry
from neuroweaver.mesh.wire.errors import InvalidArgument, Violation

# The years 1 to 9999, and ten thousand years.
_SECONDS: Final = range(-62_135_596_800, 253_402_300_800)
_MAX_DURATION_S: Final = 315_576_000_000
_NANOS: Final = 1_000_000_000


def check_times(message: Message) -> None:
    """Raises InvalidArgument naming the first that is out of its range."""
    violation = next(_violations(message, ""), None)
    if violation is not None:
        raise InvalidArgument(*violation)


def _violations(message: Any, prefix: str) -> Iterator[Violation]:
    for name, field in _fields(message.DESCRIPTOR).items():
        for path, value in _values(message, field, f"{prefix}{name}"):
            check = _CHECKS.get(value.DESCRIPTOR.full_name)
            if check is None:
                yield from _violations(value, f"{path}.")
            elif rule := check(value.seconds, value.nanos):
                yield path, rule


def _timestamp(seconds: int, nanos: int) -> str:
    is_right = seconds in _SECONDS and 0 <= nanos < _NANOS
    return "" if is_right else "is not a time between the years 1 and 9999"


def _duration(seconds: int, nanos: int) -> str:
    is_right = abs(seconds) <= _MAX_DURATION_S and abs(nanos) < _NANOS and seconds * nanos >= 0
    return "" if is_right else "is not a duration of at most 10,000 years"


_CHECKS: Final[Mapping[str, Callable[[int, int], str]]] = {
    "google.protobuf.Timestamp": _timestamp,
    "google.protobuf.Duration": _duration,
}


def _values(message: Any, field: FieldDescriptor, path: str) -> Iterator[tuple[str, Any]]:
    if not field.is_repeated:
        if message.HasField(field.name):
            yield path, getattr(message, field.name)
    elif is_map_entry(field.message_type):
        for key, value in getattr(message, field.name).items():
            yield f"{path}[{json.dumps(key, ensure_ascii=False)}]", value
    else:
        for index, value in enumerate(getattr(message, field.name)):
            yield f"{path}[{index}]", value


@cache
def _fields(kind: Descriptor) -> Mapping[str, FieldDescriptor]:
    """The fields that are or may hold times."""
    return {field.name: field for field in kind.fields if _may_hold_time(field)}


def _may_hold_time(field: FieldDescriptor, above: tuple[Descriptor, ...] = ()) -> bool:
    kind = field.message_type
    if kind is None or kind in above:
        return False
    if kind.full_name in _CHECKS:
        return True
    return any(_may_hold_time(inner, (*above, kind)) for inner in kind.fields)
