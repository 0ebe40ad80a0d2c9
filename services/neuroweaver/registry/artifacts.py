"""The files of all versions, each stored once under the SHA-256 of its content.

    <root>/sha256/ab/ab12…       complete: checked, read-only, never changed
    <root>/incoming/ab12….part   an upload under way or interrupted; it goes on where the file ends

A file appears under its digest by one rename, after its bytes were checked and are on disk. What a crash
leaves is a part, and whatever a part holds, its digest is checked over all of it before it becomes a file.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Final, TypeVar

from neuroweaver.mesh.errors import DataLoss, InvalidArgument, OutOfRange, ResourceExhausted, Unavailable
from neuroweaver.registry import formats
from neuroweaver.registry.formats import Kind

T = TypeVar("T")

CHUNK_BYTES: Final = 1024 * 1024

# What an upload leaves free, so that a database on the same disk can go on committing.
RESERVE_BYTES: Final = 16 * 1024 * 1024

_HEX: Final = frozenset("0123456789abcdef")
_BEGINNING_BYTES: Final = 64
_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True)
class Progress:
    """How much of a file is stored."""

    digest: str
    committed_bytes: int
    is_complete: bool
    is_deduplicated: bool = False


class ArtifactStore:
    """Files under a folder that this store alone writes to, from any number of processes."""

    def __init__(self, root: Path, *, reserve_bytes: int = RESERVE_BYTES) -> None:
        self._complete = root / "sha256"
        self._incoming = root / "incoming"
        self._reserve_bytes = reserve_bytes
        for folder in (self._complete, self._incoming):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def progress(self, digest: str) -> Progress:
        """How far the upload of a file is; 0 bytes if there is none."""
        return await _in_thread(self._progress, _checked(digest))

    async def check(self, field: str, digest: str, size: int, path: str) -> bool:
        """Whether the file is stored, as one that may have this path in a version. `size` in bytes.

        Raises InvalidArgument naming a part of `field` if its size is another, or its content does not go
        with the path.
        """
        kind = formats.kind_of(f"{field}.path", path)
        return await _in_thread(self.is_stored, field, _checked(digest), size, kind)

    @asynccontextmanager
    async def upload(self, digest: str, size: int, path: str, offset: int) -> AsyncIterator[Upload]:
        """An upload of `size` bytes that goes on at `offset`. If the block raises, what came so far is kept.

        Raises InvalidArgument for a path of a kind that is not taken, OutOfRange if less than `offset` bytes
        are stored, ResourceExhausted if the disk has no room, Unavailable while another upload of this
        content runs.
        """
        kind = formats.kind_of("header.path", path)
        if offset > size:
            raise InvalidArgument("header.offset_bytes", "lies beyond the end of the file")
        upload = Upload(self, _checked(digest), size, kind)
        try:
            await _in_thread(upload.begin, offset)
            yield upload
        finally:
            await _in_thread(upload.close)

    @asynccontextmanager
    async def download(self, digest: str, size: int, offset: int = 0) -> AsyncIterator[AsyncIterator[bytes]]:
        """The file from `offset` on, in chunks; the last one once the digest of the whole was right.

        Raises DataLoss if the file is missing or is not what was stored, OutOfRange if `offset` lies beyond
        its end.
        """
        if offset > size:
            raise OutOfRange(f"the file ends at byte {size}")
        with self._open_for_reading(_checked(digest), size) as file:
            async with aclosing(_verified_chunks(file.fileno(), digest, offset)) as chunks:
                yield chunks

    def _progress(self, digest: str) -> Progress:
        with suppress(FileNotFoundError):
            return Progress(digest, self._file(digest).stat().st_size, is_complete=True)
        with suppress(FileNotFoundError):
            return Progress(digest, self._part(digest).stat().st_size, is_complete=False)
        return Progress(digest, 0, is_complete=False)

    def is_stored(self, field: str, digest: str, size: int, kind: Kind) -> bool:
        """Whether this content is there. Raises InvalidArgument if it is not of this size or kind."""
        try:
            file = self._open(digest)
        except FileNotFoundError:
            return False
        with file:
            stored = os.fstat(file.fileno()).st_size
            if stored != size:
                raise InvalidArgument(f"{field}.size_bytes", f"is {size}, yet the file has {stored} bytes")
            formats.check(f"{field}.path", kind, file, stored)
        return True

    def is_whole(self, digest: str) -> bool:
        """Whether this content is there, every byte of it read."""
        try:
            file = self._open(digest)
        except FileNotFoundError:
            return False
        with file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest

    def open_part(self, digest: str) -> int:
        """The part of an upload, for its only writer. Raises Unavailable while there is another."""
        return _open_locked(self._part(digest))

    def has_room(self, size: int) -> bool:
        return shutil.disk_usage(self._incoming).free - size >= self._reserve_bytes

    def keep(self, digest: str) -> None:
        """Makes a checked part the file: after this returns it is there, a power failure notwithstanding."""
        file = self._file(digest)
        if not file.parent.exists():
            file.parent.mkdir(mode=0o700, exist_ok=True)
            _sync_folder(self._complete)
        self._part(digest).rename(file)
        _sync_folder(file.parent)

    def drop(self, digest: str) -> None:
        self._part(digest).unlink(missing_ok=True)

    def _open_for_reading(self, digest: str, size: int) -> BufferedReader:
        try:
            file = self._open(digest)
        except FileNotFoundError as error:
            raise _lost(digest, "is missing") from error
        stored = os.fstat(file.fileno()).st_size
        if stored != size:
            file.close()
            raise _lost(digest, f"has {stored} bytes instead of {size}")
        return file

    def _open(self, digest: str) -> BufferedReader:
        try:
            fd = os.open(self._file(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _lost(digest, "is a link, which this store never makes") from error
            raise
        return os.fdopen(fd, "rb")

    def _file(self, digest: str) -> Path:
        return self._complete / digest[:2] / digest

    def _part(self, digest: str) -> Path:
        return self._incoming / f"{digest}.part"


class Upload:
    """One file on its way in. It holds the only right to write to this content until it is closed."""

    def __init__(self, store: ArtifactStore, digest: str, size: int, kind: Kind) -> None:
        self.digest = digest
        self.is_deduplicated = False
        """The content is stored already: no bytes are needed."""
        self._store = store
        self._size = size
        self._kind = kind
        self._fd: int | None = None
        self._sha256 = hashlib.sha256()
        self._written = 0

    def begin(self, offset: int) -> None:
        """Takes the right to write and goes on at `offset`; what is stored up to there counts."""
        # A damaged file counts as missing, so that an upload repairs it.
        if self._store.is_whole(self.digest):
            self.is_deduplicated = self._store.is_stored("header", self.digest, self._size, self._kind)
            return
        with _disk_errors():
            self._fd = self._store.open_part(self.digest)
            stored = os.fstat(self._fd).st_size
            if offset > stored:
                raise OutOfRange(
                    f"only {stored} bytes are stored; go on from there",
                    metadata={"committed_bytes": str(stored)},
                )
            os.ftruncate(self._fd, offset)
            if not self._store.has_room(self._size - offset):
                raise _disk_full()
            while chunk := os.read(self._fd, CHUNK_BYTES):
                self._count(chunk)

    async def write(self, chunk: bytes) -> None:
        """Appends. Raises InvalidArgument for content that is refused, ResourceExhausted on a full disk."""
        await _in_thread(self._write, chunk)

    async def finish(self) -> Progress:
        """Stores the file under its digest.

        Raises InvalidArgument if size, digest or format are not as declared. Nothing is kept of what was
        refused, except for a part that is too short: it can go on.
        """
        return await _in_thread(self._finish)

    def close(self) -> None:
        """Gives up the right to write; a part that was not finished stays."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _write(self, chunk: bytes) -> None:
        fd = self._opened()
        if self._written + len(chunk) > self._size:
            self._store.drop(self.digest)
            raise InvalidArgument("header.size_bytes", f"is {self._size}, yet more bytes came")
        if self._written == 0:
            self._or_drop(formats.check_beginning, "chunk", self._kind, chunk[:_BEGINNING_BYTES], self._size)
        self._or_drop(_write_all, fd, chunk)
        self._count(chunk)

    def _finish(self) -> Progress:
        if self.is_deduplicated:
            return Progress(self.digest, self._size, is_complete=True, is_deduplicated=True)
        fd = self._opened()
        if self._written != self._size:
            raise InvalidArgument(
                "chunk", f"only {self._written} of {self._size} bytes came; go on from there"
            )
        self._or_drop(self._verify, fd)
        self._or_drop(os.fsync, fd)
        self._or_drop(self._store.keep, self.digest)
        return Progress(self.digest, self._size, is_complete=True)

    def _verify(self, fd: int) -> None:
        if self._sha256.hexdigest() != self.digest:
            raise InvalidArgument("header.digest", "is not the SHA-256 of the bytes that came")
        with os.fdopen(os.dup(fd), "rb") as file:
            file.seek(0)
            formats.check("chunk", self._kind, file, self._size)
        os.fchmod(fd, 0o400)

    def _or_drop(self, step: Callable[..., None], *arguments: Any) -> None:
        """A refused part is gone at once; a full disk gets its room back."""
        try:
            with _disk_errors():
                step(*arguments)
        except BaseException:
            self._store.drop(self.digest)
            raise

    def _count(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        self._written += len(chunk)

    def _opened(self) -> int:
        if self._fd is None:
            raise InvalidArgument("chunk", "comes although the content is stored already")
        return self._fd


async def _verified_chunks(fd: int, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
    """The bytes from `offset` on; those before it are read for the digest alone."""
    sha256 = hashlib.sha256()
    held = b""
    position = 0
    while chunk := await _in_thread(_read, fd, sha256):
        wanted = chunk[max(0, offset - position) :]
        position += len(chunk)
        if held and wanted:
            yield held
        held = wanted or held
    if sha256.hexdigest() != digest:
        raise _lost(digest, "no longer has its digest")
    if held:
        yield held


def _read(fd: int, sha256: Any) -> bytes:
    chunk = os.read(fd, CHUNK_BYTES)
    sha256.update(chunk)
    return chunk


def _write_all(fd: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(fd, view) :]


def _open_locked(part: Path) -> int:
    """The part, locked against all other uploads of this content. The lock dies with its process."""
    while True:
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(fd, part):
                return fd
        except BlockingIOError as error:
            os.close(fd)
            raise Unavailable("another upload of this content is under way") from error
        # Opened just before another upload renamed or dropped it: what is locked now is no longer the part.
        os.close(fd)


def _is_same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise _disk_full() from error
        raise


def _disk_full() -> ResourceExhausted:
    return ResourceExhausted("the server's disk has no room for this file")


def _lost(digest: str, why: str) -> DataLoss:
    return DataLoss(f"the stored file {digest} {why}", metadata={"digest": digest})


def _checked(digest: str) -> str:
    """A digest becomes a file's name, so it is looked at here whoever looked before."""
    if len(digest) != 64 or not _HEX.issuperset(digest):
        raise InvalidArgument("digest", "is not a SHA-256 in lower-case hexadecimal")
    return digest


async def _in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """What `function` returns, from another thread.

    A cancelled caller still waits for its end: what the thread works on is closed behind it.
    """
    work = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({work})
        raise
