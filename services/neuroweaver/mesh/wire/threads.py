"""Long work in a thread, which ends when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, TypeVar

T = TypeVar("T")

_ABANDONED: Final[ContextVar[threading.Event | None]] = ContextVar("abandoned", default=None)


class Abandoned(Exception):  # nobody made an error
    """Nobody waits for this work any more."""


async def in_thread(function: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """What `function` returns, from another thread. If the caller leaves, `check_wanted` there ends it."""
    abandoned = threading.Event()
    _ABANDONED.set(abandoned)
    try:
        return await asyncio.to_thread(function, *arguments, **named)
    except asyncio.CancelledError:
        abandoned.set()
        raise


def check_wanted() -> None:
    """Raises Abandoned in work of `in_thread` whose caller left; for loops that may go on for seconds."""
    abandoned = _ABANDONED.get()
    if abandoned is not None and abandoned.is_set():
        raise Abandoned
