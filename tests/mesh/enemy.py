"""Requests that pass the rules of their .proto files and mean harm: extreme numbers, odd texts, foreign names."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import grpc
import protovalidate
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from mesh.hostile import is_entry

_TEXTS: Final = (
    "", "a", "default", "1.0.0", "latest", "0", "-1", "1e999", "*", "%", "../..", "'; --", "((((", "é", "\x01",
    "\U0010ffff", "\ufffe", "\u202e", "x" * 70, "x" * 5000, "state = 1", "name:*", "a" * 64, "https://example.com/a",
)  # fmt: skip
_NUMBERS: Final = (0, 1, 2, 100, 1000, -1, 2**31 - 1, -(2**31), 2**32, 2**63 - 1, -(2**63))
_FLOATS: Final = (0.0, -0.0, 0.5, 0.95, 1.0, -1.0, 100.0, 1e20, 1e308, 5e-324, float("inf"), float("nan"))
_BITS: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_DEPTH: Final = 6
_REPAIRS: Final = 40


class Enemy:
    """names: what there is, by the name of the field that names it, so that requests find something."""

    def __init__(self, seed: int, names: Mapping[str, Sequence[str]]) -> None:
        self._random = random.Random(seed)
        self._names = names
        self._rules = protovalidate.Validator()

    async def codes(self, stub: Any, methods: Sequence[MethodDescriptor], count: int) -> set[tuple[str, str]]:
        """How that many requests ended: method and code."""
        return {
            (method.name, await _code(stub, method, self.request(method)))
            for method in self._random.choices(methods, k=count)
        }

    def request(self, method: MethodDescriptor) -> Any:
        """With as few of its rules broken as could be mended."""
        message = GetMessageClass(method.input_type)()
        self._fill(message, 0)
        for _ in range(_REPAIRS):
            violations = self._rules.collect_violations(message)
            if not violations:
                break
            self._mend(message, self._random.choice(violations).proto.field)
        return message

    def _fill(self, message: Any, depth: int) -> None:
        share = self._random.choice((0.2, 0.5, 0.9))
        for field in message.DESCRIPTOR.fields:
            if self._random.random() < share:
                self._set(message, field, depth)

    def _set(self, message: Any, field: FieldDescriptor, depth: int) -> None:
        value = getattr(message, field.name)
        kind = field.message_type
        if is_entry(kind):
            inner = kind.fields_by_name["value"]
            key = self._scalar(kind.fields_by_name["key"])
            if inner.message_type is None:
                value[key] = self._scalar(inner)
            else:
                self._fill(value[key], depth + 1)
        elif field.is_repeated and kind is None:
            value.append(self._scalar(field))
        elif kind is None:
            setattr(message, field.name, self._scalar(field))
        elif depth < _DEPTH:
            part = value.add() if field.is_repeated else value
            part.SetInParent()
            self._fill(part, depth + 1)

    def _scalar(self, field: FieldDescriptor) -> Any:
        choose = self._random.choice
        if field.type == field.TYPE_STRING:
            return choose(self._names.get(field.name, _TEXTS) if choose((True, True, False)) else _TEXTS)
        if field.type == field.TYPE_BYTES:
            return choose((b"", b"\0", b'{"a": "\\ud800"}'))
        if field.enum_type is not None:
            return choose([value.number for value in field.enum_type.values])
        if field.cpp_type in _BITS:
            least, most = _BITS[field.cpp_type]
            return min(max(choose(_NUMBERS), least), most)
        return choose((False, True)) if field.type == field.TYPE_BOOL else choose(_FLOATS)

    def _mend(self, message: Any, path: Any) -> None:
        *outer, last = path.elements if path and path.elements else [None]
        if last is None:
            self._fill(message, 0)
            return
        # A path may lead through what an earlier repair took away.
        with suppress(KeyError, IndexError, AttributeError):
            for element in outer:
                message = getattr(message, element.field_name)
                message = message[element.subscript.value] if element.subscript is not None else message
            fields = message.DESCRIPTOR.fields_by_name
            alternatives = message.DESCRIPTOR.oneofs_by_name
            name = last.field_name
            field = fields[name] if name in fields else self._random.choice(list(alternatives[name].fields))
            message.ClearField(field.name)
            if self._random.random() < 0.8:
                self._set(message, field, 3)


async def _code(stub: Any, method: MethodDescriptor, request: Any) -> str:
    call = getattr(stub, method.name)(iter([request]) if method.client_streaming else request, timeout=60)
    try:
        if method.server_streaming:
            await call.read()
            call.cancel()
        else:
            await call
    except grpc.RpcError as error:
        return error.code().name
    return "OK"
