"""Long work in a thread, which ends when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, TypeVar

T = TypeVar("T")

_ABANDONED: Final[ContextVar[threading.Event | None]] = ContextVar("abandoned", default=None)


class Abandoned(Exception):  # nobody made an error
    """Nobody waits for this work any more."""


async def in_thread(
    function: Callable[..., T], *arguments: Any, pool: Executor | None = None, **named: Any
) -> T:
    """What `function` returns, from another thread. If the caller leaves, `check_wanted` there ends it.

    pool: the loop's own if None.
    """
    abandoned = threading.Event()
    _ABANDONED.set(abandoned)
    work = partial(contextvars.copy_context().run, function, *arguments, **named)
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, work)
    except asyncio.CancelledError:
        abandoned.set()
        raise


def check_wanted() -> None:
    """Raises Abandoned in work of `in_thread` whose caller left; for loops that may go on for seconds."""
    abandoned = _ABANDONED.get()
    if abandoned is not None and abandoned.is_set():
        raise Abandoned
