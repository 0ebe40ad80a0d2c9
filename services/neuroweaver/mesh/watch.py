"""Watches that can be resumed: each reader reads the store at its own pace, from the sequence it saw last.

Nothing is queued for a reader, so a slow one costs one page of memory and delays nobody. A `Signal` wakes the
readers of this process at once; a slow poll finds what other processes wrote.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Sequence
from typing import TypeVar
from weakref import WeakValueDictionary

from neuroweaver.mesh.errors import OutOfRange

E = TypeVar("E")


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


async def follow(
    load: Callable[[int, int], Awaitable[Sequence[E]]],
    *,
    since: int,
    sequence_of: Callable[[E], int],
    is_terminal: Callable[[E], bool],
    heartbeat: Callable[[int], E],
    signal: Signal,
    heartbeat_s: float = 15.0,
    poll_s: float = 1.0,
    page_size: int = 256,
) -> AsyncGenerator[E, None]:
    """The events after `since`, in order and without a gap, then those to come, until the terminal one.

    load(after, limit): the first `limit` events whose sequence is above `after`. A resource's sequences are
    1, 2, 3, … without holes; compaction may drop old events, never the newest.
    heartbeat(last): sent when there was nothing for `heartbeat_s`; tells the last sequence.

    Raises OutOfRange if events after `since` were compacted, or if `since` lies beyond the last event.
    """
    last, events, ended = await _begin(load, since, sequence_of, is_terminal, page_size)
    clock = asyncio.get_running_loop().time
    sent_at = clock()
    while not ended:
        for event in events:
            sequence = sequence_of(event)
            if sequence != last + 1:
                raise _compacted(last, sequence)
            yield event
            last, sent_at = sequence, clock()
            if is_terminal(event):
                return
        seen = signal.count
        events = await load(last, page_size)
        if events:
            continue
        silent_s = clock() - sent_at
        if silent_s >= heartbeat_s:
            yield heartbeat(last)
            sent_at = clock()
            silent_s = 0.0
        await signal.wait(seen, min(poll_s, heartbeat_s - silent_s))


async def _begin(
    load: Callable[[int, int], Awaitable[Sequence[E]]],
    since: int,
    sequence_of: Callable[[E], int],
    is_terminal: Callable[[E], bool],
    page_size: int,
) -> tuple[int, Sequence[E], bool]:
    """Where to go on: the last sequence seen, the events at hand, and whether the terminal one was seen."""
    if since <= 0:
        return 0, await load(0, page_size), False
    events = await load(since - 1, page_size)
    if not events:
        raise OutOfRange(
            f"nothing with sequence {since} has happened yet; resume from the last sequence seen"
        )
    if sequence_of(events[0]) == since:
        return since, events[1:], is_terminal(events[0])
    return since, events, False


def _compacted(last: int, oldest: int) -> OutOfRange:
    return OutOfRange(
        f"the events between {last} and {oldest} are no longer kept; "
        f"read the resource, then watch from {oldest - 1}",
        metadata={"oldest_sequence": str(oldest)},
    )
