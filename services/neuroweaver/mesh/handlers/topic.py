"""A topic: the newest events of a resource, read once for all who follow it.

When it is notified, it reads what is new and wakes those who wait, one at a time, so that other calls are
answered in between. Nobody reads while nothing changes. What was read last is held for a while: who is slow,
or begins further back, reads pages of its own.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.mesh.database.refusals import as_error
from neuroweaver.mesh.handlers.heartbeats import Heartbeats
from neuroweaver.mesh.handlers.loop import Outage
from neuroweaver.mesh.handlers.turns import TURNS

_HELD_EVENTS: Final = 64
_HELD_BYTES: Final = 256 * 1024
_MOST_READS: Final = 2
_MOST_BACKOFF_S: Final = 5.0
_NOWHERE: Final = -1


class Event(Protocol):
    @property
    def sequence(self) -> int: ...

    def ByteSize(self) -> int: ...  # noqa: N802  # protobuf's own name


E = TypeVar("E", bound=Event)


@dataclass(frozen=True, slots=True)
class Look(Generic[E]):
    """One look at what happened to a resource after a sequence.

    events: the next ones, in order, of which those that nobody asked for may be left out. last: the sequence
    up to which they reach. newest: of the last event there is. oldest: of the first that is still kept.
    is_over: after `newest` there will be none. life: where a resource can be made anew, says of which making
    the last events are.
    """

    events: Sequence[E]
    last: int
    newest: int
    oldest: int = 1
    is_over: bool = False
    life: int = 0


Read = Callable[[int], Awaitable[Look[E]]]
"""Looks after a sequence; sees one state of the store, and gives no more than a page."""


class Reads:
    """How all topics of a process read: few at once, and through outages of the database."""

    def __init__(self) -> None:
        # The other connections are for calls, though all topics be read again at once.
        self._turn = asyncio.Semaphore(_MOST_READS)
        self._outage = Outage("watches")

    async def look(self, read: Read[E], after: int) -> Look[E] | None:
        """None if the database is away, which is said once."""
        try:
            async with self._turn:
                look = await read(after)
        except SQLAlchemyError as error:
            if as_error(error) is None:
                raise
            self._outage.failed(error)
            return None
        self._outage.over()
        return look


class Follower:
    """One watch's place at a topic."""

    __slots__ = ("_is_due", "_topic", "_waiting", "seen")

    def __init__(self, topic: Topic[Any]) -> None:
        self._topic = topic
        self._waiting: asyncio.Future[None] | None = None
        self._is_due = False
        self.seen = topic.version
        """The version of the topic at the last look."""

    def sent(self) -> None:
        """To be called whenever something went out, and at the beginning."""
        self._is_due = False
        self._topic.heartbeats.sent(self)

    def beat(self) -> None:
        self._is_due = True
        self.wake()

    def wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def wait(self, look: Look[Any]) -> bool:
        """Until there may be more than the last look saw; True if a heartbeat is due by then."""
        if self._topic.version == self.seen and not self._is_due:
            self._waiting = asyncio.get_running_loop().create_future()
            self._topic.enter(self, look)
            try:
                await self._waiting
            finally:
                self._waiting = None
                self._topic.leave(self)
        return self._is_due

    def close(self) -> None:
        self._topic.heartbeats.forget(self)


class Topic(Generic[E]):
    """The newest events of a resource, for all who follow it.

    read: what all share; it is called with the sequence after which to look. version: changes whenever there
    is something to look at.
    """

    def __init__(self, read: Read[E], reads: Reads, heartbeats: Heartbeats) -> None:
        self.heartbeats = heartbeats
        self._read = read
        self._reads = reads
        # Events after `first`, up to `last`, are at hand; none before the first watch has come to the end.
        self._first = self._last = _NOWHERE
        self._events: deque[E] = deque()
        self._bytes = 0
        self._is_over = False
        self._life = 0
        self._failure: Exception | None = None
        self._is_stale = False
        self._refreshing: asyncio.Task[None] | None = None
        # In the order in which they came.
        self._waiting: dict[Follower, None] = {}
        self.version = 0
        self.joining = asyncio.Lock()
        """Held by who looks while `is_new`; others wait for what that brings."""

    @property
    def is_new(self) -> bool:
        """Nobody has come to the end yet, so that nothing is at hand."""
        return self._last == _NOWHERE

    @property
    def is_failed(self) -> bool:
        return self._failure is not None

    def look(self, after: int) -> Look[E] | None:
        """The events after a sequence; None if not all are held. Raises what reading them raised."""
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if not self._first <= after <= self._last:
            return None
        events: list[E] = []
        for event in reversed(self._events):
            if event.sequence <= after:
                break
            events.append(event)
        events.reverse()
        return Look(events, self._last, self._last, self._first + 1, self._is_over, self._life)

    def notify(self) -> None:
        """Something may have been written. To be called on the event loop, after the commit."""
        self._is_stale = True
        self._refresh_if_needed()

    def begin(self, look: Look[E]) -> None:
        """Takes up where a look came to the end, if nobody did so before."""
        if self.is_new and look.last >= look.newest and not look.is_over:
            self._first = self._last = look.last
            self._life = look.life

    def enter(self, follower: Follower, look: Look[E]) -> None:
        """Has `follower`, whose last look saw all there was, woken by what comes next."""
        self.begin(look)
        self._is_stale |= look.last > self._last
        self._waiting[follower] = None
        self._refresh_if_needed()

    def leave(self, follower: Follower) -> None:
        self._waiting.pop(follower, None)

    def _refresh_if_needed(self) -> None:
        if self._is_stale and self._waiting and self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh())
            self._refreshing.add_done_callback(self._refreshed)

    def _refreshed(self, _: asyncio.Task[None]) -> None:
        self._refreshing = None
        self._refresh_if_needed()

    async def _refresh(self) -> None:
        """Reads until nothing is new and all have been woken, or nobody waits any more."""
        backoff_s = 0.25
        while self._is_stale and self._waiting:
            self._is_stale = False
            try:
                look = await self._reads.look(self._read, self._last)
            except Exception as error:  # noqa: BLE001  # raised again in each watch, whose interceptor logs it
                self._failure = error
                await self._publish()
                return
            if look is None:
                self._is_stale = True
                await asyncio.sleep(random.uniform(0.5, 1) * backoff_s)
                backoff_s = min(backoff_s * 2, _MOST_BACKOFF_S)
            elif self._take(look):
                await self._publish()

    def _take(self, look: Look[E]) -> bool:
        """False if it says nothing new."""
        if look.last <= self._last and look.life == self._life and not look.is_over:
            return False
        if look.oldest - 1 > self._last:  # dropped before they were read: who needs them is told so
            self._events.clear()
            self._bytes, self._first = 0, look.oldest - 1
        self._events.extend(look.events)
        self._bytes += sum(event.ByteSize() for event in look.events)
        while len(self._events) > max(_HELD_EVENTS, len(look.events)) or (
            self._bytes > _HELD_BYTES and len(self._events) > len(look.events)
        ):
            dropped = self._events.popleft()
            self._bytes -= dropped.ByteSize()
            self._first = dropped.sequence
        self._last, self._life = max(look.last, self._last), look.life
        is_at_end = look.last >= look.newest
        self._is_over = look.is_over and is_at_end
        self._is_stale |= not is_at_end
        return True

    async def _publish(self) -> None:
        self.version += 1
        for follower in list(self._waiting):
            follower.wake()
            # A call that comes now is not kept waiting by thousands of watches.
            await TURNS.give_way()
