"""`neuroweaver model history`: who changed what, when and why."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Final

from rich.console import Group
from rich.padding import Padding
from rich.text import Text
from typer import Option

from neuroweaver.cli.arguments.references import Reference, exact, parsed
from neuroweaver.cli.model import changes_view
from neuroweaver.cli.terminal.failures import talking_to
from neuroweaver.cli.terminal.output import AsJson, console, print_event, when
from neuroweaver.client.text import plain
from neuroweaver.v1 import registry_pb2 as registry

_INDENT: Final = 4


def history(
    reference: Reference,
    *,
    limit: Annotated[int, Option(min=1, help="Show at most this many events.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show what happened to a model or a version, newest first. With --json, one line of JSON per event.

    Example: neuroweaver model history advisor@1.2.0 --limit 5
    """
    model_id, version = parsed(reference)
    with talking_to("registry") as client:
        number = exact(client, model_id, version) if version else ""
        # One more than asked for tells whether there is more.
        events = islice(client.history(model_id, number), limit + 1)
        for place, event in enumerate(events):
            if place == limit:
                if not as_json:
                    console().print(f"… older events: --limit {2 * limit}", style="dim")
            elif as_json:
                print_event(event)
            else:
                _show(event)


def _show(event: registry.AuditEvent) -> None:
    subject = f"{event.model_id}@{event.version}" if event.version else event.model_id
    head = Text.assemble(
        (f"#{event.sequence} {when(event.time)} ", "dim"),
        (plain(event.action), "bold"),
        f" {plain(subject)}",
        (f" by {plain(event.actor)}", "dim"),
    )
    console().print(head, soft_wrap=True)
    lines = [Text(f"“{plain(event.reason)}”", "italic")] if event.reason else []
    lines += [Text(line) for line in changes_view.lines(event)]
    if lines:
        console().print(Padding(Group(*lines), (0, 0, 0, _INDENT), expand=False))
