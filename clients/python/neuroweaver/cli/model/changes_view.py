"""What an event of the history changed, in a few lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from neuroweaver.cli.model.differences import sides
from neuroweaver.cli.terminal.output import counted
from neuroweaver.client.text import plain
from neuroweaver.v1 import registry_pb2 as registry

_LINES: Final = 8
_NAMED: Final = 3


def lines(event: registry.AuditEvent) -> Iterator[str]:
    """At most nine; what begins with the event is summarised in one."""
    changes = event.changes
    if changes and not any(change.HasField("a") for change in changes):
        # A version's description is mostly the reason for it.
        skipped = "description" if event.reason else ""
        values = {change.path: sides(change)[1] for change in changes if change.path != skipped}
        summary = "; ".join(part for summarised in _SUMMARY if (part := summarised(values)))
        if summary:
            yield summary
        return
    yield from map(_line, changes[:_LINES])
    if len(changes) > _LINES:
        yield f"… and {len(changes) - _LINES} more; --json shows all"


def _line(change: registry.FieldDifference) -> str:
    before, after = sides(change)
    path = plain(change.path.removeprefix("aliases."))
    if not change.HasField("a"):
        return f"+ {path} {after}"
    return f"{path} {before} → {after}" if change.HasField("b") else f"- {path} {before}"


def _one(path: str, form: str) -> Callable[[Mapping[str, str]], str]:
    """A single value, unless it is empty."""
    return lambda values: form.format(values[path]) if values.get(path, '""') != '""' else ""


def _some(group: str, noun: str, *, joint: str = " ") -> Callable[[Mapping[str, str]], str]:
    """The values of a group, or how many where they are more than three."""

    def summarised(values: Mapping[str, str]) -> str:
        items = [(path, value) for path, value in values.items() if path.startswith(f"{group}.")]
        if len(items) > _NAMED:
            return f"{len(items)} {noun}"
        return ", ".join(plain(f"{path.partition('.')[2]}{joint}{value}") for path, value in items)

    return summarised


def _files(values: Mapping[str, str]) -> str:
    count = sum(path.startswith("artifacts.") for path in values)
    return counted(count, "file") if count else ""


def _aliases(values: Mapping[str, str]) -> str:
    return ", ".join(
        plain(f"{path.removeprefix('aliases.')} → {value}")
        + (", protected" if values.get(f"{path}.is_protected") == "true" else "")
        for path, value in values.items()
        if path.startswith("aliases.") and not path.endswith(".is_protected")
    )


_SUMMARY: Final = (
    _one("description", "“{}”"),
    _one("state", "{}"),
    _aliases,
    _one("parent_version", "made from {}"),
    _one("base.name", "base {}"),
    _one("lineage.training_job_id", "job {}"),
    _one("lineage.dataset_path", "data {}"),
    _some("config", "config values"),
    _some("metrics", "metrics"),
    _some("tags", "tags", joint="="),
    _files,
)
