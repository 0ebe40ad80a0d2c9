"""`neuroweaver model verify`: whether the record of all changes is intact, and holds a head kept earlier."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Final

from rich.text import Text
from typer import Option

from neuroweaver.cli.terminal.failures import BadInput, Exit, Failure, talking_to
from neuroweaver.cli.terminal.output import AsJson, facts, print_json, print_view, to_json, when
from neuroweaver.client import audit_head
from neuroweaver.v1 import registry_pb2 as registry

# Every event of the project is read and hashed.
_TIMEOUT_S: Final = 600.0


def verify(
    *,
    head: Annotated[
        Path | None,
        Option(metavar="FILE", help="A head kept earlier, which must still be part of the chain."),
    ] = None,
    export: Annotated[
        Path | None,
        Option(metavar="FILE", help="Write the signed head to this file; keep it somewhere else."),
    ] = None,
    key_id: Annotated[
        list[str] | None, Option(help="Accept only this key; repeat for several. Default: the key of --head.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that nobody edited, cut or reordered the history of changes; exits with 1 if somebody did.

    Whoever controls the database can rewrite the whole chain, but not a head that you kept elsewhere.

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
        verified = client.registry.VerifyAudit(request, timeout=_TIMEOUT_S)
    if earlier and earlier.project != verified.head.project:
        raise BadInput(f"belongs to project {earlier.project}, not {verified.head.project}", "--head")
    if as_json:
        print_json(to_json(verified))
    if not verified.is_intact:
        raise Failure(
            Exit.FAILED,
            f"the audit chain is broken at event {verified.first_bad_sequence}: {verified.explanation}",
            code="DATA_LOSS",
            reason="CHAIN_BROKEN",
        )
    _check(verified.head, trusted, "the server's head")
    if export:
        audit_head.write(export, verified.head)
    if not as_json:
        _show(verified, earlier, export, is_pinned=bool(trusted))


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
        message = f"{what} cannot be trusted: {error}"
        raise Failure(Exit.FAILED, message, code="DATA_LOSS", reason="BAD_SIGNATURE") from error


def _show(
    verified: registry.AuditVerification,
    earlier: registry.AuditHead | None,
    export: Path | None,
    *,
    is_pinned: bool,
) -> None:
    head = verified.head
    print_view(Text(f"The audit chain is intact: {verified.events:,} events.", "green"))
    if earlier:
        kept = f"Event {earlier.sequence}, recorded {when(earlier.time)}, is still part of it."
        print_view(Text(kept, "green"))
    signed = [
        ("project", head.project),
        ("last event", str(head.sequence)),
        ("hash", head.hash),
        ("signed", when(head.time)),
        ("by key", head.key_id),
        ("written to", str(export) if export else ""),
    ]
    print_view(facts(signed))
    if not is_pinned:
        note = "The server named its own key; --key-id or --head pins it to the one you know."
        print_view(Text(note, "dim"))
