"""The calls that most tests of the Registry's server make."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from neuroweaver.v1 import registry_pb2 as pb


def safetensors(values: bytes = b"1234") -> bytes:
    header = json.dumps(
        {"w": {"dtype": "U8", "shape": [len(values)], "data_offsets": [0, len(values)]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + values


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def upload(
    registry: Any, content: bytes, path: str = "adapter/adapter_model.safetensors", **header: Any
) -> pb.Artifact:
    """The three steps of a client: what it says of the file, the file, what it names in a version."""
    described = {"digest": digest_of(content), "size_bytes": len(content), "path": path, **header}

    async def parts() -> AsyncIterator[pb.UploadArtifactRequest]:
        yield pb.UploadArtifactRequest(header=pb.UploadHeader(**described))
        for begin in range(0, len(content), 1_000_000):
            yield pb.UploadArtifactRequest(chunk=content[begin : begin + 1_000_000])

    done = await registry.UploadArtifact(parts())
    assert done.is_complete
    return pb.Artifact(path=path, digest=done.digest, size_bytes=done.committed_bytes)


async def download(
    registry: Any, path: str, version: str = "latest", **more: Any
) -> tuple[pb.Artifact, bytes]:
    request = pb.DownloadArtifactRequest(model_id="advisor", version=version, path=path, **more)
    parts = [part async for part in registry.DownloadArtifact(request)]
    assert all(len(part.chunk) <= 1024 * 1024 for part in parts)
    return parts[0].artifact, b"".join(part.chunk for part in parts[1:])


async def register(registry: Any, model_id: str = "advisor", **more: Any) -> pb.Model:
    return await registry.RegisterModel(pb.RegisterModelRequest(model=pb.Model(model_id=model_id), **more))


async def create(registry: Any, version: str = "", **fields: Any) -> pb.ModelVersion:
    return await registry.CreateModelVersion(
        pb.CreateModelVersionRequest(model_id="advisor", version=version, **fields)
    )


async def refusal(call: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as error:
        await call
    return error.value


async def everything(registry: Any) -> tuple[int, int]:
    """How many models there are and how many events: what a refused call must leave as it was."""
    models = await registry.ListModels(pb.ListModelsRequest())
    events = await registry.ListAuditEvents(pb.ListAuditEventsRequest(page_size=1000))
    return len(models.models), len(events.events)
