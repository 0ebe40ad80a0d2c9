"""Where complete files lie, each once under the SHA-256 of its content. Everything here blocks.

<root>/sha256/ab/ab12…     complete: checked, never changed
<root>/arriving/ab12….id   on its way in, where it cannot appear whole in one step
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from io import BufferedReader
from pathlib import Path
from typing import Final

from neuroweaver.mesh.wire.errors import DataLoss, InvalidArgument
from neuroweaver.mesh.wire.ids import new_id
from neuroweaver.registry.artifacts import formats
from neuroweaver.registry.domain.paths import Kind

_COPY_BYTES: Final = 8 * 1024 * 1024


class Blobs(ABC):
    """Complete files. Safe from any number of threads and processes, which may share one store.

    Every method raises Unavailable while the store cannot be reached.
    """

    @abstractmethod
    def keep(self, part: Path, digest: str) -> None:
        """Makes a checked file of this machine the file of this digest; `part` is gone afterwards.

        Nobody ever sees less than the whole. After this returns it is there, a power failure notwithstanding.
        """

    @abstractmethod
    def open(self, digest: str) -> BufferedReader:
        """The file at its beginning. Raises FileNotFoundError; DataLoss if something else is in its place."""

    @abstractmethod
    def size(self, digest: str) -> int | None:
        """Bytes; None if it is not there. The content is not looked at."""

    @abstractmethod
    def delete(self, digest: str) -> None:
        """After this returns the file is gone; it may have been gone before."""

    @abstractmethod
    def expire(self, older_than: timedelta) -> int:
        """Drops what was on its way in when a process died. Returns the number dropped."""

    def missing(self, digests: Sequence[str]) -> list[str]:
        """Which of them are not there. The content is not looked at."""
        return [digest for digest in digests if self.size(digest) is None]

    def is_whole(self, digest: str) -> bool:
        """Whether this content is there, every byte of it read."""
        try:
            with self.open(digest) as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == digest
        except (FileNotFoundError, DataLoss):
            return False

    def is_stored(self, field: str, digest: str, size: int, kind: Kind) -> bool:
        """Whether this content is there. Raises InvalidArgument if it is not of this size or kind."""
        try:
            file = self.open(digest)
        except FileNotFoundError:
            return False
        with file:
            stored = file.seek(0, os.SEEK_END)
            file.seek(0)
            if stored != size:
                raise InvalidArgument(f"{field}.size_bytes", f"is {size}, yet the file has {stored} bytes")
            formats.check(f"{field}.path", kind, file, stored)
        return True


class FolderBlobs(Blobs):
    """Files below a folder of this machine, private and read-only.

    What is open can be read to its end though it be deleted.
    """

    def __init__(self, root: Path) -> None:
        self._complete = root / "sha256"
        self._arriving = root / "arriving"
        self._complete.mkdir(mode=0o700, parents=True, exist_ok=True)

    def keep(self, part: Path, digest: str) -> None:
        file = self._file(digest)
        if not file.parent.exists():
            file.parent.mkdir(mode=0o700, exist_ok=True)
            _sync(self._complete)
        _sync(part)
        try:
            part.rename(file)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._copied(part).rename(file)
            part.unlink()
        file.chmod(0o400)
        _sync(file.parent)

    def open(self, digest: str) -> BufferedReader:
        try:
            fd = os.open(self._file(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise lost(digest, "is a link, which this store never makes") from error
            raise
        return os.fdopen(fd, "rb")

    def size(self, digest: str) -> int | None:
        try:
            return self._file(digest).lstat().st_size
        except FileNotFoundError:
            return None

    def delete(self, digest: str) -> None:
        file = self._file(digest)
        try:
            file.unlink()
        except FileNotFoundError:
            return
        # Otherwise a power failure could bring it back, and nobody would know of it.
        _sync(file.parent)

    def expire(self, older_than: timedelta) -> int:
        oldest = time.time() - older_than.total_seconds()
        expired = [file for file in self._arriving.glob("*") if file.lstat().st_mtime < oldest]
        for file in expired:
            file.unlink(missing_ok=True)
        return len(expired)

    def _copied(self, part: Path) -> Path:
        """The part again, on this file system and on its disk."""
        self._arriving.mkdir(mode=0o700, exist_ok=True)
        copy = self._arriving / f"{part.stem}.{new_id()}"
        try:
            with part.open("rb") as source, copy.open("xb") as target:
                os.fchmod(target.fileno(), 0o600)
                shutil.copyfileobj(source, target, _COPY_BYTES)
                target.flush()
                os.fsync(target.fileno())
        except BaseException:
            copy.unlink(missing_ok=True)
            raise
        return copy

    def _file(self, digest: str) -> Path:
        return self._complete / digest[:2] / digest


def lost(digest: str, why: str) -> DataLoss:
    return DataLoss(f"the stored file {digest} {why}", metadata={"digest": digest})


def _sync(path: Path) -> None:
    """What is written of a file or a folder is on disk after this."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
