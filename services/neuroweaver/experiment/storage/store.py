"""Where experiments, their configurations and the events of their results are kept.

What a write transaction changes becomes visible at once or not at all: the experiment, its configuration for
evaluators, the events for watches and the answer for a retry. Writers of one project happen one after the
other. Events of units do not come this way: they are taken in by transactions of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar
from weakref import WeakValueDictionary

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment.intake.projection import Projections
from neuroweaver.experiment.storage import tables
from neuroweaver.experiment.storage.reader import Reader, to_look_at
from neuroweaver.experiment.storage.writer import Writer
from neuroweaver.mesh.database import idempotency
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.handlers.watch import Signal, Signals
from neuroweaver.mesh.wire.clock import Clock, utc_now

T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """Who makes a change."""

    project: str
    actor: str


class Store:
    def __init__(
        self, database: Database, *, clock: Clock = utc_now, projections: Projections | None = None
    ) -> None:
        self.database = database
        self.clock = clock
        self.projections = projections or Projections()
        self._configs = Signals()
        self._results = Signals()
        self._queues: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._listeners: list[Callable[[str], Awaitable[None]]] = []

    def listen(self, listener: Callable[[str], Awaitable[None]]) -> None:
        """Has `listener` called with the project after a commit, and before the commit is answered."""
        self._listeners.append(listener)

    async def transact(self, origin: Origin, work: Callable[[Writer], Awaitable[T]]) -> T:
        """What `work` returns, once what it changed is on disk.

        Of concurrent calls for one project, each sees what the one before it did. `work` may run several
        times.
        """
        touched: set[str] = set()

        async def run(connection: AsyncConnection) -> T:
            sequence = await _claim(connection, origin.project)
            writer = Writer(connection, origin.project, origin.actor, sequence, self.clock())
            result = await work(writer)
            if writer.sequence != sequence:
                table = tables.projects
                moved = update(table).where(table.c.project == origin.project)
                await connection.execute(moved.values(config_sequence=writer.sequence))
            touched.clear()
            touched.update(writer.touched)
            return result

        queue = self._queues.setdefault(origin.project, asyncio.Lock())
        async with queue:
            result = await self.database.transact(run)
        if touched:
            for listener in self._listeners:
                await listener(origin.project)
            self._configs.notify(origin.project)
        for test_id in touched:
            self._results.notify((origin.project, test_id))
        return result

    @asynccontextmanager
    async def read(self, project: str) -> AsyncIterator[Reader]:
        """One state of the project, whatever is written meanwhile."""
        async with self.database.read() as connection:
            yield Reader(connection, project)

    async def to_look_at(self) -> list[tuple[str, str]]:
        """Project and id of every experiment that goes on by itself: running, or being concluded."""
        async with self.database.read() as connection:
            return await to_look_at(connection)

    async def everything(self) -> list[tuple[str, str]]:
        """Project and id of every experiment."""
        table = tables.experiments
        async with self.database.read() as connection:
            rows = await connection.execute(select(table.c.project, table.c.test_id))
            return [(row.project, row.test_id) for row in rows]

    def notify_results(self, project: str, test_id: str) -> None:
        """Wakes those who follow an experiment, after something of it was committed elsewhere."""
        self._results.notify((project, test_id))

    def configs_signal(self, project: str) -> Signal:
        """Says that a configuration may have changed. Hold on to it while following it."""
        return self._configs.of(project)

    def results_signal(self, project: str, test_id: str) -> Signal:
        """Says that an event of results may have been written. Hold on to it while following it."""
        return self._results.of((project, test_id))

    async def forget_answers(self, before: datetime) -> int:
        """Drops the answers kept for retries of calls made before a moment. Gives how many."""
        return await self.database.transact(lambda connection: idempotency.forget(connection, before))


async def _claim(connection: AsyncConnection, project: str) -> int:
    """The last sequence of the project, which nobody else moves before this transaction ends."""
    table = tables.projects
    statement = select(table.c.config_sequence).where(table.c.project == project).with_for_update()
    found: int | None = (await connection.execute(statement)).scalar_one_or_none()
    if found is not None:
        return found
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    await connection.execute(
        dialect.insert(table).values(project=project, config_sequence=0).on_conflict_do_nothing()
    )
    return 0
