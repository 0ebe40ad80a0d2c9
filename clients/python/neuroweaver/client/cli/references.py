"""How a command names a model and one of its versions."""

from __future__ import annotations

from typing import Annotated

import typer

from neuroweaver.client.cli.failures import BadInput
from neuroweaver.client.connection import Client
from neuroweaver.v1 import registry_pb2 as registry

Name = Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.", show_default=False)]
Reference = Annotated[
    str,
    typer.Argument(
        metavar="MODEL[@VERSION]",
        help="A version is 1.2.0, latest, a range as ^1.2, or an alias as production.",
        show_default=False,
    ),
]
Reason = Annotated[
    str, typer.Option("--reason", "-m", help="Why, in words, for the history.", show_default=False)
]


def parsed(reference: str) -> tuple[str, str]:
    """The model and the version as RPCs name it, empty if there is none. Raises BadInput."""
    model_id, at, version = reference.partition("@")
    if not model_id or (at and not version.lstrip("@")):
        raise BadInput("is not MODEL or MODEL@VERSION", reference)
    return model_id, selector(version)


def selector(version: str) -> str:
    """The version as RPCs name it: an alias has one `@` in front there, and may have one here."""
    is_alias = version[:1].isalpha() and version != "latest"
    return f"@{version}" if is_alias else version


def version_at(client: Client, model_id: str, version: str) -> registry.ModelVersion:
    """version: as RPCs name it; empty for the latest."""
    request = registry.GetModelVersionRequest(model_id=model_id, version=version or "latest")
    return client.registry.GetModelVersion(request)


def exact(client: Client, model_id: str, version: str) -> str:
    """The semantic version that `version` names; one that is spelled out stays as it is, even if hidden."""
    if version[:1].isdigit():
        return version
    return version_at(client, model_id, selector(version)).version


def name_of(version: registry.ModelVersion) -> str:
    """`advisor@1.2.0`, which commands take."""
    return f"{version.model_id}@{version.version}"
