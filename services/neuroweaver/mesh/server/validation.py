"""Requests against the rules of their .proto files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain, islice
from typing import Any, Final

from google.protobuf import descriptor_pool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from neuroweaver.mesh.server.message_size import count_elements
from neuroweaver.mesh.server.message_values import check_values
from neuroweaver.mesh.server.stack import Method
from neuroweaver.mesh.wire.errors import InvalidArgument, Violation

# A broken rule takes 3 KB, and an element may break several: of more, only the first of each is told.
_FEW_ELEMENTS: Final = 64
_MOST_TOLD: Final = 100


def validated(method: Method, message: Message) -> None:
    """Refuses a message that breaks the rules of its .proto file."""
    del method
    first = _validator().collect_violations(message, fail_fast=True)
    if not first:
        check_values(message)
        return
    kind: Any = message.DESCRIPTOR
    if count_elements(kind, message.SerializeToString()) <= _FEW_ELEMENTS:
        told: Iterable[Violation] = map(_violation, _validator().collect_violations(message))
    else:
        told = chain(map(_violation, first), _of_later_elements(message, first[0].proto.field))
    raise InvalidArgument.of(islice(told, _MOST_TOLD))


def _of_later_elements(message: Any, path: Any) -> Iterator[Violation]:
    """The first broken rule of each element behind the one that the path leads through, in the same list."""
    names = []
    for part in path.elements if path else ():
        names.append(part.field_name)
        message = getattr(message, part.field_name, None)
        if part.subscript is not None and part.subscript.field == "index":
            break
        if not isinstance(message, Message):
            return
    else:
        return
    for index, element in enumerate(message):
        if index > part.subscript.value and isinstance(element, Message):
            for violation in _validator().collect_violations(element, fail_fast=True):
                inner, rule = _violation(violation)
                yield f"{'.'.join(names)}[{index}].{inner}".rstrip("."), rule


def _violation(violation: Any) -> Violation:
    return _path(violation.proto.field), violation.proto.message or violation.proto.rule_id


def prepare(services: Iterable[str]) -> None:
    """Compiles the rules for what these gRPC services are asked, which the first request of each would do.

    For a thread: it takes some tenths of a second, for which a start need not wait.
    """
    pool = descriptor_pool.Default()
    for name in services:
        for method in pool.FindServiceByName(name).methods:
            _validator().collect_violations(GetMessageClass(method.input_type)(), fail_fast=True)


@cache
def _validator() -> Any:
    # Imported when it is needed: other programs that import this have no use for it.
    import protovalidate  # noqa: PLC0415

    return protovalidate.Validator()


def _path(field: Any) -> str:
    """`config.layers[2].rate`, `labels["a"]`; empty for a rule about the message as a whole."""
    path = ""
    for element in field.elements if field else ():
        dot = "." if path else ""
        path += f"{dot}{element.field_name}"
        if element.subscript is not None:
            key = element.subscript.value
            path += f"[{json.dumps(key, ensure_ascii=False)}]"
    return path
