"""A version's files on their way to the Registry and back: interrupted, they go on where they stopped."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import grpc

from neuroweaver.client.connection import Client
from neuroweaver.client.text import plain
from neuroweaver.mesh.wire import status as statuses
from neuroweaver.v1 import registry_pb2 as registry

CHUNK_BYTES: Final = 1024 * 1024
MAX_PATH: Final = 512

# What the contract takes as the path of an artifact.
_PATH: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*", re.ASCII)

_SHOWN: Final = 200
_MAX_FAILURES: Final = 7
_MAX_BACKOFF_S: Final = 5.0
# OUT_OF_RANGE: the server holds less than it said a moment ago, and is asked again.
_PASSING: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OUT_OF_RANGE})

OnProgress = Callable[[str, int, int], None]
"""Told a file's path in the version, how many bytes of it are done, and how many it has.

While a file is sent it is called from another thread.
"""
OnSkip = Callable[[str], None]
"""Told the path of a hidden file, or of a hidden folder with a `/` behind it, that is left out."""


class TransferError(Exception):
    """Something that is not sent, taken or written. The message is for people, one line.

    entry: what it is about: a file, its path in the version, or an entry of an archive.
    """

    def __init__(self, entry: str, problem: str) -> None:
        told = f"{entry[:_SHOWN]}: {problem}" if entry else problem
        super().__init__(plain(" ".join(told.split())))
        self.entry = entry


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
                    raise TransferError(str(self.file), "has become shorter while it was read")
                left -= len(chunk)
                yield chunk

    def digest(self) -> str:
        sha256 = hashlib.sha256()
        for chunk in self.chunks():
            sha256.update(chunk)
        return sha256.hexdigest()


def upload(
    client: Client,
    source: Path | Mapping[str, Path],
    *,
    on_progress: OnProgress | None = None,
    on_skip: OnSkip | None = None,
) -> list[registry.Artifact]:
    """The artifacts to name in a version, by path, once the Registry has them all.

    source: a folder, one file, or files by their path in the version. What is stored already is not sent.
    Raises TransferError for what cannot be in a version, before anything is sent, and for what the Registry
    refuses; grpc.RpcError otherwise.
    """
    files = source if isinstance(source, Mapping) else files_of(source, on_skip)
    for path in files:
        check_path(path)
    contents = {path: Content.of(file) for path, file in sorted(files.items())}
    transfer = Transfer(client, on_progress)
    artifacts = []
    for path, content in contents.items():
        artifact = registry.Artifact(path=path, digest=content.digest(), size_bytes=content.size)
        transfer.send(artifact, content)
        artifacts.append(artifact)
    return artifacts


def download(
    client: Client,
    version: registry.ModelVersion,
    folder: Path,
    *,
    on_progress: OnProgress | None = None,
) -> list[Path]:
    """The version's files below `folder`, each put in its place by one rename once its digest was right.

    A file that is there already is not fetched again; one that was interrupted goes on from its `.part`.
    Raises TransferError for a file that would lie elsewhere or arrives damaged, grpc.RpcError otherwise.
    """
    transfer = Transfer(client, on_progress)
    files = []
    for artifact in version.artifacts:
        target = place(folder, artifact.path)
        transfer.fetch(version, artifact, target)
        files.append(target)
    return files


def files_of(source: Path, on_skip: OnSkip | None = None) -> dict[str, Path]:
    """A folder's files by their path in it, or one file by its name; hidden ones are left out.

    Raises TransferError for a link, for what is no regular file, and if there is nothing.
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
        raise TransferError(str(source), "holds no files")
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
            f"is no path of a version's file: at most {MAX_PATH} characters, letters, digits and _ . - only, "
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
    """Raises TransferError for a link and for what is no regular file."""
    try:
        # O_NONBLOCK: opening a pipe would wait for somebody at its other end.
        fd = os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise TransferError(str(file), "is a symbolic link") from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise TransferError(str(file), "is no regular file")
    with os.fdopen(fd, "rb" if flags == os.O_RDONLY else "r+b") as opened:
        yield opened


class Transfer:
    """Moves files one after the other, with one patience for all of them.

    A Registry that goes away is waited for, about 15 s without any progress; one that never answered is not.
    """

    def __init__(self, client: Client, on_progress: OnProgress | None = None) -> None:
        self._client = client
        self._on_progress = on_progress
        self._has_answered = False
        self._failures = 0

    def send(self, artifact: registry.Artifact, content: Content) -> None:
        """Stores the content, beginning with what the Registry does not have of it.

        Raises TransferError for content that it refuses, grpc.RpcError otherwise.
        """
        committed = 0
        while True:
            try:
                status = self._client.registry.GetUploadStatus(
                    registry.GetUploadStatusRequest(digest=artifact.digest)
                )
                self._heard(is_getting_on=status.committed_bytes > committed)
                committed = status.committed_bytes
                if not status.is_complete:
                    self._upload(artifact, content, committed)
            except grpc.RpcError as error:
                # What is stored of it may be the beginning of something else; refused, it is dropped.
                is_poisoned = committed > 0 and error.code() is grpc.StatusCode.INVALID_ARGUMENT
                self._wait_after(error, is_passing=is_poisoned)
            else:
                self._report(artifact, artifact.size_bytes)
                return

    def receive(
        self, version: registry.ModelVersion, artifact: registry.Artifact, begin: int = 0, sha256: Any = None
    ) -> Iterator[bytes]:
        """The file's bytes from `begin` on, the last of them once the digest of all was right.

        sha256: a hash of the bytes before `begin`. Raises TransferError if the file arrives damaged.
        """
        sha256 = sha256 or hashlib.sha256()
        held = b""
        done = begin
        while done < artifact.size_bytes:
            stream = self._client.registry.DownloadArtifact(
                registry.DownloadArtifactRequest(
                    model_id=version.model_id, version=version.version, path=artifact.path, offset_bytes=done
                )
            )
            try:
                for part in stream:
                    self._heard(is_getting_on=bool(part.chunk))
                    if not part.chunk:
                        continue  # the description of what comes
                    done += len(part.chunk)
                    if done > artifact.size_bytes:
                        raise _damaged(artifact)
                    sha256.update(part.chunk)
                    if held:
                        yield held
                    held = part.chunk
                    self._report(artifact, done)
            except grpc.RpcError as error:
                self._wait_after(error)
            else:
                break
            finally:
                stream.cancel()
        if done != artifact.size_bytes or sha256.hexdigest() != artifact.digest:
            raise _damaged(artifact)
        if held:
            yield held

    def fetch(self, version: registry.ModelVersion, artifact: registry.Artifact, target: Path) -> None:
        """Puts the file in its place, unless it is there, by way of a `.part` beside it."""
        if _is_there(artifact, target):
            self._report(artifact, artifact.size_bytes)
            return
        part = target.with_name(f"{target.name}.part")
        with opened(part, os.O_RDWR | os.O_CREAT) as file:
            begin, sha256 = _stored(file, artifact.size_bytes)
            try:
                for chunk in self.receive(version, artifact, begin, sha256):
                    file.write(chunk)
            except TransferError:
                part.unlink()
                if begin == 0:
                    raise
            else:
                file.flush()
                os.fsync(file.fileno())
                part.replace(target)
                return
        # The part was the beginning of another file; now there is none.
        self.fetch(version, artifact, target)

    def _upload(self, artifact: registry.Artifact, content: Content, begin: int) -> None:
        broken: list[Exception] = []

        def parts() -> Iterator[registry.UploadArtifactRequest]:
            yield registry.UploadArtifactRequest(
                header=registry.UploadHeader(
                    digest=artifact.digest,
                    size_bytes=artifact.size_bytes,
                    path=artifact.path,
                    offset_bytes=begin,
                )
            )
            done = begin
            try:
                for chunk in content.chunks(begin):
                    yield registry.UploadArtifactRequest(chunk=chunk)
                    done += len(chunk)
                    self._report(artifact, done)
            except Exception as error:  # noqa: BLE001 - gRPC would swallow it; it is raised below
                broken.append(error)

        try:
            self._client.registry.UploadArtifact(parts())
        except grpc.RpcError as error:
            if not broken and not begin and error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise TransferError(artifact.path, f"is refused: {statuses.describe(error)}") from error
            if not broken:
                raise
        if broken:
            raise broken[0]

    def _report(self, artifact: registry.Artifact, done: int) -> None:
        if self._on_progress:
            self._on_progress(artifact.path, done, artifact.size_bytes)

    def _heard(self, *, is_getting_on: bool) -> None:
        self._has_answered = True
        if is_getting_on:
            self._failures = 0

    def _wait_after(self, error: grpc.RpcError, *, is_passing: bool = False) -> None:
        """Raises the error if waiting does not help, or no longer."""
        self._has_answered = self._has_answered or bool(statuses.reason(error))
        self._failures += 1
        is_passing = is_passing or error.code() in _PASSING
        if not (self._has_answered and is_passing and self._failures <= _MAX_FAILURES):
            raise error
        time.sleep(random.uniform(0.5, 1.0) * min(0.2 * 2**self._failures, _MAX_BACKOFF_S))


def _is_there(artifact: registry.Artifact, target: Path) -> bool:
    try:
        content = Content.of(target)
    except FileNotFoundError:
        return False
    return content.size == artifact.size_bytes and content.digest() == artifact.digest


def _stored(file: BinaryIO, size: int) -> tuple[int, Any]:
    """How many bytes a part holds, at most `size`, and their hash. The file stands behind them."""
    sha256 = hashlib.sha256()
    file.truncate(min(os.fstat(file.fileno()).st_size, size))
    while chunk := file.read(CHUNK_BYTES):
        sha256.update(chunk)
    return file.tell(), sha256


def _damaged(artifact: registry.Artifact) -> TransferError:
    return TransferError(artifact.path, f"arrived damaged: its digest is not {artifact.digest}")


def _check_kind(file: Path) -> None:
    _check_no_link(file)
    if not file.is_dir() and not file.is_file():
        raise TransferError(str(file), "is no regular file")


def _check_no_link(file: Path) -> None:
    if file.is_symlink():
        raise TransferError(str(file), "is a symbolic link")


def _raise(error: OSError) -> None:
    raise error
