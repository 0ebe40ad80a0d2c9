"""The router's pod: answers for one deployment, by the routes that its ConfigMap tells at each moment.

    python -m neuroweaver.deployer.kubernetes.in_pods.router --namespace models --config-map nw-bot-router

Ready once it knows its routes. While the API server is away it keeps the last ones that it knew, and a table
that it cannot read changes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import httpx2
import uvloop

from neuroweaver.cluster.api import Api
from neuroweaver.cluster.connection import Access
from neuroweaver.cluster.errors import BackendError
from neuroweaver.cluster.failures import Refusal as ApiRefusal
from neuroweaver.cluster.kinds import CONFIG_MAP
from neuroweaver.deployer.domain.backend import Key, Redirect
from neuroweaver.deployer.kubernetes.manifests.routes import ENTRY, BadRoutes, Route, Table, read
from neuroweaver.deployer.kubernetes.naming.containers import PORT
from neuroweaver.deployer.kubernetes.observing.watching import Watcher
from neuroweaver.deployer.routing import front
from neuroweaver.deployer.routing.counts import Counts
from neuroweaver.deployer.routing.metrics import Metrics
from neuroweaver.deployer.routing.pages import Send
from neuroweaver.deployer.routing.router import (
    UNKEPT,
    Refusal,
    Router,
    Scope,
    public_path,
    refuse,
)
from neuroweaver.deployer.routing.shares import at_random, by_hash
from neuroweaver.mesh.server import logs
from neuroweaver.mesh.server.http_bodies import Receive
from neuroweaver.mesh.server.http_limits import HttpLimits
from neuroweaver.mesh.wire import environment

_LOG: Final = logging.getLogger(__name__)

LIVE: Final = "/health/live"
READY: Final = "/health/ready"
METRICS: Final = "/metrics"
_SUSPECT_S: Final = 1.0
_AGAIN_S: Final = 2.0
_POLL_S: Final = 0.25
_CONNECT_S: Final = 1.0
_NOT_HERE: Final = ""
"""Another deployment's endpoint is never this pod's own."""


class Routes:
    """`routing.fleet.Fleet` by a table. Requests are spread over a revision's pods by its Service."""

    def __init__(self) -> None:
        self.table: Table | None = None
        self.by_revision: dict[int, Counts] = {}
        self.waiting = 0
        self._suspects: dict[int, float] = {}

    def take(self, table: Table) -> None:
        self.table = table
        for revision in self.by_revision.keys() - {route.revision for route in table.routes}:
            del self.by_revision[revision]

    @property
    def redirect(self) -> Redirect | None:
        return self.table.redirect if self.table else None

    @property
    def max_prompt_chars(self) -> int:
        return self.table.max_prompt_chars if self.table else 0

    def pick(self, conversation: str, tried: Collection[str]) -> _Revision | None:
        """By hash, so that all routers find the same revision for a conversation without a memory.

        None for a deployment that may sleep: `awake` looks first whether it does.
        """
        if self.table is not None and self.table.wake_s and not tried:
            return None
        return self._pick(conversation, tried)

    async def awake(self, conversation: str, within_s: float) -> _Revision | None:
        """Once it takes connections. Its autoscaler sees how many wait, and starts it."""
        del within_s  # the table tells, also while it changes
        began = time.monotonic()
        found = self._pick(conversation, ())
        if found is None or await found.is_there():
            return found
        self.waiting += 1
        try:
            while self._may_wait(time.monotonic() - began):
                await asyncio.sleep(_POLL_S)
                found.suspect(has_refused=True)
                found = self._pick(conversation, ())
                if found is None or await found.is_there():
                    return found
        finally:
            self.waiting -= 1
        return None

    def counts(self, revision: int) -> Counts:
        return self.by_revision.setdefault(revision, Counts())

    def is_expected(self) -> bool:
        return any(each.weight_percent for each in self._routes())

    def _pick(self, conversation: str, tried: Collection[str]) -> _Revision | None:
        routes = {each.revision: each for each in self._routes() if _name(each) not in tried}
        now = time.monotonic()
        weights = {each.revision: float(each.weight_percent) for each in routes.values()}
        steady = {each: weight for each, weight in weights.items() if self._suspects.get(each, 0.0) <= now}
        for able in (steady, weights):
            if (chosen := self._chosen(conversation, able)) is not None:
                return _Revision(routes[chosen], self._suspects)
        return None

    def _may_wait(self, waited_s: float) -> bool:
        return self.table is not None and self.table.redirect is None and waited_s < self.table.wake_s

    def _routes(self) -> tuple[Route, ...]:
        return self.table.routes if self.table else ()

    def _chosen(self, conversation: str, weights: dict[int, float]) -> int | None:
        is_affine = self.table is not None and self.table.is_affine
        return by_hash(conversation, weights) if conversation and is_affine else at_random(weights)


@dataclass(frozen=True)
class _Revision:
    """`routing.fleet.Upstream`: the Service of a revision."""

    route: Route
    suspects: dict[int, float] = field(repr=False)

    @property
    def replica_id(self) -> str:
        return _name(self.route)

    @property
    def revision(self) -> int:
        return self.route.revision

    @property
    def base_url(self) -> str:
        return self.route.url

    @contextmanager
    def busy(self) -> Iterator[None]:
        yield

    async def is_there(self) -> bool:
        """Whether a pod of it takes connections."""
        parts = urlsplit(self.route.url)
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    def suspect(self, *, has_refused: bool) -> None:
        """Has no pod that is ready: not asked for a moment, as long as another revision may answer."""
        del has_refused  # what has no pod may do either
        self.suspects[self.route.revision] = time.monotonic() + _SUSPECT_S


class App:
    """The pod's ASGI application: what Kubernetes and Prometheus ask, and before all the router."""

    def __init__(self, client: httpx2.AsyncClient, routes: Routes, limits: HttpLimits, *, host: str) -> None:
        self._routes = routes
        self._metrics = Metrics(routes.by_revision, lambda: routes.waiting)
        self._router = Router(
            client,
            client,
            self._locate,
            lambda _: routes,
            limits,
            host=host,
            endpoint=lambda _: _NOT_HERE,
            wake_s=0.0,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, is_ready = scope.get("path", ""), self._routes.table is not None
        if path == LIVE or (path == READY and is_ready):
            await _answer(send, b'{"status":"ok"}', b"application/json")
        elif path == METRICS:
            await _answer(send, self._metrics.page(), b"text/plain; version=0.0.4; charset=utf-8")
        elif is_ready:
            await self._router(scope, receive, send)
        else:
            await refuse(send, Refusal(503, "not_ready", "the router has not read its routes yet"))

    def _locate(self, path: str) -> tuple[Key, str]:
        if self._routes.table is None:
            raise Refusal(503, "not_ready", "the router has not read its routes yet")
        return self._routes.table.key, public_path(path)


async def follow(api: Api, namespace: str, config_map: str, routes: Routes) -> None:
    """Takes in each table as it is written, until cancelled."""
    moved = asyncio.Event()
    moved.set()
    watcher = Watcher(api, CONFIG_MAP, namespace, lambda _: moved.set(), fields=f"metadata.name={config_map}")
    watching = asyncio.create_task(watcher.run())
    try:
        while True:
            await moved.wait()
            moved.clear()
            try:
                found = await api.get(CONFIG_MAP, namespace, config_map)
                if found is not None:
                    routes.take(read(found.get("data", {}).get(ENTRY, "")))
            except BadRoutes as error:
                _LOG.error("routes cannot be read", extra={"cause": str(error)})  # a line says it all
            except (ApiRefusal, BackendError) as error:
                _LOG.warning("routes cannot be read", extra={"cause": str(error)})
                await asyncio.sleep(_AGAIN_S)
                moved.set()
    finally:
        watching.cancel()
        await asyncio.wait({watching})


async def serve(
    api: Api,
    namespace: str,
    config_map: str,
    limits: HttpLimits,
    *,
    host: str,
    port: int,
    drain_s: float,
    stop: asyncio.Event,
) -> None:
    """Until `stop`; requests under way then get `drain_s`. Raises OSError if the port is taken."""
    routes = Routes()
    # A connection each: kept ones would bind this pod to the few pods that they lead to.
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx2.AsyncClient(trust_env=False, limits=UNKEPT))
        listener = stack.enter_context(front.listen(host, port))
        following = asyncio.create_task(follow(api, namespace, config_map, routes))
        stack.push_async_callback(_ended, following)
        app = App(client, routes, limits, host=host)
        await stack.enter_async_context(front.serving(listener, app, limits, drain_s=drain_s))
        _LOG.info("router serves", extra={"port": listener.getsockname()[1], "config_map": config_map})
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({stopping, following}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if following.done():
            following.result()


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _answer(send: Send, body: bytes, content_type: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _name(route: Route) -> str:
    return f"r{route.revision}"


async def _main(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    api = Api(Access())
    try:
        await serve(
            api,
            arguments.namespace,
            arguments.config_map,
            environment.read(HttpLimits),
            host=arguments.host,
            port=arguments.port,
            drain_s=arguments.drain_s,
            stop=stop,
        )
    finally:
        await api.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m neuroweaver.deployer.kubernetes.in_pods.router", description=__doc__
    )
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--config-map", required=True)
    parser.add_argument("--host", default="0.0.0.0")  # noqa: S104  # a pod's own address
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--drain-s", type=float, default=30.0)
    logs.configure("router")
    uvloop.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
