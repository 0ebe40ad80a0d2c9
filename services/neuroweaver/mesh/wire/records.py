"""Frozen dataclasses as JSON text, by the types of their fields: what tables keep.

A field that a record lacks takes its default, and one that is not known is left out, so that records of other
versions can be read. Moments and spans of time are microseconds, messages base64, mappings JSON objects, or
lists of pairs where their keys are no strings.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar, get_args, get_origin

from cattrs.preconf.json import make_converter
from google.protobuf.message import Message

from neuroweaver.mesh.wire.clock import from_microseconds, microseconds

T = TypeVar("T")

_MICROSECOND: Final = timedelta(microseconds=1)


class Records:
    """A codec. A service adds hooks for classes of other libraries that its records hold."""

    def __init__(self) -> None:
        self._converter = make_converter(detailed_validation=False)
        self.hook(datetime, microseconds, from_microseconds)
        self.hook(timedelta, lambda span: span // _MICROSECOND, lambda count: count * _MICROSECOND)
        self._converter.register_unstructure_hook(Message, _packed)
        self._converter.register_structure_hook_func(
            _is_message, lambda text, kind: kind.FromString(_unpacked(text))
        )
        self._converter.register_unstructure_hook_factory(_is_mapping, lambda _kind: self._pairs)
        self._converter.register_structure_hook_func(_is_mapping, self._mapping)

    def hook(self, kind: type[T], to_plain: Callable[[T], Any], from_plain: Callable[[Any], T]) -> None:
        """How values of a class are written and read."""
        self._converter.register_unstructure_hook(kind, to_plain)
        self._converter.register_structure_hook(kind, lambda plain, _kind: from_plain(plain))

    def plain(self, record: Any) -> Any:
        """The record as JSON values."""
        return self._converter.unstructure(record)

    def made(self, kind: type[T], plain: Any) -> T:
        """The record that `plain` was made of."""
        return self._converter.structure(plain, kind)

    def dump(self, record: Any) -> str:
        return json.dumps(self.plain(record), separators=(",", ":"), ensure_ascii=False)

    def load(self, kind: type[T], text: str) -> T:
        return self.made(kind, json.loads(text))

    def _pairs(self, mapping: Mapping[Any, Any]) -> Any:
        if all(isinstance(key, str) for key in mapping):
            return {key: self.plain(item) for key, item in mapping.items()}
        return [[self.plain(key), self.plain(item)] for key, item in mapping.items()]

    def _mapping(self, plain: Any, kind: Any) -> dict[Any, Any]:
        key_kind, item_kind = get_args(kind) or (Any, Any)
        pairs = plain.items() if isinstance(plain, Mapping) else plain
        return {self.made(key_kind, key): self.made(item_kind, item) for key, item in pairs}


def _is_message(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Message)


def _is_mapping(kind: Any) -> bool:
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _packed(message: Message) -> str:
    return base64.b64encode(message.SerializeToString(deterministic=True)).decode()


def _unpacked(text: str) -> bytes:
    return base64.b64decode(text)
