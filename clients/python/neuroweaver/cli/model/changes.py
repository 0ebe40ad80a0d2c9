"""`neuroweaver model register|create|bump|state|update|metrics|delete|undelete`."""

from __future__ import annotations

from typing import Annotated

from rich.text import Text
from typer import Argument, Option

from neuroweaver.cli.arguments.options import with_options
from neuroweaver.cli.arguments.references import (
    Name,
    Reason,
    Reference,
    exact,
    name_of,
    parsed,
    parsed_version,
)
from neuroweaver.cli.model import drafts
from neuroweaver.cli.model.view import model_facts, print_changed
from neuroweaver.cli.terminal.confirm import Yes, asking
from neuroweaver.cli.terminal.failures import BadInput, talking_to
from neuroweaver.cli.terminal.names import word
from neuroweaver.cli.terminal.output import AsJson, counted, print_answer
from neuroweaver.v1 import registry_pb2 as registry


def register(
    model: Name,
    *,
    description: Annotated[str, Option("--description", "-m", help="What it is for.")] = "",
    tag: drafts.Tags = None,
    allow_existing: Annotated[
        bool, Option("--allow-existing", help="Leave a model of this name as it is.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Register a model: a name to which versions are added.

    Example: neuroweaver model register advisor --description "Answers service questions" --tag team=service
    """
    request = registry.RegisterModelRequest(
        model=registry.Model(model_id=model, description=description, tags=drafts.tags_of(tag)),
        allow_existing=allow_existing,
    )
    with talking_to("registry") as client:
        registered = client.registry.RegisterModel(request)
    next_step = f"Add a version: neuroweaver model upload {registered.model_id} FOLDER"
    line = Text.assemble(f"{registered.model_id}\n", (next_step, "dim"))
    print_answer(registered, lambda _: line, as_json=as_json)


@with_options(drafts.draft_of, into="draft")
def create(model: Name, *, draft: registry.CreateModelVersionRequest, as_json: AsJson = False) -> None:
    """Create a version without files; `model upload` creates one with files.

    Example: neuroweaver model create advisor --version 2.0.0-rc.1 --metric accuracy=0.81:higher
    """
    draft.model_id = model
    with talking_to("registry") as client:
        print_changed(client.registry.CreateModelVersion(draft), as_json=as_json)


def bump(
    model: Name,
    level: Annotated[drafts.Level, Argument(metavar="LEVEL", help="What to raise.")],
    *,
    from_version: Annotated[
        str, Option("--from", metavar="X.Y.Z", help="Raise this version instead of the latest.")
    ] = "",
    label: Annotated[str, Option(help="First part of a prerelease. Default: rc.")] = "",
    build: Annotated[str, Option(help="Build metadata, such as a commit.")] = "",
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Create the next version; it inherits config, tags and base model.

    Concurrent bumps get different versions.

    Example: neuroweaver model bump advisor prerelease --label rc -m "to be judged"
    """
    request = registry.BumpModelVersionRequest(
        model_id=model,
        level=drafts.level_of(level),
        from_version=from_version,
        prerelease_label=label,
        build=build,
        description=reason,
    )
    with talking_to("registry") as client:
        bumped = client.registry.BumpModelVersion(request)
    note = f"after {bumped.parent_version}" if bumped.parent_version else ""
    print_changed(bumped, as_json=as_json, note=note)


def state(
    reference: Reference,
    new: Annotated[drafts.State, Argument(metavar="STATE", help="The new state.")],
    *,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Move a version to another state: draft, trained, validated, deployed, deprecated or archived.

    Example: neuroweaver model state advisor@1.2.0 validated -m "win rate 0.64"
    """
    model_id, version = parsed_version(reference)
    with talking_to("registry") as client:
        before = client.version(model_id, version)
        request = registry.UpdateVersionStateRequest(
            model_id=model_id,
            version=before.version,
            state=drafts.state_of(new),
            reason=reason,
            etag=before.etag,
        )
        moved = client.registry.UpdateVersionState(request)
    print_changed(moved, as_json=as_json, note=f"was {word(before, 'state')}")


def update(
    model: Name,
    *,
    description: Annotated[str | None, Option("--description", "-m", help="What it is for.")] = None,
    tag: drafts.Tags = None,
    untag: Annotated[
        list[str] | None, Option("--untag", metavar="NAME", help="Remove a label; repeat for several.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change a model's description or labels; labels that are not named stay.

    Example: neuroweaver model update advisor --tag team=service --untag trial
    """
    if description is None and not tag and not untag:
        raise BadInput("give --description, --tag or --untag", model)
    added, removed = drafts.tags_of(tag), set(untag or ())
    with talking_to("registry") as client:
        present = client.registry.GetModel(registry.GetModelRequest(model_id=model))
        if missing := sorted(removed - {*present.tags}):
            raise BadInput(f"{model} has no label {missing[0]}", "--untag")
        kept = {name: value for name, value in present.tags.items() if name not in removed}
        changed = registry.Model(
            model_id=model, description=description or "", tags={**kept, **added}, etag=present.etag
        )
        request = registry.UpdateModelRequest(model=changed)
        if description is not None:
            request.update_mask.paths.append("description")
        if added or removed:
            request.update_mask.paths.append("tags")
        updated = client.registry.UpdateModel(request)
    print_answer(updated, model_facts, as_json=as_json)


def metrics(
    reference: Reference,
    *,
    metric: drafts.MetricOptions = None,
    file: drafts.MetricsFile = None,
    as_json: AsJson = False,
) -> None:
    """Add metrics to a version; they replace those of the same name.

    Example: neuroweaver model metrics advisor@1.2.0 --metric accuracy=0.81:higher
    """
    model_id, version = parsed_version(reference)
    measured = drafts.metrics_of(metric, file)
    if not measured:
        raise BadInput("give --metric or --metrics", reference)
    with talking_to("registry") as client:
        request = registry.UpdateMetricsRequest(
            model_id=model_id, version=exact(client, model_id, version.removeprefix("@")), metrics=measured
        )
        updated = client.registry.UpdateMetrics(request)
    print_changed(updated, as_json=as_json, note=", ".join(sorted(measured)))


def delete(reference: Reference, *, yes: Yes = False, as_json: AsJson = False) -> None:
    """Hide a model or a version: its history stays, its name stays taken, and `undelete` brings it back.

    Refused while an alias or a deployment points at it.

    Example: neuroweaver model delete advisor@1.2.0 --yes
    """
    ask = asking(yes=yes, as_json=as_json)
    model_id, version = parsed(reference)
    deleted: registry.Model | registry.ModelVersion
    with talking_to("registry") as client:
        if version:
            before = client.version(model_id, version)
            ask(f"Delete {name_of(before)} ({word(before, 'state')})?")
            deleted = client.registry.DeleteModelVersion(
                registry.DeleteModelVersionRequest(
                    model_id=before.model_id, version=before.version, etag=before.etag
                )
            )
            line = f"{name_of(before)} deleted"
        else:
            model = client.registry.GetModel(registry.GetModelRequest(model_id=model_id))
            versions = counted(sum(1 for _ in client.versions(model_id)), "version")
            ask(f"Delete {model_id} with its {versions}?")
            request = registry.DeleteModelRequest(model_id=model_id, etag=model.etag)
            deleted, line = client.registry.DeleteModel(request), f"{model_id} deleted with {versions}"
    print_answer(deleted, lambda _: line, as_json=as_json)


def undelete(reference: Reference, *, as_json: AsJson = False) -> None:
    """Bring back a model or a version that `delete` hid. Files of a version are kept for 30 days.

    Example: neuroweaver model undelete advisor@1.2.0
    """
    model_id, version = parsed(reference)
    undeleted: registry.Model | registry.ModelVersion
    with talking_to("registry") as client:
        if version:
            request = registry.UndeleteModelVersionRequest(model_id=model_id, version=version)
            undeleted = client.registry.UndeleteModelVersion(request)
            line = f"{name_of(undeleted)} is back"
        else:
            undeleted = client.registry.UndeleteModel(registry.UndeleteModelRequest(model_id=model_id))
            versions = counted(sum(1 for _ in client.versions(model_id)), "version")
            line = f"{model_id} is back with {versions}"
    print_answer(undeleted, lambda _: line, as_json=as_json)
