"""OCI image layouts: blobs by their digests and an index of manifests, as a folder or as one plain tar.

https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md. Nothing that a layout says is
believed before it is checked: whoever wrote it may be anybody.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from neuroweaver.artifacts.content import Content, TransferError, place, sha256_of, whole_file
from neuroweaver.oci import tar

T = TypeVar("T")

MARK_FILE: Final = "oci-layout"
MARK: Final = b'{"imageLayoutVersion":"1.0.0"}'
INDEX_FILE: Final = "index.json"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
REF_NAME: Final = "org.opencontainers.image.ref.name"

MAX_JSON_BYTES: Final = 4 * 1024 * 1024

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class Descriptor:
    """What one blob says of another. digest: SHA-256 in hexadecimal."""

    media_type: str
    digest: str
    size: int
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, media_type: str, content: bytes, **more: Any) -> Descriptor:
        return cls(media_type, sha256_of([content]), len(content), **more)

    @classmethod
    def parse(cls, entry: str, value: Any) -> Descriptor:
        """entry: where it stands, for errors. Raises TransferError."""
        fields = typed(entry, value, dict)
        digest = typed(f"{entry}.digest", fields.get("digest"), str)
        if _DIGEST.fullmatch(digest) is None:
            raise TransferError(f"{entry}.digest", "is not a SHA-256, the only digest that is taken")
        size = typed(f"{entry}.size", fields.get("size"), int)
        if size < 0:
            raise TransferError(f"{entry}.size", "is negative")
        annotations = optional(f"{entry}.annotations", fields.get("annotations"), dict)
        for key, text in annotations.items():
            typed(f'{entry}.annotations["{key}"]', text, str)
        return cls(
            typed(f"{entry}.mediaType", fields.get("mediaType"), str),
            digest.removeprefix("sha256:"),
            size,
            optional(f"{entry}.artifactType", fields.get("artifactType"), str),
            annotations,
        )

    @property
    def name(self) -> str:
        """For errors."""
        return f"sha256:{self.digest}"

    def to_json(self) -> dict[str, Any]:
        fields = {
            "mediaType": self.media_type,
            "digest": self.name,
            "size": self.size,
            "artifactType": self.artifact_type,
            "annotations": dict(self.annotations),
        }
        return {key: value for key, value in fields.items() if value or key == "size"}


class Layout:
    """A layout that is there."""

    def __init__(self, path: Path, members: Mapping[str, Content] | None) -> None:
        self.path = path
        self._members = members

    @classmethod
    def of(cls, path: Path) -> Layout:
        """Raises TransferError for what is neither a layout's folder nor its tar."""
        layout = cls(path, None if path.is_dir() else tar.members(Content.of(path.resolve()), str(path)))
        mark = layout.find(MARK_FILE)
        if mark is None:
            raise TransferError(str(path), f"is not an OCI image layout: it has no {MARK_FILE}")
        if parsed(MARK_FILE, _bounded(MARK_FILE, mark)).get("imageLayoutVersion") != "1.0.0":
            raise TransferError(MARK_FILE, "is not of version 1.0.0")
        return layout

    def find(self, name: str) -> Content | None:
        """The file of this name. Raises TransferError for a link."""
        if self._members is not None:
            return self._members.get(name)
        target = self.path / name
        for path in (target, *target.parents[: name.count("/")]):
            if path.is_symlink():
                raise TransferError(str(path), "is a symbolic link")
        return Content.of(target) if target.exists() else None

    def files(self) -> Mapping[str, Content]:
        """The files of a tar, by their names."""
        return self._members or {}

    def index(self) -> dict[str, Any]:
        """Empty where no export has come to its end yet."""
        content = self.find(INDEX_FILE)
        return parsed(INDEX_FILE, _bounded(INDEX_FILE, content)) if content else {}

    def manifests(self) -> list[Descriptor]:
        listed = optional(f"{INDEX_FILE}: manifests", self.index().get("manifests"), list)
        return [
            Descriptor.parse(f"{INDEX_FILE}: manifests[{number}]", value)
            for number, value in enumerate(listed)
        ]

    def index_with(self, manifest: Descriptor) -> bytes:
        """The index once the manifest is in it. Raises TransferError if its name stands for another one."""
        name = manifest.annotations.get(REF_NAME, "")
        others = [other for other in self.manifests() if other.digest != manifest.digest]
        if name in {other.annotations.get(REF_NAME) for other in others}:
            raise TransferError(str(self.path), f"already holds another {name}; export to another place")
        index = self.index()
        kept = [value for value in index.get("manifests") or [] if value["digest"] != manifest.name]
        return index_of([*kept, manifest.to_json()], index)

    def blob(self, descriptor: Descriptor) -> Content:
        """The blob, whose bytes are not looked at yet. Raises TransferError unless it has the size."""
        content = self.find(blob_name(descriptor.digest))
        if content is None:
            raise TransferError(descriptor.name, f"is missing in {self.path}")
        if content.size != descriptor.size:
            raise TransferError(
                descriptor.name, f"has {content.size} bytes, yet its descriptor says {descriptor.size}"
            )
        return content

    def verified(self, descriptor: Descriptor) -> Content:
        """The blob, once its digest was right. Raises TransferError."""
        content = self.blob(descriptor)
        _check_digest(descriptor.name, content.digest(), descriptor.digest)
        return content

    def document(self, descriptor: Descriptor) -> dict[str, Any]:
        """A blob that is a JSON object. Raises TransferError."""
        return parsed(descriptor.name, self.small(descriptor))

    def small(self, descriptor: Descriptor) -> bytes:
        """The bytes of a blob of at most MAX_JSON_BYTES. Raises TransferError."""
        data = _bounded(descriptor.name, self.blob(descriptor))
        _check_digest(descriptor.name, sha256_of([data]), descriptor.digest)
        return data


def index_of(manifests: Sequence[Mapping[str, Any]], kept: Mapping[str, Any] | None = None) -> bytes:
    """kept: an index whose other fields stay."""
    ordered = sorted(manifests, key=lambda manifest: json.dumps(manifest, sort_keys=True))
    return document({"schemaVersion": 2, "mediaType": INDEX_TYPE, **(kept or {}), "manifests": ordered})


def blob_name(digest: str) -> str:
    return f"blobs/sha256/{digest}"


def blob_copies(layout: Layout) -> Iterator[tar.Piece]:
    """The files of a tar for another one. Raises TransferError for a blob that is damaged."""
    for name, content in layout.files().items():
        yield name, content.size, _checked(name, content)


def write_whole(folder: Path, name: str, content: bytes) -> None:
    with whole_file(place(folder, name)) as file:
        file.write(content)


def document(value: Any) -> bytes:
    """JSON, the same bytes for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parsed(entry: str, text: bytes) -> dict[str, Any]:
    """Raises TransferError unless it is a JSON object that all readers understand alike."""
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise TransferError(entry, "is not JSON with unique names") from error
    return typed(entry, value, dict)


def typed(entry: str, value: Any, kind: type[T]) -> T:
    """The value. Raises TransferError if it is of another kind."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TransferError(entry, f"is not {_KINDS[kind]}")
    return value


def optional(entry: str, value: Any, kind: type[T]) -> T:
    """The same, where nothing and null mean an empty one."""
    return kind() if value is None else typed(entry, value, kind)


_KINDS: Final[Mapping[type, str]] = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


def _checked(name: str, content: Content) -> Iterator[bytes]:
    sha256 = hashlib.sha256()
    for chunk in content.chunks():
        sha256.update(chunk)
        yield chunk
    if name.startswith("blobs/sha256/"):
        _check_digest(name, sha256.hexdigest(), name.rpartition("/")[2])


def _check_digest(entry: str, actual: str, named: str) -> None:
    if actual != named:
        raise TransferError(entry, "is damaged: its bytes have another digest")


def _bounded(entry: str, content: Content) -> bytes:
    if content.size > MAX_JSON_BYTES:
        raise TransferError(entry, f"has {content.size} bytes, more than {MAX_JSON_BYTES}")
    return b"".join(content.chunks())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name occurs twice")
    return value


def _refuse(_constant: str) -> None:
    raise ValueError("not a number")
