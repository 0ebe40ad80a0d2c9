"""Bodies of requests: read whole, each within its limit and all together within theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from neuroweaver.mesh.server.http_limits import HttpLimits

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
"""Of ASGI."""

# Always taken: whoever sends large bodies shuts out large ones alone.
_SMALL_BYTES: Final = 64 << 10


class CallerGone(Exception):
    """The connection ended before the body did."""


@dataclass(eq=False)
class BodyRefused(Exception):
    """status, kind: for the answer, the kind in the words of the OpenAI API. code: a word for programs."""

    status: int
    kind: str
    code: str
    message: str


class Bodies:
    """Of one port. Belongs to an event loop."""

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self.held_bytes = 0

    @asynccontextmanager
    async def read(self, headers: Iterable[tuple[bytes, bytes]], receive: Receive) -> AsyncIterator[bytes]:
        """The body, held until the end of the block. Raises BodyRefused, CallerGone."""
        length = dict(headers).get(b"content-length", b"")
        if length.isdigit():
            self._check(int(length))
        pieces: list[bytes] = []
        size = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise CallerGone
                piece = message.get("body", b"")
                pieces.append(piece)
                size += len(piece)
                self.held_bytes += len(piece)
                self._check(size, is_held=True)
                if not message.get("more_body"):
                    break
            body = b"".join(pieces)
            pieces.clear()
            yield body
        finally:
            self.held_bytes -= size

    def _check(self, size: int, *, is_held: bool = False) -> None:
        """size: of one body, the part of it that is held or all that is announced."""
        limits = self._limits
        if size > limits.body_bytes:
            message = f"the request body has more than {limits.body_bytes} bytes"
            raise BodyRefused(413, "invalid_request_error", "request_too_large", message)
        held = self.held_bytes + (0 if is_held else size)
        if size > _SMALL_BYTES and held > limits.bodies_bytes:
            # Not 503: busy is not broken, and what counts as an error moves a rollout or a backup.
            message = "too many large requests are under way; try again later"
            raise BodyRefused(429, "rate_limit_error", "busy", message)
