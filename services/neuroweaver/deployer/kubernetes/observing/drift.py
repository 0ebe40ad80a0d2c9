"""What differs between a live object and the desired state, and to whom the difference belongs.

Who applies a field by server-side apply declares it as its own and will declare it again: such fields are
left to them and reported. Everything else that was changed, by an edit, a patch or `kubectl scale`, is set
back.

https://kubernetes.io/docs/reference/using-api/server-side-apply/
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

from neuroweaver.cluster.api import FIELD_MANAGER
from neuroweaver.cluster.kinds import Object, ref
from neuroweaver.deployer.domain.backend import FieldChange

APPLIED: Final = "neuroweaver.dev/applied"
HANDOVER: Final = f"{FIELD_MANAGER}-handover"
"""Keeps a number of replicas in place while its ownership goes over to an autoscaler."""

_MOST_CHANGES: Final = 100
_ABSENT: Final[Any] = object()
_IDENTITIES: Final = (
    ("name",),
    ("mountPath",),
    ("containerPort", "protocol"),
    ("port", "protocol"),
    ("topologyKey", "whenUnsatisfiable"),
)
"""The fields that identify an element of a list, where it is no plain list."""
_ELEMENTS: Final = frozenset({"k:", "v:", "i:"})
"""How the name of an element of a list begins in `managedFields`."""
_SERVERS_OWN: Final = frozenset(
    {
        ("status",),
        ("metadata", "managedFields"),
        ("metadata", "resourceVersion"),
        ("metadata", "generation"),
        ("metadata", "uid"),
        ("metadata", "creationTimestamp"),
        ("metadata", "annotations", APPLIED),
        ("metadata", "annotations", "deployment.kubernetes.io/revision"),
    }
)


def stamped(wanted: Object) -> Object:
    """The object with a digest of itself, by which a later look sees that it was applied as a whole."""
    made = copy.deepcopy(wanted)
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    made["metadata"].setdefault("annotations", {})[APPLIED] = digest
    return made


def was_applied(wanted: Object, live: Object) -> bool:
    """Whether this very desired state was applied once, whatever became of it since. wanted: stamped."""
    annotations = live["metadata"].get("annotations") or {}
    return bool(annotations.get(APPLIED) == wanted["metadata"]["annotations"][APPLIED])


def holds(wanted: Any, live: Any) -> bool:
    """Whether all that is wanted is there; what the API server or others added does not matter.

    An amount that is merely written another way counts as a difference; a dry run knows better.
    """
    if isinstance(wanted, dict):
        there = live if isinstance(live, dict) else {}
        return all(holds(value, there.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list):
        return _list_holds(wanted, live if isinstance(live, list) else [])
    return bool(wanted == live) or (wanted in ("", None) and live in ("", None))


def _list_holds(wanted: list[Any], live: list[Any]) -> bool:
    keys = _identity_of(wanted)
    if keys is None:
        return len(wanted) == len(live) and all(map(holds, wanted, live))
    return all(holds(each, _element(live, keys, each)) for each in wanted)


def differences(live: Object | None, wished: Object) -> tuple[FieldChange, ...]:
    """What would change, field by field. wished: the answer of a dry run, so that defaults are no
    difference.
    """
    if live is None:
        return ()
    name = str(ref(wished))
    changes = _changes(live, wished, ())
    return tuple(
        FieldChange(object=name, path=_written(path), before=_json(before), after=_json(after))
        for path, before, after in islice(changes, _MOST_CHANGES)
    )


def left_to_others(wanted: Object, live: Object) -> tuple[Object, tuple[FieldChange, ...]]:
    """The desired state without what others declare as their own with another value, and what that is."""
    trees = [
        entry.get("fieldsV1") or {}
        for entry in live["metadata"].get("managedFields") or ()
        if entry.get("operation") == "Apply" and entry.get("manager") not in {FIELD_MANAGER, HANDOVER}
    ]
    if not trees:
        return wanted, ()
    made = copy.deepcopy(wanted)
    changes: list[FieldChange] = []
    name = str(ref(wanted))

    def note(path: tuple[str, ...], ours: Any, theirs: Any) -> None:
        changes.append(FieldChange(object=name, path=_written(path), before=_json(ours), after=_json(theirs)))

    _leave(made, live, trees, (), note)
    return made, tuple(changes[:_MOST_CHANGES])


def owns(live: Object, *path: str) -> bool:
    """Whether the deployer itself applied the field."""
    for entry in live["metadata"].get("managedFields") or ():
        if entry.get("operation") != "Apply" or entry.get("manager") != FIELD_MANAGER:
            continue
        tree: Any = entry.get("fieldsV1") or {}
        for part in path:
            tree = tree.get(f"f:{part}") if isinstance(tree, dict) else None
        if tree is not None:
            return True
    return False


def _leave(wanted: Object, live: Any, trees: Sequence[Object], path: tuple[str, ...], note: Any) -> None:
    """Takes out of `wanted` what `trees` own and `live` holds differently."""
    there = live if isinstance(live, dict) else {}
    for key in list(wanted):
        owners = [tree[f"f:{key}"] for tree in trees if f"f:{key}" in tree]
        if not owners:
            continue
        value, now = wanted[key], there.get(key)
        deeper = [owner for owner in owners if any(part != "." for part in owner)]
        if isinstance(value, dict) and deeper:
            _leave(value, now, deeper, (*path, key), note)
        elif isinstance(value, list) and any(part[:2] in _ELEMENTS for owner in deeper for part in owner):
            _leave_elements(value, now, deeper, (*path, key), note)
        elif not holds(value, now):
            note((*path, key), value, now)
            del wanted[key]


def _leave_elements(
    wanted: list[Any], live: Any, trees: Sequence[Object], path: tuple[str, ...], note: Any
) -> None:
    for element in wanted:
        if not isinstance(element, dict):
            continue
        for part, below in (item for tree in trees for item in tree.items() if item[0].startswith("k:")):
            keys = json.loads(part[2:])
            if _has(element, keys):
                found = next((other for other in live or () if _has(other, keys)), None)
                # Fields that make an element what it is are never taken out.
                inner = {name: value for name, value in below.items() if name.removeprefix("f:") not in keys}
                _leave(element, found, [inner], (*path, _label(element)), note)


def _has(element: Object, keys: Object) -> bool:
    return all(element.get(name) == value for name, value in keys.items())


def _changes(before: Any, after: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if path in _SERVERS_OWN or before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from _changes(before.get(key, _ABSENT), after.get(key, _ABSENT), (*path, key))
    elif isinstance(before, list) and isinstance(after, list) and (keys := _identity_of([*before, *after])):
        for each in after:
            yield from _changes(_element(before, keys, each), each, (*path, _label(each)))
        for each in before:
            if _element(after, keys, each) is _ABSENT:
                yield (*path, _label(each)), each, _ABSENT
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _changes(one, other, (*path, f"[{index}]"))
    else:
        yield path, before, after


def _identity_of(elements: list[Any]) -> tuple[str, ...] | None:
    """Which fields name the elements; None for a plain list."""
    if not elements or not all(isinstance(each, dict) for each in elements):
        return None
    for keys in _IDENTITIES:
        if all(keys[0] in each for each in elements):
            return keys
    return None


def _element(elements: list[Any], keys: tuple[str, ...], like: Object) -> Any:
    for each in elements:
        if isinstance(each, dict) and all(each.get(key) == like.get(key) for key in keys if key in like):
            return each
    return _ABSENT


def _label(element: Object) -> str:
    keys = _identity_of([element])
    return f"[{element[keys[0]]}]" if keys else "[?]"


def _written(path: tuple[str, ...]) -> str:
    return ".".join(path).replace(".[", "[")


def _json(value: Any) -> str:
    return "" if value is _ABSENT or value is None else json.dumps(value, sort_keys=True, ensure_ascii=False)
