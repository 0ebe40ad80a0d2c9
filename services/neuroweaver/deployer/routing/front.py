"""Runs the router's HTTP server on an event loop that others use, too."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn

from neuroweaver.deployer.routing.router import App
from neuroweaver.mesh.server.http_connections import bound_buffers, http_server
from neuroweaver.mesh.server.http_limits import HttpLimits


class _Server(uvicorn.Server):
    """Signals belong to the process, which ends this server itself."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """Port 0 for any that is free. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=1024)
    # Inherited by its connections: asyncio leaves it off for a socket that was made elsewhere, and each token
    # of a stream would wait 40 ms for the caller's acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    bound_buffers(listener)
    return listener


@asynccontextmanager
async def serving(
    listener: socket.socket, app: App, limits: HttpLimits, *, drain_s: float
) -> AsyncIterator[None]:
    """At the end of the block it takes no new connections, and calls under way get `drain_s`."""
    server = _Server(http_server(app, limits, timeout_graceful_shutdown=round(drain_s)))
    async with _running(server, [listener]):
        yield


@asynccontextmanager
async def controlled(path: str, app: App, limits: HttpLimits) -> AsyncIterator[None]:
    """At a Unix socket, which there may not be yet when the block begins."""
    server = _Server(http_server(app, limits, uds=path, timeout_graceful_shutdown=0))
    async with _running(server, None):
        yield


@asynccontextmanager
async def _running(server: _Server, sockets: list[socket.socket] | None) -> AsyncIterator[None]:
    running = asyncio.create_task(server.serve(sockets=sockets))
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.wait({running})
