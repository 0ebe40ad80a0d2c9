"""Files on their way in: parts in a folder of this machine, each locked by the one upload that writes it.

    <folder>/ab12….part   an upload under way or interrupted; it goes on where the file ends

Whatever a part holds, its digest is checked over all of it before it becomes a file.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from neuroweaver.mesh.wire.errors import InvalidArgument, OutOfRange, ResourceExhausted, Unavailable
from neuroweaver.registry.artifacts import formats
from neuroweaver.registry.artifacts.blobs import Blobs
from neuroweaver.registry.artifacts.threads import begun, end_of, in_thread, result_of
from neuroweaver.registry.domain.paths import Kind

_READ_BYTES: Final = 1024 * 1024
_WRITE_BACK_BYTES: Final = 8 * 1024 * 1024
_BEGINNING_BYTES: Final = 64
_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True)
class Progress:
    """How much of a file is stored."""

    digest: str
    committed_bytes: int
    is_complete: bool
    is_deduplicated: bool = False


class Parts:
    """A folder that uploads of any number of processes share."""

    def __init__(self, folder: Path, *, reserve_bytes: int) -> None:
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        return self._folder / f"{digest}.part"

    def size(self, digest: str) -> int:
        """Bytes; 0 if there is none."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def open(self, digest: str) -> int:
        """The part, made if there is none, for its only writer. The lock dies with its process.

        Raises Unavailable while there is another.
        """
        while True:
            fd = _locked(self.path(digest), os.O_RDWR | os.O_CREAT)
            if fd is None:
                raise Unavailable("another upload of this content is under way")
            if _is_same(fd, self.path(digest)):
                return fd
            # Opened just before another one renamed or dropped it: what is locked now is no longer the part.
            os.close(fd)

    def has_room(self, size: int) -> bool:
        return shutil.disk_usage(self._folder).free - size >= self._reserve_bytes

    def drop(self, digest: str) -> None:
        self.path(digest).unlink(missing_ok=True)

    def expire(self, older_than: timedelta) -> int:
        """Drops the parts that nobody has open or wrote to for so long. Returns the number dropped."""
        oldest = time.time() - older_than.total_seconds()
        return sum(_expired(part, oldest) for part in self._folder.glob("*.part"))


class Upload:
    """One file on its way in. It holds the only right to write to this content until it is closed."""

    def __init__(self, parts: Parts, blobs: Blobs, digest: str, size: int, kind: Kind) -> None:
        self.digest = digest
        self.is_deduplicated = False
        """The content is stored already: no bytes are needed."""
        self.is_finished = False
        """The content is stored, every byte of it checked."""
        self._parts = parts
        self._blobs = blobs
        self._size = size
        self._kind = kind
        self._fd: int | None = None
        self._sha256 = hashlib.sha256()
        self._written = 0
        self._written_back = 0
        self._writing: asyncio.Future[None] | None = None

    async def begin(self, offset: int) -> None:
        """Takes the right to write and goes on at `offset`; what is stored up to there counts."""
        await in_thread(self._begin, offset)

    async def write(self, chunk: bytes) -> None:
        """Takes the next bytes, once those before are written: the caller fetches more while these are.

        What goes wrong with them is raised by the next call: InvalidArgument for content that is refused,
        ResourceExhausted on a full disk.
        """
        await self._written_so_far()
        self._writing = begun(self._write, chunk)

    async def finish(self) -> Progress:
        """Stores the file under its digest.

        Raises what `write` does, and InvalidArgument if size, digest or format are not as declared. Nothing
        is kept of what was refused, except for a part that is too short: it can go on.
        """
        await self._written_so_far()
        await in_thread(self._finish)
        return Progress(self.digest, self._size, is_complete=True, is_deduplicated=self.is_deduplicated)

    async def close(self) -> None:
        """Gives up the right to write; a part that was not finished stays, with all that was taken."""
        try:
            if self._writing is not None:
                await end_of(self._writing)
        finally:
            await in_thread(self._close)

    async def _written_so_far(self) -> None:
        if self._writing is not None:
            await result_of(self._writing)

    def _begin(self, offset: int) -> None:
        # A damaged file counts as missing, so that an upload repairs it.
        if self._blobs.is_whole(self.digest):
            self.is_deduplicated = self._blobs.is_stored("header", self.digest, self._size, self._kind)
            return
        with _disk_errors():
            self._fd = self._parts.open(self.digest)
            stored = os.fstat(self._fd).st_size
            if offset > stored:
                raise OutOfRange(
                    f"only {stored} bytes are stored; continue from there",
                    metadata={"committed_bytes": str(stored)},
                )
            os.ftruncate(self._fd, offset)
            if not self._parts.has_room(self._size - offset):
                raise _disk_full()
            while chunk := os.read(self._fd, _READ_BYTES):
                self._count(chunk)
            self._written_back = self._written

    def _write(self, chunk: bytes) -> None:
        fd = self._opened()
        if self._written + len(chunk) > self._size:
            self._parts.drop(self.digest)
            raise InvalidArgument("header.size_bytes", f"is {self._size}, yet more bytes came")
        if self._written == 0:
            self._or_drop(formats.check_beginning, "chunk", self._kind, chunk[:_BEGINNING_BYTES], self._size)
        self._or_drop(_write_all, fd, chunk)
        self._count(chunk)
        if self._written - self._written_back >= _WRITE_BACK_BYTES:
            _write_back(fd, self._written_back, self._written)
            self._written_back = self._written

    def _finish(self) -> None:
        if not self.is_deduplicated:
            fd = self._opened()
            if self._written != self._size:
                raise InvalidArgument(
                    "chunk", f"only {self._written} of {self._size} bytes came; continue from there"
                )
            self._or_drop(self._verify, fd)
            self._or_drop(self._blobs.keep, self._parts.path(self.digest), self.digest)
        self.is_finished = True

    def _verify(self, fd: int) -> None:
        if self._sha256.hexdigest() != self.digest:
            raise InvalidArgument("header.digest", "is not the SHA-256 of the bytes that came")
        with os.fdopen(os.dup(fd), "rb") as file:
            file.seek(0)
            formats.check("chunk", self._kind, file, self._size)

    def _or_drop(self, step: Callable[..., None], *arguments: Any) -> None:
        """A refused part is gone at once; a full disk gets its room back."""
        try:
            with _disk_errors():
                step(*arguments)
        except Unavailable:
            raise  # the part is right: another try has nothing left to send
        except BaseException:
            self._parts.drop(self.digest)
            raise

    def _count(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        self._written += len(chunk)

    def _opened(self) -> int:
        if self._fd is None:
            raise InvalidArgument("chunk", "is not needed: this content is stored already")
        return self._fd

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _locked(part: Path, flags: int) -> int | None:
    """The part, opened and locked; None if another has the lock. Raises FileNotFoundError without O_CREAT."""
    fd = os.open(part, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _expired(part: Path, oldest: float) -> bool:
    """Whether the part was dropped. Looked at under its lock: an upload may just have gone on with it."""
    try:
        fd = _locked(part, os.O_RDWR)
    except FileNotFoundError:
        return False
    if fd is None:
        return False
    try:
        is_expired = _is_same(fd, part) and os.fstat(fd).st_mtime < oldest
        if is_expired:
            part.unlink()
        return is_expired
    finally:
        os.close(fd)


def _is_same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _write_all(fd: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(fd, view) :]


def _write_back(fd: int, begin: int, end: int) -> None:
    """Sends the bytes on their way to the disk, so that little is left to wait for at the end.

    For pages that are not on disk yet, Linux takes this advice as "write them now" and keeps them in memory.
    """
    if sys.platform == "linux":
        os.posix_fadvise(fd, begin, end - begin, os.POSIX_FADV_DONTNEED)


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise _disk_full() from error
        raise


def _disk_full() -> ResourceExhausted:
    return ResourceExhausted("the server's disk is too full for this file")
