"""A spec from a YAML or JSON file: protobuf JSON, snake_case names, short names of enums, spans as `5m`."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from neuroweaver.client.cli.failures import BadInput

M = TypeVar("M", bound=Message)

_WHERE: Final = re.compile(r'at "?[A-Z]\w+\.(\w+(?:\[\w+\]|\.\w+)*)[."]*')
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_FLOATS: Final = frozenset({FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT})
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def read_spec(path: Path, kind: type[M]) -> M:
    """Raises BadInput naming the line or the field."""
    return to_spec(read_fields(path, kind), kind)


def to_spec(fields: Mapping[str, Any], kind: type[M]) -> M:
    """Raises BadInput naming the first field that is unknown or of a wrong type."""
    descriptor: Any = kind.DESCRIPTOR
    normal = _message(descriptor, fields, "")
    try:
        return json_format.ParseDict(normal, kind())
    except json_format.ParseError as error:
        found = _WHERE.search(str(error))
        raise BadInput(_WHERE.sub("", str(error)).strip(" ."), found[1] if found else "SPEC") from error


def read_fields(path: Path, kind: type[Message]) -> dict[str, Any]:
    """As they stand in the file; they should be those of `kind`. Raises BadInput naming the line."""
    try:
        text = path.read_text(encoding="utf-8")
        fields = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}", "SPEC") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 (byte {error.start})", "SPEC") from error
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}:{error.lineno}: {error.msg}", "SPEC") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{path}:{line}: {error.problem}", "SPEC") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise BadInput(f"{path}: not a YAML file", "SPEC") from error
    if not isinstance(fields, dict):
        raise BadInput(f"{path}: holds no fields of {_a(kind.DESCRIPTOR.name)} (`name: value` lines)", "SPEC")
    return fields


def seconds_of(value: Any, path: str) -> float:
    """From `90s`, `1h30m`, `2d` or a plain number of seconds. Raises BadInput."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    text = str(value).strip()
    parts = _SPAN.findall(text)
    if not parts or "".join(map("".join, parts)) != text:
        raise BadInput(f"{value!r} is not a duration such as 30s, 5m or 1h30m", path)
    return sum(float(count) * _SECONDS[unit] for count, unit in parts)


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _message(kind: Descriptor, value: Any, path: str) -> Any:
    """The value with enums by their whole names, and times and durations as protobuf JSON has them."""
    if kind.full_name == Duration.DESCRIPTOR.full_name:
        return f"{seconds_of(value, path):.9f}s"
    if kind.full_name.startswith("google.protobuf."):
        return _time(value)
    if not isinstance(value, Mapping):
        raise BadInput("is not a group of fields", path)
    normal = {}
    for given, each in value.items():
        name = str(given)
        field = kind.fields_by_name.get(name) or kind.fields_by_camelcase_name.get(name)
        at = f"{path}.{name}" if path else name
        if field is None:
            near = difflib.get_close_matches(name, kind.fields_by_name, n=1)
            raise BadInput(f"no such field{f'; did you mean {near[0]}?' if near else ''}", at)
        if each is not None:
            normal[field.name] = _field(field, each, at)
    return normal


def _field(field: FieldDescriptor, value: Any, path: str) -> Any:
    kind = field.message_type
    if kind and kind.GetOptions().map_entry:
        if not isinstance(value, Mapping):
            raise BadInput("is not a group of names and values", path)
        inner = kind.fields_by_name["value"]
        return {str(name): _single(inner, each, f"{path}.{name}") for name, each in value.items()}
    if field.is_repeated:
        if not isinstance(value, list):
            raise BadInput("is not a list", path)
        return [_single(field, each, f"{path}[{number}]") for number, each in enumerate(value)]
    return _single(field, value, path)


def _single(field: FieldDescriptor, value: Any, path: str) -> Any:
    if field.message_type:
        return _message(field.message_type, value, path)
    if field.enum_type and isinstance(value, str):
        return _enum(field.enum_type, value, path)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if not isinstance(value, bool):
            raise BadInput(f"{value!r} is neither true nor false", path)
        return value
    if isinstance(value, bool):
        raise BadInput(f"{str(value).lower()} is neither a number nor a text", path)
    return _text(value, path) if field.type == FieldDescriptor.TYPE_STRING else _number(field, value, path)


def _text(value: Any, path: str) -> str:
    if isinstance(value, float):
        # Nobody knows any more how it was written: 1.10 has become 1.1.
        raise BadInput(f"{value} is a number where a text belongs; write it in quotes", path)
    if not isinstance(value, str | int):
        raise BadInput("is not a text", path)
    return str(value)


def _number(field: FieldDescriptor, value: Any, path: str) -> Any:
    """Protobuf's own words would not always name the field."""
    is_whole = field.cpp_type not in _FLOATS
    try:
        given = float(value)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{value!r} is not a {'whole ' if is_whole else ''}number", path) from error
    if is_whole and not given.is_integer():
        raise BadInput(f"{value!r} is not a whole number", path)
    if field.cpp_type == FieldDescriptor.CPPTYPE_INT32 and abs(given) >= 2**31:
        raise BadInput(f"{value!r} is too large", path)
    return value


def _enum(kind: EnumDescriptor, value: str, path: str) -> str:
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    name = f"{prefix}{value.upper().removeprefix(prefix)}"
    if name not in kind.values_by_name:
        known = ", ".join(each.name.removeprefix(prefix).lower() for each in kind.values if each.number)
        raise BadInput(f"{value!r} is none of {known}", path)
    return name


def _time(value: Any) -> Any:
    """YAML reads a time as such, where protobuf JSON wants its text."""
    if isinstance(value, datetime):
        # YAML gives a time without a zone for one in UTC.
        known = value if value.tzinfo else value.replace(tzinfo=UTC)
        return known.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return f"{value.isoformat()}T00:00:00Z" if isinstance(value, date) else value
