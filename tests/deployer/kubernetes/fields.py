"""Server-side apply as far as our objects need it: who owns which fields, and what an apply makes of them.

Objects are taken apart into leaves. A list whose elements have a name of their own (containers, ports, …) is taken apart
by that name, any other is one leaf, as the API's schemas have it.
"""

from __future__ import annotations

import json
from typing import Any

Path = tuple[Any, ...]

# Lists that are maps, by the names of the fields that lead to them, and what names their elements.
KEYS = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "imagePullSecrets": ("name",),
    "volumeMounts": ("mountPath",),
    "groups": ("name",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}


def keys_of(path: Path) -> tuple[str, ...] | None:
    name = path[-1]
    if name == "ports" and "containers" in path:
        return ("containerPort", "protocol")
    if name == "ports" and path == ("spec", "ports"):
        return ("port", "protocol")
    return KEYS.get(name) if isinstance(name, str) else None


def leaves(value: Any, path: Path = ()) -> dict[Path, Any]:
    """A dictionary or a list that is empty is a leaf too."""
    if isinstance(value, dict) and value:
        return {k: v for key, each in value.items() for k, v in leaves(each, (*path, key)).items()}
    keys = keys_of(path) if path else None
    if isinstance(value, list) and value and keys:
        made: dict[Path, Any] = {}
        for each in value:
            mark = (
                "k",
                json.dumps({key: each.get(key, "TCP") for key in keys if key in each or key == "protocol"}),
            )
            for inner, leaf in each.items():
                made |= leaves(leaf, (*path, mark, inner))
        return made
    return {path: value}


def built(flat: dict[Path, Any]) -> Any:
    """The opposite of `leaves`."""
    root: dict[Any, Any] = {}
    for path, value in flat.items():
        at = root
        for part in path[:-1]:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):  # an empty leaf that something was put into
                raise TypeError(path)
        at[path[-1]] = value
    return _lists(root)


def _lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value and all(isinstance(key, tuple) for key in value):
        return [_lists(each) for each in value.values()]
    return {key: _lists(each) for key, each in value.items()}


def put(flat: dict[Path, Any], path: Path, value: Any) -> None:
    """Sets a leaf; what lies above or below it gives way."""
    for other in [p for p in flat if p != path and (p[: len(path)] == path or path[: len(p)] == p)]:
        del flat[other]
    flat[path] = value


def tree(paths: set[Path]) -> dict[str, Any]:
    """As `fieldsV1` shows them."""
    root: dict[str, Any] = {}
    for path in sorted(paths, key=repr):
        at = root
        for part in path:
            name = f"k:{part[1]}" if isinstance(part, tuple) else f"f:{part}"
            at = at.setdefault(name, {})
            if isinstance(part, tuple):
                at.setdefault(".", {})
    return root
