"""Answers of servers that are not ours, bounded in bytes and time, and from no other host than was asked.

A client's own limits are no bounds: its timeout begins anew with each byte, and it keeps whatever comes.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, Final

import httpcore2
import httpx2

MAX_BYTES: Final = 16 << 20
_MAX_REDIRECTS: Final = 5
_OF_THE_ENCODED: Final = frozenset({"content-encoding", "content-length", "transfer-encoding"})
# When the request that this thread waits for is given up.
_GIVE_UP: Final[ContextVar[float | None]] = ContextVar("give_up", default=None)


class Refused(httpx2.HTTPError):
    """What a server answered is not taken. The text ends the sentence "the server …"."""


class RedirectRefused(Refused):
    pass


class Client(httpx2.Client):
    """limit_s: from the request to the last byte of an answer; of one that is streamed, to its first.

    Follows redirects unless a request says otherwise. A body that is streamed is left to its reader.
    """

    def __init__(self, *, limit_s: float, max_bytes: int = MAX_BYTES, **options: Any) -> None:
        super().__init__(**options)
        self._limit_s = limit_s
        self._max_bytes = max_bytes
        for transport in (self._transport, *self._mounts.values()):
            # Whatever it is in a test, only this kind reads from a network.
            if isinstance(transport, httpx2.HTTPTransport):
                pool = transport._pool  # httpx2 has no other way to it
                pool._network_backend = _Backend(pool._network_backend)

    def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """Raises Refused, beside what httpx2 raises."""
        give_up = time.monotonic() + self._limit_s
        token = _GIVE_UP.set(give_up)
        try:
            if stream:
                return super().send(request, stream=True, **options)
            return self._sent(request, give_up, options)
        finally:
            _GIVE_UP.reset(token)

    def _sent(self, request: httpx2.Request, give_up: float, options: dict[str, Any]) -> httpx2.Response:
        follows = options.pop("follow_redirects", None) is not False
        for _ in range(_MAX_REDIRECTS + 1):
            response = super().send(request, stream=True, follow_redirects=False, **options)
            try:
                if not follows or not (following := next_request(response)):
                    return _whole(response, self._read(response, give_up))
            finally:
                response.close()
            request = following
        raise RedirectRefused("redirects without end")

    def _read(self, response: httpx2.Response, give_up: float) -> bytes:
        body = bytearray()
        for chunk in response.iter_bytes():
            append(body, chunk, self._max_bytes)
            if time.monotonic() > give_up:
                raise httpx2.ReadTimeout(
                    f"no whole answer within {self._limit_s:g} s", request=response.request
                )
        return bytes(body)


class _Backend(httpcore2.NetworkBackend):
    """Connections whose every wait ends when the request's time does."""

    def __init__(self, backend: httpcore2.NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        left_s = _left(timeout, httpcore2.ConnectTimeout)
        return _Stream(self._backend.connect_tcp(host, port, left_s, local_address, socket_options))

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


class _Stream(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream
        self.close = stream.close  # type: ignore[method-assign]
        self.get_extra_info = stream.get_extra_info  # type: ignore[method-assign]

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(timeout, httpcore2.WriteTimeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        left_s = _left(timeout, httpcore2.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left_s))


def _left(timeout_s: float | None, late: type[httpcore2.TimeoutException]) -> float | None:
    """Of both times the shorter. Raises `late` once that of the request is over."""
    give_up = _GIVE_UP.get()
    if give_up is None:
        return timeout_s
    left_s = give_up - time.monotonic()
    if left_s <= 0:
        raise late("the request has no time left")
    return left_s if timeout_s is None else min(timeout_s, left_s)


class AsyncClient(httpx2.AsyncClient):
    """As `Client`, but without a limit of time, which `asyncio.timeout` sets best."""

    def __init__(self, *, max_bytes: int = MAX_BYTES, **options: Any) -> None:
        super().__init__(**options)
        self._max_bytes = max_bytes

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """Raises Refused, beside what httpx2 raises."""
        if stream:
            return await super().send(request, stream=True, **options)
        follows = options.pop("follow_redirects", None) is not False
        for _ in range(_MAX_REDIRECTS + 1):
            response = await super().send(request, stream=True, follow_redirects=False, **options)
            try:
                if not follows or not (following := next_request(response)):
                    return _whole(response, await self._read(response))
            finally:
                await response.aclose()
            request = following
        raise RedirectRefused("redirects without end")

    async def _read(self, response: httpx2.Response) -> bytes:
        body = bytearray()
        async for chunk in response.aiter_bytes():
            append(body, chunk, self._max_bytes)
        return bytes(body)


def append(body: bytearray, chunk: bytes, max_bytes: int) -> None:
    """Raises Refused where that would be too much."""
    if len(body) + len(chunk) > max_bytes:
        raise Refused(f"answers with more than {max_bytes >> 20} MiB")
    body += chunk


def next_request(response: httpx2.Response) -> httpx2.Request | None:
    """Where a redirect leads; None if it is none. Raises RedirectRefused for another host."""
    following = response.next_request
    if following is None:
        return None
    asked, leads_to = response.request.url, following.url
    is_same = asked.scheme == leads_to.scheme and asked.netloc == leads_to.netloc
    is_upgrade = (asked.scheme, leads_to.scheme) == ("http", "https") and asked.host == leads_to.host
    if not (is_same or is_upgrade):
        raise RedirectRefused(f"redirects to another host, {leads_to.host}")
    return following


def _whole(response: httpx2.Response, body: bytes) -> httpx2.Response:
    """The answer with its body, which is decoded already."""
    headers = [pair for pair in response.headers.multi_items() if pair[0].lower() not in _OF_THE_ENCODED]
    whole = httpx2.Response(
        response.status_code,
        headers=headers,
        content=body,
        request=response.request,
        extensions=response.extensions,
    )
    whole.next_request = response.next_request
    return whole
