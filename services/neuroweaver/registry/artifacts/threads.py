"""Blocking work on files, off the event loop and always to its end."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

T = TypeVar("T")

# Of their own: a slow store must not keep threads from everything else in the process.
_POOL: Final = ThreadPoolExecutor(max_workers=32, thread_name_prefix="files")


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """What `function` returns, from another thread.

    A cancelled caller still waits for its end: what the thread works on is closed behind it.
    """
    return await result_of(begun(function, *arguments))


def begun(function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
    """`function` under way in another thread. Whoever begins it must wait for its end."""
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    return loop.run_in_executor(_POOL, partial(context.run, function, *arguments))


async def result_of(work: asyncio.Future[T]) -> T:
    """What the work gives or raises. A cancelled caller still waits for its end."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await end_of(work)
        raise


async def end_of(work: asyncio.Future[Any]) -> None:
    """Waits for the work, whatever comes of it. A cancelled caller still waits for its end."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError as error:
            cancelled = error
    if not work.cancelled():
        work.exception()  # looked at, so that nobody warns that it was not
    if cancelled:
        raise cancelled
