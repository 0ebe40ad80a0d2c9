"""What runs in the router's process: the front for callers, and a Unix socket for the deployer.

The deployer tells tables (`PUT /tables`), asks for what was counted (`GET /reports`), and waits for requests
that wake a deployment (`GET /woken?after=COUNT`).
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs

import httpx2

from neuroweaver.deployer.local.front.fleets import Fleets
from neuroweaver.deployer.local.routes import RECORDS, Config, Tables
from neuroweaver.deployer.routing import front
from neuroweaver.deployer.routing.pages import Send
from neuroweaver.deployer.routing.router import UNKEPT, Refusal, Router, Scope, by_path, refuse
from neuroweaver.mesh.machine.files import short_path
from neuroweaver.mesh.server.http_bodies import Receive
from neuroweaver.mesh.server.http_limits import HttpLimits

WOKEN_S: Final = 10.0
"""The longest that the deployer waits for a request that wakes something, before it asks again."""


async def serve(config: Config, folder: Path, stop: asyncio.Event) -> None:
    """Until `stop`; requests under way then get their time. folder: of the control socket.

    Raises OSError if the port is taken.
    """
    fleets = Fleets()
    async with AsyncExitStack() as stack:
        # Proxies of the environment are not for loopback, and streams take connections for long.
        # An idle connection is given up before the model server does so, which a request could run into.
        kept = httpx2.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2.0)
        client = await stack.enter_async_context(httpx2.AsyncClient(trust_env=False, limits=kept))
        fresh = await stack.enter_async_context(httpx2.AsyncClient(trust_env=False, limits=UNKEPT))
        listener = stack.enter_context(front.listen(config.host, config.port))
        router = Router(
            client,
            fresh,
            by_path,
            fleets.of,
            config.limits,
            host=config.host,
            endpoint=config.endpoint,
            wake_s=config.wake_s,
        )
        control = stack.enter_context(short_path(folder / config.control))
        _make_private(folder / config.control, control)
        app = Control(fleets)
        await stack.enter_async_context(front.controlled(control, app, HttpLimits()))
        await stack.enter_async_context(
            front.serving(listener, router, config.limits, drain_s=config.drain_s)
        )
        await stop.wait()
        fleets.woken.notify()  # whoever waits for it need not any more


def _make_private(path: Path, address: str) -> None:
    """Uvicorn opens its socket to all, unless there is one already, whose mode it takes over."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(address)
    path.chmod(0o600)


class Control:
    """An ASGI application for the deployer alone: its socket lies in a folder of this user."""

    def __init__(self, fleets: Fleets) -> None:
        self._fleets = fleets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match (scope["method"], scope["path"]):
            case "PUT", "/tables":
                self._fleets.take(RECORDS.load(Tables, await _text(receive)))
                answer = "{}"
            case "GET", "/reports":
                answer = RECORDS.dump(self._fleets.reports())
            case "GET", "/woken":
                after = int(parse_qs(scope["query_string"])[b"after"][0])
                await self._fleets.woken.wait(after, WOKEN_S)
                answer = RECORDS.dump(self._fleets.waited_for())
            case _:
                await refuse(send, Refusal(404, "not_found", "there is no such path"))
                return
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer.encode()))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer.encode()})


async def _text(receive: Receive) -> str:
    pieces, has_more = [], True
    while has_more:
        message = await receive()
        pieces.append(message.get("body", b""))
        has_more = message.get("more_body", False)
    return b"".join(pieces).decode()
