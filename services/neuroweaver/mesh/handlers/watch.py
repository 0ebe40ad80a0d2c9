"""Watches that can be resumed: each reader looks at the store at its own pace, from the sequence it saw last.

Nothing is queued for a reader, so a slow one costs one page of memory and delays nobody. A `Signal` wakes the
readers of this process at once; a slow poll finds what other processes wrote.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar
from weakref import WeakValueDictionary

from neuroweaver.mesh.wire.errors import OutOfRange

E = TypeVar("E")

HEARTBEAT_S: Final = 15.0
POLL_S: Final = 1.0
PAGE_SIZE: Final = 256


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
    """A signal a resource, for as long as somebody watches it."""

    def __init__(self) -> None:
        self._signals: WeakValueDictionary[Hashable, Signal] = WeakValueDictionary()

    def of(self, resource: Hashable) -> Signal:
        """The signal to follow. Hold on to it: it is forgotten with its last holder."""
        return self._signals.setdefault(resource, Signal())

    def notify(self, resource: Hashable) -> None:
        signal = self._signals.get(resource)
        if signal is not None:
            signal.notify()


@dataclass(frozen=True)
class Look(Generic[E]):
    """One look at what happened to a resource after a sequence.

    events: the next ones, in order, of which those that nobody asked for may be left out. last: the sequence
    up to which they reach. newest: of the last event there is. oldest: of the first that is still kept.
    is_over: after `newest` there will be none.
    """

    events: Sequence[E]
    last: int
    newest: int
    oldest: int = 1
    is_over: bool = False


async def follow(
    look: Callable[[int], Awaitable[Look[E]]],
    *,
    since: int,
    heartbeat: Callable[[int], E],
    signal: Signal,
    replays_kept: bool = False,
    heartbeat_s: float = HEARTBEAT_S,
    poll_s: float = POLL_S,
) -> AsyncGenerator[E, None]:
    """The events after `since`, in order and without a gap, then those to come, until the last one.

    look(after): sees one state of the store, and gives no more than a page. heartbeat(last): sent when there
    was nothing for `heartbeat_s`; tells the last sequence. replays_kept: with `since` 0 the watch begins with
    the oldest event kept, instead of refusing because older ones were compacted.

    Raises OutOfRange if events after `since` were compacted, or if `since` lies beyond the newest event.
    """
    last = since
    clock = asyncio.get_running_loop().time
    sent_at = clock()
    while True:
        seen = signal.count
        found = await look(last)
        if last > found.newest:
            raise OutOfRange(f"there is no sequence {last} yet; resume after the last sequence seen")
        if last < found.oldest - 1 and (last or not replays_kept):
            raise compacted(last, found.oldest)
        for event in found.events:
            yield event
            sent_at = clock()
        last = found.last
        is_at_end = last >= found.newest
        if is_at_end and found.is_over:
            return
        silent_s = clock() - sent_at
        if silent_s >= heartbeat_s:
            yield heartbeat(last)
            sent_at = clock()
            silent_s = 0.0
        if is_at_end:
            await signal.wait(seen, min(poll_s, heartbeat_s - silent_s))


def compacted(last: int, oldest: int) -> OutOfRange:
    return OutOfRange(
        f"the events between {last} and {oldest} are no longer kept; "
        f"read the resource, then watch from {oldest - 1}",
        metadata={"oldest_sequence": str(oldest)},
    )
