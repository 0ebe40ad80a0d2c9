"""Frozen dataclasses as JSON text, by the types of their fields: what the tables keep.

A field that a record lacks takes its default, so that a record of an older version can be read.
"""

from __future__ import annotations

import base64
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from enum import Enum
from functools import cache
from typing import Any, TypeVar

from google.protobuf.message import Message

from neuroweaver.mesh.wire.clock import from_microseconds, microseconds

T = TypeVar("T")

_MICROSECOND = timedelta(microseconds=1)


def dump(record: Any) -> str:
    return json.dumps(_plain(record), separators=(",", ":"), ensure_ascii=False)


def load(kind: type[T], text: str) -> T:
    found: T = _made(kind, json.loads(text))
    return found


def _plain(value: Any) -> Any:  # noqa: PLR0911  # a line for each kind of value
    match value:
        case Message():
            return base64.b64encode(value.SerializeToString(deterministic=True)).decode()
        case datetime():
            return microseconds(value)
        case timedelta():
            return value // _MICROSECOND
        case Enum():
            return value.value
        case Mapping():
            return [[_plain(key), _plain(item)] for key, item in value.items()]
        case list() | tuple() | frozenset() | set():
            return [_plain(item) for item in value]
        case _ if is_dataclass(value) and not isinstance(value, type):
            return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"a record holds no {type(value).__name__}")


def _made(kind: Any, plain: Any) -> Any:  # noqa: PLR0911  # a line for each kind of value
    """What `_plain` made `plain` of, given its type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in {typing.Union, types.UnionType}:
        return None if plain is None else _made(_only(arguments), plain)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_made(arguments[0], item) for item in plain)
        return tuple(_made(each, item) for each, item in zip(arguments, plain, strict=True))
    if origin is frozenset:
        return frozenset(_made(arguments[0], item) for item in plain)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {_made(arguments[0], key): _made(arguments[1], item) for key, item in plain}
    if isinstance(origin, type):  # a sequence
        return tuple(_made(arguments[0], item) for item in plain)
    return _single(kind, plain)


def _single(kind: Any, plain: Any) -> Any:  # noqa: PLR0911  # a line for each kind of value
    if not isinstance(kind, type):
        return plain  # an alias of a number, as protobuf's enums have them
    if issubclass(kind, Message):
        return kind.FromString(base64.b64decode(plain))
    if issubclass(kind, datetime):
        return from_microseconds(plain)
    if issubclass(kind, timedelta):
        return plain * _MICROSECOND
    if issubclass(kind, Enum):
        return kind(plain)
    if is_dataclass(kind):
        hints = _hints(kind)
        known = {name: _made(hints[name], item) for name, item in plain.items() if name in hints}
        return kind(**known)
    return kind(plain) if kind is float else plain


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _only(arguments: tuple[Any, ...]) -> Any:
    """The one type beside None."""
    (found,) = (each for each in arguments if each is not type(None))
    return found
