"""`neuroweaver model`: models, versions and their files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer
from google.protobuf import json_format

from neuroweaver.client.cli.failures import EPILOG, BadInput, Exit, Failure, talking_to
from neuroweaver.client.cli.output import AsJson, console, print_facts, print_json, print_table, to_json, when
from neuroweaver.client.connection import Client
from neuroweaver.client.text import number
from neuroweaver.v1 import registry_pb2 as registry

app = typer.Typer(help="Models and their versions in the Registry.", no_args_is_help=False, epilog=EPILOG)

Name = Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.", show_default=False)]
Reference = Annotated[
    str,
    typer.Argument(
        metavar="MODEL[@VERSION]",
        help="A version is 1.2.0, latest, a range as ^1.2, or an alias as production.",
        show_default=False,
    ),
]


@app.command("list", epilog=EPILOG)
def list_models(
    *,
    query: Annotated[
        str, typer.Option("--filter", help="Such as tags.team=service.", show_default=False)
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List the models.

    Example: neuroweaver model list --json
    """
    with talking_to("registry") as client:
        models = list(client.models(query))
    if as_json:
        print_json({"models": [to_json(model) for model in models]})
        return
    rows = ((each.model_id, each.latest_version, when(each.update_time), each.description) for each in models)
    print_table(("MODEL", "LATEST", "UPDATED", "DESCRIPTION"), rows, empty="No models.")


@app.command(epilog=EPILOG)
def show(reference: Reference, *, as_json: AsJson = False) -> None:
    """Show a model, or one of its versions with metrics, lineage and files.

    Examples: neuroweaver model show service-advisor@1.0.0, neuroweaver model show service-advisor@production
    """
    model_id, version = _parsed(reference)
    with talking_to("registry") as client:
        if version:
            found = _version(client, model_id, version)
            if as_json:
                print_json(to_json(found))
            else:
                _print_version(found)
            return
        model = client.registry.GetModel(registry.GetModelRequest(model_id=model_id))
    if as_json:
        print_json(to_json(model))
        return
    print_facts(
        [
            ("model", model.model_id),
            ("latest", model.latest_version),
            ("description", model.description),
            ("tags", _pairs(model.tags.items())),
            ("created", when(model.create_time)),
            ("updated", when(model.update_time)),
            ("deleted", when(model.delete_time)),
        ]
    )


@app.command(epilog=EPILOG)
def versions(model: Name, *, as_json: AsJson = False) -> None:
    """List a model's versions, highest first.

    Example: neuroweaver model versions service-advisor
    """
    with talking_to("registry") as client:
        found = list(client.versions(model))
    if as_json:
        print_json({"versions": [to_json(version) for version in found]})
        return
    rows = (
        (
            each.version,
            _state(each),
            ", ".join(each.aliases),
            each.lineage.training_job_id,
            when(each.create_time),
            each.description,
        )
        for each in found
    )
    print_table(("VERSION", "STATE", "ALIASES", "JOB", "CREATED", "DESCRIPTION"), rows, empty="No versions.")


@app.command(epilog=EPILOG)
def download(
    reference: Reference,
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A folder. Default: MODEL-VERSION.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download a version's files and check their digests.

    Example: neuroweaver model download service-advisor@latest -o advisor
    """
    model_id, asked = _parsed(reference)
    with talking_to("registry") as client:
        version = _version(client, model_id, asked or "latest")
        folder = output or Path(f"{version.model_id}-{version.version}")
        files = [_download(client, version, artifact, folder) for artifact in version.artifacts]
    if as_json:
        print_json({"version": version.version, "files": [str(path) for path in files]})
        return
    rows = ((str(path), f"{path.stat().st_size:,}") for path in files)
    print_table(("FILE", "BYTES"), rows, empty="The version has no files.")


def _parsed(reference: str) -> tuple[str, str]:
    """The model and the version as RPCs name it; an alias comes with one `@`, or with two as in RPCs."""
    model_id, _, version = reference.partition("@")
    if not model_id or reference.endswith("@"):
        raise BadInput("is not MODEL or MODEL@VERSION", reference)
    is_alias = version[:1].isalpha() and version != "latest"
    return model_id, f"@{version}" if is_alias else version


def _version(client: Client, model_id: str, version: str) -> registry.ModelVersion:
    return client.registry.GetModelVersion(
        registry.GetModelVersionRequest(model_id=model_id, version=version)
    )


def _download(
    client: Client, version: registry.ModelVersion, artifact: registry.Artifact, folder: Path
) -> Path:
    """Written beside its place and renamed once its digest is right."""
    target = folder / _inside(artifact.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.part")
    digest = hashlib.sha256()
    request = registry.DownloadArtifactRequest(
        model_id=version.model_id, version=version.version, path=artifact.path
    )
    with partial.open("wb") as file:
        for part in client.registry.DownloadArtifact(request):
            if part.WhichOneof("part") == "chunk":
                digest.update(part.chunk)
                file.write(part.chunk)
    if digest.hexdigest() != artifact.digest:
        partial.unlink()
        raise Failure(Exit.FAILED, f"{artifact.path} arrived damaged: its digest is not {artifact.digest}")
    partial.replace(target)
    return target


def _inside(path: str) -> PurePosixPath:
    """The path, if it stays in its folder: a server is not trusted with ours."""
    parsed = PurePosixPath(path)
    if parsed.is_absolute() or ".." in parsed.parts or not parsed.parts:
        raise Failure(Exit.FAILED, f"the server names a file outside the version's folder: {path}")
    return parsed


def _print_version(version: registry.ModelVersion) -> None:
    base, lineage = version.base, version.lineage
    print_facts(
        [
            ("version", f"{version.model_id}@{version.version}"),
            ("state", _state(version)),
            ("aliases", ", ".join(version.aliases)),
            ("description", version.description),
            ("parent", version.parent_version),
            ("created", when(version.create_time)),
            ("tags", _pairs(version.tags.items())),
            ("base model", base.name),
            ("base digest", base.model_digest),
            ("job", lineage.training_job_id),
            ("data", lineage.dataset_path),
            ("data digest", lineage.dataset_digest),
            ("trace", lineage.trace_id),
            (
                "config",
                json.dumps(json_format.MessageToDict(version.config), sort_keys=True)
                if version.config.fields
                else "",
            ),
        ]
    )
    if version.metrics:
        console().print()
        rows = [(name, _metric(metric)) for name, metric in sorted(version.metrics.items())]
        print_table(("METRIC", "VALUE"), rows, empty="")
    if version.artifacts:
        console().print()
        files = [(each.path, f"{each.size_bytes:,}", each.digest) for each in version.artifacts]
        print_table(("FILE", "BYTES", "SHA-256"), files, empty="")


def _config(version: registry.ModelVersion) -> str:
    """As `name=value`; a Struct knows no whole numbers, so 16.0 is shown as 16."""
    fields = json_format.MessageToDict(version.config)
    return "  ".join(f"{name}={_short(value)}" for name, value in sorted(fields.items()))


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _metric(metric: registry.Metric) -> str:
    text = f"{number(metric.value)} {metric.unit}".rstrip()
    if not metric.HasField("interval"):
        return text
    interval = metric.interval
    return f"{text} ({interval.confidence:.0%}: {number(interval.lower)} to {number(interval.upper)})"


def _state(version: registry.ModelVersion) -> str:
    known = registry.VersionState.DESCRIPTOR.values_by_number.get(version.state)
    return known.name.removeprefix("VERSION_STATE_") if known else str(version.state)


def _pairs(items: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(items))
