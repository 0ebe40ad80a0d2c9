from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress

from prometheus_client import CollectorRegistry, Counter

from neuroweaver.mesh.server.metrics_page import metrics_page

GET = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"
PATIENCE_S = 60.0


async def answer(port: int, *said: bytes) -> bytes:
    """All that comes until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with suppress(ConnectionError):
            for piece in said:
                writer.write(piece)
                await writer.drain()
            async with asyncio.timeout(PATIENCE_S):
                return await reader.read()
        return b""
    finally:
        writer.transport.abort()


def registry(counters: int = 1) -> CollectorRegistry:
    made = CollectorRegistry()
    for number in range(counters):
        Counter(f"things_{number}", "Of which there are some.", registry=made)
    return made


async def test_a_large_page_comes_whole():
    async with metrics_page("127.0.0.1", 0, registry(3000)) as port:
        head, _, body = (await answer(port, GET)).partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        assert body.count(b"# HELP things_") == 6000


async def test_a_head_without_end_and_one_that_does_not_come_get_nothing():
    async with metrics_page("127.0.0.1", 0, registry(), patience_s=0.2) as port:
        assert await answer(port, *([b"x" * 10_000] * 10)) == b""
        assert await answer(port, GET[:-2]) == b""


async def test_a_crowd_is_let_go_and_shuts_nobody_out_afterwards():
    async with metrics_page("127.0.0.1", 0, registry()) as port:
        async with AsyncExitStack() as stack:
            crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(32)]
            for _, writer in crowd:
                stack.callback(writer.transport.abort)
            assert await answer(port, GET) == b""
        async with asyncio.timeout(PATIENCE_S):
            while not (await answer(port, GET)).startswith(b"HTTP/1.1 200"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # the server hears of their end a moment later
