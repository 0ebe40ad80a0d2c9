"""`neuroweaver model update|metrics`: what is told of a model, and what was measured of a version."""

from __future__ import annotations

from typing import Annotated

import typer

from neuroweaver.client.cli.drafts import MetricOptions, MetricsFile, Tags, metrics_of, tags_of
from neuroweaver.client.cli.failures import EPILOG, BadInput, talking_to
from neuroweaver.client.cli.output import AsJson, print_facts, print_json, to_json
from neuroweaver.client.cli.references import Name, Reference, exact, parsed
from neuroweaver.client.cli.version_view import pairs, tell
from neuroweaver.mesh.ids import new_id
from neuroweaver.v1 import registry_pb2 as registry


def update(
    model: Name,
    *,
    description: Annotated[
        str | None, typer.Option("--description", "-m", help="What it is for, in words.", show_default=False)
    ] = None,
    tag: Tags = None,
    untag: Annotated[
        list[str] | None,
        typer.Option(
            "--untag", metavar="NAME", help="A label to remove; repeat for several.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change a model's description or labels; labels that are not named stay.

    Example: neuroweaver model update advisor --tag team=service --untag trial
    """
    if description is None and not tag and not untag:
        raise BadInput("give --description, --tag or --untag", model)
    added, removed = tags_of(tag), set(untag or ())
    with talking_to("registry") as client:
        present = client.registry.GetModel(registry.GetModelRequest(model_id=model))
        if missing := sorted(removed - {*present.tags}):
            raise BadInput(f"{model} has no label {missing[0]}", "--untag")
        kept = {name: value for name, value in present.tags.items() if name not in removed}
        request = registry.UpdateModelRequest(
            model=registry.Model(
                model_id=model, description=description or "", tags={**kept, **added}, etag=present.etag
            ),
            request_id=new_id(),
        )
        if description is not None:
            request.update_mask.paths.append("description")
        if added or removed:
            request.update_mask.paths.append("tags")
        changed = client.registry.UpdateModel(request)
    if as_json:
        print_json(to_json(changed))
        return
    print_facts(
        [
            ("model", changed.model_id),
            ("description", changed.description),
            ("tags", pairs(changed.tags.items())),
        ]
    )


def metrics(
    reference: Reference,
    *,
    metric: MetricOptions = None,
    file: MetricsFile = None,
    as_json: AsJson = False,
) -> None:
    """Add metrics to a version, in place of those of the same name.

    Example: neuroweaver model metrics advisor@1.2.0 --metric accuracy=0.81:higher
    """
    model_id, version = parsed(reference)
    if not version:
        raise BadInput("names no version; such as advisor@1.2.0", reference)
    measured = metrics_of(metric, file)
    if not measured:
        raise BadInput("give --metric or --metrics", reference)
    with talking_to("registry") as client:
        request = registry.UpdateMetricsRequest(
            model_id=model_id,
            version=exact(client, model_id, version.removeprefix("@")),
            metrics=measured,
            request_id=new_id(),
        )
        found = client.registry.UpdateMetrics(request)
    tell(found, as_json=as_json, note=", ".join(sorted(measured)))


def register(app: typer.Typer) -> None:
    for command in (update, metrics):
        app.command(epilog=EPILOG, rich_help_panel="Change")(command)
