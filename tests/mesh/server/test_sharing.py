# ruff: noqa: N802 (the names of RPCs)
from __future__ import annotations

import asyncio

import grpc
import pytest

from mesh.echo import Echo, pb, stub
from neuroweaver.mesh.handlers.turns import TURNS
from neuroweaver.mesh.server.sharing import _host


async def test_a_caller_with_as_many_streams_as_it_may_have_is_refused_another_one_until_one_ends():
    async with stub(streams_per_caller=2) as echo:
        open_now = [echo.WatchWords(pb.Ask()) for _ in range(2)]
        for watch in open_now:
            await watch.read()

        with pytest.raises(grpc.RpcError, match="NEUROWEAVER_STREAMS_PER_CALLER") as refused:
            await echo.WatchWords(pb.Ask()).read()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await echo.Say(pb.Ask(text="still served"))).text

        open_now[0].cancel()
        await _until_admitted(echo)


async def _until_admitted(echo) -> None:
    while True:
        try:
            await echo.WatchWords(pb.Ask()).read()
        except grpc.RpcError:
            await asyncio.sleep(0.01)
        else:
            return


async def test_what_is_sent_to_watches_stands_back_for_calls_and_for_no_stream():
    calls = []

    class Counting(Echo):
        async def Say(self, request, context):
            calls.append(TURNS._calls)
            return pb.Answer(text="hello")

        async def Repeat(self, request, context):
            calls.append(TURNS._calls)
            yield pb.Answer()

    async with stub(Counting()) as echo:
        await echo.Say(pb.Ask())
        await echo.Repeat(pb.Ask()).read()

    assert calls == [1, 0]


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:127.0.0.1:4711", "ipv4:127.0.0.1"),
        ("ipv6:%5B::1%5D:4711", "ipv6:%5B::1%5D"),
        ("unix:/run/echo.sock", "unix:/run/echo.sock"),
    ],
)
def test_all_connections_of_a_host_are_one_caller(peer, host):
    assert _host(peer) == host
