"""Runs the router's HTTP server on an event loop that others use, too."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn

from neuroweaver.deployer.routing.router import App


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
    return listener


@asynccontextmanager
async def serving(listener: socket.socket, app: App, *, drain_s: float) -> AsyncIterator[None]:
    """At the end of the block it takes no new connections, and calls under way get `drain_s`."""
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=round(drain_s),
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.wait({running})
