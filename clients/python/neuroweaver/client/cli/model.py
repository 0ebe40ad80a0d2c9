"""`neuroweaver model`: models, their versions, aliases, history and files."""

from __future__ import annotations

from typing import Annotated

import typer

from neuroweaver.client.cli import (
    model_alias,
    model_changes,
    model_compare,
    model_files,
    model_history,
    model_update,
    model_verify,
)
from neuroweaver.client.cli.failures import EPILOG, talking_to
from neuroweaver.client.cli.output import AsJson, print_facts, print_json, print_table, to_json, when
from neuroweaver.client.cli.references import Name, Reference, parsed, version_at
from neuroweaver.client.cli.version_view import pairs, print_version
from neuroweaver.client.names import styled, version_state
from neuroweaver.v1 import registry_pb2 as registry

app = typer.Typer(help="Models and their versions in the Registry.", no_args_is_help=False, epilog=EPILOG)

_LOOK = "Look"

ShowDeleted = Annotated[bool, typer.Option("--show-deleted", help="Also what `model delete` hid.")]


@app.command("list", epilog=EPILOG, rich_help_panel=_LOOK)
def list_models(
    *,
    query: Annotated[
        str, typer.Option("--filter", help="Such as tags.team=service.", show_default=False)
    ] = "",
    show_deleted: ShowDeleted = False,
    as_json: AsJson = False,
) -> None:
    """List the models.

    Example: neuroweaver model list --filter tags.team=service
    """
    with talking_to("registry") as client:
        models = list(client.models(query, show_deleted=show_deleted))
    if as_json:
        print_json({"models": [to_json(model) for model in models]})
        return
    rows = (
        (
            each.model_id,
            "(deleted)" if each.HasField("delete_time") else each.latest_version,
            when(each.update_time),
            pairs(each.tags.items()),
            each.description,
        )
        for each in models
    )
    print_table(("MODEL", "LATEST", "UPDATED", "TAGS", "DESCRIPTION"), rows, empty="No models.")


@app.command(epilog=EPILOG, rich_help_panel=_LOOK)
def show(reference: Reference, *, as_json: AsJson = False) -> None:
    """Show a model, or one of its versions with metrics, lineage and files.

    Examples: neuroweaver model show service-advisor@1.0.0, neuroweaver model show service-advisor@production
    """
    model_id, version = parsed(reference)
    with talking_to("registry") as client:
        if version:
            found = version_at(client, model_id, version)
            if as_json:
                print_json(to_json(found))
            else:
                print_version(found)
            return
        model = client.registry.GetModel(registry.GetModelRequest(model_id=model_id))
    if as_json:
        print_json(to_json(model))
    else:
        print_model(model)


@app.command(epilog=EPILOG, rich_help_panel=_LOOK)
def versions(
    model: Name,
    *,
    query: Annotated[
        str,
        typer.Option("--filter", help="Such as state=VALIDATED AND range=^1.2.", show_default=False),
    ] = "",
    show_deleted: ShowDeleted = False,
    as_json: AsJson = False,
) -> None:
    """List a model's versions, highest first.

    Example: neuroweaver model versions service-advisor --filter state=VALIDATED
    """
    with talking_to("registry") as client:
        found = list(client.versions(model, query, show_deleted=show_deleted))
    if as_json:
        print_json({"versions": [to_json(version) for version in found]})
        return
    rows = (
        (
            each.version,
            "(deleted)" if each.HasField("delete_time") else styled(version_state(each.state)),
            ", ".join(each.aliases),
            when(each.create_time),
            each.description,
        )
        for each in found
    )
    print_table(("VERSION", "STATE", "ALIASES", "CREATED", "DESCRIPTION"), rows, empty="No versions.")


def print_model(model: registry.Model) -> None:
    print_facts(
        [
            ("model", model.model_id),
            ("latest", model.latest_version),
            ("description", model.description),
            ("tags", pairs(model.tags.items())),
            ("created", when(model.create_time)),
            ("updated", when(model.update_time)),
            ("deleted", when(model.delete_time)),
        ]
    )


for part in (model_history, model_verify, model_changes, model_update, model_compare, model_files):
    part.register(app)
app.add_typer(model_alias.app, name="alias", rich_help_panel="Change")
