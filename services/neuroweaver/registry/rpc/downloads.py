"""How many downloads run at once: each holds some chunks of its file, though its caller read nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from weakref import WeakValueDictionary

from neuroweaver.mesh.wire.errors import Error, ResourceExhausted, Unavailable

# Most downloads take less than that, so that a caller seldom hears that it was not its turn.
_PATIENCE_S: Final = 10.0
# One connection's share of all: who reads nothing leaves most to others.
_SHARE: Final = 4


class Downloads:
    """Lets `most` run at once, a quarter of them on one connection. The others wait for their turn."""

    def __init__(self, most: int, *, patience_s: float = _PATIENCE_S) -> None:
        self._all = asyncio.Semaphore(most)
        self._most = most
        self._share = max(1, most // _SHARE)
        self._connections: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._patience_s = patience_s

    @asynccontextmanager
    async def turn(self, context: Any) -> AsyncIterator[None]:
        """Raises ResourceExhausted or Unavailable if the caller's turn does not come soon."""
        connection = self._connections.setdefault(context.peer(), asyncio.Semaphore(self._share))
        busy = f"{self._share} downloads run on this connection already: read or cancel one, then try again"
        await self._acquired(connection, ResourceExhausted(busy))
        # gRPC holds what was not read until the call is over, which may be long after its handler has ended.
        context.add_done_callback(lambda _: connection.release())
        full = f"{self._most} downloads run already (NEUROWEAVER_DOWNLOADS): try again"
        await self._acquired(self._all, Unavailable(full))
        try:
            yield
        finally:
            self._all.release()

    async def _acquired(self, turns: asyncio.Semaphore, refusal: Error) -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                await turns.acquire()
        except TimeoutError as error:
            raise refusal from error
