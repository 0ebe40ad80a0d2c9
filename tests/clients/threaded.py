"""A real server of this process, in a thread of its own: what a command of the CLI calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any


@contextmanager
def threaded(name: str, serve: Callable[[], AbstractAsyncContextManager[str]]) -> Iterator[str]:
    """What `serve` yields, an address, for as long as the block runs. Raises what it raises."""
    loop, stop, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    told: dict[str, Any] = {}

    async def run() -> None:
        async with serve() as address:
            told["address"] = address
            ready.set()
            await stop.wait()

    def work() -> None:
        try:
            loop.run_until_complete(run())
        except Exception as error:  # noqa: BLE001 - raised again where the test waits
            told["error"] = error
        finally:
            ready.set()
            loop.close()

    thread = threading.Thread(target=work, name=name)
    thread.start()
    ready.wait()
    try:
        if "error" not in told:
            yield told["address"]
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join()
        if "error" in told:
            raise told["error"]
