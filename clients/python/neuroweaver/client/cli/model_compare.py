"""`neuroweaver model compare` and `rollback`: how versions differ, and the way back."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from rich.text import Text

from neuroweaver.client import comparison
from neuroweaver.client.cli.confirm import Yes, confirm, refuse_unasked
from neuroweaver.client.cli.failures import EPILOG, Failure, talking_to
from neuroweaver.client.cli.model_alias import NOWHERE, pointing
from neuroweaver.client.cli.output import AsJson, console, print_json, to_json
from neuroweaver.client.cli.references import Name, Reason, exact, name_of, parsed
from neuroweaver.client.connection import Client
from neuroweaver.client.names import styled, version_state
from neuroweaver.mesh.ids import new_id
from neuroweaver.v1 import registry_pb2 as registry

# A rollback reads every byte of the version's files.
_ROLLBACK_TIMEOUT_S: Final = 600.0


def compare(
    a: Annotated[
        str,
        typer.Argument(metavar="A", help="What is compared against: MODEL@VERSION.", show_default=False),
    ],
    b: Annotated[
        str, typer.Argument(metavar="B", help="What is in question: MODEL@VERSION.", show_default=False)
    ],
    *,
    confidence: Annotated[
        float | None, typer.Option(help="Level of the intervals. Default 0.95.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two versions: what is better or worse beyond chance, what differs, and whether B fits.

    Example: neuroweaver model compare advisor@production advisor@1.2.0
    """
    request = registry.CompareModelsRequest(a=_named(a), b=_named(b), confidence=confidence)
    with talking_to("registry") as client:
        found = client.registry.CompareModels(request)
    if as_json:
        print_json(to_json(found))
    else:
        _show(found)


def rollback(
    model: Name,
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="What to go back to, such as 1.0.0.", show_default=False)
    ],
    *,
    alias: Annotated[
        str,
        typer.Option(
            metavar="ALIAS",
            help="Then point this alias at the new version, by compare-and-swap.",
            show_default=False,
        ),
    ] = "",
    reason: Reason = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the difference.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Make an earlier version's content the newest version; nothing is erased.

    Shows the difference and asks first; --yes does not ask.

    Example: neuroweaver model rollback advisor 1.0.0 -m "1.1.0 answers too long" --alias production
    """
    if not dry_run:
        refuse_unasked(yes=yes, as_json=as_json)
    with talking_to("registry") as client:
        target = exact(client, model, version)
        pointed = _pointed(client, model, alias) if alias else ""
        request = registry.RollbackModelRequest(
            model_id=model, to_version=target, dry_run=True, reason=reason
        )
        planned = client.registry.RollbackModel(request, timeout=_ROLLBACK_TIMEOUT_S)
        if not as_json:
            _show(planned.comparison)
        elif dry_run:
            print_json(to_json(planned))
        if dry_run:
            return
        confirm(f"\nRoll {model} back to {target}?", yes=yes, as_json=as_json)
        request.dry_run, request.request_id = False, new_id()
        done = client.registry.RollbackModel(request, timeout=_ROLLBACK_TIMEOUT_S)
    if as_json:
        _tell_json(done, alias, pointed)
        return
    _tell(done, planned)
    if alias:
        console().print(pointing(_move(done.version, alias, pointed)), soft_wrap=True)


def register(app: typer.Typer) -> None:
    app.command(epilog=EPILOG, rich_help_panel="Look")(compare)
    app.command(epilog=EPILOG, rich_help_panel="Change")(rollback)


def _named(reference: str) -> registry.VersionReference:
    model_id, version = parsed(reference)
    return registry.VersionReference(model_id=model_id, version=version or "latest")


def _show(found: registry.ModelComparison) -> None:
    screen = console()
    for part in comparison.parts(found):
        screen.print(part)


def _tell(done: registry.RollbackModelResponse, planned: registry.RollbackModelResponse) -> None:
    made = done.version
    console().print()
    console().print(
        Text.assemble(
            name_of(made),
            " ",
            styled(version_state(made.state)),
            (f"  holds what {planned.comparison.b.parent_version or 'the earlier version'} held", "dim"),
        ),
        soft_wrap=True,
    )
    if done.comparison.a.version != planned.comparison.a.version:
        console().print(
            f"! {done.comparison.a.version} had become the latest version meanwhile", style="yellow"
        )


def _tell_json(done: registry.RollbackModelResponse, alias: str, pointed: str) -> None:
    """With what became of the alias; null if it did not move."""
    told: dict[str, Any] = to_json(done)
    if not alias:
        print_json(told)
        return
    try:
        moved = _move(done.version, alias, pointed)
    except Failure:
        print_json({**told, "alias": None})
        raise
    print_json({**told, "alias": to_json(moved)})


def _pointed(client: Client, model_id: str, alias: str) -> str:
    """The version that the alias points at, `-` if there is no such alias."""
    found = client.registry.ListAliases(registry.ListAliasesRequest(model_id=model_id)).aliases
    return next((each.version for each in found if each.alias == alias), NOWHERE)


def _move(version: registry.ModelVersion, alias: str, pointed: str) -> registry.Alias:
    """Points the alias at the version if nobody moved it meanwhile. Raises Failure, saying what is done."""
    request = registry.SetAliasRequest(
        model_id=version.model_id,
        alias=alias,
        version=version.version,
        expected_version=pointed,
        reason=version.description,
        request_id=new_id(),
    )
    again = f"neuroweaver model alias set {version.model_id} {alias} {version.version}"
    try:
        with talking_to("registry") as client:
            return client.registry.SetAlias(request)
    except Failure as failure:
        raise Failure(
            failure.exit_code,
            f"{name_of(version)} was made, but {alias} was not moved there: {failure.message}. "
            f"Once that is mended, `{again}` moves it",
            code=failure.code,
            reason=failure.reason,
            violations=failure.violations,
        ) from failure
