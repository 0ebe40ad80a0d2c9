"""http://<host>:<port>/metrics, for Prometheus, on the service's own event loop.

The client library's own server needs a thread, which takes half a second to end.
"""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

_PATIENCE_S: Final = 5.0
# Who reads metrics comes alone, now and then.
_MOST_CONNECTIONS: Final = 32
_HEAD_BYTES: Final = 16 << 10
_GONE: Final = (ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)


@asynccontextmanager
async def metrics_page(
    host: str, port: int, registry: CollectorRegistry, *, patience_s: float = _PATIENCE_S
) -> AsyncIterator[int]:
    """Gives the port. Raises OSError if it is taken."""
    open_connections = 0

    async def answer(reader: StreamReader, writer: StreamWriter) -> None:
        nonlocal open_connections
        open_connections += 1
        try:
            if open_connections <= _MOST_CONNECTIONS:
                async with asyncio.timeout(patience_s):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(_respond(head, registry))
                    writer.close()
                    await writer.wait_closed()
        except _GONE:
            pass
        finally:
            open_connections -= 1
            # Closed it is, unless somebody sent too much or too little, or does not read.
            writer.transport.abort()

    server = await asyncio.start_server(answer, host, port, limit=_HEAD_BYTES)
    async with server:
        yield server.sockets[0].getsockname()[1]


def _respond(head: bytes, registry: CollectorRegistry) -> bytes:
    method, _, rest = head.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if path != b"/metrics":
        return _response("404 Not Found", "text/plain", b"see /metrics\n")
    if method != b"GET":
        return _response("405 Method Not Allowed", "text/plain", b"GET only\n")
    return _response("200 OK", CONTENT_TYPE_LATEST, generate_latest(registry))


def _response(status: str, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        "\r\n",
    )
    return "\r\n".join(head).encode() + body
