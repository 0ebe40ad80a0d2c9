"""`neuroweaver model alias`: names that point at versions, such as production."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.text import Text

from neuroweaver.client.cli.failures import EPILOG, BadInput, talking_to
from neuroweaver.client.cli.output import AsJson, console, print_json, print_table, to_json, when
from neuroweaver.client.cli.references import Name, Reason, exact, name_of
from neuroweaver.mesh.ids import new_id
from neuroweaver.v1 import registry_pb2 as registry

NOWHERE: Final = "-"

_AGO: Final = re.compile(r"(\d{1,6}) (second|minute|hour|day|week)s? ago")

app = typer.Typer(
    help="Aliases: names such as production that point at a version and move.",
    no_args_is_help=False,
    epilog=EPILOG,
)

AliasName = Annotated[str, typer.Argument(metavar="ALIAS", help="Such as production.", show_default=False)]
Expect = Annotated[
    str,
    typer.Option(
        metavar="X.Y.Z",
        help="Only if it points there now; - for nowhere. Otherwise ends with 5.",
        show_default=False,
    ),
]


@app.command("list", epilog=EPILOG)
def list_aliases(model: Name, *, as_json: AsJson = False) -> None:
    """List a model's aliases.

    Example: neuroweaver model alias list advisor
    """
    with talking_to("registry") as client:
        found = client.registry.ListAliases(registry.ListAliasesRequest(model_id=model))
    if as_json:
        print_json(to_json(found))
        return
    rows = (
        (
            Text(each.alias, "cyan"),
            each.version,
            "protected" if each.is_protected else "",
            when(each.update_time),
            each.actor,
        )
        for each in found.aliases
    )
    print_table(("ALIAS", "VERSION", "", "SINCE", "BY"), rows, empty="No aliases.")


@app.command("set", epilog=EPILOG)
def set_alias(
    model: Name,
    alias: AliasName,
    version: Annotated[
        str,
        typer.Argument(
            metavar="VERSION",
            help="Where it points from now on: 1.2.0, latest, a range, or another alias.",
            show_default=False,
        ),
    ],
    *,
    expect: Expect = "",
    protect: Annotated[
        bool | None,
        typer.Option(
            "--protect/--no-protect",
            help="Whether moving it needs the right to release and a version that passed its quality gate. "
            "A new production is protected.",
            show_default=False,
        ),
    ] = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version, by compare-and-swap with --expect.

    Example: neuroweaver model alias set advisor production 1.2.0 --expect 1.1.0 -m "won the experiment"
    """
    with talking_to("registry") as client:
        request = registry.SetAliasRequest(
            model_id=model,
            alias=alias,
            version=exact(client, model, version),
            expected_version=expect,
            is_protected=protect,
            reason=reason,
            request_id=new_id(),
        )
        made = client.registry.SetAlias(request)
    if as_json:
        print_json(to_json(made))
    else:
        console().print(pointing(made), soft_wrap=True)


@app.command(epilog=EPILOG)
def remove(
    model: Name,
    alias: AliasName,
    *,
    expect: Expect = "",
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Remove an alias; where it pointed in the past can still be asked.

    Example: neuroweaver model alias remove advisor candidate
    """
    request = registry.DeleteAliasRequest(
        model_id=model, alias=alias, expected_version=expect, reason=reason, request_id=new_id()
    )
    with talking_to("registry") as client:
        removed = client.registry.DeleteAlias(request)
    if as_json:
        print_json(to_json(removed))
    else:
        console().print(f"{alias} of {model} removed", soft_wrap=True)


@app.command(epilog=EPILOG)
def resolve(
    model: Name,
    alias: AliasName,
    *,
    at: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="A moment: 2026-11-01T12:00:00Z, local time without a zone, or '2 days ago'. Default: now.",
            show_default=False,
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Print the version that an alias points at, or pointed at in a past moment.

    Example: neuroweaver model alias resolve advisor production --at "2 days ago"
    """
    request = registry.ResolveAliasRequest(
        model_id=model, alias=alias, at=moment(at, datetime.now(UTC)) if at else None
    )
    with talking_to("registry") as client:
        found = client.registry.ResolveAlias(request)
    if as_json:
        print_json(to_json(found))
    else:
        console().print(name_of(found), soft_wrap=True)


def pointing(alias: registry.Alias) -> Text:
    protected = "  protected" if alias.is_protected else ""
    return Text.assemble((alias.alias, "cyan"), f" → {alias.model_id}@{alias.version}", (protected, "dim"))


def moment(text: str, now: datetime) -> Timestamp:
    """Raises BadInput."""
    found = _AGO.fullmatch(text.strip())
    try:
        if found:
            told = now - timedelta(**{f"{found[2]}s": int(found[1])})
        else:
            told = datetime.fromisoformat(text.strip()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise BadInput(
            f"{text!r} is not a time such as 2026-11-01T12:00:00Z or '2 days ago'", "--at"
        ) from error
    timestamp = Timestamp()
    timestamp.FromDatetime(told)
    return timestamp
