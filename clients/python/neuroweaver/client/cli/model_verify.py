"""`neuroweaver model verify`: whether the record of all changes is whole, and the one that was noted."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.text import Text

from neuroweaver.client import audit_head
from neuroweaver.client.cli.failures import EPILOG, BadInput, Exit, Failure, talking_to
from neuroweaver.client.cli.output import AsJson, console, print_facts, print_json, to_json, when
from neuroweaver.v1 import registry_pb2 as registry

# Every event of the project is read and hashed.
_TIMEOUT_S: Final = 600.0


def verify(
    *,
    head: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A head kept earlier, which must still be part of the chain.",
            show_default=False,
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the signed head here, to be kept elsewhere.", show_default=False
        ),
    ] = None,
    key_id: Annotated[
        list[str] | None,
        typer.Option(
            help="Only signatures by this key; repeat for several. Default: the key of --head.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that nobody edited, cut or reordered the history of changes; ends with 1 if somebody did.

    Whoever holds the database can rewrite the whole chain, but not the head that you kept elsewhere.

    Example: neuroweaver model verify --head march.json --export april.json
    """
    earlier = _read(head) if head else None
    trusted = set(key_id or ())
    if earlier:
        _check(earlier, trusted, f"the head in {head}")
        trusted = trusted or {earlier.key_id}
    request = registry.VerifyAuditRequest()
    if earlier and earlier.sequence:  # before the first event there is nothing to expect
        request.expected_sequence, request.expected_hash = earlier.sequence, earlier.hash
    with talking_to("registry") as client:
        found = client.registry.VerifyAudit(request, timeout=_TIMEOUT_S)
    if earlier and earlier.project != found.head.project:
        raise BadInput(f"is of the project {earlier.project}, this is {found.head.project}", "--head")
    if as_json:
        print_json(to_json(found))
    if not found.is_intact:
        raise Failure(
            Exit.FAILED,
            f"the audit chain is broken at event {found.first_bad_sequence}: {found.explanation}",
            code="DATA_LOSS",
            reason="CHAIN_BROKEN",
        )
    _check(found.head, trusted, "the head that the server gave")
    if export:
        audit_head.write(export, found.head)
    if not as_json:
        _show(found, earlier, export, is_pinned=bool(trusted))


def register(app: typer.Typer) -> None:
    app.command(epilog=EPILOG, rich_help_panel="Look")(verify)


def _read(path: Path) -> registry.AuditHead:
    try:
        return audit_head.read(path)
    except audit_head.NotAHead as error:
        raise BadInput(str(error), "--head") from error
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}", "--head") from error


def _check(head: registry.AuditHead, trusted: Collection[str], what: str) -> None:
    try:
        audit_head.check(head, trusted)
    except audit_head.NotSigned as error:
        raise Failure(
            Exit.FAILED, f"{what} is not to be trusted: {error}", code="DATA_LOSS", reason="BAD_SIGNATURE"
        ) from error


def _show(
    found: registry.AuditVerification,
    earlier: registry.AuditHead | None,
    export: Path | None,
    *,
    is_pinned: bool,
) -> None:
    head, screen = found.head, console()
    screen.print(Text(f"The audit chain is whole: {found.events:,} events.", "green"))
    if earlier:
        noted = f"Event {earlier.sequence}, noted {when(earlier.time)}, is still part of it."
        screen.print(Text(noted, "green"))
    print_facts(
        [
            ("project", head.project),
            ("last event", str(head.sequence)),
            ("hash", head.hash),
            ("signed", when(head.time)),
            ("by key", head.key_id),
            ("written to", str(export) if export else ""),
        ]
    )
    if not is_pinned:
        screen.print(
            Text("The server named its key itself; --key-id or --head hold it to the one you know.", "dim"),
            soft_wrap=True,
        )
