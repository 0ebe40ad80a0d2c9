"""Answers of servers that are not ours, bounded in bytes and time, and from no other host than was asked.

A client's own limits are no bounds: its timeout begins anew with each byte, and it keeps whatever comes.
"""

from __future__ import annotations

import time
from typing import Any, Final

import httpx2

MAX_BYTES: Final = 16 << 20
_MAX_REDIRECTS: Final = 5
_OF_THE_ENCODED: Final = frozenset({"content-encoding", "content-length", "transfer-encoding"})


class Refused(httpx2.HTTPError):
    """What a server answered is not taken. The text ends the sentence "the server …"."""


class RedirectRefused(Refused):
    pass


class Client(httpx2.Client):
    """limit_s: from the request to the last byte of an answer.

    Follows redirects unless a request says otherwise. What is streamed is left to whoever reads it.
    """

    def __init__(self, *, limit_s: float, max_bytes: int = MAX_BYTES, **options: Any) -> None:
        super().__init__(**options)
        self._limit_s = limit_s
        self._max_bytes = max_bytes

    def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """Raises Refused, beside what httpx2 raises."""
        if stream:
            return super().send(request, stream=True, **options)
        follows = options.pop("follow_redirects", None) is not False
        give_up = time.monotonic() + self._limit_s
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
