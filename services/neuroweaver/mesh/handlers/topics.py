"""The topics of a service: a commit notifies those that it changed, wherever they are followed.

In this process at once, in others through the database (`mesh.database.changes`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.handlers.heartbeats import HEARTBEAT_S, Heartbeats
from neuroweaver.mesh.handlers.signals import Signal, Signals
from neuroweaver.mesh.handlers.topic import E, Read, Reads, Topic

T = TypeVar("T")


class Topics:
    """The topics of one service: by name, for as long as somebody follows them."""

    def __init__(self, database: Database, *, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._database = database
        self._changes = database.changes()
        self.heartbeats = Heartbeats(heartbeat_s)
        self._signals = Signals()
        self._topics: WeakValueDictionary[str, Topic[Any]] = WeakValueDictionary()
        self._reads = Reads()

    def topic(self, name: str, read: Read[E]) -> Topic[E]:
        """The one of a name, which reads as who asked first does. Hold on to it while following it."""
        topic = self._topics.get(name)
        if topic is None or topic.is_failed:
            topic = self._topics[name] = Topic(read, self._reads, self.heartbeats)
        return topic

    def signal(self, name: str) -> Signal:
        """Says that something of a topic may have been written. Hold on to it while following it."""
        return self._signals.of(name)

    async def transact(
        self, work: Callable[[AsyncConnection], Awaitable[T]], changed: Callable[[], Collection[str]]
    ) -> T:
        """As `Database.transact`; whoever follows what `work` changed hears of it with the commit.

        changed: the topics, asked for when `work` is done.
        """
        names: Collection[str] = ()

        async def run(connection: AsyncConnection) -> T:
            nonlocal names
            result = await work(connection)
            names = changed()
            await self._changes.announce(connection, names)
            return result

        try:
            return await self._database.transact(run)
        except BaseException:
            # Cancelled or cut off, it may have been committed all the same.
            if names:
                self._changes.doubt()
            raise
        finally:
            self.notify(names)

    def notify(self, names: Collection[str]) -> None:
        """Something may have been written. To be called on the event loop, after the commit."""
        for name in names:
            self._signals.notify(name)
            if topic := self._topics.get(name):
                topic.notify()

    async def run(self) -> None:
        """Hears of what other processes change, until cancelled."""
        async with aclosing(self._changes.heard()) as changes:
            async for names in changes:
                self.notify({*self._signals, *self._topics} if names is None else names)
