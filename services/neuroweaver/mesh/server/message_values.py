"""Values that protobuf holds and nothing else does: texts with a NUL, times that no calendar has.

PostgreSQL keeps no NUL.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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


def check_values(message: Message) -> None:
    """Raises InvalidArgument naming the first text or time that is none."""
    wrong = _of_message(message)
    if wrong is not None:
        raise InvalidArgument(*wrong)


Check = Callable[[Any], Violation | None]
"""What is wrong with a value, and where in it; its own path is empty."""


def _of_text(text: str) -> Violation | None:
    return ("", "holds a NUL character") if "\0" in text else None


def _of_timestamp(time: Any) -> Violation | None:
    is_right = time.seconds in _SECONDS and 0 <= time.nanos < _NANOS
    return None if is_right else ("", "is not a time between the years 1 and 9999")


def _of_duration(span: Any) -> Violation | None:
    seconds, nanos = span.seconds, span.nanos
    is_right = abs(seconds) <= _MAX_DURATION_S and abs(nanos) < _NANOS and seconds * nanos >= 0
    return None if is_right else ("", "is not a duration of at most 10,000 years")


def _of_message(message: Any) -> Violation | None:
    for field in _fields(message.DESCRIPTOR):
        name, check = field.name, field.check
        if not field.is_repeated:
            # Only a message can be unset; an empty text is right in any case.
            wrong = check(getattr(message, name)) if field.is_text or message.HasField(name) else None
            if wrong is not None:
                return _within(name, wrong)
        else:
            for place, value in field.elements(getattr(message, name)):
                wrong = check(value)
                if wrong is not None:
                    return _within(f"{name}[{json.dumps(place, ensure_ascii=False)}]", wrong)
    return None


def _within(name: str, wrong: Violation) -> Violation:
    path, rule = wrong
    return (f"{name}.{path}" if path else name), rule


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    is_repeated: bool
    is_text: bool
    check: Check
    elements: Callable[[Any], Iterable[tuple[Any, Any]]] = enumerate
    """Of a repeated field: each with what stands for it in a path."""


@cache
def _fields(kind: Descriptor) -> Sequence[_Field]:
    """The fields that are or may hold texts and times."""
    return [made for field in kind.fields for made in _made(field)]


def _made(field: FieldDescriptor) -> Iterable[_Field]:
    kind = field.message_type
    if kind is not None and is_map_entry(kind):
        key, value = kind.fields_by_name["key"], kind.fields_by_name["value"]
        if key.type == key.TYPE_STRING:
            yield _Field(field.name, True, False, _of_text, lambda entries: ((key, key) for key in entries))
        if _may_be_wrong(value):
            yield _Field(field.name, True, False, _check(value), lambda entries: entries.items())
    elif _may_be_wrong(field):
        yield _Field(field.name, field.is_repeated, kind is None, _check(field))


def _check(field: FieldDescriptor) -> Check:
    kind = field.message_type
    return _of_text if kind is None else _CHECKS.get(kind.full_name, _of_message)


def _may_be_wrong(field: FieldDescriptor, above: tuple[Descriptor, ...] = ()) -> bool:
    kind = field.message_type
    if kind is None or kind in above:
        return field.type == field.TYPE_STRING
    return kind.full_name in _CHECKS or any(_may_be_wrong(inner, (*above, kind)) for inner in kind.fields)


_CHECKS: Final[Mapping[str, Check]] = {
    "google.protobuf.Timestamp": _of_timestamp,
    "google.protobuf.Duration": _of_duration,
}
