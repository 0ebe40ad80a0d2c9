"""Signals of this process: something was written."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from weakref import WeakValueDictionary


class Signal:
    """Says that something was written. A reader that looks between two writes misses neither."""

    def __init__(self) -> None:
        self.count = 0
        self._waiting: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """To be called on the event loop, after the commit."""
        self.count += 1
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, seen: int, timeout_s: float) -> None:
        """Returns as soon as `count` is no longer `seen`, at the latest after `timeout_s`."""
        if self.count != seen:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            # Not wait_for, which in Python 3.11 loses a cancellation that comes together with the result.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await future
        finally:
            self._waiting.discard(future)


class Signals:
    """A signal a topic, for as long as somebody watches it."""

    def __init__(self) -> None:
        self._signals: WeakValueDictionary[str, Signal] = WeakValueDictionary()

    def of(self, topic: str) -> Signal:
        """The signal to follow. Hold on to it: it is forgotten with its last holder."""
        return self._signals.setdefault(topic, Signal())

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._signals))

    def notify(self, topic: str) -> None:
        signal = self._signals.get(topic)
        if signal is not None:
            signal.notify()
