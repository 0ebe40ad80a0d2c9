"""What differs between two records, in words: values, and the path of each."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Value

from neuroweaver.client.text import number, plain
from neuroweaver.v1 import registry_pb2 as registry

MISSING: Final = "-"

_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_DIGEST_SHOWN: Final = 12
_SHOWN: Final = 60
_TIMES: Final = frozenset({"create_time", "update_time", "delete_time"})


def sides(difference: registry.FieldDifference) -> tuple[str, str]:
    """Both values in words."""
    path = difference.path
    return (
        value_text(path, difference.a) if difference.HasField("a") else MISSING,
        value_text(path, difference.b) if difference.HasField("b") else MISSING,
    )


def value_text(path: str, value: Value) -> str:
    """One line, shortened: digests to their beginning, everything to what a table can hold."""
    return short(_text(path, json_format.MessageToDict(value)))


def short(text: str) -> str:
    """One line of at most 60 characters, without control characters."""
    line = plain(" ".join(text.split()))
    if _DIGEST.fullmatch(line):
        return f"{line[:_DIGEST_SHOWN]}…"
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


def json_text(value: Any) -> str:
    """A JSON value; a Struct has no whole numbers, so 16.0 becomes 16."""
    match value:
        case str():
            return value or '""'
        case bool() | None:
            return json.dumps(value)
        case int() | float():
            return f"{value:.10g}"
        case [*items] if all(isinstance(item, str | int | float) for item in items):
            return ", ".join(json_text(item) for item in items) or "[]"
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _text(path: str, value: Any) -> str:
    if path.startswith("metrics.") and isinstance(value, Mapping) and "value" in value:
        return f"{number(value['value'])} {value.get('unit', '')}".rstrip()
    if path in _TIMES and isinstance(value, int | float):
        local = datetime.fromtimestamp(value / 1e6, tz=UTC).astimezone()
        return f"{local:%Y-%m-%d %H:%M:%S}"
    return json_text(value)
