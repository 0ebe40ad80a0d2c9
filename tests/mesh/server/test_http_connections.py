"""Callers that take more than their share, over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn

from neuroweaver.mesh.server.http_bodies import Bodies, BodyRefused, CallerGone
from neuroweaver.mesh.server.http_connections import bound_buffers, http_server
from neuroweaver.mesh.server.http_limits import HttpLimits

PATIENCE_S = 60.0
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
SOON_S = 0.2
"""A limit of time that a test waits for; what must stay within it is done at once or is not limited by it."""


@dataclass
class App:
    """Answers with the length of the body; `/slow` once `release` is set, `/long` with as much as is read."""

    bodies: Bodies
    release: asyncio.Event = field(default_factory=asyncio.Event)
    begun: int = 0
    sent_bytes: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun += 1
        status, text = 200, b""
        try:
            async with self.bodies.read(scope["headers"], receive) as body:
                text = b"%d" % len(body)
                if scope["path"] == "/slow":
                    await self.release.wait()
        except BodyRefused as refused:
            status, text = refused.status, refused.code.encode()
        except CallerGone:
            self.ended.set()
            return
        await send({"type": "http.response.start", "status": status, "headers": []})
        if scope["path"] == "/long":
            await self.talk(receive, send)
        await send({"type": "http.response.body", "body": text})
        self.ended.set()

    async def talk(self, receive: Any, send: Any) -> None:
        gone = asyncio.create_task(receive())
        while not gone.done():
            await send({"type": "http.response.body", "body": b"x" * 10_000, "more_body": True})
            self.sent_bytes += 10_000
            await asyncio.sleep(0)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self):
        yield


@dataclass
class Served:
    app: App
    port: int

    @asynccontextmanager
    async def caller(
        self, said: bytes = b"", address: str = "127.0.0.1"
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0))
        try:
            writer.write(said)
            await writer.drain()
            yield reader, writer
        finally:
            writer.transport.abort()

    async def ask(self, said: bytes) -> tuple[int, bytes]:
        async with self.caller(said) as (reader, _):
            return await answer(reader)


@asynccontextmanager
async def served(**limits: Any) -> AsyncIterator[Served]:
    chosen = HttpLimits(**limits)
    app = App(Bodies(chosen))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        bound_buffers(listener)
        server = _Server(http_server(app, chosen, timeout_graceful_shutdown=1))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield Served(app, listener.getsockname()[1])
        finally:
            app.release.set()
            server.should_exit = True
            await asyncio.wait({running})


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body, of known length or in chunks of which the first is all."""
    async with asyncio.timeout(PATIENCE_S):
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
        length = int(fields.get(b"content-length", b"0"))
        if not length:
            length = int(await reader.readline(), 16)
        return int(head.split()[1]), await reader.readexactly(length)


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Reads to the end, which has to come."""
    async with asyncio.timeout(PATIENCE_S):
        with suppress(ConnectionError):
            await reader.read()
    return True


def code(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


def post(path: bytes, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (path, size, body)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET / HTTP/1.1\r\nx: " + b"x" * 3000 + b"\r\n\r\n"],
        [b"GET /" + b"x" * 3000 + b" HTTP/1.1\r\n\r\n"],
        [b"GET / HTTP/1.1\r\n", *([b"x: " + b"x" * 300 + b"\r\n"] * 9)],
        [b"GET / HTTP/1.1\r\nx: ", *([b"x" * 600] * 9)],
    ],
    ids=["a long header", "a long line", "headers without end", "a header without end"],
)
async def test_a_head_has_an_end(pieces: Iterable[bytes]):
    async with served(head_bytes=2048) as here, here.caller() as (reader, writer):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)  # each by itself, for the parser
        status, body = await answer(reader)
        assert (status, code(body)) == (431, "head_too_large")
        assert await is_closed(reader)
        assert here.app.begun == 0
        assert await here.ask(GET) == (200, b"0")


async def test_what_is_no_http_is_refused_in_words():
    async with served() as here, here.caller(b"\x16\x03\x01 hello\r\n\r\n") as (reader, _):
        status, body = await answer(reader)
        assert (status, code(body)) == (400, "invalid_http")
        assert await is_closed(reader)


async def test_a_caller_who_says_nothing_is_let_go():
    async with served(head_s=SOON_S) as here, here.caller() as (reader, _):
        assert await is_closed(reader)


async def test_a_head_that_does_not_come_is_not_waited_for():
    async with served(head_s=SOON_S) as here:
        async with here.caller(GET[:-2]) as (reader, _):
            status, body = await answer(reader)
            assert (status, code(body)) == (408, "request_timeout")
            assert await is_closed(reader)
        async with here.caller(GET) as (reader, writer):
            assert await answer(reader) == (200, b"0")
            await reader.readuntil(b"0\r\n\r\n")
            writer.write(GET[:-2])  # the second one, on a kept connection
            assert (await answer(reader))[0] == 408
        assert here.app.begun == 1


async def test_a_body_that_does_not_come_is_not_waited_for():
    async with served(body_s=SOON_S) as here, here.caller(post(b"/", b"x" * 10, 100)) as (reader, _):
        status, body = await answer(reader)
        assert (status, code(body)) == (408, "request_timeout")
        assert await is_closed(reader)
        async with asyncio.timeout(PATIENCE_S):
            await here.app.ended.wait()
        assert here.app.bodies.held_bytes == 0


async def test_an_idle_connection_is_closed():
    async with served(idle_s=1) as here, here.caller(GET) as (reader, _):
        assert await answer(reader) == (200, b"0")
        assert await is_closed(reader)


async def test_time_runs_for_the_caller_alone():
    said = post(b"/slow", b"x" * 10) + GET[:-2]
    async with served(head_s=SOON_S, body_s=SOON_S) as here, here.caller(said) as (reader, writer):
        await asyncio.sleep(4 * SOON_S)
        here.app.release.set()
        assert await answer(reader) == (200, b"10")
        await reader.readuntil(b"0\r\n\r\n")
        writer.write(b"x")  # now the second one has its time, too
        assert (await answer(reader))[0] == 408


async def test_a_body_has_an_end():
    async with served(body_bytes=5000) as here:
        assert await here.ask(post(b"/", b"x" * 5000)) == (200, b"5000")
        assert await here.ask(post(b"/", b"", 5001)) == (413, b"request_too_large")
        head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        chunk = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
        assert await here.ask(head + chunk * 6) == (413, b"request_too_large")
        assert here.app.bodies.held_bytes == 0


async def test_large_bodies_have_a_bound_together_and_shut_out_no_small_one():
    large = 1 << 20
    async with served(bodies_bytes=2 * large, body_bytes=large) as here, AsyncExitStack() as stack:
        held = [await stack.enter_async_context(here.caller(post(b"/slow", b"x" * large))) for _ in range(2)]
        async with asyncio.timeout(PATIENCE_S):
            while here.app.bodies.held_bytes < 2 * large:  # noqa: ASYNC110 (of a server, which tells nobody)
                await asyncio.sleep(0.01)
        assert await here.ask(post(b"/", b"x" * large)) == (429, b"busy")
        assert await here.ask(post(b"/", b"x" * 60_000)) == (200, b"60000")
        here.app.release.set()
        for reader, _ in held:
            assert await answer(reader) == (200, b"%d" % large)
        assert await here.ask(post(b"/", b"x" * large)) == (200, b"%d" % large)
        assert here.app.bodies.held_bytes == 0


@pytest.mark.parametrize("said", [b"", GET[:-2], post(b"/", b"", 100)], ids=["nothing", "heads", "bodies"])
async def test_connections_without_a_whole_request_shut_nobody_out(said: bytes):
    async with served(connections=20) as here, AsyncExitStack() as stack:
        flood = [await stack.enter_async_context(here.caller(said)) for _ in range(100)]
        for _ in range(5):
            assert await here.ask(GET) == (200, b"0")
        for reader, _ in flood[:75]:
            assert await is_closed(reader)


async def test_where_all_connections_have_a_request_one_more_is_refused_and_none_is_harmed():
    async with served(connections_per_address=3) as here, AsyncExitStack() as stack:
        busy = [await stack.enter_async_context(here.caller(post(b"/slow", b"x"))) for _ in range(3)]
        async with asyncio.timeout(PATIENCE_S):
            while here.app.bodies.held_bytes < 3:  # noqa: ASYNC110 (of a server, which tells nobody)
                await asyncio.sleep(0.01)
        async with here.caller() as (reader, _):
            status, body = await answer(reader)
            assert (status, code(body)) == (503, "too_many_connections")
            assert await is_closed(reader)
        async with here.caller(GET, "127.0.0.2") as (reader, _):
            assert await answer(reader) == (200, b"0")
        here.app.release.set()
        for reader, _ in busy:
            assert await answer(reader) == (200, b"1")


async def test_an_answer_that_nobody_reads_is_not_made_and_its_connection_cut():
    async with served(unread_s=SOON_S) as here, here.caller(b"GET /long HTTP/1.1\r\n\r\n") as (reader, _):
        async with asyncio.timeout(PATIENCE_S):
            await here.app.ended.wait()
        # What the two ends' systems and the server itself hold of it.
        assert here.app.sent_bytes < 10 << 20
        assert await is_closed(reader)


async def test_requests_beyond_number_on_one_connection_are_not_kept():
    async with served() as here, here.caller(b"GET /slow HTTP/1.1\r\n\r\n" + GET * 1000) as (reader, _):
        assert await is_closed(reader)
        assert here.app.begun == 1
