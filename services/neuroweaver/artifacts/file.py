"""A file of a version, by what it must be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol


class _Described(Protocol):
    path: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class File:
    """path: within the version, its parts separated by `/`. digest: SHA-256 in hexadecimal."""

    path: str
    digest: str
    size_bytes: int

    @classmethod
    def of(cls, artifact: _Described) -> File:
        """That of a message `Artifact`."""
        return cls(artifact.path, artifact.digest, artifact.size_bytes)


def is_inside(path: str) -> bool:
    """Whether a path stays within its folder and names a file there."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\0" not in path
