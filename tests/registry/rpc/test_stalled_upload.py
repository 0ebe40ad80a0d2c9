from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry

from databases import prepare
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.server.serve import running
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.mesh.wire.status import describe
from neuroweaver.registry.__main__ import service
from neuroweaver.registry.settings import RegistrySettings
from neuroweaver.v1 import registry_pb2 as pb
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub
from registry.calls import digest_of, refusal, safetensors, upload

CONTENT = safetensors(bytes(1000))


async def test_an_upload_that_stalls_leaves_its_content_to_the_next(tmp_path):
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    await prepare(url, "neuroweaver.registry")
    settings = RegistrySettings(
        home=tmp_path, port=0, metrics_port=0, database_url=url, drain_s=0.0, silence_s=2.0
    )
    served = service(Database(url, schema="registry"), settings)

    async def stalling():
        yield pb.UploadArtifactRequest(
            header=pb.UploadHeader(digest=digest_of(CONTENT), size_bytes=len(CONTENT), path="m.safetensors")
        )
        yield pb.UploadArtifactRequest(chunk=CONTENT[:100])
        await asyncio.Event().wait()

    async with (
        running(served, settings, registry=CollectorRegistry()) as server,
        channel(server.address) as client,
    ):
        registry = RegistryServiceStub(client)
        refused = await refusal(registry.UploadArtifact(stalling()))
        assert describe(refused) == "deadline exceeded: nothing was sent for 2 s"
        kept = await registry.GetUploadStatus(pb.GetUploadStatusRequest(digest=digest_of(CONTENT)))
        assert kept.committed_bytes == 100

        await upload(registry, CONTENT, "m.safetensors")
