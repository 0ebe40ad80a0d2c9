# ruff: noqa: N802 (the names of RPCs)
from __future__ import annotations

import asyncio

import grpc
import pytest
from opentelemetry import trace

from mesh.echo import Echo, pb, pb_grpc, started, stub
from neuroweaver.mesh.wire.channel import channel, sync_channel
from neuroweaver.mesh.wire.errors import Aborted, Error, Unavailable
from ports import free_port


class Shaky(Echo):
    """Refuses the first `times` calls."""

    def __init__(self, error: Error, times: int) -> None:
        self.error, self.left, self.calls = error, times, 0

    async def Say(self, request, context):
        self.calls += 1
        if self.left > 0:
            self.left -= 1
            raise self.error
        return pb.Answer(text=request.text)


async def test_a_call_is_retried_while_the_service_is_unavailable():
    servicer = Shaky(Unavailable("starting", retry_after_s=0.1), times=2)
    async with stub(servicer) as echo:
        assert (await echo.Say(pb.Ask(text="hello"))).text == "hello"

    assert servicer.calls == 3


async def test_retries_are_bounded():
    servicer = Shaky(Unavailable("down", retry_after_s=0.1), times=1000)
    async with stub(servicer) as echo:
        with pytest.raises(grpc.RpcError):
            await echo.Say(pb.Ask())

    assert servicer.calls == 4


async def test_another_refusal_is_not_retried():
    servicer = Shaky(Aborted("ETAG_MISMATCH", "changed since"), times=1000)
    async with stub(servicer) as echo:
        with pytest.raises(grpc.RpcError):
            await echo.Say(pb.Ask())

    assert servicer.calls == 1


async def test_a_call_waits_out_a_restart():
    port = free_port()
    async with started(port=port) as server:
        address = server.address
    async with channel(address) as client:
        said = asyncio.ensure_future(
            pb_grpc.EchoServiceStub(client).Say(pb.Ask(text="hello"), wait_for_ready=True, timeout=60)
        )
        async with started(port=port):
            assert (await said).text == "hello"


class Tracing(Echo):
    """Answers with the trace it is called in."""

    async def Say(self, request, context):
        return pb.Answer(text=trace_id())

    async def Count(self, request_iterator, context):
        return pb.Answer(text=trace_id())

    async def Repeat(self, request, context):
        yield pb.Answer(text=trace_id())

    async def Chat(self, request_iterator, context):
        yield pb.Answer(text=trace_id())


def trace_id() -> str:
    return trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)


async def asks():
    yield pb.Ask()


async def test_every_kind_of_call_carries_the_trace():
    async with stub(Tracing()) as echo:
        with trace.get_tracer("test").start_as_current_span("caller"):
            answers = [
                await echo.Say(pb.Ask()),
                await echo.Count(asks()),
                *[answer async for answer in echo.Repeat(pb.Ask())],
                *[answer async for answer in echo.Chat(asks())],
            ]
            expected = trace_id()

    assert [answer.text for answer in answers] == [expected] * 4


def _all_kinds(address: str) -> tuple[list[str], str]:
    with sync_channel(address) as client, trace.get_tracer("test").start_as_current_span("caller"):
        echo = pb_grpc.EchoServiceStub(client)
        answers = [
            echo.Say(pb.Ask()),
            echo.Count(iter([pb.Ask()])),
            *echo.Repeat(pb.Ask()),
            *echo.Chat(iter([pb.Ask()])),
        ]
        return [answer.text for answer in answers], trace_id()


async def test_every_kind_of_synchronous_call_carries_the_trace():
    async with started(Tracing()) as server:
        answers, expected = await asyncio.to_thread(_all_kinds, server.address)

    assert answers == [expected] * 4


async def test_the_metadata_of_the_caller_stays():
    class Reading(Echo):
        async def Say(self, request, context):
            return pb.Answer(text=dict(context.invocation_metadata())["x-own"])

    async with stub(Reading()) as echo:
        with trace.get_tracer("test").start_as_current_span("caller"):
            assert (await echo.Say(pb.Ask(), metadata=(("x-own", "kept"),))).text == "kept"
