"""Protobuf messages out of records whose fields have the same names."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


def message_of(kind: type[M], record: Any, **given: Any) -> M:
    """The record's values in the fields of their names, and what is given; None leaves a field unset."""
    names = set(kind.DESCRIPTOR.fields_by_name) - given.keys()
    return kind(**{name: getattr(record, name) for name in names if hasattr(record, name)}, **given)
