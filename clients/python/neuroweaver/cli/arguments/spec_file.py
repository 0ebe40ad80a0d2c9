"""A spec from a YAML or JSON file: protobuf JSON in snake_case, short names of enums, durations as 5m."""

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

from neuroweaver.cli.arguments.values import seconds_of
from neuroweaver.cli.terminal.failures import BadInput
from neuroweaver.client.text import enum_choices, enum_prefix
from neuroweaver.mesh.wire.keepable import keepable

M = TypeVar("M", bound=Message)

_WHERE: Final = re.compile(r'at "?[A-Z]\w+\.(\w+(?:\[\w+\]|\.\w+)*)[."]*')
_FLOATS: Final = frozenset({FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT})


def read_spec(path: Path, kind: type[M]) -> M:
    """Raises BadInput naming the line or the field."""
    return to_spec(read_fields(path), kind)


def to_spec(fields: Mapping[str, Any], kind: type[M]) -> M:
    """Raises BadInput naming the first field that is unknown or of a wrong type."""
    _check_characters(fields, "")
    descriptor: Any = kind.DESCRIPTOR
    normal = _message(descriptor, fields, "")
    try:
        return json_format.ParseDict(normal, kind())
    except json_format.ParseError as error:
        where = _WHERE.search(str(error))
        raise BadInput(_WHERE.sub("", str(error)).strip(" ."), where[1] if where else "SPEC") from error


def read_fields(path: Path, option: str = "SPEC") -> dict[str, Any]:
    """As they stand in the file. Raises BadInput naming the line."""
    try:
        text = path.read_text(encoding="utf-8")
        fields = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}", option) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 (byte {error.start})", option) from error
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}:{error.lineno}: {error.msg}", option) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{path}:{line}: {error.problem}", option) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise BadInput(f"{path}: not a YAML file", option) from error
    if not isinstance(fields, dict):
        raise BadInput(f"{path}: holds no fields (lines of `name: value`)", option)
    return {str(name): value for name, value in fields.items()}


def field_of(kind: Descriptor, name: str, path: str) -> FieldDescriptor:
    """By either of its names. Raises BadInput, at `path`, suggesting a similar one."""
    field = kind.fields_by_name.get(name) or kind.fields_by_camelcase_name.get(name)
    if field is None:
        near = difflib.get_close_matches(name, kind.fields_by_name, n=1)
        raise BadInput(f"no such field{f'; did you mean {near[0]}?' if near else ''}", path)
    return field


def _check_characters(value: Any, path: str) -> None:
    """Raises BadInput for what JSON and YAML can escape and no message can hold."""
    if isinstance(value, str) and keepable(value) != value:
        raise BadInput("holds a NUL or half of a surrogate pair, which are no text", path)
    items = value.items() if isinstance(value, Mapping) else ()
    for key, item in items:
        _check_characters(str(key), path)
        _check_characters(item, f"{path}.{key}" if path else str(key))
    for place, item in enumerate(value if isinstance(value, list) else ()):
        _check_characters(item, f"{path}[{place}]")


def _message(kind: Descriptor, value: Any, path: str) -> Any:
    """The value with enums by their whole names, and times and durations as protobuf JSON has them."""
    if kind.full_name == Duration.DESCRIPTOR.full_name:
        return f"{seconds_of(value, path):.9f}s"
    if kind.full_name.startswith("google.protobuf."):
        return _time(value)
    if not isinstance(value, Mapping):
        raise BadInput("is not a group of fields", path)
    normal = {}
    for key, item in value.items():
        at = f"{path}.{key}" if path else str(key)
        field = field_of(kind, str(key), at)
        if item is not None:
            normal[field.name] = _field(field, item, at)
    return normal


def _field(field: FieldDescriptor, value: Any, path: str) -> Any:
    kind = field.message_type
    if kind and kind.GetOptions().map_entry:
        if not isinstance(value, Mapping):
            raise BadInput("is not a group of names and values", path)
        inner = kind.fields_by_name["value"]
        return {str(name): _single(inner, item, f"{path}.{name}") for name, item in value.items()}
    if field.is_repeated:
        if not isinstance(value, list):
            raise BadInput("is not a list", path)
        return [_single(field, item, f"{path}[{place}]") for place, item in enumerate(value)]
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
        raise BadInput(f"{str(value).lower()} is neither a number nor text", path)
    return _text(value, path) if field.type == FieldDescriptor.TYPE_STRING else _number(field, value, path)


def _text(value: Any, path: str) -> str:
    if isinstance(value, float):
        # How it was written is lost: 1.10 has become 1.1.
        raise BadInput(f"{value} is a number where text is expected; write it in quotes", path)
    if not isinstance(value, str | int):
        raise BadInput("is not text", path)
    return str(value)


def _number(field: FieldDescriptor, value: Any, path: str) -> Any:
    """Checked here, since protobuf's own message does not always name the field."""
    is_whole = field.cpp_type not in _FLOATS
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{value!r} is not a {'whole ' if is_whole else ''}number", path) from error
    if is_whole and not number.is_integer():
        raise BadInput(f"{value!r} is not a whole number", path)
    if field.cpp_type == FieldDescriptor.CPPTYPE_INT32 and abs(number) >= 2**31:
        raise BadInput(f"{value!r} is too large", path)
    return value


def _enum(kind: EnumDescriptor, value: str, path: str) -> str:
    prefix = enum_prefix(kind)
    name = f"{prefix}{value.upper().removeprefix(prefix)}"
    if name not in kind.values_by_name:
        raise BadInput(f"{value!r} is not one of {', '.join(enum_choices(kind))}", path)
    return name


def _time(value: Any) -> Any:
    """YAML reads a time as such, where protobuf JSON wants its text."""
    if isinstance(value, datetime):
        # YAML takes a time without a zone as UTC.
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return aware.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return f"{value.isoformat()}T00:00:00Z" if isinstance(value, date) else value
