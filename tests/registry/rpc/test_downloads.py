"""Downloads that nobody reads hold little, and not for ever."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from databases import prepare
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.server.serve import running
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.mesh.wire.errors import ResourceExhausted, Unavailable
from neuroweaver.registry.__main__ import service
from neuroweaver.registry.rpc.downloads import Downloads
from neuroweaver.registry.settings import RegistrySettings
from neuroweaver.v1 import registry_pb2 as pb
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub
from registry.calls import create, download, register, safetensors, upload


class Call:
    """As much of a servicer context as is looked at."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._callbacks: list[Any] = []

    def peer(self) -> str:
        return self._peer

    def add_done_callback(self, callback: Any) -> None:
        self._callbacks.append(callback)

    def end(self) -> None:
        for callback in self._callbacks:
            callback(self)


async def test_a_connection_gets_a_quarter_of_the_downloads():
    downloads = Downloads(8, patience_s=0.0)
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(downloads.turn(Call("a")))
        with pytest.raises(ResourceExhausted, match="2 downloads run on this connection already"):
            await stack.enter_async_context(downloads.turn(Call("a")))
        await stack.enter_async_context(downloads.turn(Call("b")))


async def test_no_more_run_than_the_setting_says():
    downloads = Downloads(4, patience_s=0.0)
    async with AsyncExitStack() as stack:
        for peer in "abcd":
            await stack.enter_async_context(downloads.turn(Call(peer)))
        with pytest.raises(Unavailable, match=r"4 downloads run already \(NEUROWEAVER_DOWNLOADS\)"):
            await stack.enter_async_context(downloads.turn(Call("e")))


async def test_the_next_one_waits_for_its_turn():
    downloads = Downloads(1)
    async with AsyncExitStack() as stack:
        async with downloads.turn(Call("a")):
            waiting = asyncio.create_task(stack.enter_async_context(downloads.turn(Call("b"))))
            await asyncio.sleep(0)
            assert not waiting.done()
        await waiting


async def test_what_grpc_still_holds_of_a_download_counts_for_its_connection():
    downloads = Downloads(4, patience_s=0.0)
    call = Call("a")
    async with downloads.turn(call):
        pass
    with pytest.raises(ResourceExhausted):
        async with downloads.turn(Call("a")):
            pass
    call.end()
    async with downloads.turn(Call("a")):
        pass


async def test_a_download_that_nobody_reads_leaves_its_turn_to_the_next(tmp_path):
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    await prepare(url, "neuroweaver.registry")
    settings = RegistrySettings(
        home=tmp_path, port=0, metrics_port=0, database_url=url, drain_s=0.0, silence_s=0.5, downloads=1
    )
    content = safetensors(bytes(4_000_000))
    async with AsyncExitStack() as stack:
        served = service(Database(url, schema="registry"), settings)
        server = await stack.enter_async_context(running(served, settings, registry=CollectorRegistry()))
        # Its client's window stays as small as it is at first.
        narrow = grpc.aio.insecure_channel(server.address, options=[("grpc.http2.bdp_probe", 0)])
        careless, careful = [
            RegistryServiceStub(await stack.enter_async_context(opened))
            for opened in (narrow, channel(server.address))
        ]
        await register(careful)
        file = await upload(careful, content)
        await create(careful, "1.0.0", artifacts=[file])

        request = pb.DownloadArtifactRequest(model_id="advisor", version="1.0.0", path=file.path)
        unread = careless.DownloadArtifact(request)
        await unread.initial_metadata()
        assert (await download(careful, file.path))[1] == content
        with pytest.raises(grpc.RpcError) as refused:
            [_ async for _ in unread]
        assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
