"""Pages in a browser: which may call a router that serves this machine alone, and what browsers ask first.

https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import urlsplit

from neuroweaver.mesh.wire.settings import is_loopback

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
"""Of ASGI."""
Headers = list[tuple[bytes, bytes]]

_SHOWN: Final = b"retry-after, x-neuroweaver-revision"
"""Headers of an answer that a page may read, beyond those that it always may."""
_MAX_AGE_S: Final = b"600"


def is_of_this_machine(url: bytes) -> bool:
    try:
        return is_loopback(urlsplit(url.decode("latin-1")).hostname or "")
    except ValueError:
        return False


def readable(send: Send, origin: bytes) -> Send:
    """Sends so that a page of this origin may read the answer."""

    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            shown: Headers = [
                (b"access-control-allow-origin", origin),
                (b"access-control-expose-headers", _SHOWN),
                (b"vary", b"Origin"),
            ]
            message = {**message, "headers": [*message["headers"], *shown]}
        await send(message)

    return sent


def is_preflight(method: str, headers: Headers) -> bool:
    """Whether a browser asks what a page may send."""
    return method == "OPTIONS" and b"access-control-request-method" in dict(headers)


async def allow(send: Send, methods: bytes, headers: Headers) -> None:
    """Answers a preflight: these methods, and whatever headers the page asks for."""
    allowed: Headers = [
        (b"access-control-allow-methods", methods),
        (b"access-control-max-age", _MAX_AGE_S),
    ]
    if asked := dict(headers).get(b"access-control-request-headers"):
        allowed.append((b"access-control-allow-headers", asked))
    await send({"type": "http.response.start", "status": 204, "headers": allowed})
    await send({"type": "http.response.body", "body": b""})
