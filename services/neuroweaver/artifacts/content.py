"""Bytes of versions' files on this machine, and where they may lie."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from neuroweaver.artifacts.file import File

CHUNK_BYTES: Final = 1024 * 1024
MAX_PATH: Final = 512

# What the contract takes as the path of an artifact.
_PATH: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*", re.ASCII)
_SHOWN: Final = 200

OnSkip = Callable[[str], None]
"""Called with the path of a hidden file, or of a hidden folder with a `/` behind it, that is left out."""


class TransferError(Exception):
    """A file that is not sent, taken or written. The message is for people, one line.

    entry: the file, its path in the version, or an entry of an archive.
    """

    def __init__(self, entry: str, problem: str) -> None:
        line = " ".join((f"{entry[:_SHOWN]}: {problem}" if entry else problem).split())
        # What others wrote must not steer a terminal.
        super().__init__(
            "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
        )
        self.entry = entry


class Damaged(TransferError):
    """A file whose bytes are not those that its digest and size say."""

    def __init__(self, file: File, size_bytes: int, digest: str = "") -> None:
        found = (
            f"{size_bytes} bytes with SHA-256 {digest}" if digest else f"more than {file.size_bytes} bytes"
        )
        super().__init__(
            file.path, f"arrived damaged: {found}, not {file.size_bytes} bytes with {file.digest}"
        )


class Arrival:
    """The bytes of a file as they come, counted and hashed."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.size_bytes = 0
        self._sha256 = hashlib.sha256()

    @property
    def is_whole(self) -> bool:
        return self.size_bytes >= self.file.size_bytes

    def take(self, chunk: bytes) -> None:
        """Raises Damaged for more bytes than the file has."""
        self.size_bytes += len(chunk)
        if self.size_bytes > self.file.size_bytes:
            raise Damaged(self.file, self.size_bytes)
        self._sha256.update(chunk)

    def check(self) -> None:
        """Raises Damaged unless these were all bytes of the file."""
        digest = self._sha256.hexdigest()
        if (self.size_bytes, digest) != (self.file.size_bytes, self.file.digest):
            raise Damaged(self.file, self.size_bytes, digest)


@dataclass(frozen=True)
class Content:
    """Bytes in a regular file of this machine: all of it, or a part, such as a member of a tar."""

    file: Path
    offset: int
    size: int

    @classmethod
    def of(cls, file: Path) -> Content:
        """A whole file. Raises TransferError if it is a link or no regular file."""
        with opened(file) as source:
            return cls(file, 0, os.fstat(source.fileno()).st_size)

    def chunks(self, begin: int = 0) -> Iterator[bytes]:
        """The bytes from `begin` on. Raises TransferError if the file no longer has them."""
        with opened(self.file) as source:
            source.seek(self.offset + begin)
            left = self.size - begin
            while left > 0:
                chunk = source.read(min(left, CHUNK_BYTES))
                if not chunk:
                    raise TransferError(str(self.file), "became shorter while it was read")
                left -= len(chunk)
                yield chunk

    def digest(self) -> str:
        return sha256_of(self.chunks())

    def described(self, path: str) -> File:
        """As the file of a version."""
        return File(path, self.digest(), self.size)


def sha256_of(chunks: Iterable[bytes]) -> str:
    sha256 = hashlib.sha256()
    for chunk in chunks:
        sha256.update(chunk)
    return sha256.hexdigest()


def digest_of(file: Path) -> str:
    """SHA-256 of the file's content, in hexadecimal."""
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def is_there(file: File, target: Path) -> bool:
    """Whether `target` has the bytes of the file. Raises TransferError if it is a link."""
    try:
        content = Content.of(target)
    except FileNotFoundError:
        return False
    return content.size == file.size_bytes and content.digest() == file.digest


def files_of(source: Path, on_skip: OnSkip | None = None) -> dict[str, Path]:
    """A folder's files by their path in it, or one file by its name; hidden ones are left out.

    Raises TransferError for a link, for what is not a regular file, and if there is nothing.
    """
    if not source.is_dir():
        return {source.name: source}
    found: dict[str, Path] = {}
    for where, folders, names in os.walk(source, onerror=_raise):
        here = Path(where)
        for name in sorted([*folders, *names]):
            if not name.startswith("."):
                _check_kind(here / name)
            elif on_skip:
                on_skip((here / name).relative_to(source).as_posix() + ("/" if name in folders else ""))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = (here / name for name in names if not name.startswith("."))
        found |= {file.relative_to(source).as_posix(): file for file in visible}
    if not found:
        raise TransferError(str(source), "has no files")
    return found


def check_path(path: str) -> None:
    """Raises TransferError for what cannot be the path of a version's file."""
    if path.startswith("/") or ".." in path.split("/"):
        raise TransferError(path, "lies outside the version's folder")
    if "\\" in path:
        raise TransferError(path, "holds a backslash; the parts of a path are separated by /")
    if len(path) > MAX_PATH or _PATH.fullmatch(path) is None:
        raise TransferError(
            path,
            f"is not a path for a version's file: at most {MAX_PATH} letters, digits and _ . - only, "
            "and no part of it begins with . or -",
        )


def place(folder: Path, path: str) -> Path:
    """Where the file of this path belongs, its folder made. A server is not trusted with ours.

    Raises TransferError if it would lie elsewhere, or if a link leads there.
    """
    check_path(path)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / path
    for parent in reversed(target.relative_to(folder).parents[:-1]):
        _check_no_link(folder / parent)
        (folder / parent).mkdir(exist_ok=True)
    _check_no_link(target)
    return target


@contextmanager
def opened(file: Path, flags: int = os.O_RDONLY) -> Iterator[BinaryIO]:
    """Raises TransferError for a link and for what is not a regular file."""
    try:
        # O_NONBLOCK: opening a pipe would wait for somebody at its other end.
        fd = os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise TransferError(str(file), "is a symbolic link") from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise TransferError(str(file), "is not a regular file")
    with os.fdopen(fd, "rb" if flags == os.O_RDONLY else "r+b") as opened:
        yield opened


@contextmanager
def whole_file(target: Path, *, is_resumable: bool = False) -> Iterator[BinaryIO]:
    """A `.part` to write, which becomes `target` on leaving without an error: there is all of it, or none.

    is_resumable: what an interrupted try wrote stays, and is there to be read; refused bytes do not.
    """
    part = target.with_name(f"{target.name}.part")
    with opened(part, os.O_RDWR | os.O_CREAT) as out:
        try:
            yield out
        except BaseException as error:
            if not is_resumable or isinstance(error, TransferError):
                part.unlink(missing_ok=True)
            raise
        out.truncate()
        out.flush()
        os.fsync(out.fileno())
    part.replace(target)


def _check_kind(file: Path) -> None:
    _check_no_link(file)
    if not file.is_dir() and not file.is_file():
        raise TransferError(str(file), "is not a regular file")


def _check_no_link(file: Path) -> None:
    if file.is_symlink():
        raise TransferError(str(file), "is a symbolic link")


def _raise(error: OSError) -> None:
    raise error
