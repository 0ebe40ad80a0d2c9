"""Complete files as objects of a remote store: S3, Google Cloud Storage, whatever fsspec has a driver for.

The drivers take credentials and endpoints from their own places: AWS_ENDPOINT_URL, AWS_PROFILE,
GOOGLE_APPLICATION_CREDENTIALS and so on.
"""

from __future__ import annotations

import errno
import io
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.registry import known_implementations

from neuroweaver.mesh.wire.environment import SettingsError
from neuroweaver.mesh.wire.errors import Unavailable
from neuroweaver.mesh.wire.ids import new_id
from neuroweaver.registry.artifacts.blobs import Blobs, FolderBlobs

_LOG: Final = logging.getLogger("neuroweaver.registry.artifacts")

# An object of theirs is there once all of it was sent, and not before:
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/Welcome.html#ConsistencyModel
# https://cloud.google.com/storage/docs/consistency
_TAKES_WHOLE: Final = frozenset({"s3", "s3a", "gs", "gcs"})

# What is asked for at a time: enough that the wait for an answer does not matter.
_FETCH_BYTES: Final = 8 * 1024 * 1024

# At most 64 MiB of a file in memory while it is sent, where s3fs would take 500 MiB.
_PUT_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    scheme: {"chunksize": 16 * 1024 * 1024, "max_concurrency": 4} for scheme in ("s3", "s3a")
}

# s3fs tries five times; botocore below it would try five times each.
_DRIVER_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    scheme: {"config_kwargs": {"retries": {"total_max_attempts": 1}}} for scheme in ("s3", "s3a")
}

# How many objects are asked after at once.
_ASKED_AT_ONCE: Final = 16


def connect(url: str, folder: Path) -> Blobs:
    """The store that NEUROWEAVER_ARTIFACTS_URL names; `folder`, if it names none. Nothing is reached yet.

    url: as Settings checked it. Raises SettingsError for a scheme without a driver.
    """
    if not url:
        return FolderBlobs(folder)
    parts = urlsplit(url)
    if parts.scheme == "file":
        return FolderBlobs(Path(unquote(parts.path)))
    driver = _driver(parts.scheme)(
        skip_instance_cache=True,
        use_listings_cache=False,  # other processes change the store too
        **_DRIVER_OPTIONS.get(parts.scheme, {}),
    )
    return RemoteBlobs(driver, parts.scheme, f"{parts.netloc}{parts.path}".rstrip("/"))


class RemoteBlobs(Blobs):
    """Objects below `root`, a bucket and a prefix.

    What is deleted cannot be read on. On S3, a process that dies while it sends leaves an incomplete
    multipart upload, which nobody sees and the bucket's own lifecycle rule has to end.
    """

    def __init__(self, driver: Any, scheme: str, root: str) -> None:
        self._driver = driver
        self._root = root
        self._takes_whole = scheme in _TAKES_WHOLE
        self._put_options = _PUT_OPTIONS.get(scheme, {})

    def keep(self, part: Path, digest: str) -> None:
        try:
            with _reaching():
                self._put(part, digest)
        except FileNotFoundError as error:  # the bucket
            raise _unreachable(error) from error
        part.unlink()

    def open(self, digest: str) -> io.BufferedReader:
        size = self.size(digest)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return io.BufferedReader(_Object(self._driver, self._key(digest), size), _FETCH_BYTES)

    def size(self, digest: str) -> int | None:
        try:
            with _reaching():
                return int(self._driver.info(self._key(digest))["size"])
        except FileNotFoundError:
            return None

    def missing(self, digests: Sequence[str]) -> list[str]:
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            sizes = pool.map(self.size, digests)
            return [digest for digest, size in zip(digests, sizes, strict=True) if size is None]

    def delete(self, digest: str) -> None:
        try:
            with _reaching():
                self._driver.rm_file(self._key(digest))
        except FileNotFoundError:
            return

    def expire(self, older_than: timedelta) -> int:
        oldest = datetime.now(UTC) - older_than
        try:
            with _reaching():
                arriving = self._driver.ls(f"{self._root}/arriving", detail=False)
                expired = [key for key in arriving if self._driver.modified(key) < oldest]
                for key in expired:
                    self._driver.rm_file(key)
        except FileNotFoundError:  # nothing was ever on its way in, or another process was faster
            return 0
        return len(expired)

    def _put(self, part: Path, digest: str) -> None:
        if self._takes_whole:
            self._driver.put_file(str(part), self._key(digest), **self._put_options)
            return
        arriving = f"{self._root}/arriving/{digest}.{new_id()}"
        self._driver.put_file(str(part), arriving, **self._put_options)
        self._driver.makedirs(self._key(digest).rpartition("/")[0], exist_ok=True)
        self._driver.mv(arriving, self._key(digest))

    def _key(self, digest: str) -> str:
        return f"{self._root}/sha256/{digest[:2]}/{digest}"


class _Object(io.RawIOBase):
    """An object as a file, fetched range by range."""

    def __init__(self, driver: Any, key: str, size: int) -> None:
        self._driver = driver
        self._key = key
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = (
            offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        )
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        with _reaching():
            content = self._driver.cat_file(self._key, start=self._position, end=end)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def _driver(scheme: str) -> Any:
    implementation = known_implementations.get(scheme)
    if implementation is None or scheme == "local":
        raise SettingsError(
            f"NEUROWEAVER_ARTIFACTS_URL begins with {scheme}://, which names no supported store"
        )
    try:
        return fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = implementation["class"].partition(".")[0]
        remedy = implementation["err"] if package == "fsspec" else f"pip install {package}"
        raise SettingsError(
            f"NEUROWEAVER_ARTIFACTS_URL begins with {scheme}://, whose driver is not installed: {remedy}"
        ) from error


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        # Each driver passes on what its own HTTP library raises.
        raise _unreachable(error) from error


def _unreachable(error: Exception) -> Unavailable:
    """What callers read says nothing of the store; the log does."""
    _LOG.warning("artifact store failed", extra={"cause": type(error).__name__, "error": str(error)[:500]})
    return Unavailable("the artifact store cannot be reached")
