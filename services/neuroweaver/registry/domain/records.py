"""Models, versions and aliases as JSON text: what the tables keep, what a watch replays.

The history compares them in the same form.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

from semver import Version

from neuroweaver.mesh.wire.records import Records
from neuroweaver.registry.domain.aliases import Alias
from neuroweaver.registry.domain.model import Model, ModelVersion

# FieldDifference with every change, so that a difference in them says nothing.
_VOLATILE: Final = ("update_time", "etag", "latest_version", "aliases")
_EMPTY: Final = (None, "")
_BY_NAME: Final = ("config", "metrics", "tags", "base", "lineage")

Subject = Model | ModelVersion | Alias
S = TypeVar("S", bound=Subject)

_CODEC: Final = Records()
_CODEC.hook(Version, str, Version.parse)


@dataclass(frozen=True)
class FieldDifference:
    """One value in A and in B, or before and after a change; None where there is none."""

    path: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Event:
    """A change, as a watch sends it. subject: as it was after the change; None if nobody asked for it."""

    sequence: int
    time: datetime | None = None
    action: str = ""
    subject: Subject | None = None


def canonical(value: Any) -> str:
    """One text for equal JSON values: sorted keys, no spaces, numbers in their shortest form."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def dump(subject: Subject) -> str:
    return canonical(_CODEC.plain(subject))


def load(kind: type[S], text: str) -> S:
    return _CODEC.load(kind, text)


def changes(before: Model | ModelVersion | None, after: Model | ModelVersion) -> list[FieldDifference]:
    """What differs, by path: `state`, `config.lora_r`, `metrics.loss`, `artifacts.adapter/config.json`."""
    return list(differing(_flat(_CODEC.plain(before)) if before else {}, _flat(_CODEC.plain(after))))


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[FieldDifference]:
    """What differs between two flat records, by path."""
    for path in sorted(a.keys() | b.keys()):
        if not _is_same(a.get(path), b.get(path)):
            yield FieldDifference(path, a.get(path), b.get(path))


def _is_same(a: Any, b: Any) -> bool:
    """Equality in which 1 is 1.0, as in JSON, and true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_is_same(value, b[key]) for key, value in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_is_same, a, b))
    return bool(a == b)


def alias_changes(before: Alias | None, after: Alias) -> list[FieldDifference]:
    """What differs, under the path of the alias."""
    path = f"aliases.{after.alias}"
    changes = []
    if (before and before.version) != after.version:
        changes.append(FieldDifference(path, _spelled(before), _spelled(after)))
    was_protected = before.is_protected if before else None
    if after.version and was_protected != after.is_protected:
        changes.append(FieldDifference(f"{path}.is_protected", was_protected, after.is_protected))
    return changes


def _spelled(alias: Alias | None) -> str | None:
    return str(alias.version) if alias and alias.version else None


def _flat(plain: Mapping[str, Any]) -> dict[str, Any]:
    """One level deep: a deep configuration would repeat its long paths over and over."""
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        if name in _VOLATILE or value in _EMPTY:
            continue
        if name in _BY_NAME:
            flat |= {f"{name}.{key}": _shown(item) for key, item in value.items()}
        elif name == "artifacts":
            flat |= {f"artifacts.{artifact['path']}": artifact["digest"] for artifact in value}
        else:
            flat[name] = value
    return flat


def _shown(item: Any) -> Any:
    """A metric's samples by their digest: the history proves them and need not repeat them."""
    if not (isinstance(item, dict) and item.get("samples")):
        return item
    digest = hashlib.sha256(canonical(item["samples"]).encode()).hexdigest()
    return item | {"samples": {"count": len(item["samples"]), "sha256": digest}}
