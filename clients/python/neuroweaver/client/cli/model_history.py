"""`neuroweaver model history` and `verify`: who changed what, and whether that record is whole."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Final

import typer
from rich.padding import Padding
from rich.text import Text

from neuroweaver.client import changes
from neuroweaver.client.cli.failures import EPILOG, talking_to
from neuroweaver.client.cli.output import AsJson, console, print_json_line, to_json, when
from neuroweaver.client.cli.references import Reference, exact, parsed
from neuroweaver.client.text import plain
from neuroweaver.v1 import registry_pb2 as registry

_INDENT: Final = 4


def history(
    reference: Reference,
    *,
    limit: Annotated[int, typer.Option(min=1, help="At most so many events.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show what happened to a model or a version, newest first. With --json, one line of JSON an event.

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
                print_json_line(to_json(event))
            else:
                _show(event)


def register(app: typer.Typer) -> None:
    app.command(epilog=EPILOG, rich_help_panel="Look")(history)


def _show(event: registry.AuditEvent) -> None:
    screen = console()
    subject = f"{event.model_id}@{event.version}" if event.version else event.model_id
    head = Text.assemble(
        (f"#{event.sequence} {when(event.time)} ", "dim"),
        (plain(event.action), "bold"),
        f" {plain(subject)}",
        (f" by {plain(event.actor)}", "dim"),
    )
    screen.print(head, soft_wrap=True)
    told = [Text(line) for line in changes.lines(event)]
    if event.reason:
        told.insert(0, Text(f"“{plain(event.reason)}”", "italic"))
    for line in told:
        screen.print(Padding(line, (0, 0, 0, _INDENT), expand=False))
