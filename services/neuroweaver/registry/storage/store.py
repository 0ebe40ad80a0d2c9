"""Where models, versions and their history are kept.

What a write transaction changes becomes visible at once or not at all: the records, the event in the audit
chain, the event for watches and the answer for a retry. Writers of one project happen one after the other, so
`latest` and the chain's head never move between reading and writing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.revision import Revisions
from neuroweaver.mesh.database.upsert import insert_new
from neuroweaver.mesh.handlers.signals import Signal
from neuroweaver.mesh.handlers.topics import Topics
from neuroweaver.mesh.wire.clock import SKEW, Clock, utc_now
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.registry.domain.history import Head
from neuroweaver.registry.storage import deliveries, garbage, spans, tables
from neuroweaver.registry.storage.reader import Reader
from neuroweaver.registry.storage.writer import Writer, hold

T = TypeVar("T")

# The other connections to the database are for calls.
_MOST_REPLAYS: Final = 2

_HEADS: Final = "SELECT project, hash FROM audit_heads WHERE project = ANY($1)"


class Store:
    def __init__(self, database: Database, *, clock: Clock = utc_now) -> None:
        self.database = database
        self.clock = clock
        self.topics = Topics(database)
        """By project."""
        self.replays = asyncio.Semaphore(_MOST_REPLAYS)
        """To be held by a watch that reads what is past: hundreds may come at once, as after a restart."""
        self.changed = Signal()
        """Says that something may have been written in any project."""
        self._queues: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def transact(self, origin: ChangeOrigin, work: Callable[[Writer], Awaitable[T]]) -> T:
        """What `work` returns, once what it changed is on disk.

        Of concurrent calls for one project, each sees what the one before it did. `work` may run several
        times.
        """
        # Writers of other processes meet at the head of the chain; those of this one need not collide there.
        queue = self._queues.setdefault(origin.project, asyncio.Lock())
        async with queue:
            result = await self.topics.transact(
                lambda connection: self._work(connection, origin, work), lambda: [origin.project]
            )
        self.changed.notify()
        return result

    async def _work(
        self, connection: AsyncConnection, origin: ChangeOrigin, work: Callable[[Writer], Awaitable[T]]
    ) -> T:
        head, last = await _claim_head(connection, origin.project)
        now = self.clock()
        if last and now < last <= now + SKEW:
            now = last  # another replica's clock is a little ahead; the history keeps its order
        elif last and last > now:
            await spans.bring_back(connection, origin.project, now)
        return await work(Writer(connection, origin, head, now))

    @asynccontextmanager
    async def read(self, project: str) -> AsyncIterator[Reader]:
        """One state of the project, whatever is written meanwhile."""
        async with self.database.read() as connection:
            yield Reader(connection, project)

    def revisions(self) -> Revisions:
        """Says whether a project was written to: every change of it moves the head of its history."""
        return self.database.revisions(_HEADS)

    async def hold_file(self, digest: str) -> None:
        """Keeps a stored file, or one that is about to be stored, from being collected for a while."""
        now = self.clock()
        await self.database.transact(lambda connection: hold(connection, [digest], now))

    async def collect(
        self, delete: Callable[[str], Awaitable[None]], *, unused_since: datetime, hidden_since: datetime
    ) -> int:
        """Deletes files that no version holds and nobody used since `unused_since`. Returns their number.

        A version that was hidden, itself or with its model, before `hidden_since` no longer holds anything.
        delete: drops a file, given its digest. It runs while the file's row is locked, so whoever wants to
        use the file next finds it gone and not going.
        """
        collected = 0
        while digests := await self.database.transact(
            lambda connection: garbage.sweep(connection, delete, unused_since, hidden_since)
        ):
            collected += digests
        return collected

    async def compact(self, before: datetime) -> int:
        """Drops the events of watches from before a moment, except each project's last. Returns their number.

        Those that a webhook is still to be sent stay with all that came after them; the history stays whole.
        """
        return await self.database.transact(lambda connection: garbage.compact(connection, before))

    async def forget_deliveries(self, before: datetime) -> int:
        """Drops deliveries that arrived before a moment. Returns the number dropped."""
        return await self.database.transact(lambda connection: deliveries.forget(connection, before))


async def _claim_head(connection: AsyncConnection, project: str) -> tuple[Head, datetime | None]:
    """The head of the chain, which nobody else moves before this transaction ends, and its time."""
    table = tables.audit_heads
    statement = select(table).where(table.c.project == project).with_for_update()
    row = (await connection.execute(statement)).one_or_none()
    if row is not None:
        return Head(row.sequence, row.hash), row.time
    begun = Head()
    # Of two that begin a chain, the slower one conflicts as the isolation level says, and is run again.
    first = {"project": project, "sequence": begun.sequence, "hash": begun.hash}
    await connection.execute(insert_new(connection, table).values(first))
    return begun, None
