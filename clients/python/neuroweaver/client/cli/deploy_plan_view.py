"""A plan on the screen: what is done to which object, field by field, whether it fits, and what is found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from neuroweaver.client.cli.deploy_view import difference
from neuroweaver.client.deployments import title
from neuroweaver.client.names import short_name
from neuroweaver.client.text import plain
from neuroweaver.v1 import deployer_pb2 as pb

_ACTIONS: Final = {
    pb.PLANNED_ACTION_CREATE: ("+", "green"),
    pb.PLANNED_ACTION_UPDATE: ("~", "yellow"),
    pb.PLANNED_ACTION_UNCHANGED: ("=", "dim"),
    pb.PLANNED_ACTION_DELETE: ("-", "red"),
}


def plan(found: pb.DeploymentPlan, model: str, name: str) -> RenderableType:
    parts: list[RenderableType] = [_head(found, model, name)]
    parts += [Text(), _objects(found)]
    if found.capacity:
        parts += [Text(), _capacity(found)]
    if found.findings:
        parts += [Text(), *_findings(found)]
    return Group(*parts)


def manifests(found: pb.DeploymentPlan) -> str:
    """All objects as one YAML stream, which `kubectl diff -f -` takes."""
    wanted = (each for each in found.objects if each.action != pb.PLANNED_ACTION_DELETE)
    return "".join(f"---\n{each.manifest.rstrip()}\n" for each in wanted)


def counted(found: pb.DeploymentPlan) -> str:
    """`2 new, 1 changed, 3 as they are`."""
    words = (
        (pb.PLANNED_ACTION_CREATE, "new"),
        (pb.PLANNED_ACTION_UPDATE, "changed"),
        (pb.PLANNED_ACTION_DELETE, "removed"),
        (pb.PLANNED_ACTION_UNCHANGED, "as they are"),
    )
    counts = ((sum(each.action == action for each in found.objects), word) for action, word in words)
    return ", ".join(f"{count} {word}" for count, word in counts if count) or "no objects"


def _head(found: pb.DeploymentPlan, model: str, name: str) -> Text:
    line = Text.assemble(
        (title(model, name), "bold"),
        f"  {plain(found.version)}  ",
        ("can be done", "green") if found.is_feasible else ("cannot be done", "bold red"),
    )
    line.append(f"\n{counted(found)}")
    if found.replacement:
        mode = short_name(pb.ReplacementMode.DESCRIPTOR, found.replacement).lower().replace("_", " ")
        line.append(f"\n{mode}: {plain(found.replacement_reason)}")
    if found.has_downtime:
        line.append("\nrequests will fail or wait for a while", "bold yellow")
    return line


def _objects(found: pb.DeploymentPlan) -> Text:
    """Every object with its sign, and below it the fields that change."""
    text = Text()
    for each in found.objects:
        sign, style = _ACTIONS.get(each.action, ("?", ""))
        place = f"{each.namespace}/" if each.namespace else ""
        text.append(f"{sign} {plain(each.kind)} {plain(place + each.name)}", style)
        text.append(f"  {plain(each.api_version)}\n", "dim")
        for change in each.changes:
            text.append(f"    {plain(change.path)}\n", "dim")
            text.append_text(difference(change, "    "))
    text.rstrip()
    return text


def _capacity(found: pb.DeploymentPlan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("RESOURCE", "NEEDED", "AT THE PEAK", "FREE", "FITS"):
        table.add_column(column, justify="left" if column in {"RESOURCE", "FITS"} else "right")
    fits = {True: ("yes", "green"), False: ("no", "bold red"), None: ("not known", "dim")}
    for each in found.capacity:
        words, style = fits[each.is_sufficient if each.HasField("is_sufficient") else None]
        available = plain(each.available) or "not known"
        table.add_row(
            plain(each.resource),
            plain(each.required),
            plain(each.peak_required),
            available,
            Text(words, style),
        )
    return table


def _findings(found: pb.DeploymentPlan) -> Iterator[Text]:
    """What is blocking first."""
    for each in sorted(found.findings, key=lambda finding: not finding.is_blocking):
        where = f"{plain(each.field)}: " if each.field else ""
        yield Text.assemble(
            ("✗ " if each.is_blocking else "! ", "bold red" if each.is_blocking else "yellow"),
            f"{where}{plain(each.message)} ",
            (f"({plain(each.reason)})", "dim"),
        )
