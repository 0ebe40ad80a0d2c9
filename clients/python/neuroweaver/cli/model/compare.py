"""`neuroweaver model compare` and `rollback`: how versions differ, and the way back."""

from __future__ import annotations

from typing import Annotated, Any, Final

from rich.text import Text
from typer import Argument, Option

from neuroweaver.cli.arguments.references import Name, Reason, exact, name_of, parsed
from neuroweaver.cli.model import comparison_view
from neuroweaver.cli.model.alias import NOWHERE, pointing
from neuroweaver.cli.model.view import version_line
from neuroweaver.cli.terminal.confirm import Yes, asking
from neuroweaver.cli.terminal.failures import Failure, talking_to
from neuroweaver.cli.terminal.output import AsJson, console, print_answer, print_json, print_view, to_json
from neuroweaver.client.connection import Client
from neuroweaver.v1 import registry_pb2 as registry

# A rollback reads every byte of the version's files.
_ROLLBACK_TIMEOUT_S: Final = 600.0


def compare(
    a: Annotated[str, Argument(metavar="A", help="The baseline: MODEL@VERSION.")],
    b: Annotated[str, Argument(metavar="B", help="What is compared with it: MODEL@VERSION.")],
    *,
    confidence: Annotated[
        float | None, Option(help="Level of the confidence intervals. Default: 0.95.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two versions: what is better or worse beyond chance, what differs, and whether B fits.

    Example: neuroweaver model compare advisor@production advisor@1.2.0
    """
    request = registry.CompareModelsRequest(a=_named(a), b=_named(b), confidence=confidence)
    with talking_to("registry") as client:
        answer = client.registry.CompareModels(request)
    print_answer(answer, comparison_view.picture, as_json=as_json)


def rollback(
    model: Name,
    version: Annotated[str, Argument(metavar="VERSION", help="The version to go back to, such as 1.0.0.")],
    *,
    alias: Annotated[
        str,
        Option(metavar="ALIAS", help="Point this alias at the new version, unless someone moves it first."),
    ] = "",
    reason: Reason = "",
    dry_run: Annotated[bool, Option("--dry-run", help="Only show the difference.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Make an earlier version's content the newest version; nothing is erased.

    Shows the difference and asks first, unless --yes is given.

    Example: neuroweaver model rollback advisor 1.0.0 -m "1.1.0 answers too long" --alias production
    """
    ask = asking(yes=yes or dry_run, as_json=as_json)
    with talking_to("registry") as client:
        target = exact(client, model, version)
        pointed = _pointed(client, model, alias) if alias else ""
        request = registry.RollbackModelRequest(
            model_id=model, to_version=target, dry_run=True, reason=reason
        )
        planned = client.registry.RollbackModel(request, timeout=_ROLLBACK_TIMEOUT_S)
        if dry_run or not as_json:
            print_answer(planned, lambda plan: comparison_view.picture(plan.comparison), as_json=as_json)
        if dry_run:
            return
        ask(f"\nRoll {model} back to {target}?")
        request.dry_run = False
        done = client.registry.RollbackModel(request, timeout=_ROLLBACK_TIMEOUT_S)
    if as_json:
        _print_json(done, alias, pointed)
        return
    _print_done(done, planned)
    if alias:
        print_view(pointing(_move(done.version, alias, pointed)))


def _named(reference: str) -> registry.VersionReference:
    model_id, version = parsed(reference)
    return registry.VersionReference(model_id=model_id, version=version or "latest")


def _print_done(done: registry.RollbackModelResponse, planned: registry.RollbackModelResponse) -> None:
    console().print()
    source = planned.comparison.b.parent_version or "the earlier version"
    print_view(version_line(done.version, f"has the content of {source}"))
    if done.comparison.a.version != planned.comparison.a.version:
        print_view(Text(f"! {done.comparison.a.version} became the latest version in the meantime", "yellow"))


def _print_json(done: registry.RollbackModelResponse, alias: str, pointed: str) -> None:
    """With what became of the alias; null if it did not move."""
    document: dict[str, Any] = to_json(done)
    if not alias:
        print_json(document)
        return
    try:
        moved = _move(done.version, alias, pointed)
    except Failure:
        print_json({**document, "alias": None})
        raise
    print_json({**document, "alias": to_json(moved)})


def _pointed(client: Client, model_id: str, alias: str) -> str:
    """The version that the alias points at, `-` if there is no such alias."""
    aliases = client.registry.ListAliases(registry.ListAliasesRequest(model_id=model_id)).aliases
    return next((entry.version for entry in aliases if entry.alias == alias), NOWHERE)


def _move(version: registry.ModelVersion, alias: str, pointed: str) -> registry.Alias:
    """Points the alias at the version if nobody has moved it. Raises Failure, saying what is done."""
    request = registry.SetAliasRequest(
        model_id=version.model_id,
        alias=alias,
        version=version.version,
        expected_version=pointed,
        reason=version.description,
    )
    again = f"neuroweaver model alias set {version.model_id} {alias} {version.version}"
    try:
        with talking_to("registry") as client:
            return client.registry.SetAlias(request)
    except Failure as failure:
        raise Failure(
            failure.exit_code,
            f"{name_of(version)} was created, but {alias} was not moved to it: {failure.message}. "
            f"Once that is resolved, `{again}` moves it",
            code=failure.code,
            reason=failure.reason,
            violations=failure.violations,
        ) from failure
