"""Turns between calls and what is sent to very many watches.

An event loop that wakes thousands of watches in a row hardly lets threads have Python's interpreter lock,
such as those that read SQLite, and each step of a call waits for deliveries: one call takes as long as a
hundred of them. So deliveries go on while there is no call, and stand back for a moment when there is one.
A call that takes long by itself is not waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

WORK_S: Final = 0.002
PAUSE_S: Final = 0.002
_LONG_S: Final = 0.05


class Turns:
    """Of one event loop."""

    def __init__(self, *, work_s: float = WORK_S, pause_s: float = PAUSE_S) -> None:
        self._work_s = work_s
        self._pause_s = pause_s
        self._calls = 0
        self._begun_at = 0.0
        self._resumed_at = 0.0
        self._pause: asyncio.Future[None] | None = None

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around a call that somebody waits for."""
        self._calls += 1
        self._begun_at = time.monotonic()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls and self._pause and not self._pause.done():
                self._pause.set_result(None)

    async def give_way(self) -> None:
        """Between two deliveries. After `work_s` of them: until no call is under way, `pause_s` at most."""
        await asyncio.sleep(0)
        now = time.monotonic()
        if not self._calls or now - self._begun_at > _LONG_S or now - self._resumed_at < self._work_s:
            return
        self._pause = self._pause or asyncio.get_running_loop().create_future()
        await asyncio.wait({self._pause}, timeout=self._pause_s)
        self._pause = None
        self._resumed_at = time.monotonic()


TURNS: Final = Turns()
"""Those of this process, whose loop serves calls and watches alike."""
