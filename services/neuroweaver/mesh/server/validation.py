"""Requests against the rules of their .proto files."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Final

from google.protobuf.message import Message

from neuroweaver.mesh.server.message_size import count_elements
from neuroweaver.mesh.server.message_values import check_values
from neuroweaver.mesh.server.stack import Method
from neuroweaver.mesh.wire.errors import InvalidArgument

# A broken rule takes 3 KB, and an element may break several: where there are more, only the first is told.
_FEW_ELEMENTS: Final = 64
_MOST_TOLD: Final = 100


def validated(method: Method, message: Message) -> None:
    """Refuses a message that breaks the rules of its .proto file."""
    del method
    violations = _validator().collect_violations(message, fail_fast=True)
    if not violations:
        check_values(message)
        return
    kind: Any = message.DESCRIPTOR
    if count_elements(kind, message.SerializeToString()) <= _FEW_ELEMENTS:
        violations = _validator().collect_violations(message)
    raise InvalidArgument.of(
        (_path(violation.proto.field), violation.proto.message or violation.proto.rule_id)
        for violation in violations[:_MOST_TOLD]
    )


@cache
def _validator() -> Any:
    # Imported with the first request: a sixth of a second that a start need not wait for.
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
