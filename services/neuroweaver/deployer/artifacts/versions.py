"""What the Deployer asks of the Registry: which version is served, and whether its files are whole."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Final

import grpc

from neuroweaver.artifacts.content import Damaged, sha256_of
from neuroweaver.artifacts.file import File
from neuroweaver.artifacts.transfer import Download, received
from neuroweaver.deployer.domain.backend import Bundle
from neuroweaver.mesh.wire.errors import Error, FailedPrecondition, NotFound, PermissionDenied, Unavailable
from neuroweaver.mesh.wire.status import deleted
from neuroweaver.v1 import deployer_pb2 as pb
from neuroweaver.v1 import registry_pb2, registry_pb2_grpc

TIMEOUT_S: Final = 10.0
DOWNLOAD_TIMEOUT_S: Final = 600.0

READ_LIMIT_BYTES: Final = 512 * 1024 * 1024
"""Files are read whole before a deployment is accepted, up to this many bytes; the rest is verified by what
loads it, before it is loaded."""

VERIFIED_FOR_S: Final = 600.0
_MAX_VERIFIED: Final = 10_000

_REFUSALS: Final = frozenset({
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
})  # fmt: skip


class Versions:
    def __init__(self, registry: registry_pb2_grpc.RegistryServiceAsyncStub) -> None:
        self._registry = registry
        self._verified: dict[str, float] = {}

    async def of(self, model_id: str, spec: pb.DeploymentSpec) -> Bundle:
        """The version that a spec names now. Raises NotFound, FailedPrecondition, Unavailable."""
        is_alias = spec.WhichOneof("source") == "alias"
        return await self.selected(model_id, f"@{spec.alias}" if is_alias else spec.version)

    async def selected(self, model_id: str, selector: str) -> Bundle:
        """By version or `@alias`. Raises NotFound, FailedPrecondition, Unavailable."""
        request = registry_pb2.GetModelVersionRequest(model_id=model_id, version=selector)
        try:
            version = await self._registry.GetModelVersion(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise _translated(error, f"{model_id}@{selector.removeprefix('@')}") from error
        if not version.artifacts:
            raise FailedPrecondition(
                "ARTIFACT_MISSING", f"version {version.version} of {model_id} has no files to serve"
            )
        return bundle_of(version)

    async def verify(self, model_id: str, bundle: Bundle) -> None:
        """That the files are there and are what they were. Raises FailedPrecondition, Unavailable."""
        unread = READ_LIMIT_BYTES
        for file in bundle.files:
            if self._verified.get(file.digest, 0.0) > time.monotonic():
                continue
            if 0 < file.size_bytes <= unread:
                unread -= file.size_bytes
                async for _ in self.fetch(model_id, bundle.version, file):
                    pass
                self._remember(file.digest)
            else:
                await self._find(file)

    async def fetch(self, model_id: str, version: str, file: File) -> AsyncIterator[bytes]:
        """The bytes of a file in order. Raises FailedPrecondition if they are missing or corrupt."""
        download = Download(model_id, version, file)
        try:
            async for chunk in received(self._registry, download, DOWNLOAD_TIMEOUT_S):
                yield chunk
        except Damaged as error:
            raise _corrupt(file) from error
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DATA_LOSS:
                raise _corrupt(file) from error
            if error.code() == grpc.StatusCode.NOT_FOUND:
                raise _missing(file) from error
            raise _translated(error, file.path) from error

    async def _find(self, file: File) -> None:
        request = registry_pb2.GetUploadStatusRequest(digest=file.digest)
        try:
            status = await self._registry.GetUploadStatus(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                raise _missing(file) from error
            raise _translated(error, file.path) from error
        if not status.is_complete:
            raise _missing(file)

    def _remember(self, digest: str) -> None:
        if len(self._verified) >= _MAX_VERIFIED:
            self._verified.clear()
        self._verified[digest] = time.monotonic() + VERIFIED_FOR_S


def bundle_of(version: registry_pb2.ModelVersion) -> Bundle:
    files = tuple(map(File.of, version.artifacts))
    # By path, so that the order in which they were named changes nothing.
    ordered = sorted(files, key=lambda file: file.path)
    whole = "".join(f"{file.digest}  {file.path}\n" for file in ordered)
    return Bundle(
        version=version.version,
        files=files,
        digest=sha256_of([whole.encode()]),
        base_name=version.base.name,
        base_model_digest=version.base.model_digest,
        base_tokenizer_digest=version.base.tokenizer_digest,
        base_chat_template_digest=version.base.chat_template_digest,
    )


def _missing(file: File) -> FailedPrecondition:
    return FailedPrecondition(
        "ARTIFACT_MISSING", f"the Registry no longer has the file {file.path}", subject=file.digest
    )


def _corrupt(file: File) -> FailedPrecondition:
    return FailedPrecondition(
        "ARTIFACT_CORRUPT",
        f"the file {file.path} in the Registry is not what was registered: its digest differs",
        subject=file.digest,
    )


def _translated(error: grpc.RpcError, what: str) -> Error:
    """The Registry's failure as one of ours."""
    code = error.code()
    if code == grpc.StatusCode.NOT_FOUND:
        fate = deleted(error)
        return NotFound("model version", what, f"is gone: {fate}" if fate else "")
    if code in {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}:
        return PermissionDenied(f"the Registry says: {error.details()}")
    if code in _REFUSALS:
        return FailedPrecondition("REGISTRY_REFUSED", f"the Registry says: {error.details()}")
    return Unavailable("the Registry, which says which version is served, cannot be reached")
