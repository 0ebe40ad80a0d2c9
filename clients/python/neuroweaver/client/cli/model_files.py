"""`neuroweaver model upload|download|card|export|import`: a version's files, and what is written about it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import grpc
import typer
from rich.markdown import Markdown
from rich.text import Text

from neuroweaver.client import oci, transfer
from neuroweaver.client.cli.drafts import with_version_options
from neuroweaver.client.cli.failures import EPILOG, BadInput, Exit, Failure, talking_to
from neuroweaver.client.cli.output import (
    AsJson,
    console,
    error_console,
    print_json,
    print_table,
    to_json,
)
from neuroweaver.client.cli.references import Name, Reference, name_of, parsed, version_at
from neuroweaver.client.cli.transfer_bar import transfer_bar
from neuroweaver.client.cli.version_view import tell
from neuroweaver.client.connection import Client
from neuroweaver.client.text import plain
from neuroweaver.v1 import registry_pb2 as registry

# What model hubs read and nobody else: YAML between two lines of dashes.
_FRONT_MATTER: Final = re.compile(r"\A---\n.*?^---\n", re.DOTALL | re.MULTILINE)


@with_version_options
def upload(
    model: Name,
    source: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A folder, or one file.", exists=True, show_default=False),
    ],
    *,
    draft: registry.CreateModelVersionRequest,
    as_json: AsJson = False,
) -> None:
    """Upload files and create a version that holds them.

    Interrupted, the same command goes on where it stopped. Weights are taken as safetensors only; an adapter
    needs --base or a --parent with one.

    Example: neuroweaver model upload advisor ./adapter --bump minor --base smollm2-135m-instruct
    --metric accuracy=0.81:higher -m "retrained on November"
    """
    draft.model_id = model
    with talking_to("registry") as client, _given("FOLDER"):
        _check_first(client, draft)
        files = transfer.files_of(source, _skipped)
        sizes = {path: file.stat().st_size for path, file in files.items()}
        with transfer_bar("Uploading", sizes) as on_progress:
            draft.artifacts.extend(transfer.upload(client, files, on_progress=on_progress))
        made = client.registry.CreateModelVersion(draft)
    tell(made, as_json=as_json, note=_files_told(made))


def download(
    reference: Reference,
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A folder. Default: MODEL-VERSION.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download a version's files and check their digests; interrupted, it goes on where it stopped.

    Example: neuroweaver model download advisor@production -o adapter
    """
    model_id, asked = parsed(reference)
    with talking_to("registry") as client, _told():
        version = version_at(client, model_id, asked)
        folder = output or Path(f"{version.model_id}-{version.version}")
        sizes = {artifact.path: artifact.size_bytes for artifact in version.artifacts}
        with transfer_bar("Downloading", sizes) as on_progress:
            files = transfer.download(client, version, folder, on_progress=on_progress)
    if as_json:
        print_json({"version": version.version, "files": [str(path) for path in files]})
        return
    rows = ((str(path), f"{path.stat().st_size:,}") for path in files)
    print_table(("FILE", "BYTES"), rows, empty="The version has no files.")


def export(
    reference: Reference,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="A folder, or a file.tar. Default: MODEL-VERSION.tar.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a version with its files and lineage as an OCI image layout, which registries of images take.

    Example: neuroweaver model export advisor@1.2.0 -o advisor.tar
    """
    model_id, asked = parsed(reference)
    with talking_to("registry") as client, _told():
        version = version_at(client, model_id, asked)
        target = output or Path(f"{version.model_id}-{version.version}.tar")
        sizes = {artifact.path: artifact.size_bytes for artifact in version.artifacts}
        with transfer_bar("Exporting", sizes) as on_progress:
            digest = oci.export_version(client, version, target, on_progress=on_progress)
    if as_json:
        print_json({"version": name_of(version), "output": str(target), "manifest_digest": digest})
        return
    console().print(Text(f"{name_of(version)} → {target}"), soft_wrap=True)
    console().print(Text(f"manifest {digest}", "dim"), soft_wrap=True)


def import_version(
    layout: Annotated[
        Path,
        typer.Argument(
            metavar="LAYOUT", help="An OCI image layout: a folder or a tar.", exists=True, show_default=False
        ),
    ],
    *,
    model: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="MODEL",
            help="The model it becomes a version of. Default: as it was exported.",
            show_default=False,
        ),
    ] = "",
    version: Annotated[
        str, typer.Option(metavar="X.Y.Z", help="Default: as it was exported.", show_default=False)
    ] = "",
    ref: Annotated[
        str, typer.Option(help="Which of several in the layout, by its name there.", show_default=False)
    ] = "",
    without_parent: Annotated[
        bool, typer.Option("--without-parent", help="Do not link it to its parent, which must be there else.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a version from an OCI image layout; the model is registered if it is not there.

    The same again changes nothing.

    Example: neuroweaver model import advisor.tar --as advisor-copy
    """
    with talking_to("registry") as client, _given("LAYOUT"), transfer_bar("Importing") as on_progress:
        made = oci.import_layout(
            client,
            layout,
            ref=ref,
            model_id=model,
            version=version,
            without_parent=without_parent,
            on_progress=on_progress,
        )
    tell(made, as_json=as_json, note=_files_told(made))


def card(
    reference: Reference,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file to write.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a version's model card: Markdown in a pipe, rendered on a terminal.

    Example: neuroweaver model card advisor@1.2.0 -o card.md
    """
    model_id, version = parsed(reference)
    with talking_to("registry") as client:
        found = client.registry.GetModelCard(
            registry.GetModelCardRequest(model_id=model_id, version=version or "latest")
        )
    if output:
        output.write_text(found.markdown, encoding="utf-8")
    if as_json:
        print_json(to_json(found))
    elif output:
        console().print(Text(str(output)), soft_wrap=True)
    elif sys.stdout.isatty():
        body = _FRONT_MATTER.sub("", found.markdown, count=1)
        console().print(Markdown(plain(body), hyperlinks=False))
    else:
        sys.stdout.write(found.markdown)


def register(app: typer.Typer) -> None:
    app.command(epilog=EPILOG, rich_help_panel="Look")(card)
    for command in (upload, download, export):
        app.command(epilog=EPILOG, rich_help_panel="Files")(command)
    app.command("import", epilog=EPILOG, rich_help_panel="Files")(import_version)


def _check_first(client: Client, draft: registry.CreateModelVersionRequest) -> None:
    """What would be refused after the upload is refused before it."""
    client.registry.GetModel(registry.GetModelRequest(model_id=draft.model_id))
    if draft.parent_version:
        version_at(client, draft.model_id, draft.parent_version)
    if draft.version and _is_taken(client, draft.model_id, draft.version):
        raise Failure(
            Exit.CONFLICT,
            f"already exists: {draft.model_id}@{draft.version}; leave --version out for the next one",
            code="ALREADY_EXISTS",
        )


def _is_taken(client: Client, model_id: str, version: str) -> bool:
    try:
        version_at(client, model_id, version)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return False
        raise
    return True


def _files_told(version: registry.ModelVersion) -> str:
    count = len(version.artifacts)
    size = sum(artifact.size_bytes for artifact in version.artifacts)
    return f"{count} file{'' if count == 1 else 's'}, {size:,} bytes"


def _skipped(path: str) -> None:
    error_console().print(Text(f"! {plain(path)} is hidden and left out", "yellow"))


@contextmanager
def _given(argument: str) -> Iterator[None]:
    """What cannot be sent is the caller's to mend."""
    try:
        yield
    except transfer.TransferError as error:
        raise BadInput(str(error), argument) from error


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except transfer.TransferError as error:
        raise Failure(Exit.FAILED, str(error), code="DATA_LOSS") from error
