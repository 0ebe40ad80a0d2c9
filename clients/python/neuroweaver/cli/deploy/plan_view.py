"""A plan on the screen: what it does to each object, field by field, whether that fits, and its findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from neuroweaver.cli.deploy.events import title
from neuroweaver.cli.deploy.view import TRUTHS, difference
from neuroweaver.cli.terminal.names import spoken
from neuroweaver.cli.terminal.output import stacked, table
from neuroweaver.client.text import plain
from neuroweaver.v1 import deployer_pb2 as pb

_ACTIONS: Final = {
    pb.PLANNED_ACTION_CREATE: ("+", "green", "new"),
    pb.PLANNED_ACTION_UPDATE: ("~", "yellow", "changed"),
    pb.PLANNED_ACTION_DELETE: ("-", "red", "removed"),
    pb.PLANNED_ACTION_UNCHANGED: ("=", "dim", "unchanged"),
}
"""By what happens to an object: its sign, the style, and the word for it."""


def plan(planned: pb.DeploymentPlan, model: str, name: str) -> RenderableType:
    return stacked(
        _head(planned, model, name),
        _objects(planned),
        _capacity(planned) if planned.capacity else None,
        Group(*_findings(planned)) if planned.findings else None,
    )


def manifests(planned: pb.DeploymentPlan) -> str:
    """All objects as one YAML stream, which `kubectl diff -f -` takes."""
    kept = (item for item in planned.objects if item.action != pb.PLANNED_ACTION_DELETE)
    return "".join(f"---\n{item.manifest.rstrip()}\n" for item in kept)


def counted(planned: pb.DeploymentPlan) -> str:
    """`2 new, 1 changed, 3 unchanged`."""
    counts = Counter(item.action for item in planned.objects)
    words = (f"{counts[action]} {word}" for action, (_, _, word) in _ACTIONS.items() if counts[action])
    return ", ".join(words) or "no objects"


def _head(planned: pb.DeploymentPlan, model: str, name: str) -> Text:
    line = Text.assemble(
        (title(model, name), "bold"),
        f"  {plain(planned.version)}  ",
        ("can be done", "green") if planned.is_feasible else ("cannot be done", "bold red"),
    )
    line.append(f"\n{counted(planned)}")
    if planned.replacement:
        line.append(f"\n{spoken(planned, 'replacement')}: {plain(planned.replacement_reason)}")
    if planned.has_downtime:
        line.append("\nrequests will fail or wait for a while", "bold yellow")
    return line


def _objects(planned: pb.DeploymentPlan) -> Text:
    """Every object with its sign, and below it the fields that change."""
    text = Text()
    for item in planned.objects:
        sign, style, _ = _ACTIONS.get(item.action, ("?", "", ""))
        place = f"{item.namespace}/" if item.namespace else ""
        text.append(f"{sign} {plain(item.kind)} {plain(place + item.name)}", style)
        text.append(f"  {plain(item.api_version)}\n", "dim")
        for change in item.changes:
            text.append(f"    {plain(change.path)}\n", "dim")
            text.append_text(difference(change, "    "))
    text.rstrip()
    return text


def _capacity(planned: pb.DeploymentPlan) -> Table:
    rows = (
        (
            check.resource,
            check.required,
            check.peak_required,
            check.available or "unknown",
            Text(*TRUTHS[check.is_sufficient if check.HasField("is_sufficient") else None]),
        )
        for check in planned.capacity
    )
    return table(("RESOURCE", "NEEDED", "AT THE PEAK", "FREE", "FITS"), rows, right=(1, 2, 3))


def _findings(planned: pb.DeploymentPlan) -> Iterator[Text]:
    """Those that block it first."""
    for finding in sorted(planned.findings, key=lambda finding: not finding.is_blocking):
        where = f"{plain(finding.field)}: " if finding.field else ""
        yield Text.assemble(
            ("✗ " if finding.is_blocking else "! ", "bold red" if finding.is_blocking else "yellow"),
            f"{where}{plain(finding.message)} ",
            (f"({plain(finding.reason)})", "dim"),
        )
