"""A version as a ModelPack manifest, and what a ModelPack manifest says of a version.

CNCF ModelPack: https://github.com/modelpack/model-spec, docs/spec.md, docs/annotations.md and
schema/config-schema.json. Every file is a raw layer, so that a blob's digest is the artifact's digest. What
ModelPack has no field for travels in one more layer, so that a version comes back as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Final

from google.protobuf import json_format
from semver import Version

from neuroweaver.artifacts.content import Content, TransferError, check_path, sha256_of
from neuroweaver.oci import layout as oci_layout
from neuroweaver.oci import tar
from neuroweaver.oci.layout import Descriptor, Layout, typed
from neuroweaver.v1 import registry_pb2 as registry

ARTIFACT_TYPE: Final = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.cncf.model.config.v1+json"
FILE_PATH: Final = "org.cncf.model.filepath"
# By which ORAS names the files that it writes; ModelPack does not know it.
TITLE: Final = "org.opencontainers.image.title"
VERSION_FILE: Final = "neuroweaver/version.json"

_KINDS: Final = ("weight", "weight.config", "doc", "code", "dataset")
_RAW: Final = {kind: f"application/vnd.cncf.model.{kind}.v1.raw" for kind in _KINDS}
_TAR: Final = frozenset(f"application/vnd.cncf.model.{kind}.v1.tar" for kind in _KINDS)
_COMPRESSED: Final = ("+gzip", "+zstd")

_SUFFIXES: Final = {
    "weight": ".safetensors",
    "weight.config": ".json .yaml .yml .toml .jinja .model .tiktoken",
    "dataset": ".jsonl .csv .tsv",
    "code": ".py .sh .ipynb",
}
_KIND_OF: Final = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
_TOKENIZER_TEXTS: Final = frozenset({"merges.txt", "vocab.txt"})

# Set by the registry that holds the version, and different in another one.
_LOCAL: Final = ("create_time", "update_time", "delete_time", "etag", "aliases")
_TAGS: Final = ("family", "title", "vendor", "revision", "docURL", "sourceURL", "licenses", "authors")
_MAX_TAG: Final = 256
_MAX_DESCRIPTION: Final = 4096


@dataclass(frozen=True)
class Packed:
    manifest: Descriptor
    blobs: Mapping[str, bytes]
    """By digest: all but the version's files."""


@dataclass(frozen=True)
class Image:
    """A manifest's files, checked, and what it says of them."""

    files: Mapping[str, Content]
    digests: Mapping[str, str]
    version: registry.ModelVersion | None
    """What a registry like this one wrote; None for the layout of another tool."""
    modelpack: Mapping[str, Any]


def pack(version: registry.ModelVersion) -> Packed:
    """The same bytes for the same version. Raises TransferError for one that does not fit."""
    for artifact in version.artifacts:
        check_path(artifact.path)
    record = _record(version)
    layers = [
        _layer(Descriptor(layer_type(artifact.path), artifact.digest, artifact.size_bytes), artifact.path)
        for artifact in sorted(version.artifacts, key=lambda artifact: artifact.path)
    ]
    layers.append(_layer(Descriptor.of(_RAW["doc"], record), VERSION_FILE))
    config = oci_layout.document(_config(version, layers))
    content = oci_layout.document(
        {
            "schemaVersion": 2,
            "mediaType": oci_layout.MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": Descriptor.of(CONFIG_TYPE, config).to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
    )
    manifest = Descriptor.of(
        oci_layout.MANIFEST_TYPE,
        content,
        artifact_type=ARTIFACT_TYPE,
        annotations={oci_layout.REF_NAME: version.version, TITLE: version.model_id},
    )
    small = (record, config, content)
    if max(map(len, small)) > oci_layout.MAX_JSON_BYTES:
        raise TransferError(
            name_of(version), f"describes itself in more than {oci_layout.MAX_JSON_BYTES} bytes"
        )
    return Packed(manifest, {sha256_of([content]): content for content in small})


def is_model(layout: Layout, manifest: Descriptor) -> bool:
    if manifest.media_type != oci_layout.MANIFEST_TYPE:
        return False
    declared = manifest.artifact_type or layout.document(manifest).get("artifactType")
    return declared == ARTIFACT_TYPE


def read(layout: Layout, manifest: Descriptor) -> Image:
    """The manifest's files. Every blob was read whole and its digest was right. Raises TransferError."""
    fields = layout.document(manifest)
    if fields.get("schemaVersion") != 2 or fields.get("artifactType") != ARTIFACT_TYPE:
        raise TransferError(manifest.name, "is not a ModelPack manifest")
    config = Descriptor.parse("config", fields.get("config"))
    if config.media_type != CONFIG_TYPE:
        raise TransferError("config", f"has the unknown media type {config.media_type}")
    files: dict[str, Content] = {}
    digests: dict[str, str] = {}
    record: bytes | None = None
    for number, value in enumerate(typed("layers", fields.get("layers"), list)):
        layer = Descriptor.parse(f"layers[{number}]", value)
        for path, content, digest in _files_in(layout, layer):
            if path in digests or (path == VERSION_FILE and record is not None):
                raise TransferError(path, "occurs twice")
            if path == VERSION_FILE:
                record = layout.small(layer)
                continue
            check_path(path)
            files[path], digests[path] = content, digest
            if len(files) > tar.MAX_ENTRIES:
                raise TransferError(manifest.name, f"has more than {tar.MAX_ENTRIES} files")
    modelpack = layout.document(config)
    version = _understood(record, files, digests) if record is not None else None
    return Image(files, digests, version, modelpack)


def _files_in(layout: Layout, layer: Descriptor) -> Iterator[tuple[str, Content, str]]:
    """A layer's files: path, content, SHA-256."""
    if layer.media_type.endswith(_COMPRESSED):
        raise TransferError(
            layer.name,
            "is a compressed layer; taken are raw and plain tar layers, which are no larger than they look",
        )
    if layer.media_type in _TAR:
        content = layout.verified(layer)
        for path, member in tar.members(content, layer.name).items():
            if path == VERSION_FILE:
                raise TransferError(path, "is only taken as a layer of its own")
            yield path, member, member.digest()
    elif layer.media_type in _RAW.values():
        path = layer.annotations.get(FILE_PATH) or layer.annotations.get(TITLE) or ""
        if not path:
            raise TransferError(layer.name, f"names no file: it has no annotation {FILE_PATH}")
        yield path, layout.verified(layer), layer.digest
    else:
        raise TransferError(layer.name, f"has the unknown media type {layer.media_type}")


def _understood(
    record: bytes, files: Mapping[str, Content], digests: Mapping[str, str]
) -> registry.ModelVersion:
    value = oci_layout.parsed(VERSION_FILE, record)
    try:
        version = json_format.ParseDict(value, registry.ModelVersion())
    except (json_format.ParseError, OverflowError, RecursionError, ValueError) as error:
        raise TransferError(VERSION_FILE, f"is not understood: {error}") from error
    named = {artifact.path: (artifact.digest, artifact.size_bytes) for artifact in version.artifacts}
    if named != {path: (digests[path], content.size) for path, content in files.items()}:
        raise TransferError(VERSION_FILE, "names other files than the layers are")
    return version


def described(image: Image, ref: str) -> registry.ModelVersion:
    """What another tool says of its model, where a version has a place for it; all of it as its config.

    ref: the name in the layout, its version if it says none that is semantic. Raises TransferError.
    """
    descriptor = typed("config.descriptor", image.modelpack.get("descriptor"), dict)
    config = typed("config.config", image.modelpack.get("config"), dict)
    version = registry.ModelVersion(
        model_id=_text(descriptor, "name"),
        version=_text(descriptor, "version") if Version.is_valid(_text(descriptor, "version")) else ref,
        description=_text(descriptor, "description")[:_MAX_DESCRIPTION],
        tags={key: text for key in _TAGS if 0 < len(text := _text(descriptor, key)) <= _MAX_TAG},
    )
    for path, content in sorted(image.files.items()):
        version.artifacts.add(path=path, digest=image.digests[path], size_bytes=content.size)
    try:
        version.config.update({"modelpack": {"descriptor": descriptor, "config": config}})
    except (OverflowError, ValueError) as error:
        raise TransferError("config", "holds a value that no configuration can hold") from error
    return version


def layer_type(path: str) -> str:
    """The media type of the raw layer that holds this file."""
    name = PurePosixPath(path)
    kind = "weight.config" if name.name in _TOKENIZER_TEXTS else _KIND_OF.get(name.suffix.lower(), "doc")
    return _RAW[kind]


def _layer(descriptor: Descriptor, path: str) -> Descriptor:
    return replace(descriptor, annotations={FILE_PATH: path, TITLE: path})


def _record(version: registry.ModelVersion) -> bytes:
    """The version in protobuf JSON."""
    kept = portable(version)
    if any(artifact.path.partition("/")[0] == "neuroweaver" for artifact in kept.artifacts):
        raise TransferError(name_of(version), "has a file in neuroweaver/, where an export keeps its own")
    return oci_layout.document(json_format.MessageToDict(kept, preserving_proto_field_name=True))


def _config(version: registry.ModelVersion, layers: list[Descriptor]) -> dict[str, Any]:
    """ModelPack's own description, with what it has a field for."""
    descriptor = {
        "name": version.model_id,
        "version": version.version,
        "description": version.description,
        "createdAt": version.create_time.ToJsonString() if version.HasField("create_time") else "",
    }
    has_weights = any(layer.media_type == _RAW["weight"] for layer in layers)
    return {
        "descriptor": {key: value for key, value in descriptor.items() if value},
        "config": {"format": "safetensors"} if has_weights else {},
        "modelfs": {"type": "layers", "diffIds": [layer.name for layer in layers]},
    }


def _text(descriptor: Mapping[str, Any], key: str) -> str:
    value = descriptor.get(key) or ""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def portable(version: registry.ModelVersion) -> registry.ModelVersion:
    """Without what belongs to the registry that holds it."""
    kept = registry.ModelVersion()
    kept.CopyFrom(version)
    for name in _LOCAL:
        kept.ClearField(name)
    return kept


def name_of(version: registry.ModelVersion) -> str:
    """For errors."""
    return f"{version.model_id}@{version.version}"
