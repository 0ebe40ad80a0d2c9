"""A version's files on their way to the Registry and back: interrupted, they go on where they stopped."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

import grpc

from neuroweaver.artifacts.content import (
    CHUNK_BYTES,
    Arrival,
    Content,
    Damaged,
    OnSkip,
    TransferError,
    check_path,
    files_of,
    is_there,
    place,
    whole_file,
)
from neuroweaver.artifacts.file import File
from neuroweaver.mesh.wire import status as statuses
from neuroweaver.v1 import registry_pb2 as pb
from neuroweaver.v1 import registry_pb2_grpc as stubs

STATUS_TIMEOUT_S: Final = 60.0
STREAM_TIMEOUT_S: Final = 3600.0
"""A larger file goes on in another call."""

_MAX_FAILURES: Final = 7
_MAX_BACKOFF_S: Final = 5.0
# OUT_OF_RANGE: the server holds less than it said a moment ago, and is asked again.
_PASSING: Final = frozenset({
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
})  # fmt: skip

OnProgress = Callable[[str, int, int], None]
"""Called with a file's path in the version, how many bytes of it are done, and how many it has.

While a file is sent it is called from another thread.
"""


class Refused(TransferError):
    """A file that the Registry does not take."""


class Patience:
    """Waits for a Registry that goes away, about 15 s without any progress; not for one that never answered.

    has_answered: it counts as one that did.
    """

    def __init__(self, *, has_answered: bool = False) -> None:
        self._has_answered = has_answered
        self._failures = 0

    def heard(self, *, is_getting_on: bool) -> None:
        self._has_answered = True
        if is_getting_on:
            self._failures = 0

    def delay_s(self, error: grpc.RpcError, *, is_passing: bool = False) -> float:
        """How long to wait before the next try. Raises the error if waiting does not help, or no longer."""
        self._has_answered = self._has_answered or bool(statuses.reason(error))
        self._failures += 1
        is_passing = is_passing or error.code() in _PASSING
        if not (self._has_answered and is_passing and self._failures <= _MAX_FAILURES):
            raise error
        return random.uniform(0.5, 1.0) * min(0.2 * 2.0**self._failures, _MAX_BACKOFF_S)


class Download(Arrival):
    """One file on its way from the Registry: what to ask for next, and which of its bytes may be handed on.

    The last bytes are held back until the digest of all was right.
    """

    def __init__(self, model_id: str, version: str, file: File, patience: Patience | None = None) -> None:
        super().__init__(file)
        self.patience = patience or Patience()
        self._source = {"model_id": model_id, "version": version, "path": file.path}
        self._held = b""

    def resume(self, part: BinaryIO) -> int:
        """Goes on behind the bytes of an earlier try, which `part` holds; returns how many these are."""
        part.truncate(min(os.fstat(part.fileno()).st_size, self.file.size_bytes))
        while chunk := part.read(CHUNK_BYTES):
            self.take(chunk)
        return self.size_bytes

    def request(self) -> pb.DownloadArtifactRequest:
        return pb.DownloadArtifactRequest(**self._source, offset_bytes=self.size_bytes)

    def pass_on(self, part: pb.DownloadArtifactResponse) -> bytes:
        """What may be handed on now. Raises Damaged."""
        self.patience.heard(is_getting_on=bool(part.chunk))
        if not part.chunk:
            return b""  # the description of what comes
        self.take(part.chunk)
        before, self._held = self._held, part.chunk
        return before

    def end(self) -> bytes:
        """The last bytes. Raises Damaged."""
        self.check()
        return self._held


async def received(
    registry: stubs.RegistryServiceAsyncStub, download: Download, timeout_s: float = STREAM_TIMEOUT_S
) -> AsyncIterator[bytes]:
    """The file's bytes. Raises Damaged, grpc.RpcError."""
    while not download.is_whole:
        try:
            async for part in registry.DownloadArtifact(download.request(), timeout=timeout_s):
                if chunk := download.pass_on(part):
                    yield chunk
            break
        except grpc.RpcError as error:
            await asyncio.sleep(download.patience.delay_s(error))
    yield download.end()


class Transfer:
    """Moves files one after the other, with one patience for all of them."""

    def __init__(
        self,
        registry: stubs.RegistryServiceStub,
        on_progress: OnProgress | None = None,
        *,
        patience: Patience | None = None,
    ) -> None:
        self._registry = registry
        self._on_progress = on_progress
        self._patience = patience or Patience()

    def send(self, file: File, content: Content) -> None:
        """Stores the content, beginning with what the Registry does not have of it.

        Raises Refused for content that it does not take, grpc.RpcError otherwise.
        """
        committed = 0
        while True:
            try:
                status = self._registry.GetUploadStatus(
                    pb.GetUploadStatusRequest(digest=file.digest), timeout=STATUS_TIMEOUT_S
                )
                self._patience.heard(is_getting_on=status.committed_bytes > committed)
                committed = status.committed_bytes
                if not status.is_complete:
                    self._upload(file, content, committed)
            except grpc.RpcError as error:
                # What is stored of it may be the beginning of something else; refused, it is dropped.
                is_poisoned = committed > 0 and error.code() is grpc.StatusCode.INVALID_ARGUMENT
                time.sleep(self._patience.delay_s(error, is_passing=is_poisoned))
            else:
                self._report(file, file.size_bytes)
                return

    def receive(self, version: pb.ModelVersion, file: File) -> Iterator[bytes]:
        """The file's bytes. Raises Damaged, grpc.RpcError."""
        return self._received(Download(version.model_id, version.version, file, self._patience))

    def fetch(self, version: pb.ModelVersion, file: File, target: Path) -> None:
        """Puts the file in its place, unless it is there, by way of a `.part` beside it."""
        if is_there(file, target):
            self._report(file, file.size_bytes)
            return
        download = Download(version.model_id, version.version, file, self._patience)
        begin = 0
        try:
            with whole_file(target, is_resumable=True) as part:
                begin = download.resume(part)
                for chunk in self._received(download):
                    part.write(chunk)
        except Damaged:
            if not begin:
                raise
            # The part was the beginning of another file; now there is none.
            self.fetch(version, file, target)

    def _received(self, download: Download) -> Iterator[bytes]:
        while not download.is_whole:
            stream = self._registry.DownloadArtifact(download.request(), timeout=STREAM_TIMEOUT_S)
            try:
                for part in stream:
                    if chunk := download.pass_on(part):
                        yield chunk
                    if part.chunk:
                        self._report(download.file, download.size_bytes)
                break
            except grpc.RpcError as error:
                time.sleep(download.patience.delay_s(error))
            finally:
                stream.cancel()
        yield download.end()

    def _upload(self, file: File, content: Content, begin: int) -> None:
        broken: list[Exception] = []

        def parts() -> Iterator[pb.UploadArtifactRequest]:
            yield pb.UploadArtifactRequest(
                header=pb.UploadHeader(
                    digest=file.digest, size_bytes=file.size_bytes, path=file.path, offset_bytes=begin
                )
            )
            done = begin
            try:
                for chunk in content.chunks(begin):
                    yield pb.UploadArtifactRequest(chunk=chunk)
                    done += len(chunk)
                    self._report(file, done)
            except Exception as error:  # noqa: BLE001 - gRPC would swallow it; it is raised below
                broken.append(error)

        try:
            self._registry.UploadArtifact(parts(), timeout=STREAM_TIMEOUT_S)
        except grpc.RpcError as error:
            if not broken and not begin and error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise Refused(file.path, f"is refused: {statuses.describe(error)}") from error
            if not broken:
                raise
        if broken:
            raise broken[0]

    def _report(self, file: File, done: int) -> None:
        if self._on_progress:
            self._on_progress(file.path, done, file.size_bytes)


def artifact_of(file: File) -> pb.Artifact:
    """As a version names it."""
    return pb.Artifact(path=file.path, digest=file.digest, size_bytes=file.size_bytes)


def upload(
    registry: stubs.RegistryServiceStub,
    source: Path | Mapping[str, Path],
    *,
    on_progress: OnProgress | None = None,
    on_skip: OnSkip | None = None,
) -> list[File]:
    """The files to name in a version, by path, once the Registry has them all.

    source: a folder, one file, or files by their path in the version. What is stored already is not sent.
    Raises TransferError for what cannot be in a version, before anything is sent, and for what the Registry
    refuses; grpc.RpcError otherwise.
    """
    paths = source if isinstance(source, Mapping) else files_of(source, on_skip)
    for path in paths:
        check_path(path)
    contents = {path: Content.of(file) for path, file in sorted(paths.items())}
    transfer = Transfer(registry, on_progress)
    files = []
    for path, content in contents.items():
        file = content.described(path)
        transfer.send(file, content)
        files.append(file)
    return files


def download(
    registry: stubs.RegistryServiceStub,
    version: pb.ModelVersion,
    folder: Path,
    *,
    on_progress: OnProgress | None = None,
) -> list[Path]:
    """The version's files below `folder`, each put in its place by one rename once its digest was right.

    A file that is there already is not fetched again; one that was interrupted goes on from its `.part`.
    Raises TransferError for a file that would lie elsewhere or arrives damaged, grpc.RpcError otherwise.
    """
    transfer = Transfer(registry, on_progress)
    targets = []
    for file in map(File.of, version.artifacts):
        target = place(folder, file.path)
        transfer.fetch(version, file, target)
        targets.append(target)
    return targets
