"""The HTTP front of all deployments on this machine: /PROJECT/MODEL/NAME/v1/… to a replica that is ready.

Bodies pass through it; none is logged or kept.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlsplit

import httpx2

from neuroweaver.deployer.backend import Key
from neuroweaver.deployer.local.counts import Counts
from neuroweaver.deployer.local.fleet import Fleet
from neuroweaver.deployer.local.replica import Replica
from neuroweaver.mesh.settings import is_loopback

_LOG: Final = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

CONVERSATION_HEADER: Final = b"x-conversation-id"
REVISION_HEADER: Final = b"x-neuroweaver-revision"
_MAX_BODY_BYTES: Final = 8 << 20
_MAX_HOPS: Final = 4
_RETRY_AFTER_S: Final = 2
_METHODS: Final = frozenset({"GET", "HEAD", "POST"})
_TIMEOUT: Final = httpx2.Timeout(connect=2.0, read=900.0, write=30.0, pool=None)
# RFC 9110, 7.6.1, and what belongs to the caller's dealings with this front alone.
_OWN_HEADERS: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer"}
    | {b"transfer-encoding", b"upgrade", b"host", b"content-length", b"authorization", b"cookie", b"expect"}
)
# Nothing was answered yet, so that another replica may: the call changes nothing but its answer.
_BROKEN: Final = (httpx2.NetworkError, httpx2.RemoteProtocolError)
_TYPES: Final = {400: "invalid_request_error", 404: "invalid_request_error", 413: "invalid_request_error"}


@dataclass(frozen=True)
class _Refusal(Exception):
    status: int
    code: str
    message: str


@dataclass(frozen=True)
class _Call:
    """path: after the deployment's own, such as `v1/models`."""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    conversation: str


class _CallerGone(Exception):
    pass


class Router:
    """An ASGI application. fleet: that of a key, None if there is none.

    host: where it listens. endpoint: a deployment's base URL. wake_s: how long a request waits for a sleeping
    one.
    """

    def __init__(
        self,
        client: httpx2.AsyncClient,
        fleet: Callable[[Key], Fleet | None],
        *,
        host: str,
        endpoint: Callable[[Key], str],
        wake_s: float,
    ) -> None:
        self._client = client
        self._fleet = fleet
        self._is_private = is_loopback(host)
        self._endpoint = endpoint
        self._wake_s = wake_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            key, call = await self._read(scope, receive)
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
        except _CallerGone:
            return
        except _Refusal as refusal:
            await _refuse(send, refusal)

    async def _read(self, scope: Scope, receive: Receive) -> tuple[Key, _Call]:
        headers: Headers = list(scope["headers"])
        self._refuse_foreign(headers)
        if scope["method"] not in _METHODS:
            raise _Refusal(405, "method_not_allowed", f"{scope['method']} is not allowed")
        project, model, name, path = _split(scope["path"])
        told = dict(headers).get(CONVERSATION_HEADER, b"").decode("latin-1")
        body = await _body(receive)
        return Key(project, model, name), _Call(
            scope["method"], path, scope["query_string"], headers, body, told
        )

    def _refuse_foreign(self, headers: Headers) -> None:
        """A page in a browser could otherwise make this machine work, or reach it under a name of its own."""
        told = dict(headers)
        host, origin = told.get(b"host", b""), told.get(b"origin", b"")
        if self._is_private and host and not _is_of_this_machine(b"//" + host):
            raise _Refusal(421, "misdirected_request", "this address serves calls of this machine only")
        if self._is_private and origin and not _is_of_this_machine(origin):
            raise _Refusal(403, "foreign_origin", "pages from elsewhere are not served")

    async def _answer(self, key: Key, call: _Call, send: Send) -> None:
        for _ in range(_MAX_HOPS):
            fleet = self._fleet(key)
            if fleet is None:
                raise _Refusal(404, "deployment_not_found", f"there is no deployment {_name(key)} here")
            if not fleet.redirect:
                return await self._from_fleet(key, fleet, call, send)
            target = self._own(fleet.redirect)
            if target is None:
                return await self._from_elsewhere(fleet.redirect, call, send)
            key, call = target, _for_model(call, target.model_id)
        raise _Refusal(
            508, "redirect_loop", f"the deployments around {_name(key)} hand traffic to each other"
        )

    async def _from_fleet(self, key: Key, fleet: Fleet, call: _Call, send: Send) -> None:
        tried: set[str] = set()
        while True:
            replica = fleet.pick(call.conversation, tried)
            if replica is None and not tried:
                replica = await fleet.awake(call.conversation, self._wake_s)
            if replica is None:
                raise _unavailable(key, fleet, bool(tried))
            tried.add(replica.replica_id)
            with replica.busy():
                if await self._from_replica(replica, fleet, call, send):
                    return

    async def _from_replica(self, replica: Replica, fleet: Fleet, call: _Call, send: Send) -> bool:
        """False if another one may answer: this one has not begun to."""
        counts = fleet.counts(replica.revision)
        extra = [(REVISION_HEADER, str(replica.revision).encode())]
        began = time.monotonic()
        try:
            async with self._open(f"{replica.base_url}/{call.path}", call) as answer:
                if answer.status_code == 503 and fleet.pick(call.conversation, {replica.replica_id}):
                    return False
                await _pass_on(answer, extra, send, counts, began)
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            replica.suspect()
            return False
        except _BROKEN:
            counts.failed()
            return False
        except httpx2.TimeoutException as error:
            counts.failed()
            raise _Refusal(504, "timeout", "the model server did not answer in time") from error
        return True

    async def _from_elsewhere(self, base_url: str, call: _Call, send: Send) -> None:
        url = base_url.rstrip("/") + call.path.removeprefix("v1")
        try:
            async with self._open(url, call) as answer:
                await _pass_on(answer, [], send, Counts(), time.monotonic())
        except httpx2.HTTPError as error:
            raise _Refusal(502, "bad_gateway", "the deployment that takes over does not answer") from error

    @asynccontextmanager
    async def _open(self, url: str, call: _Call) -> AsyncIterator[httpx2.Response]:
        request = self._client.build_request(
            call.method,
            httpx2.URL(url).copy_with(query=call.query or None),
            headers=[(name, value) for name, value in call.headers if name not in _OWN_HEADERS],
            content=call.body,
            timeout=_TIMEOUT,
        )
        async with AsyncExitStack() as stack:
            answer = await self._client.send(request, stream=True)
            stack.push_async_callback(answer.aclose)
            yield answer

    def _own(self, redirect: str) -> Key | None:
        """The deployment that the URL names, if this router serves it."""
        parts = urlsplit(redirect).path.strip("/").split("/")
        if len(parts) != 4:
            return None
        key = Key(*parts[:3])
        return key if self._endpoint(key) == redirect.rstrip("/") else None


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
        raise _CallerGone from error
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    if answer.status_code >= 500 or answer.status_code == 429:
        counts.failed()
    elif answer.status_code >= 400:
        counts.refused()
    else:
        is_stream = (b"content-type", b"text/event-stream") in ((each[0], each[1][:17]) for each in headers)
        counts.succeeded(first_ms if is_stream else None, _since(began))


def _is_of_this_machine(url: bytes) -> bool:
    try:
        return is_loopback(urlsplit(url.decode("latin-1")).hostname or "")
    except ValueError:
        return False


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _CallerGone
        body += message.get("body", b"")
        if len(body) > _MAX_BODY_BYTES:
            raise _Refusal(413, "request_too_large", f"a request has at most {_MAX_BODY_BYTES} bytes")
        if not message.get("more_body"):
            return bytes(body)


async def _gone(receive: Receive) -> None:
    """Returns when the caller is no longer there."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _split(path: str) -> tuple[str, str, str, str]:
    """Project, model, name, and the rest: only the public part of the model server is reached."""
    parts = path.removeprefix("/").split("/")
    if len(parts) < 5 or parts[3] != "v1" or any(part in ("", ".", "..") for part in parts):
        raise _Refusal(404, "not_found", "a deployment is reached at /PROJECT/MODEL/NAME/v1/…")
    return parts[0], parts[1], parts[2], quote("/".join(parts[3:]))


def _for_model(call: _Call, model_id: str) -> _Call:
    """The same call to another model: its server knows only its own name."""
    try:
        asked = json.loads(call.body) if call.body else None
    except ValueError:
        return call
    if not isinstance(asked, dict) or "model" not in asked:
        return call
    body = json.dumps(asked | {"model": model_id}).encode()
    return _Call(call.method, call.path, call.query, call.headers, body, call.conversation)


def _unavailable(key: Key, fleet: Fleet, was_tried: bool) -> _Refusal:
    if was_tried:
        return _Refusal(503, "replicas_failed", f"no replica of {_name(key)} answered")
    if fleet.is_expected():
        return _Refusal(503, "not_ready", f"no replica of {_name(key)} is ready yet")
    return _Refusal(503, "scaled_to_zero", f"{_name(key)} has no replicas")


def _name(key: Key) -> str:
    return f"{key.model_id}/{key.name}"


def _since(began: float) -> float:
    return (time.monotonic() - began) * 1000


async def _refuse(send: Send, refusal: _Refusal) -> None:
    error = {
        "message": refusal.message,
        "type": _TYPES.get(refusal.status, "server_error"),
        "param": None,
        "code": refusal.code,
    }
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.status == 503:
        headers.append((b"retry-after", str(_RETRY_AFTER_S).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
