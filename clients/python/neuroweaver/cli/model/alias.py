"""`neuroweaver model alias`: names that point at versions, such as production."""

from __future__ import annotations

from typing import Annotated, Final

from rich.text import Text
from typer import Argument, Option

from neuroweaver.cli.arguments.references import Name, Reason, exact, name_of
from neuroweaver.cli.arguments.values import moment
from neuroweaver.cli.terminal.failures import talking_to
from neuroweaver.cli.terminal.lazy import LazyGroup
from neuroweaver.cli.terminal.output import AsJson, print_answer, print_list, when
from neuroweaver.v1 import registry_pb2 as registry

NOWHERE: Final = "-"

app = LazyGroup(
    help="Aliases: names, such as production, that point at a version and can move.",
    panels={"Commands": {"model.alias": "list set remove resolve"}},
)

AliasName = Annotated[str, Argument(metavar="ALIAS", help="Such as production.")]
Expect = Annotated[
    str, Option(metavar="X.Y.Z", help="Only if it points there now; - for nowhere. Else exits with 5.")
]


def list_(model: Name, *, as_json: AsJson = False) -> None:
    """List a model's aliases.

    Example: neuroweaver model alias list advisor
    """
    columns = {
        "ALIAS": lambda alias: Text(alias.alias, "cyan"),
        "VERSION": lambda alias: alias.version,
        "": lambda alias: "protected" if alias.is_protected else "",
        "SINCE": lambda alias: when(alias.update_time),
        "BY": lambda alias: alias.actor,
    }
    with talking_to("registry") as client:
        answer = client.registry.ListAliases(registry.ListAliasesRequest(model_id=model))
        print_list("aliases", answer.aliases, columns, as_json=as_json)


def set_(
    model: Name,
    alias: AliasName,
    version: Annotated[str, Argument(metavar="VERSION", help="1.2.0, latest, a range, or another alias.")],
    *,
    expect: Expect = "",
    protect: Annotated[
        bool | None,
        Option(
            "--protect/--no-protect",
            help="A protected alias only moves to a version that passed its quality gate, and moving it "
            "needs the right to release. A new production is protected.",
        ),
    ] = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version; with --expect, only if nobody has moved it since.

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
        )
        print_answer(client.registry.SetAlias(request), pointing, as_json=as_json)


def remove(
    model: Name, alias: AliasName, *, expect: Expect = "", reason: Reason = "", as_json: AsJson = False
) -> None:
    """Remove an alias; where it pointed in the past can still be resolved.

    Example: neuroweaver model alias remove advisor candidate
    """
    request = registry.DeleteAliasRequest(model_id=model, alias=alias, expected_version=expect, reason=reason)
    with talking_to("registry") as client:
        removed = client.registry.DeleteAlias(request)
    print_answer(removed, lambda _: f"{alias} of {model} removed", as_json=as_json)


def resolve(
    model: Name,
    alias: AliasName,
    *,
    at: Annotated[
        str, Option(metavar="TIME", help="Such as 2026-11-01T12:00:00Z or '2 days ago'. Default: now.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Print the version that an alias points at, or pointed at in the past.

    Example: neuroweaver model alias resolve advisor production --at "2 days ago"
    """
    request = registry.ResolveAliasRequest(model_id=model, alias=alias, at=moment(at, "--at") if at else None)
    with talking_to("registry") as client:
        print_answer(client.registry.ResolveAlias(request), name_of, as_json=as_json)


def pointing(alias: registry.Alias) -> Text:
    protected = "  protected" if alias.is_protected else ""
    return Text.assemble((alias.alias, "cyan"), f" → {alias.model_id}@{alias.version}", (protected, "dim"))
