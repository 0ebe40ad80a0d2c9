"""Deadlines: the caller's, or one by default; and how long a client's stream may be silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from neuroweaver.mesh.server.stack import Layer, Proceed, Rpc
from neuroweaver.mesh.wire.errors import DeadlineExceeded


def deadline(default_s: float) -> Layer:
    """Stops a call at its deadline. A unary call without one gets `default_s`; a stream stays open."""
    overdue = _Overdue(default_s)

    async def bounded(rpc: Rpc, proceed: Proceed) -> Any:
        given: float | None = rpc.context.time_remaining()
        if given is None and (rpc.method.is_request_stream or rpc.method.is_response_stream):
            return await proceed(rpc)
        scope = asyncio.timeout(given)
        try:
            async with scope:
                if given is not None:
                    return await proceed(rpc)
                with overdue.watching(scope):
                    return await proceed(rpc)
        except TimeoutError as error:
            if not scope.expired():
                raise
            left = default_s if given is None else given
            raise DeadlineExceeded(f"the call was not done in {left:.3g} s") from error

    return bounded


def silence(limit_s: float) -> Layer:
    """Ends a stream whose client sends nothing, or reads nothing, for so long: what it holds others want."""

    async def bounded(rpc: Rpc, proceed: Proceed) -> Any:
        if rpc.method.is_request_stream:
            rpc.request = _in_time(rpc.request, limit_s)
        if rpc.method.is_response_stream:
            rpc.write = partial(_taken_in_time, rpc.write, limit_s)
        return await proceed(rpc)

    return bounded


async def _in_time(requests: AsyncIterator[bytes], limit_s: float) -> AsyncIterator[bytes]:
    iterator = aiter(requests)
    while True:
        try:
            async with asyncio.timeout(limit_s):
                request = await anext(iterator)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise DeadlineExceeded(f"nothing was sent for {limit_s:.3g} s") from error
        yield request


async def _taken_in_time(write: Callable[[Any], Awaitable[None]], limit_s: float, response: Any) -> None:
    scope = asyncio.timeout(limit_s)
    try:
        async with scope:
            await write(response)
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise DeadlineExceeded(
            f"nothing was read for {limit_s:.3g} s; call again to go on from what was read last"
        ) from error


class _Overdue:
    """Ends scopes that are open for too long.

    One look at all of them now and then is cheaper than a timer for each, and the default deadline need not
    hold to the millisecond.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._period_s = min(1.0, after_s / 10)
        # By the time at which they end, since all get as long.
        self._ends: dict[asyncio.Timeout, float] = {}
        self._is_looking = False

    @contextmanager
    def watching(self, scope: asyncio.Timeout) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        self._ends[scope] = loop.time() + self._after_s
        if not self._is_looking:
            self._is_looking = True
            loop.call_later(self._period_s, self._look, loop)
        try:
            yield
        finally:
            self._ends.pop(scope, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for scope, end in list(self._ends.items()):
            if end > now:
                break
            del self._ends[scope]
            scope.reschedule(now)
        self._is_looking = bool(self._ends)
        if self._is_looking:
            loop.call_later(self._period_s, self._look, loop)
