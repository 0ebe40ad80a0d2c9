"""What becomes of work whose caller leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from neuroweaver.mesh.wire.threads import Abandoned, in_thread


async def is_given_up(work: Callable[[], Any]) -> bool:
    """Whether work whose caller left before it began ends without a result."""
    begun, left, ended = threading.Event(), threading.Event(), threading.Event()
    outcomes = []

    def run() -> None:
        begun.set()
        left.wait()
        try:
            outcomes.append(work())
        except Abandoned as error:
            outcomes.append(error)
        finally:
            ended.set()

    working = asyncio.create_task(in_thread(run))
    await asyncio.to_thread(begun.wait)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    left.set()
    await asyncio.to_thread(ended.wait)
    return isinstance(outcomes[0], Abandoned)
