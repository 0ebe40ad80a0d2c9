"""Downloads of programs with an event loop."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator

import grpc
import pytest

from neuroweaver.artifacts.content import Damaged
from neuroweaver.artifacts.file import File
from neuroweaver.artifacts.transfer import Download, artifact_of, received
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.v1 import registry_pb2 as pb
from neuroweaver.v1 import registry_pb2_grpc

CONTENT = os.urandom(200_000)
FILE = File("model.safetensors", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


class FakeRegistry(registry_pb2_grpc.RegistryServiceServicer):
    """A fake: gives bytes, and breaks off after the first chunk, with `breaks` one after the other."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.breaks: list[grpc.StatusCode] = []
        self.offsets: list[int] = []

    async def DownloadArtifact(self, request, context):  # noqa: N802
        self.offsets.append(request.offset_bytes)
        yield pb.DownloadArtifactResponse(artifact=artifact_of(FILE))
        rest = self.content[request.offset_bytes :]
        for start in range(0, len(rest), 65_536):
            yield pb.DownloadArtifactResponse(chunk=rest[start : start + 65_536])
            if self.breaks:
                await context.abort(self.breaks.pop(0), "a break")


@pytest.fixture
async def registry() -> AsyncIterator[tuple[FakeRegistry, registry_pb2_grpc.RegistryServiceStub]]:
    server, fake = grpc.aio.server(), FakeRegistry()
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with channel(f"127.0.0.1:{port}") as client:
        yield fake, registry_pb2_grpc.RegistryServiceStub(client)
    await server.stop(None)


async def whole(stub, file: File = FILE) -> bytes:
    return b"".join([chunk async for chunk in received(stub, Download("advisor", "1.0.0", file))])


async def test_a_download_that_breaks_off_goes_on_where_it_was(registry):
    fake, stub = registry
    fake.breaks = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED]
    assert await whole(stub) == CONTENT
    assert fake.offsets == [0, 65_536, 131_072]


async def test_what_waiting_does_not_help_is_raised_at_once(registry):
    fake, stub = registry
    fake.breaks = [grpc.StatusCode.DATA_LOSS]
    with pytest.raises(grpc.RpcError) as error:
        await whole(stub)
    assert error.value.code() is grpc.StatusCode.DATA_LOSS
    assert fake.offsets == [0]


@pytest.mark.parametrize("content", [CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), CONTENT[:-1], CONTENT + b"x"])
async def test_the_last_bytes_of_a_damaged_file_are_not_handed_on(registry, content):
    fake, stub = registry
    fake.content = content
    taken = bytearray()

    async def take() -> None:
        async for chunk in received(stub, Download("advisor", "1.0.0", FILE)):
            taken.extend(chunk)

    with pytest.raises(Damaged):
        await take()
    assert taken
    assert CONTENT[: 3 * 65_536].startswith(taken)


async def test_an_empty_file_needs_no_call(registry):
    fake, stub = registry
    assert await whole(stub, File("empty.txt", hashlib.sha256(b"").hexdigest(), 0)) == b""
    assert not fake.offsets
