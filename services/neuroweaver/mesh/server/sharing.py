"""That no caller has what others need: time beside very many watches, and streams."""

from __future__ import annotations

from collections import Counter
from typing import Any

from neuroweaver.mesh.auth.caller import Caller, caller_of
from neuroweaver.mesh.handlers.turns import TURNS
from neuroweaver.mesh.server.stack import Method, Proceed, Rpc
from neuroweaver.mesh.wire.errors import ResourceExhausted


async def in_turn(rpc: Rpc, proceed: Proceed) -> Any:
    """What is sent to watches stands back while a call is under way that has an end."""
    if _is_stream(rpc.method):
        return await proceed(rpc)
    with TURNS.call():
        return await proceed(rpc)


class Streams:
    """Those that are open, by caller. most: of one caller."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = Counter[tuple[Caller, str]]()

    async def bounded(self, rpc: Rpc, proceed: Proceed) -> Any:
        if not _is_stream(rpc.method):
            return await proceed(rpc)
        caller = caller_of(rpc.context), _host(rpc.context.peer())
        if self._open[caller] >= self._most:
            raise ResourceExhausted(
                f"the caller has {self._most} streams open, as many as one may have; end some of them, or "
                "have the server's NEUROWEAVER_STREAMS_PER_CALLER raised",
                reason="TOO_MANY_STREAMS",
            )
        self._open[caller] += 1
        try:
            return await proceed(rpc)
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]


def _is_stream(method: Method) -> bool:
    return method.is_request_stream or method.is_response_stream


def _host(peer: str) -> str:
    """`ipv4:127.0.0.1:4711` without the port, which is another for each connection."""
    return peer.rpartition(":")[0] if peer.startswith("ip") else peer
