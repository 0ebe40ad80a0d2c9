"""An ExperimentSpec from a YAML or JSON file: protobuf JSON, snake_case names, short names of enums."""

from __future__ import annotations

import difflib
import json
import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from neuroweaver.client.cli.failures import BadInput
from neuroweaver.v1 import experiment_pb2 as pb

_WHERE: Final = re.compile(r'at "?ExperimentSpec\.(\w+(?:\[\w+\]|\.\w+)*)[."]*')


def read_spec(path: Path) -> pb.ExperimentSpec:
    """Raises BadInput naming the line or the field."""
    return to_spec(_read(path))


def to_spec(fields: dict[str, Any]) -> pb.ExperimentSpec:
    """Raises BadInput naming the first field that is unknown or of a wrong type."""
    normal = _message(pb.ExperimentSpec.DESCRIPTOR, fields, "")
    try:
        return json_format.ParseDict(normal, pb.ExperimentSpec())
    except json_format.ParseError as error:
        found = _WHERE.search(str(error))
        raise BadInput(_WHERE.sub("", str(error)).strip(" ."), found[1] if found else "SPEC") from error


def _read(path: Path) -> dict[str, Any]:
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
        raise BadInput(f"{path}: holds no fields of an ExperimentSpec (`name: value` lines)", "SPEC")
    return fields


def _message(kind: Descriptor, value: Any, path: str) -> Any:
    """The value with enums by their whole names and times as protobuf JSON has them."""
    if kind.full_name.startswith("google.protobuf."):
        return _time(value)
    if not isinstance(value, dict):
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
        if not isinstance(value, dict):
            raise BadInput("is not a group of names and values", path)
        return {str(name): each for name, each in value.items()}
    if field.is_repeated:
        if not isinstance(value, list):
            raise BadInput("is not a list", path)
        return [_single(field, each, f"{path}[{number}]") for number, each in enumerate(value)]
    return _single(field, value, path)


def _single(field: FieldDescriptor, value: Any, path: str) -> Any:
    if field.message_type:
        return _message(field.message_type, value, path)
    if isinstance(value, bool) and field.cpp_type != FieldDescriptor.CPPTYPE_BOOL:
        raise BadInput(f"{str(value).lower()} is neither a number nor a text", path)
    if field.enum_type and isinstance(value, str):
        return _enum(field.enum_type, value, path)
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
