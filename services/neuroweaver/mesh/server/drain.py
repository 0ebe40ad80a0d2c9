"""How open watches end when a server stops."""

from __future__ import annotations

import asyncio
from typing import Any

from neuroweaver.mesh.server.stack import Method, Proceed, Rpc
from neuroweaver.mesh.wire.errors import Unavailable


class Drain:
    """Ends open watches when the server stops, so that their clients resume elsewhere.

    A watch is a server stream whose name begins with Watch, or a stream in both directions: resumable by
    contract, and without an end of its own. All other calls get the grace period of the server's stop.
    """

    def __init__(self) -> None:
        self._watches: set[asyncio.Timeout] = set()
        self._begun = False

    def begin(self) -> None:
        self._begun = True
        now = asyncio.get_running_loop().time()
        for watch in self._watches:
            watch.reschedule(now)

    async def ending(self, rpc: Rpc, proceed: Proceed) -> Any:
        if not _is_watch(rpc.method):
            return await proceed(rpc)
        if self._begun:
            raise _stopping()
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._watches.add(scope)
                try:
                    return await proceed(rpc)
                finally:
                    self._watches.discard(scope)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise _stopping() from error


def _is_watch(method: Method) -> bool:
    return method.is_response_stream and (method.is_request_stream or method.name.startswith("Watch"))


def _stopping() -> Unavailable:
    return Unavailable("the server is stopping; resume after the last sequence seen", retry_after_s=1.0)
