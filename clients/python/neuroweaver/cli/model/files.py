"""`neuroweaver model upload|download|card|export|import`: a version's files, and its model card."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import grpc
from rich.text import Text
from typer import Argument, Option

from neuroweaver.artifacts import content, transfer
from neuroweaver.cli.arguments.options import with_options
from neuroweaver.cli.arguments.references import Name, Reference, name_of, parsed
from neuroweaver.cli.model.drafts import draft_of
from neuroweaver.cli.model.view import files_note, print_changed
from neuroweaver.cli.terminal.failures import BadInput, Exit, Failure, talking_to
from neuroweaver.cli.terminal.output import (
    AsJson,
    console,
    error_console,
    print_json,
    print_table,
    print_view,
    to_json,
)
from neuroweaver.cli.terminal.transfer_bar import transfer_bar
from neuroweaver.client.connection import Client
from neuroweaver.client.text import plain
from neuroweaver.oci import oci
from neuroweaver.v1 import registry_pb2 as registry

# What model hubs read and nobody else: YAML between two lines of dashes.
_FRONT_MATTER: Final = re.compile(r"\A---\n.*?^---\n", re.DOTALL | re.MULTILINE)


@with_options(draft_of, into="draft")
def upload(
    model: Name,
    source: Annotated[Path, Argument(metavar="FOLDER", help="A folder, or one file.", exists=True)],
    *,
    draft: registry.CreateModelVersionRequest,
    as_json: AsJson = False,
) -> None:
    """Upload files and create a version that holds them.

    Run it again to continue an interrupted upload. Weights must be safetensors; an adapter needs --base, or a
    --parent that has one.

    Example: neuroweaver model upload advisor ./adapter --bump minor --base smollm2-135m-instruct
    --metric accuracy=0.81:higher -m "retrained on November data"
    """
    draft.model_id = model
    with talking_to("registry") as client, _transferring("FOLDER"):
        _check_first(client, draft)
        files = content.files_of(source, _skipped)
        sizes = {path: file.stat().st_size for path, file in files.items()}
        with transfer_bar("Uploading", sizes) as on_progress:
            sent = transfer.upload(client.registry, files, on_progress=on_progress)
            draft.artifacts.extend(map(transfer.artifact_of, sent))
        created = client.registry.CreateModelVersion(draft)
    print_changed(created, as_json=as_json, note=files_note(created))


def download(
    reference: Reference,
    *,
    output: Annotated[Path | None, Option("--output", "-o", help="A folder. Default: MODEL-VERSION.")] = None,
    as_json: AsJson = False,
) -> None:
    """Download a version's files and check their digests. Run it again to continue an interrupted download.

    Example: neuroweaver model download advisor@production -o adapter
    """
    with talking_to("registry") as client, _transferring():
        version = client.version(*parsed(reference))
        folder = output or Path(f"{version.model_id}-{version.version}")
        with transfer_bar("Downloading", _sizes(version)) as on_progress:
            files = transfer.download(client.registry, version, folder, on_progress=on_progress)
    if as_json:
        print_json({"version": version.version, "files": [str(path) for path in files]})
        return
    rows = ((str(path), f"{path.stat().st_size:,}") for path in files)
    print_table(("FILE", "BYTES"), rows, empty="The version has no files.")


def export(
    reference: Reference,
    *,
    output: Annotated[
        Path | None, Option("--output", "-o", help="A folder, or a file.tar. Default: MODEL-VERSION.tar.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a version with its files and lineage as an OCI image layout, which container registries accept.

    Example: neuroweaver model export advisor@1.2.0 -o advisor.tar
    """
    with talking_to("registry") as client, _transferring():
        version = client.version(*parsed(reference))
        target = output or Path(f"{version.model_id}-{version.version}.tar")
        with transfer_bar("Exporting", _sizes(version)) as on_progress:
            digest = oci.export_version(client, version, target, on_progress=on_progress)
    if as_json:
        print_json({"version": name_of(version), "output": str(target), "manifest_digest": digest})
    else:
        print_view(Text.assemble(f"{name_of(version)} → {target}", (f"\nmanifest {digest}", "dim")))


def import_(
    layout: Annotated[
        Path, Argument(metavar="LAYOUT", help="An OCI image layout: a folder or a tar.", exists=True)
    ],
    *,
    model: Annotated[
        str, Option("--as", metavar="MODEL", help="Add it to this model. Default: as exported.")
    ] = "",
    version: Annotated[str, Option(metavar="X.Y.Z", help="Default: as exported.")] = "",
    ref: Annotated[str, Option(help="Its name in the layout, if that holds several.")] = "",
    without_parent: Annotated[
        bool, Option("--without-parent", help="Do not link it to its parent, which may be missing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Create a version from an OCI image layout; the model is registered if it does not exist.

    Importing the same layout again changes nothing.

    Example: neuroweaver model import advisor.tar --as advisor-copy
    """
    with talking_to("registry") as client, _transferring("LAYOUT"), transfer_bar("Importing") as on_progress:
        created = oci.import_layout(
            client,
            layout,
            ref=ref,
            model_id=model,
            version=version,
            without_parent=without_parent,
            on_progress=on_progress,
        )
    print_changed(created, as_json=as_json, note=files_note(created))


def card(
    reference: Reference,
    *,
    output: Annotated[Path | None, Option("--output", "-o", help="A file to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a version's model card: Markdown in a pipe, rendered on a terminal.

    Example: neuroweaver model card advisor@1.2.0 -o card.md
    """
    model_id, version = parsed(reference)
    request = registry.GetModelCardRequest(model_id=model_id, version=version or "latest")
    with talking_to("registry") as client:
        answer = client.registry.GetModelCard(request)
    if output:
        output.write_text(answer.markdown, encoding="utf-8")
    if as_json:
        print_json(to_json(answer))
    elif output:
        print_view(str(output))
    elif sys.stdout.isatty():
        from rich.markdown import Markdown  # noqa: PLC0415  slow to import, and only for this

        body = _FRONT_MATTER.sub("", answer.markdown, count=1)
        console().print(Markdown(plain(body), hyperlinks=False))
    else:
        sys.stdout.write(answer.markdown)


def _check_first(client: Client, draft: registry.CreateModelVersionRequest) -> None:
    """Refuses before the upload what the server would refuse after it."""
    client.registry.GetModel(registry.GetModelRequest(model_id=draft.model_id))
    if draft.parent_version:
        client.version(draft.model_id, draft.parent_version)
    if draft.version and _exists(client, draft.model_id, draft.version):
        raise Failure(
            Exit.CONFLICT,
            f"already exists: {draft.model_id}@{draft.version}; leave --version out for the next one",
            code="ALREADY_EXISTS",
        )


def _exists(client: Client, model_id: str, version: str) -> bool:
    try:
        client.version(model_id, version)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return False
        raise
    return True


def _sizes(version: registry.ModelVersion) -> dict[str, int]:
    return {artifact.path: artifact.size_bytes for artifact in version.artifacts}


def _skipped(path: str) -> None:
    error_console().print(Text(f"! {plain(path)} is hidden; skipped", "yellow"))


@contextmanager
def _transferring(argument: str = "") -> Iterator[None]:
    """argument: what cannot be sent, which the caller can fix; without one, what did not arrive whole."""
    try:
        yield
    except content.TransferError as error:
        if argument:
            raise BadInput(str(error), argument) from error
        raise Failure(Exit.FAILED, str(error), code="DATA_LOSS") from error
