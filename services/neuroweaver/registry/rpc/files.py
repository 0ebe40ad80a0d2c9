"""The files of versions: up, down, and how far an upload is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.wire.errors import FailedPrecondition, InvalidArgument, NotFound
from neuroweaver.mesh.wire.text import check_text
from neuroweaver.registry import messages
from neuroweaver.registry.artifacts.store import ArtifactStore
from neuroweaver.registry.domain.model import Artifact, ModelVersion, check_model_id
from neuroweaver.registry.rpc.downloads import Downloads
from neuroweaver.registry.storage.store import Store
from neuroweaver.registry.storage.writer import Writer
from neuroweaver.v1 import registry_pb2 as pb


async def hold_files(registry: Writer, artifacts: ArtifactStore, version: ModelVersion) -> None:
    """Raises FailedPrecondition for a file that is not there; no other is collected from here on."""
    missing = await missing_files(registry, artifacts, version)
    for index, artifact in enumerate(version.artifacts):
        if artifact in missing:
            raise not_uploaded(f"artifacts[{index}]", artifact)


async def missing_files(
    registry: Writer, artifacts: ArtifactStore, version: ModelVersion
) -> Sequence[Artifact]:
    """The files of a version that are not there; no other is collected from here on."""
    digests = [artifact.digest for artifact in version.artifacts]
    await registry.hold(digests)
    missing = set(await artifacts.missing(digests))
    return [artifact for artifact in version.artifacts if artifact.digest in missing]


def not_uploaded(field: str, artifact: Artifact) -> FailedPrecondition:
    return FailedPrecondition(
        "ARTIFACT_NOT_UPLOADED",
        f"{field} ({artifact.path}) was never uploaded: upload it, then create the version",
        subject=artifact.digest,
    )


class Files:
    def __init__(self, store: Store, artifacts: ArtifactStore, downloads: Downloads) -> None:
        self._store = store
        self._artifacts = artifacts
        self._downloads = downloads

    async def UploadArtifact(
        self, request_iterator: AsyncIterator[pb.UploadArtifactRequest], context: Any
    ) -> pb.UploadArtifactResponse:
        del context  # a file belongs to whoever knows its digest
        header = await _header(request_iterator)
        # Before the file is looked for: what collects files leaves alone what was asked for just now.
        await self._store.hold_file(header.digest)
        async with self._artifacts.upload(
            header.digest, header.size_bytes, header.path, header.offset_bytes
        ) as upload:
            if not upload.is_deduplicated:
                async for request in request_iterator:
                    if request.WhichOneof("part") != "chunk":
                        raise InvalidArgument("header", "belongs into the first message only")
                    await upload.write(request.chunk)
            return messages.from_progress(await upload.finish())

    async def GetUploadStatus(
        self, request: pb.GetUploadStatusRequest, context: Any
    ) -> pb.UploadArtifactResponse:
        del context
        return messages.from_progress(await self._artifacts.progress(request.digest))

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, context: Any
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        check_model_id("model_id", request.model_id)
        check_text("path", request.path)
        async with self._downloads.turn(context):
            async with self._store.read(caller_of(context).project) as registry:
                version = await registry.selected(request.model_id, request.version)
            artifact = version.artifact(request.path)
            if artifact is None:
                raise NotFound("artifact", f"{version.name}/{request.path}")
            async with self._artifacts.download(
                artifact.digest, artifact.size_bytes, request.offset_bytes
            ) as chunks:
                yield pb.DownloadArtifactResponse(artifact=messages.from_artifact(artifact))
                async for chunk in chunks:
                    yield pb.DownloadArtifactResponse(chunk=chunk)


async def _header(requests: AsyncIterator[pb.UploadArtifactRequest]) -> pb.UploadHeader:
    async for request in requests:
        if request.WhichOneof("part") == "header":
            return request.header
        break
    raise InvalidArgument("header", "must be the first message")
