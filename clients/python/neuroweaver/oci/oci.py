"""Versions as OCI image layouts that follow the CNCF ModelPack specification, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias

import grpc
from semver import Version

from neuroweaver.artifacts.content import TransferError, place, sha256_of, whole_file
from neuroweaver.artifacts.file import File
from neuroweaver.artifacts.transfer import OnProgress, Transfer, artifact_of
from neuroweaver.client.connection import Client
from neuroweaver.oci import layout as oci_layout
from neuroweaver.oci import modelpack, tar
from neuroweaver.oci.layout import Descriptor, Layout
from neuroweaver.oci.modelpack import Image, Packed, name_of
from neuroweaver.v1 import registry_pb2 as registry

State: TypeAlias = "registry.VersionState.ValueType"

# A version begins as DRAFT, TRAINED or VALIDATED and is moved on from there; without files, as DRAFT.
_ROUTES: Final[Mapping[State, tuple[State, ...]]] = {
    registry.VERSION_STATE_DEPLOYED: (registry.VERSION_STATE_VALIDATED, registry.VERSION_STATE_DEPLOYED),
    registry.VERSION_STATE_DEPRECATED: (registry.VERSION_STATE_TRAINED, registry.VERSION_STATE_DEPRECATED),
    registry.VERSION_STATE_ARCHIVED: (registry.VERSION_STATE_TRAINED, registry.VERSION_STATE_ARCHIVED),
}
_ROUTE_WITHOUT_FILES: Final = (
    registry.VERSION_STATE_DRAFT,
    registry.VERSION_STATE_ARCHIVED,
    registry.VERSION_STATE_DEPRECATED,
    registry.VERSION_STATE_VALIDATED,
    registry.VERSION_STATE_DEPLOYED,
)
_REQUESTED: Final = frozenset(registry.CreateModelVersionRequest.DESCRIPTOR.fields_by_name)


def export_version(
    client: Client,
    version: registry.ModelVersion,
    output: Path,
    *,
    on_progress: OnProgress | None = None,
) -> str:
    """The digest of the version's manifest, `sha256:…`, once it is in the layout under the version's name.

    output: a folder, or a file whose name ends in `.tar`. A layout that is there gets the version too.
    Interrupted, the export of a folder goes on where it stopped, that of a tar begins anew.
    Raises TransferError for an output that is something else, grpc.RpcError and OSError.
    """
    packed = modelpack.pack(version)
    if output.is_symlink():
        raise TransferError(str(output), "is a symbolic link")
    transfer = Transfer(client.registry, on_progress)
    if output.suffix == ".tar":
        _write_tar(transfer, version, packed, output)
    else:
        _write_folder(transfer, version, packed, output)
    return packed.manifest.name


def import_layout(
    client: Client,
    path: Path,
    *,
    ref: str = "",
    model_id: str = "",
    version: str = "",
    without_parent: bool = False,
    on_progress: OnProgress | None = None,
) -> registry.ModelVersion:
    """The version made from a layout, a folder or a tar; its model is registered if it is not there.

    ref: which of several; default: the one called `version`. model_id, version: what it becomes; default:
    what the layout says. without_parent: it has no parent here; otherwise its parent must be here already.
    The same again gives the same version. Layouts of other tools are taken too.
    Raises TransferError for a layout that is not taken, before anything is sent, and for a file that the
    Registry refuses; grpc.RpcError otherwise.
    """
    layout = Layout.of(path)
    manifest = _chosen(layout, ref, version)
    image = modelpack.read(layout, manifest)
    wanted = _wanted(image, manifest, model_id, version)
    if without_parent:
        wanted.parent_version = ""
    _check_parent(client, wanted)
    client.registry.RegisterModel(
        registry.RegisterModelRequest(model=registry.Model(model_id=wanted.model_id), allow_existing=True)
    )
    transfer = Transfer(client.registry, on_progress)
    for file in map(File.of, wanted.artifacts):
        transfer.send(file, image.files[file.path])
    return _created(client, wanted, manifest.digest)


def _write_folder(transfer: Transfer, version: registry.ModelVersion, packed: Packed, folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise TransferError(str(folder), "is a file; the name of an archive ends in .tar")
    is_new = not folder.exists() or not any(folder.iterdir())
    index = oci_layout.index_of([packed.manifest.to_json()])
    if is_new:
        oci_layout.write_whole(folder, oci_layout.MARK_FILE, oci_layout.MARK)
    else:
        index = Layout.of(folder).index_with(packed.manifest)
    for file in map(File.of, version.artifacts):
        transfer.fetch(version, file, place(folder, oci_layout.blob_name(file.digest)))
    for digest, content in packed.blobs.items():
        oci_layout.write_whole(folder, oci_layout.blob_name(digest), content)
    # Last, so that whatever the index names is there.
    oci_layout.write_whole(folder, oci_layout.INDEX_FILE, index)


def _write_tar(transfer: Transfer, version: registry.ModelVersion, packed: Packed, file: Path) -> None:
    if file.is_dir():
        raise TransferError(str(file), "is a folder, yet its name is that of an archive")
    pieces: dict[str, tar.Piece] = {}
    index = oci_layout.index_of([packed.manifest.to_json()])
    if file.exists():
        before = Layout.of(file)
        index = before.index_with(packed.manifest)
        pieces = {piece[0]: piece for piece in oci_layout.blob_copies(before)}
    for artifact in version.artifacts:
        name = oci_layout.blob_name(artifact.digest)
        pieces.setdefault(name, (name, artifact.size_bytes, transfer.receive(version, File.of(artifact))))
    small = {oci_layout.blob_name(digest): content for digest, content in packed.blobs.items()}
    small |= {oci_layout.INDEX_FILE: index, oci_layout.MARK_FILE: oci_layout.MARK}
    pieces |= {name: (name, len(content), [content]) for name, content in small.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as out:
        tar.write(out, (pieces[name] for name in sorted(pieces)))


def _chosen(layout: Layout, ref: str, version: str) -> Descriptor:
    models = [model for model in layout.manifests() if modelpack.is_model(layout, model)]
    if not models:
        raise TransferError(str(layout.path), "has no ModelPack model")
    wanted = ref or (version if len(models) > 1 else "")
    named = [model for model in models if not wanted or model.annotations.get(oci_layout.REF_NAME) == wanted]
    if len(named) != 1:
        names = ", ".join(
            sorted(model.annotations.get(oci_layout.REF_NAME) or model.name for model in models)
        )
        problem = f"does not hold one {wanted}, but" if wanted else "holds several versions, name one of"
        raise TransferError(str(layout.path), f"{problem} {names}")
    return named[0]


def _wanted(image: Image, manifest: Descriptor, model_id: str, version: str) -> registry.ModelVersion:
    """The version to be made. Raises TransferError if nobody says what it is called."""
    ref = manifest.annotations.get(oci_layout.REF_NAME, "")
    wanted = modelpack.portable(image.version) if image.version else modelpack.described(image, ref)
    wanted.model_id = model_id or wanted.model_id
    wanted.version = version or wanted.version
    if not wanted.model_id:
        raise TransferError(manifest.name, "names no model: name one")
    if not Version.is_valid(wanted.version):
        called = wanted.version or "no version"
        raise TransferError(
            manifest.name, f"says {called}, which is not a semantic version such as 1.4.0: name one"
        )
    return wanted


def _check_parent(client: Client, wanted: registry.ModelVersion) -> None:
    """Raises TransferError if the version would not be the same with the parent as it is here."""
    if not wanted.parent_version:
        return
    name = f"{wanted.model_id}@{wanted.parent_version}"
    try:
        parent = client.version(wanted.model_id, wanted.parent_version)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        raise TransferError(
            name_of(wanted),
            f"has the parent {name}, which is not here: import that first, or this without a parent",
        ) from error
    inherits = (
        not set(parent.config.fields) <= set(wanted.config.fields)
        or not set(parent.tags) <= set(wanted.tags)
        or (parent.HasField("base") and not wanted.HasField("base"))
    )
    if inherits:
        raise TransferError(
            name_of(wanted),
            f"would inherit from {name}, which is another version here: import it without a parent",
        )


def _created(client: Client, wanted: registry.ModelVersion, manifest_digest: str) -> registry.ModelVersion:
    first, *further = _route(wanted)
    # All but the state is named alike in a version and in the request that creates it.
    content = {field.name: value for field, value in wanted.ListFields() if field.name in _REQUESTED}
    request = registry.CreateModelVersionRequest(**{**content, "state": first})
    request.request_id = _request_id(manifest_digest, request)
    try:
        created = client.registry.CreateModelVersion(request)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
            raise
        return _found_again(client, wanted, error)
    for state in further:
        move = registry.UpdateVersionStateRequest(
            model_id=created.model_id,
            version=created.version,
            state=state,
            reason=f"imported as {registry.VersionState.Name(state)}",
        )
        move.request_id = _request_id(manifest_digest, move)
        created = client.registry.UpdateVersionState(move)
    return created


def _route(wanted: registry.ModelVersion) -> tuple[State, ...]:
    """The states that lead to the version's own."""
    if not wanted.artifacts and wanted.state in _ROUTE_WITHOUT_FILES:
        return _ROUTE_WITHOUT_FILES[: _ROUTE_WITHOUT_FILES.index(wanted.state) + 1]
    return _ROUTES.get(wanted.state, (wanted.state,))


def _request_id(
    manifest_digest: str, request: registry.CreateModelVersionRequest | registry.UpdateVersionStateRequest
) -> str:
    """The same for the same manifest and target, at any time and on any machine."""
    content = manifest_digest.encode() + request.SerializeToString(deterministic=True)
    return f"oci-{sha256_of([content])[:60]}"


def _found_again(
    client: Client, wanted: registry.ModelVersion, refusal: grpc.RpcError
) -> registry.ModelVersion:
    """The version that is there, if it has this content; the Registry keeps its answers for a while only."""
    try:
        existing = client.version(wanted.model_id, wanted.version)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            raise refusal from error  # deleted, and taken all the same
        raise
    if _comparable(existing) != _comparable(wanted):
        raise refusal
    return existing


def _comparable(version: registry.ModelVersion) -> registry.ModelVersion:
    """The content: without the state, which moves on, and the media types, which a registry may set."""
    kept = modelpack.portable(version)
    kept.ClearField("state")
    kept.ClearField("artifacts")
    if not kept.config.fields:
        kept.ClearField("config")
    for file in sorted(map(File.of, version.artifacts), key=lambda file: file.path):
        kept.artifacts.append(artifact_of(file))
    return kept
