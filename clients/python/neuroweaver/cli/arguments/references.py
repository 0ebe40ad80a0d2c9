"""How a command names a model, one of its versions, and an experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from neuroweaver.cli.terminal.failures import BadInput

if TYPE_CHECKING:
    from neuroweaver.client.connection import Client
    from neuroweaver.v1 import registry_pb2 as registry

Name = Annotated[str, Argument(metavar="MODEL", help="The model's id.")]
Reference = Annotated[
    str,
    Argument(
        metavar="MODEL[@VERSION]",
        help="A version is 1.2.0, latest, a range such as ^1.2, or an alias such as production.",
    ),
]
Test = Annotated[str, Argument(metavar="TEST", help="The experiment's id.")]
Reason = Annotated[str, Option("--reason", "-m", help="Why, in words, for the history.")]


def parsed(reference: str) -> tuple[str, str]:
    """The model and the version as RPCs name it, empty if there is none. Raises BadInput."""
    model_id, at, version = reference.partition("@")
    if not model_id or (at and not version.lstrip("@")):
        raise BadInput("is not MODEL or MODEL@VERSION", reference)
    return model_id, selector(version)


def parsed_version(reference: str) -> tuple[str, str]:
    """As `parsed`, for a reference that must name a version."""
    model_id, version = parsed(reference)
    if not version:
        raise BadInput("names no version; write MODEL@VERSION, such as advisor@1.2.0", reference)
    return model_id, version


def selector(version: str) -> str:
    """The version as RPCs name it: an alias has one `@` in front there, and may have one here."""
    is_alias = version[:1].isalpha() and version != "latest"
    return f"@{version}" if is_alias else version


def exact(client: Client, model_id: str, version: str) -> str:
    """The semantic version that `version` names; one that is spelled out stays as it is, even if hidden."""
    if version[:1].isdigit():
        return version
    return client.version(model_id, selector(version)).version


def name_of(version: registry.ModelVersion) -> str:
    """`advisor@1.2.0`, which commands take."""
    return f"{version.model_id}@{version.version}"
