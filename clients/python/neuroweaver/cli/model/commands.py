"""`neuroweaver model list|show|versions`."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from neuroweaver.cli.arguments.references import Name, Reference, parsed
from neuroweaver.cli.model.view import model_facts, pairs, version_parts
from neuroweaver.cli.terminal.failures import talking_to
from neuroweaver.cli.terminal.names import styled
from neuroweaver.cli.terminal.output import AsJson, print_answer, print_list, when
from neuroweaver.v1 import registry_pb2 as registry

ShowDeleted = Annotated[bool, Option("--show-deleted", help="Include what `model delete` hid.")]


def list_(
    *,
    query: Annotated[str, Option("--filter", help="Such as tags.team=service.")] = "",
    show_deleted: ShowDeleted = False,
    as_json: AsJson = False,
) -> None:
    """List the models.

    Example: neuroweaver model list --filter tags.team=service
    """
    columns = {
        "MODEL": lambda model: model.model_id,
        "LATEST": lambda model: "(deleted)" if model.HasField("delete_time") else model.latest_version,
        "UPDATED": lambda model: when(model.update_time),
        "TAGS": lambda model: pairs(model.tags),
        "DESCRIPTION": lambda model: model.description,
    }
    with talking_to("registry") as client:
        print_list("models", client.models(query, show_deleted=show_deleted), columns, as_json=as_json)


def show(reference: Reference, *, as_json: AsJson = False) -> None:
    """Show a model, or one of its versions with metrics, lineage and files.

    Examples: neuroweaver model show service-advisor@1.0.0, neuroweaver model show service-advisor@production
    """
    model_id, version = parsed(reference)
    with talking_to("registry") as client:
        if version:
            print_answer(client.version(model_id, version), version_parts, as_json=as_json)
        else:
            model = client.registry.GetModel(registry.GetModelRequest(model_id=model_id))
            print_answer(model, model_facts, as_json=as_json)


def versions(
    model: Name,
    *,
    query: Annotated[str, Option("--filter", help="Such as state=VALIDATED AND range=^1.2.")] = "",
    show_deleted: ShowDeleted = False,
    as_json: AsJson = False,
) -> None:
    """List a model's versions, highest first.

    Example: neuroweaver model versions service-advisor --filter state=VALIDATED
    """
    columns = {
        "VERSION": lambda version: version.version,
        "STATE": lambda version: "(deleted)" if version.HasField("delete_time") else styled(version, "state"),
        "ALIASES": lambda version: ", ".join(version.aliases),
        "CREATED": lambda version: when(version.create_time),
        "DESCRIPTION": lambda version: version.description,
    }
    with talking_to("registry") as client:
        listed = client.versions(model, query, show_deleted=show_deleted)
        print_list("versions", listed, columns, as_json=as_json)
