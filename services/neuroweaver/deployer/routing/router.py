"""The HTTP front: a request finds its deployment, and there a revision that is ready.

Bodies pass through it; none is logged or kept. Only that of a request which another model answers is changed:
it names its model, and a model server knows only its own name.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, Final
from urllib.parse import quote, urlsplit

import httpx2

from neuroweaver.deployer.domain.backend import Key, Redirect
from neuroweaver.deployer.routing import pages
from neuroweaver.deployer.routing.counts import Counts
from neuroweaver.deployer.routing.fleet import Fleet, Upstream
from neuroweaver.deployer.routing.pages import Headers, Send
from neuroweaver.deployer.routing.prompt_length import is_longer
from neuroweaver.mesh.server.http_bodies import Bodies, BodyRefused, CallerGone, Receive
from neuroweaver.mesh.server.http_limits import HttpLimits
from neuroweaver.mesh.wire.json_values import Broken, parsed
from neuroweaver.mesh.wire.settings import is_loopback

_LOG: Final = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
"""Of ASGI."""

CONVERSATION_HEADER: Final = b"x-conversation-id"
REVISION_HEADER: Final = b"x-neuroweaver-revision"
HOPS_HEADER: Final = b"x-neuroweaver-hops"
"""How many routers handed a request on: two that hand traffic to each other would do so for ever."""
UNKEPT: Final = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
"""Of a client that makes a connection for each request."""
_MAX_HOPS: Final = 4
_RETRY_AFTER_S: Final = 2
_METHODS: Final = ("GET", "HEAD", "POST")
_ALLOWED: Final = ", ".join(_METHODS).encode()
_TIMEOUT: Final = httpx2.Timeout(connect=5.0, read=900.0, write=30.0, pool=None)
# RFC 9110, 7.6.1, and what belongs to the caller's dealings with this front alone, which dates its answers
# itself.
_OWN_HEADERS: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer"}
    | {b"transfer-encoding", b"upgrade", b"host", b"content-length", b"authorization", b"cookie", b"expect"}
    | {b"date"}
)
_NOT_CONNECTED: Final = (httpx2.ConnectError, httpx2.ConnectTimeout)
# Nothing was answered yet, so that another replica may: the call changes nothing but its answer.
_BROKEN: Final = (httpx2.NetworkError, httpx2.RemoteProtocolError)
# A request that breaks whatever it is given to shall not go through all replicas.
_MAX_BROKEN: Final = 2
_CALLERS_FAULT: Final = frozenset({400, 403, 404, 405, 408, 413, 421, 431})


@dataclass(eq=False)
class Refusal(Exception):
    """What a caller gets instead of an answer, in the words of the OpenAI API."""

    status: int
    code: str
    message: str
    kind: str = "server_error"


@dataclass(frozen=True)
class _Call:
    """path: after the deployment's own, such as `v1/models`."""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    conversation: str
    hops: int


class _Attempt(Enum):
    ANSWERED = auto()
    TURNED_AWAY = auto()
    """It takes no request now, and has not seen this one."""
    BROKE_OFF = auto()
    """Before the first byte of an answer, also on a connection of the request's own."""


class Router:
    """An ASGI application. locate: whose path it is, and the rest of it, such as `v1/models`; raises Refusal.
    fleet: that of a key, None if there is none.

    client: asked first. fresh: makes a connection for each request; asked where that of `client` broke, since
    a kept one may have ended by another's request or the replica's clock, which says nothing against it.
    host: where it listens. endpoint: the base URL of a deployment that it serves. wake_s: how long a request
    waits for a sleeping one.
    """

    def __init__(
        self,
        client: httpx2.AsyncClient,
        fresh: httpx2.AsyncClient,
        locate: Callable[[str], tuple[Key, str]],
        fleet: Callable[[Key], Fleet | None],
        limits: HttpLimits,
        *,
        host: str,
        endpoint: Callable[[Key], str],
        wake_s: float,
    ) -> None:
        self._clients = (client, fresh)
        self._locate = locate
        self._fleet = fleet
        self._bodies = Bodies(limits)
        self._is_private = is_loopback(host)
        self._endpoint = endpoint
        self._wake_s = wake_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return None
        headers: Headers = list(scope["headers"])
        try:
            self._refuse_foreign(headers)
            if self._is_private and (origin := dict(headers).get(b"origin")):
                send = pages.readable(send, origin)
                if pages.is_preflight(scope["method"], headers):
                    return await pages.allow(send, _ALLOWED, headers)
            key, path = self._located(scope)
            async with self._bodies.read(headers, receive) as body:
                await self._attend(key, _call(scope, path, headers, body), receive, send)
        except CallerGone:
            return None
        except BodyRefused as refused:
            await refuse(send, Refusal(refused.status, refused.code, refused.message, refused.kind))
        except Refusal as refusal:
            await refuse(send, refusal)

    async def _attend(self, key: Key, call: _Call, receive: Receive, send: Send) -> None:
        """Answers for as long as the caller is there."""
        gone = asyncio.create_task(_gone(receive))
        answering = asyncio.create_task(self._answer(key, call, send))
        try:
            await asyncio.wait({gone, answering}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            gone.cancel()
            answering.cancel()
            await asyncio.wait({gone, answering})

    def _located(self, scope: Scope) -> tuple[Key, str]:
        if scope["method"] not in _METHODS:
            raise Refusal(405, "method_not_allowed", f"{scope['method']} is not allowed")
        return self._locate(scope["path"])

    def _refuse_foreign(self, headers: Headers) -> None:
        """A page in a browser could otherwise make this machine work, or reach it under a name of its own."""
        by_name = dict(headers)
        host, origin = by_name.get(b"host", b""), by_name.get(b"origin", b"")
        if self._is_private and host and not pages.is_of_this_machine(b"//" + host):
            raise Refusal(421, "misdirected_request", "this address accepts requests of this machine only")
        if self._is_private and origin and not pages.is_of_this_machine(origin):
            raise Refusal(403, "foreign_origin", "requests from other sites' pages are refused")

    async def _answer(self, key: Key, call: _Call, send: Send) -> None:
        for _ in range(_MAX_HOPS):
            fleet = self._fleet(key)
            if fleet is None:
                raise Refusal(404, "deployment_not_found", f"deployment {key} does not exist here")
            if fleet.redirect is None:
                return await self._from_fleet(key, fleet, call, send)
            redirect, target = fleet.redirect, self._own(fleet.redirect)
            call = _for_model(call, redirect.model_id)
            if target is not None:
                key = target
            elif call.hops < _MAX_HOPS:
                return await self._from_elsewhere(redirect, call, send)
            else:
                break
        raise Refusal(508, "redirect_loop", f"{key} and its backups hand traffic to each other in a circle")

    async def _from_fleet(self, key: Key, fleet: Fleet, call: _Call, send: Send) -> None:
        if (most := fleet.max_prompt_chars) and is_longer(call.body, most):
            message = (
                f"the request has more than {most} characters, which no context of this model has room for"
            )
            raise Refusal(400, "context_length_exceeded", message)
        tried: set[str] = set()
        broken = 0
        while broken < _MAX_BROKEN:
            upstream = fleet.pick(call.conversation, tried)
            if upstream is None and not tried:
                upstream = await fleet.awake(call.conversation, self._wake_s)
            if upstream is None:
                break
            tried.add(upstream.replica_id)
            with upstream.busy():
                attempt = await self._from_upstream(upstream, fleet, call, send)
            if attempt is _Attempt.ANSWERED:
                return
            broken += attempt is _Attempt.BROKE_OFF
        raise _unavailable(key, fleet, bool(tried))

    async def _from_upstream(self, upstream: Upstream, fleet: Fleet, call: _Call, send: Send) -> _Attempt:
        counts = fleet.counts(upstream.revision)
        extra = [(REVISION_HEADER, str(upstream.revision).encode())]
        began = time.monotonic()
        failures: list[Exception] = []
        for client in self._clients:
            try:
                async with _open(client, f"{upstream.base_url}/{call.path}", call) as answer:
                    if answer.status_code == 503 and fleet.pick(call.conversation, {upstream.replica_id}):
                        return _Attempt.TURNED_AWAY
                    await _pass_on(answer, extra, send, counts, began)
                    return _Attempt.ANSWERED
            except (*_NOT_CONNECTED, *_BROKEN) as error:
                failures.append(error)
            except httpx2.TimeoutException as error:
                counts.failed()
                raise Refusal(504, "timeout", "the model server did not answer in time") from error
        if isinstance(failures[-1], _NOT_CONNECTED):
            upstream.suspect(has_refused=isinstance(failures[-1], httpx2.ConnectError))
        if all(isinstance(error, _NOT_CONNECTED) for error in failures):
            return _Attempt.TURNED_AWAY
        counts.failed()
        return _Attempt.BROKE_OFF

    async def _from_elsewhere(self, redirect: Redirect, call: _Call, send: Send) -> None:
        url = redirect.url.rstrip("/") + call.path.removeprefix("v1")
        hops = (HOPS_HEADER, str(call.hops + 1).encode())
        headers = [*(header for header in call.headers if header[0] != HOPS_HEADER), hops]
        failure: Exception | None = None
        for client in self._clients:
            try:
                async with _open(client, url, replace(call, headers=headers)) as answer:
                    return await _pass_on(answer, [], send, Counts(), time.monotonic())
            except httpx2.TimeoutException as error:
                failure = error
                break
            except httpx2.HTTPError as error:
                failure = error
        raise Refusal(502, "bad_gateway", "the backup deployment does not answer") from failure

    def _own(self, redirect: Redirect) -> Key | None:
        """The deployment that the URL names, if this router serves it."""
        parts = urlsplit(redirect.url).path.strip("/").split("/")
        if len(parts) != 4:
            return None
        key = Key(*parts[:3])
        return key if self._endpoint(key) == redirect.url.rstrip("/") else None


def _call(scope: Scope, path: str, headers: Headers, body: bytes) -> _Call:
    by_name = dict(headers)
    conversation = by_name.get(CONVERSATION_HEADER, b"").decode("latin-1")
    hops = int(text) if (text := by_name.get(HOPS_HEADER, b"")[:4]).isdigit() else 0
    return _Call(scope["method"], path, scope["query_string"], headers, body, conversation, hops)


@asynccontextmanager
async def _open(client: httpx2.AsyncClient, url: str, call: _Call) -> AsyncIterator[httpx2.Response]:
    """Raises Refusal for a call that cannot be sent."""
    try:
        request = client.build_request(
            call.method,
            httpx2.URL(url).copy_with(query=call.query or None),
            headers=[(name, value) for name, value in call.headers if name not in _OWN_HEADERS],
            content=call.body,
            timeout=_TIMEOUT,
        )
        opened = await client.send(request, stream=True)
    except (httpx2.InvalidURL, httpx2.LocalProtocolError) as error:
        raise Refusal(400, "invalid_request", f"the request cannot be passed on: {error}") from error
    async with aclosing(opened) as answer:
        yield answer


def by_path(path: str) -> tuple[Key, str]:
    """/PROJECT/MODEL/NAME/v1/…: only the public part of the model server is reached. Raises Refusal."""
    parts = path.removeprefix("/").split("/")
    if len(parts) < 5 or parts[3] != "v1" or not _is_plain(parts):
        raise Refusal(404, "not_found", "a deployment is reached at /PROJECT/MODEL/NAME/v1/…")
    return Key(parts[0], parts[1], parts[2]), quote("/".join(parts[3:]))


def public_path(path: str) -> str:
    """/v1/…, where there is just one deployment. Raises Refusal."""
    parts = path.removeprefix("/").split("/")
    if len(parts) < 2 or parts[0] != "v1" or not _is_plain(parts):
        raise Refusal(404, "not_found", "the model is reached at /v1/…")
    return quote("/".join(parts))


async def _pass_on(answer: httpx2.Response, extra: Headers, send: Send, counts: Counts, began: float) -> None:
    """Chunk by chunk, as they come. What breaks off here breaks off there: the end is never made up."""
    headers = [(name.lower(), value) for name, value in answer.headers.raw]
    kept = [(name, value) for name, value in headers if name not in _OWN_HEADERS or name == b"content-length"]
    chunks = answer.aiter_raw()
    first = await anext(chunks, b"")
    first_ms = _since(began)
    await send({"type": "http.response.start", "status": answer.status_code, "headers": kept + extra})
    try:
        await send({"type": "http.response.body", "body": first, "more_body": True})
        async for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except httpx2.HTTPError as error:
        counts.failed()
        raise CallerGone from error
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    is_stream = (b"content-type", b"text/event-stream") in ((each[0], each[1][:17]) for each in headers)
    counts.ended(answer.status_code, first_ms if is_stream else None, _since(began))


async def _gone(receive: Receive) -> None:
    """Returns when the caller is no longer there."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _is_plain(parts: Sequence[str]) -> bool:
    """Nothing in the path leads elsewhere."""
    return not any(part in ("", ".", "..") for part in parts)


def _for_model(call: _Call, model_id: str) -> _Call:
    """The same call to another model: its server knows only its own name."""
    try:
        asked = parsed(call.body)
    except Broken:  # its server says what is wrong with it
        return call
    if not isinstance(asked, dict) or "model" not in asked:
        return call
    return replace(call, body=json.dumps(asked | {"model": model_id}, ensure_ascii=False).encode())


def _unavailable(key: Key, fleet: Fleet, was_tried: bool) -> Refusal:
    if was_tried:
        return Refusal(503, "replicas_failed", f"no replica of {key} answered")
    if fleet.is_expected():
        return Refusal(503, "not_ready", f"no replica of {key} is ready yet")
    return Refusal(503, "scaled_to_zero", f"{key} has no replicas")


def _since(began: float) -> float:
    return (time.monotonic() - began) * 1000


async def refuse(send: Send, refusal: Refusal) -> None:
    """Answers so."""
    error = {
        "message": refusal.message,
        "type": "invalid_request_error" if refusal.status in _CALLERS_FAULT else refusal.kind,
        "param": None,
        "code": refusal.code,
    }
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.status in (429, 503):
        headers.append((b"retry-after", str(_RETRY_AFTER_S).encode()))
    if refusal.status == 405:
        headers.append((b"allow", _ALLOWED))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
