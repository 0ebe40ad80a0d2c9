"""`neuroweaver model register|create|bump|state|delete`."""

from __future__ import annotations

from typing import Annotated

import typer

from neuroweaver.client.cli.confirm import Yes, confirm
from neuroweaver.client.cli.drafts import (
    Level,
    State,
    Tags,
    level_of,
    state_of,
    tags_of,
    with_version_options,
)
from neuroweaver.client.cli.failures import EPILOG, BadInput, talking_to
from neuroweaver.client.cli.output import AsJson, console, print_json, to_json
from neuroweaver.client.cli.references import Name, Reason, Reference, name_of, parsed, version_at
from neuroweaver.client.cli.version_view import tell
from neuroweaver.client.connection import Client
from neuroweaver.client.names import version_state
from neuroweaver.mesh.ids import new_id
from neuroweaver.v1 import registry_pb2 as registry


def register_model(
    model: Name,
    *,
    description: Annotated[
        str, typer.Option("--description", "-m", help="What it is for, in words.", show_default=False)
    ] = "",
    tag: Tags = None,
    allow_existing: Annotated[
        bool, typer.Option("--allow-existing", help="A model of this name is left as it is.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Register a model: a name to which versions are added.

    Example: neuroweaver model register advisor --description "Answers service questions" --tag team=service
    """
    request = registry.RegisterModelRequest(
        model=registry.Model(model_id=model, description=description, tags=tags_of(tag)),
        allow_existing=allow_existing,
        request_id=new_id(),
    )
    with talking_to("registry") as client:
        made = client.registry.RegisterModel(request)
    if as_json:
        print_json(to_json(made))
        return
    console().print(made.model_id)
    console().print(
        f"Add a version: neuroweaver model upload {made.model_id} FOLDER", style="dim", soft_wrap=True
    )


@with_version_options
def create(model: Name, *, draft: registry.CreateModelVersionRequest, as_json: AsJson = False) -> None:
    """Create a version without files; `model upload` creates one with files.

    Example: neuroweaver model create advisor --version 2.0.0-rc.1 --metric accuracy=0.81:higher
    """
    draft.model_id = model
    with talking_to("registry") as client:
        made = client.registry.CreateModelVersion(draft)
    tell(made, as_json=as_json)


def bump(
    model: Name,
    level: Annotated[Level, typer.Argument(metavar="LEVEL", help="What to raise.", show_default=False)],
    *,
    from_version: Annotated[
        str, typer.Option("--from", metavar="X.Y.Z", help="Raise this version, not the latest.")
    ] = "",
    label: Annotated[
        str, typer.Option(help="First part of a prerelease. Default rc.", show_default=False)
    ] = "",
    build: Annotated[str, typer.Option(help="Build metadata, such as a commit.", show_default=False)] = "",
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Create the next version, which inherits config, tags and base model.

    Concurrent bumps each get a version of their own.

    Example: neuroweaver model bump advisor prerelease --label rc -m "to be judged"
    """
    request = registry.BumpModelVersionRequest(
        model_id=model,
        level=level_of(level),
        from_version=from_version,
        prerelease_label=label,
        build=build,
        description=reason,
        request_id=new_id(),
    )
    with talking_to("registry") as client:
        made = client.registry.BumpModelVersion(request)
    tell(made, as_json=as_json, note=f"after {made.parent_version}" if made.parent_version else "")


def state(
    reference: Reference,
    new: Annotated[State, typer.Argument(metavar="STATE", help="Where it stands now.", show_default=False)],
    *,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Move a version to another state: draft, trained, validated, deployed, deprecated or archived.

    Example: neuroweaver model state advisor@1.2.0 validated -m "win rate 0.64"
    """
    model_id, version = parsed(reference)
    if not version:
        raise BadInput("names no version; such as advisor@1.2.0", reference)
    with talking_to("registry") as client:
        before = version_at(client, model_id, version)
        request = registry.UpdateVersionStateRequest(
            model_id=model_id,
            version=before.version,
            state=state_of(new),
            reason=reason,
            etag=before.etag,
            request_id=new_id(),
        )
        moved = client.registry.UpdateVersionState(request)
    tell(moved, as_json=as_json, note=f"was {version_state(before.state)}")


def delete(reference: Reference, *, yes: Yes = False, as_json: AsJson = False) -> None:
    """Hide a model or one of its versions; the history stays, and the name stays taken.

    Refused while an alias or a deployment points at it.

    Example: neuroweaver model delete advisor@1.2.0 --yes
    """
    model_id, version = parsed(reference)
    with talking_to("registry") as client:
        if version:
            _delete_version(client, version_at(client, model_id, version), yes=yes, as_json=as_json)
        else:
            _delete_model(client, model_id, yes=yes, as_json=as_json)


def register(app: typer.Typer) -> None:
    app.command("register", epilog=EPILOG, rich_help_panel="Change")(register_model)
    for command in (create, bump, state, delete):
        app.command(epilog=EPILOG, rich_help_panel="Change")(command)


def _delete_version(client: Client, found: registry.ModelVersion, *, yes: bool, as_json: bool) -> None:
    name = name_of(found)
    confirm(f"Delete {name} ({version_state(found.state)})?", yes=yes, as_json=as_json)
    request = registry.DeleteModelVersionRequest(
        model_id=found.model_id, version=found.version, etag=found.etag, request_id=new_id()
    )
    deleted = client.registry.DeleteModelVersion(request)
    if as_json:
        print_json(to_json(deleted))
    else:
        console().print(f"{name} deleted")


def _delete_model(client: Client, model_id: str, *, yes: bool, as_json: bool) -> None:
    found = client.registry.GetModel(registry.GetModelRequest(model_id=model_id))
    count = sum(1 for _ in client.versions(model_id))
    counted = f"{count} version{'' if count == 1 else 's'}"
    confirm(f"Delete {model_id} with its {counted}?", yes=yes, as_json=as_json)
    request = registry.DeleteModelRequest(model_id=model_id, etag=found.etag, request_id=new_id())
    deleted = client.registry.DeleteModel(request)
    if as_json:
        print_json(to_json(deleted))
    else:
        console().print(f"{model_id} deleted with {counted}")
