"""The files of versions on this machine, each once under the SHA-256 of its content, for all deployments.

<root>/ab12…               complete: checked while it was written, never changed
<root>/ab12….<id>.part     on its way in
<folder of a bundle>/path  the same file by a hard link: a blob without further links is named by nobody
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import shutil
import time
from pathlib import Path
from typing import Final

from neuroweaver.artifacts.content import Arrival, Damaged, digest_of
from neuroweaver.artifacts.file import File, is_inside
from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.deployer.domain.backend import Bundle, FetchFile
from neuroweaver.mesh.wire.ids import new_id

_LOG: Final = logging.getLogger(__name__)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Cache:
    """For one process and one event loop; disks are touched in threads."""

    def __init__(self, root: Path, fetch: FetchFile) -> None:
        self._root = root
        self._fetch = fetch
        self._arriving: dict[str, asyncio.Lock] = {}
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in root.glob("*.part"):
            part.unlink()

    async def place(self, bundle: Bundle, folder: Path) -> None:
        """Lays the bundle's files out in `folder`, fetching those that are not there.

        Raises BackendError: ARTIFACTS if one is corrupt at its source, NO_ROOM for a full disk, UNREACHABLE.
        """
        for file in bundle.files:
            refuse_unsafe(file)
        try:
            for file in bundle.files:
                # Evicted between the two, it is fetched again; twice in a row it cannot be.
                for _ in range(2):
                    await self._have(file)
                    with contextlib.suppress(FileNotFoundError):
                        await asyncio.to_thread(self._link, file, folder)
                        break
            await asyncio.to_thread(_remove_others, folder, {file.path for file in bundle.files})
        except OSError as error:
            raise _trouble(error, self._root, bundle.size_bytes) from error

    async def drop_corrupt(self, bundle: Bundle) -> list[str]:
        """Forgets those of the bundle's files whose bytes are no longer theirs; gives their paths."""
        corrupt = []
        for file in bundle.files:
            if not await asyncio.to_thread(self._is_whole, file):
                (self._root / file.digest).unlink(missing_ok=True)
                corrupt.append(file.path)
        return corrupt

    async def evict(self, unused_s: float) -> int:
        """Deletes what no deployment has named for that long; gives how many files."""
        return await asyncio.to_thread(self._evict, unused_s)

    async def _have(self, file: File) -> None:
        async with self._arriving.setdefault(file.digest, asyncio.Lock()):
            blob = self._root / file.digest
            if not await asyncio.to_thread(_has_size, blob, file.size_bytes):
                blob.unlink(missing_ok=True)
                await self._arrive(file, blob)

    async def _arrive(self, file: File, blob: Path) -> None:
        free = shutil.disk_usage(self._root).free
        if free < file.size_bytes:
            raise _no_room(self._root, file.size_bytes, free)
        part = blob.with_name(f"{file.digest}.{new_id()}.part")
        try:
            await self._write(file, part)
            await asyncio.to_thread(_settle, part, blob)
        except Damaged as error:
            raise BackendError(Trouble.ARTIFACTS, str(error)) from error
        except (BackendError, OSError):
            raise
        except Exception as error:
            _LOG.exception("a file cannot be fetched", extra={"path": file.path})
            raise BackendError(
                Trouble.UNREACHABLE, f"cannot fetch {file.path}: the Registry's answer broke off"
            ) from error
        finally:
            part.unlink(missing_ok=True)

    async def _write(self, file: File, part: Path) -> None:
        arrival = Arrival(file)
        with part.open("xb") as target:
            os.fchmod(target.fileno(), 0o400)
            async for chunk in await self._fetch(file):
                arrival.take(chunk)
                await asyncio.to_thread(target.write, chunk)
        arrival.check()

    def _link(self, file: File, folder: Path) -> None:
        blob, place = self._root / file.digest, folder / file.path
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if place.exists() and place.samefile(blob):
            return
        place.unlink(missing_ok=True)
        place.hardlink_to(blob)

    def _is_whole(self, file: File) -> bool:
        try:
            return digest_of(self._root / file.digest) == file.digest
        except FileNotFoundError:
            return False

    def _evict(self, unused_s: float) -> int:
        # The last link that goes sets the time of the inode's last change.
        latest = time.time() - unused_s
        states = [(blob, blob.stat()) for blob in self._root.iterdir() if _DIGEST.fullmatch(blob.name)]
        unused = [blob for blob, state in states if state.st_nlink == 1 and state.st_ctime <= latest]
        for blob in unused:
            blob.unlink(missing_ok=True)
        return len(unused)


def refuse_unsafe(file: File) -> None:
    """Raises BackendError for a path that leads out of its folder, or a digest that is none."""
    if not is_inside(file.path):
        raise BackendError(Trouble.ARTIFACTS, f"the path {file.path!r} leads out of the version's folder")
    if not _DIGEST.fullmatch(file.digest):
        raise BackendError(Trouble.ARTIFACTS, f"{file.path} has no SHA-256 in hexadecimal")


def _has_size(blob: Path, size: int) -> bool:
    try:
        return blob.lstat().st_size == size
    except FileNotFoundError:
        return False


def _settle(part: Path, blob: Path) -> None:
    fd = os.open(part, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    part.rename(blob)


def _remove_others(folder: Path, paths: set[str]) -> None:
    """What an earlier bundle, or somebody else, left in the folder would be read by the model server."""
    for entry in folder.rglob("*"):
        if not entry.is_dir() and entry.relative_to(folder).as_posix() not in paths:
            entry.unlink()


def _trouble(error: OSError, root: Path, needed: int) -> BackendError:
    if error.errno in _FULL:
        return _no_room(root, needed, shutil.disk_usage(root).free)
    return BackendError(Trouble.ARTIFACTS, f"cannot keep the artifacts on disk: {error.strerror}")


def _no_room(root: Path, needed: int, free: int) -> BackendError:
    return BackendError(
        Trouble.NO_ROOM,
        f"no space left for the artifacts below {root}: {needed} bytes are needed, {free} are free",
        field="resources.storage_request",
    )
