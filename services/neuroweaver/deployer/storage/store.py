"""Where deployments and what belongs to them are kept.

What a write transaction changes becomes visible at once or not at all: the deployment, the events for watches
and the answer for a retry. Writers of one deployment happen one after the other, in any process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.deployer.domain.backend import Key
from neuroweaver.deployer.domain.model import Deployment
from neuroweaver.deployer.storage.lease import Lease
from neuroweaver.deployer.storage.reader import Reader, present
from neuroweaver.deployer.storage.writer import Writer
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.handlers.topics import Topics
from neuroweaver.mesh.wire.clock import Clock, utc_now
from neuroweaver.mesh.wire.origin import ChangeOrigin

T = TypeVar("T")


class Store:
    def __init__(self, database: Database, *, clock: Clock = utc_now) -> None:
        self.database = database
        self.clock = clock
        self.topics = Topics(database)
        self._listeners: list[Callable[[Key], None]] = []

    def listen(self, listener: Callable[[Key], None]) -> None:
        """Has `listener` called after something of a deployment was committed."""
        self._listeners.append(listener)

    async def transact(
        self, origin: ChangeOrigin, work: Callable[[Writer], Awaitable[T]], *, lease: Lease | None = None
    ) -> T:
        """What `work` returns, once what it changed is on disk. `work` may run several times.

        lease: raises LeaseLost, and changes nothing, if it is another's by now.
        """
        writer: Writer

        async def run(connection: AsyncConnection) -> T:
            nonlocal writer
            if lease is not None:
                await lease.require(connection)
            writer = Writer(connection, origin, self.clock())
            return await work(writer)

        result = await self.topics.transact(run, lambda: writer.topics)
        for key in writer.touched:
            for listener in self._listeners:
                listener(key)
        return result

    @asynccontextmanager
    async def read(self, project: str) -> AsyncIterator[Reader]:
        """One state of the project, whatever is written meanwhile."""
        async with self.database.read() as connection:
            yield Reader(connection, project)

    async def everything(self) -> list[Deployment]:
        """The deployments of all projects that are not gone."""
        async with self.database.read() as connection:
            return await present(connection)
