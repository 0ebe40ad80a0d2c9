"""The files of all versions, each stored once under the SHA-256 of its content.

What comes in is a part of this machine until its bytes are checked (`uploads`); complete files lie in a
folder or an object store (`blobs`, `object_store`). Whoever reads one gets the bytes that were stored or an
error: the digest is checked again, wherever they come from.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from io import BufferedReader
from pathlib import Path
from typing import Final, Literal

from neuroweaver.mesh.wire.errors import InvalidArgument, OutOfRange
from neuroweaver.registry.artifacts.blobs import Blobs, FolderBlobs, lost
from neuroweaver.registry.artifacts.threads import begun, end_of, in_thread, result_of
from neuroweaver.registry.artifacts.uploads import Parts, Progress, Upload
from neuroweaver.registry.domain.model import Artifact
from neuroweaver.registry.domain.paths import kind_of

__all__ = ["CHUNK_BYTES", "RESERVE_BYTES", "ArtifactStore", "Fault", "Progress"]

CHUNK_BYTES: Final = 256 * 1024

# What an upload leaves free, so that a database on the same disk can go on committing.
RESERVE_BYTES: Final = 16 * 1024 * 1024

# In one thread, before it is seen whether the caller is still there: an object store takes a second for them.
_CHECKED_AT_ONCE: Final = 32

_HEX: Final = frozenset("0123456789abcdef")

Fault = Literal["", "missing", "corrupt"]


class ArtifactStore:
    """root: a folder of this machine, for parts; for complete files too, unless `blobs` is given.

    Any number of processes may share both. Every method raises Unavailable while the files cannot be reached.
    """

    def __init__(self, root: Path, blobs: Blobs | None = None, *, reserve_bytes: int = RESERVE_BYTES) -> None:
        self._blobs = blobs or FolderBlobs(root)
        self._parts = Parts(root / "incoming", reserve_bytes=reserve_bytes)
        # What was found to be damaged counts as missing for those who would upload it again.
        self._corrupt: set[str] = set()

    async def progress(self, digest: str) -> Progress:
        """How far the upload of a file is; 0 bytes if there is none."""
        return await in_thread(self._progress, _checked(digest))

    async def first_missing(self, artifacts: Sequence[Artifact]) -> int | None:
        """The index of the first file of a version that is not stored; None if all are.

        Raises InvalidArgument naming a part of `artifacts[index]` if its size is another, or its content does
        not go with its path.
        """
        for begin in range(0, len(artifacts), _CHECKED_AT_ONCE):
            missing = await in_thread(self._first_missing, artifacts, begin)
            if missing is not None:
                return missing
        return None

    def _first_missing(self, artifacts: Sequence[Artifact], begin: int) -> int | None:
        several = range(begin, min(begin + _CHECKED_AT_ONCE, len(artifacts)))
        return next((index for index in several if not self._is_stored(artifacts, index)), None)

    def _is_stored(self, artifacts: Sequence[Artifact], index: int) -> bool:
        field, artifact = f"artifacts[{index}]", artifacts[index]
        kind = kind_of(f"{field}.path", artifact.path)
        if _checked(artifact.digest) in self._corrupt:
            return False
        return self._blobs.is_stored(field, artifact.digest, artifact.size_bytes, kind)

    async def missing(self, digests: Sequence[str]) -> list[str]:
        """Which of these files are not stored. Their content is not looked at."""
        return await in_thread(self._blobs.missing, [_checked(digest) for digest in digests])

    async def fault(self, digest: str, size: int) -> Fault:
        """What is wrong with a file of `size` bytes, every byte of it read; empty if nothing is."""
        stored = await in_thread(self._blobs.size, _checked(digest))
        if stored is None:
            return "missing"
        if not await in_thread(self._blobs.is_whole, digest):
            self._corrupt.add(digest)
            return "corrupt"
        self._corrupt.discard(digest)
        return "" if stored == size else "corrupt"

    async def read_small(self, digest: str, limit_bytes: int) -> bytes:
        """All of a file. Raises InvalidArgument if it has more than `limit_bytes`, DataLoss as `download`."""
        return await in_thread(self._read_small, _checked(digest), limit_bytes)

    async def delete(self, digest: str) -> None:
        """Drops a complete file; it may be gone already. A download from a folder still ends well."""
        await in_thread(self._blobs.delete, _checked(digest))
        self._corrupt.discard(digest)

    async def expire_parts(self, older_than: timedelta) -> int:
        """Drops uploads interrupted for so long. Returns the number dropped."""
        expired = await in_thread(self._parts.expire, older_than)
        return expired + await in_thread(self._blobs.expire, older_than)

    @asynccontextmanager
    async def upload(self, digest: str, size: int, path: str, offset: int) -> AsyncIterator[Upload]:
        """An upload of `size` bytes that goes on at `offset`. If the block raises, what came so far is kept.

        Raises InvalidArgument for a path of a kind that is not taken, OutOfRange if less than `offset` bytes
        are stored, ResourceExhausted if the disk has no room, Unavailable while another upload of this
        content runs.
        """
        kind = kind_of("header.path", path)
        if offset > size:
            raise InvalidArgument("header.offset_bytes", "is beyond the end of the file")
        upload = Upload(self._parts, self._blobs, _checked(digest), size, kind)
        try:
            await upload.begin(offset)
            yield upload
        finally:
            await upload.close()
            if upload.is_finished:
                self._corrupt.discard(digest)

    @asynccontextmanager
    async def download(self, digest: str, size: int, offset: int = 0) -> AsyncIterator[AsyncIterator[bytes]]:
        """The file from `offset` on, in chunks; the last one once the digest of the whole was right.

        Raises DataLoss if the file is missing or is not what was stored, OutOfRange if `offset` lies beyond
        its end.
        """
        if offset > size:
            raise OutOfRange(f"the file ends at byte {size}")
        reading = _Reading(self._blobs, _checked(digest))
        try:
            await in_thread(reading.open, size)
            async with aclosing(self._verified(reading, offset)) as chunks:
                yield chunks
        finally:
            await in_thread(reading.close)

    async def _verified(self, reading: _Reading, offset: int) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset` on, each chunk read while the one before is on its way out."""
        position = 0
        held = b""
        ahead = begun(reading.read)
        try:
            while chunk := await result_of(ahead):
                ahead = begun(reading.read)
                wanted = chunk[max(0, offset - position) :]
                position += len(chunk)
                if held and wanted:
                    yield held
                held = wanted or held
        finally:
            await end_of(ahead)
        if not reading.is_whole():
            self._corrupt.add(reading.digest)
            raise lost(reading.digest, "is corrupt: its content no longer has this digest")
        if held:
            yield held

    def _progress(self, digest: str) -> Progress:
        stored = None if digest in self._corrupt else self._blobs.size(digest)
        if stored is not None:
            return Progress(digest, stored, is_complete=True)
        return Progress(digest, self._parts.size(digest), is_complete=False)

    def _read_small(self, digest: str, limit_bytes: int) -> bytes:
        reading = _Reading(self._blobs, digest)
        try:
            reading.open()
            content = reading.read(limit_bytes + 1)
        finally:
            reading.close()
        if len(content) > limit_bytes:
            raise InvalidArgument("", f"the file {digest} has more than {limit_bytes} bytes")
        if not reading.is_whole():
            raise lost(digest, "is corrupt: its content no longer has this digest")
        return content


class _Reading:
    """One pass over a complete file, hashed as it is read."""

    def __init__(self, blobs: Blobs, digest: str) -> None:
        self.digest = digest
        self._blobs = blobs
        self._sha256 = hashlib.sha256()
        self._file: BufferedReader | None = None

    def open(self, size: int | None = None) -> None:
        """Raises DataLoss if the file is missing or, with `size`, has another one."""
        try:
            self._file = self._blobs.open(self.digest)
        except FileNotFoundError as error:
            raise lost(self.digest, "is missing") from error
        stored = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        if size is not None and stored != size:
            raise lost(self.digest, f"has {stored} bytes instead of {size}")

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        assert self._file is not None
        try:
            chunk = self._file.read(size)
        except FileNotFoundError as error:
            raise lost(self.digest, "is missing") from error
        self._sha256.update(chunk)
        return chunk

    def is_whole(self) -> bool:
        """Whether the bytes read so far are all, and right."""
        return self._sha256.hexdigest() == self.digest

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _checked(digest: str) -> str:
    """A digest becomes a file's name, so it is looked at here whoever looked before."""
    if len(digest) != 64 or not _HEX.issuperset(digest):
        raise InvalidArgument("digest", "must be a SHA-256 in lower-case hexadecimal")
    return digest
