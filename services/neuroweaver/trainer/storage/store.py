"""Where jobs, their events and their logs are kept, for all projects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.handlers.signals import Signal
from neuroweaver.mesh.handlers.topics import Topics
from neuroweaver.mesh.wire.clock import Clock, utc_now
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.trainer.domain.job import HELD, Job, State
from neuroweaver.trainer.storage.jobs import Reader, Writer, events_topic, select_jobs
from neuroweaver.trainer.storage.tables import JOBS

T = TypeVar("T")

SUPERVISOR: Final = "trainer"
"""Who makes the changes that nobody asked for."""

Key = tuple[str, str]
"""A job: its project and its id."""


class Store:
    def __init__(self, database: Database, *, clock: Clock = utc_now) -> None:
        self.database = database
        self.clock = clock
        self.queue_changed = Signal()
        """Says that a job was queued, or ended and left its worker's place to another."""
        self.topics = Topics(database)

    async def transact(self, origin: ChangeOrigin, work: Callable[[Writer], Awaitable[T]]) -> T:
        """What `work` returns, once what it changed is on disk and whoever watches was woken.

        `work` may run several times.
        """
        writer: Writer

        async def run(connection: AsyncConnection) -> T:
            nonlocal writer
            writer = Writer(connection, origin, self.clock())
            return await work(writer)

        result = await self.topics.transact(run, lambda: writer.topics)
        if any(job.is_terminal or job.state == State.JOB_STATE_QUEUED for job in writer.saved):
            self.queue_changed.notify()
        return result

    @asynccontextmanager
    async def read(self, project: str) -> AsyncIterator[Reader]:
        """One state of the project, whatever is written meanwhile."""
        async with self.database.read() as connection:
            yield Reader(connection, project)

    def signal(self, key: Key) -> Signal:
        """Says that something of a job may have been written. Hold on to it while following it."""
        return self.topics.signal(events_topic(*key))

    async def held(self) -> list[Job]:
        """Jobs that a worker holds, oldest first."""
        async with self.database.read() as connection:
            return await _held(connection)

    async def start_next(self, slots: int, secret_digest: str) -> Job | None:
        """The job that has waited longest, given to a new worker; None if none waits or no slot is free.

        secret_digest: of the secret that the worker will have.
        """
        # Most calls find nothing: look before taking the write lock.
        async with self.database.read() as connection:
            waiting = await _startable(connection, slots)
        if waiting is None:
            return None

        async def start(jobs: Writer) -> Job | None:
            queued = await _startable(jobs.connection, slots)
            return await jobs.save(queued.start(jobs.now, secret_digest)) if queued else None

        return await self.transact(ChangeOrigin(waiting.project, SUPERVISOR), start)


async def _held(connection: AsyncConnection) -> list[Job]:
    return await select_jobs(connection, JOBS.c.state.in_(HELD))


async def _startable(connection: AsyncConnection, slots: int) -> Job | None:
    queued = await select_jobs(connection, JOBS.c.state == State.JOB_STATE_QUEUED, limit=1)
    return queued[0] if queued and len(await _held(connection)) < slots else None
