"""Which files a version may hold, by their names."""

from __future__ import annotations

from enum import Enum
from typing import Final

from neuroweaver.mesh.wire.errors import InvalidArgument


class Kind(Enum):
    SAFETENSORS = "safetensors"
    TEXT = "text"
    SENTENCEPIECE = "sentencepiece"
    PNG = "png"


_KINDS: Final = {
    ".safetensors": (Kind.SAFETENSORS, "application/vnd.safetensors"),
    ".json": (Kind.TEXT, "application/json"),
    ".jsonl": (Kind.TEXT, "application/jsonl"),
    ".md": (Kind.TEXT, "text/markdown"),
    ".yaml": (Kind.TEXT, "application/yaml"),
    ".yml": (Kind.TEXT, "application/yaml"),
    ".csv": (Kind.TEXT, "text/csv"),
    ".svg": (Kind.TEXT, "image/svg+xml"),
    ".toml": (Kind.TEXT, "application/toml"),
    ".txt": (Kind.TEXT, "text/plain"),
    ".tsv": (Kind.TEXT, "text/tab-separated-values"),
    ".log": (Kind.TEXT, "text/plain"),
    ".jinja": (Kind.TEXT, "text/plain"),
    ".tiktoken": (Kind.TEXT, "text/plain"),
    "": (Kind.TEXT, "text/plain"),  # LICENSE, NOTICE
    ".model": (Kind.SENTENCEPIECE, "application/octet-stream"),
    ".png": (Kind.PNG, "image/png"),
}


def kind_of(field: str, path: str) -> Kind:
    """How a file of this name is checked. Raises InvalidArgument naming `field` if it is not taken."""
    kind = _KINDS.get(_suffix(path))
    if kind is None:
        raise InvalidArgument(
            field,
            "is of a type that is not accepted: upload weights as .safetensors, other files as text or .png",
        )
    return kind[0]


def media_type_of(path: str) -> str:
    """The media type that goes with a file's name."""
    return _KINDS.get(_suffix(path), (None, "application/octet-stream"))[1]


def _suffix(path: str) -> str:
    """As `PurePosixPath.suffix`, which takes ten times as long: a version may have a thousand files."""
    name = path.rstrip("/").rpartition("/")[2]
    stem, _, suffix = name.rpartition(".")
    return f".{suffix}".lower() if stem and suffix else ""
