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
from typing import TypeVar
from weakref import WeakValueDictionary

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh import idempotency
from neuroweaver.mesh.clock import Clock, utc_now
from neuroweaver.mesh.database import Database
from neuroweaver.mesh.watch import Signal, Signals
from neuroweaver.registry import tables
from neuroweaver.registry.audit import Head, Origin
from neuroweaver.registry.reader import Reader, head
from neuroweaver.registry.writer import Writer

T = TypeVar("T")


class Store:
    def __init__(self, database: Database, *, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock
        self._signals = Signals()
        self._queues: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def transact(self, origin: Origin, work: Callable[[Writer], Awaitable[T]]) -> T:
        """What `work` returns, once what it changed is on disk.

        Of concurrent calls for one project, each sees what the one before it did. `work` may run several
        times.
        """
        # Writers of other processes meet at the head of the chain; those of this one need not collide there.
        queue = self._queues.setdefault(origin.project, asyncio.Lock())
        async with queue:
            result = await self._database.transact(lambda connection: self._work(connection, origin, work))
        self._signals.notify(origin.project)
        return result

    async def _work(
        self, connection: AsyncConnection, origin: Origin, work: Callable[[Writer], Awaitable[T]]
    ) -> T:
        return await work(
            Writer(connection, origin, await _claim_head(connection, origin.project), self._clock())
        )

    @asynccontextmanager
    async def read(self, project: str) -> AsyncIterator[Reader]:
        """One state of the project, whatever is written meanwhile."""
        async with self._database.read() as connection:
            yield Reader(connection, project)

    def signal(self, project: str) -> Signal:
        """Says that something may have been written in the project. Hold on to it while following it."""
        return self._signals.of(project)

    async def forget_answers(self, before: datetime) -> int:
        """Drops the answers kept for retries of calls made before a moment. Gives how many."""
        return await self._database.transact(lambda connection: idempotency.forget(connection, before))


async def _claim_head(connection: AsyncConnection, project: str) -> Head:
    """The head of the chain, which nobody else moves before this transaction ends."""
    found = await head(connection, project, for_update=True)
    if found is None:
        found = Head()
        # Of two that begin a chain, the slower one conflicts as the isolation level says, and is run again.
        dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
        await connection.execute(
            dialect.insert(tables.audit_heads)
            .values(project=project, sequence=found.sequence, hash=found.hash)
            .on_conflict_do_nothing()
        )
    return found
