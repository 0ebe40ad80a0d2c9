"""Where experiments, their configurations and the events of their results are kept.

What a write transaction changes becomes visible at once or not at all: the experiment, its configuration for
evaluators, the events for watches and the answer for a retry. Writers of one project happen one after the
other. Events of units do not come this way: they are taken in by transactions of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import TypeVar
from weakref import WeakValueDictionary

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment.domain.model import Experiment
from neuroweaver.experiment.storage import tables
from neuroweaver.experiment.storage.reader import Reader
from neuroweaver.experiment.storage.writer import Writer
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.upsert import insert_new
from neuroweaver.mesh.handlers.signals import Signal
from neuroweaver.mesh.handlers.topics import Topics
from neuroweaver.mesh.wire.clock import Clock, utc_now
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.v1 import experiment_pb2 as pb

T = TypeVar("T")


def configs_topic(project: str) -> str:
    return f"configs/{project}"


def results_topic(project: str, test_id: str) -> str:
    return f"results/{test_id}/{project}"


def inputs_topic(project: str, test_id: str) -> str:
    """Of what results are computed from: the experiment, and the events that were taken in."""
    return f"inputs/{test_id}/{project}"


class Store:
    def __init__(self, database: Database, *, clock: Clock = utc_now) -> None:
        self.database = database
        self.clock = clock
        self.topics = Topics(database)
        self._queues: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._listeners: list[Callable[[str], Awaitable[None]]] = []

    def listen(self, listener: Callable[[str], Awaitable[None]]) -> None:
        """Has `listener` called with the project after a commit, and before the commit is answered."""
        self._listeners.append(listener)

    async def transact(self, origin: ChangeOrigin, work: Callable[[Writer], Awaitable[T]]) -> T:
        """What `work` returns, once what it changed is on disk.

        Of concurrent calls for one project, each sees what the one before it did. `work` may run several
        times.
        """
        writer: Writer
        project = origin.project

        def changed() -> set[str]:
            topics = {
                topic(project, test) for test in writer.touched for topic in (results_topic, inputs_topic)
            }
            return topics | ({configs_topic(project)} if topics else set())

        async def run(connection: AsyncConnection) -> T:
            nonlocal writer
            sequence = await _claim(connection, project)
            writer = Writer(connection, origin, sequence, self.clock())
            result = await work(writer)
            if writer.sequence != sequence:
                table = tables.projects
                moved = update(table).where(table.c.project == project)
                await connection.execute(moved.values(config_sequence=writer.sequence))
            return result

        queue = self._queues.setdefault(project, asyncio.Lock())
        async with queue:
            result = await self.topics.transact(run, changed)
        if writer.touched:
            for listener in self._listeners:
                await listener(project)
        return result

    @asynccontextmanager
    async def read(self, project: str) -> AsyncIterator[Reader]:
        """One state of the project, whatever is written meanwhile."""
        async with self.database.read() as connection:
            yield Reader(connection, project)

    async def experiment(self, project: str, test_id: str) -> Experiment:
        """Raises NotFound."""
        async with self.read(project) as experiments:
            return await experiments.experiment(test_id)

    async def keys(self, states: Collection[pb.ExperimentState.ValueType] = ()) -> list[tuple[str, str]]:
        """Project and id of every experiment in some states, or of all."""
        table = tables.experiments
        statement = select(table.c.project, table.c.test_id)
        if states:
            statement = statement.where(table.c.state.in_(states))
        async with self.database.read() as connection:
            return [(row.project, row.test_id) for row in await connection.execute(statement)]

    def configs_signal(self, project: str) -> Signal:
        """Says that a configuration may have changed. Hold on to it while following it."""
        return self.topics.signal(configs_topic(project))

    def inputs_signal(self, project: str, test_id: str) -> Signal:
        """Says that results may be others now. Hold on to it while following it."""
        return self.topics.signal(inputs_topic(project, test_id))


async def _claim(connection: AsyncConnection, project: str) -> int:
    """The last sequence of the project, which nobody else moves before this transaction ends."""
    table = tables.projects
    statement = select(table.c.config_sequence).where(table.c.project == project).with_for_update()
    sequence: int | None = (await connection.execute(statement)).scalar_one_or_none()
    if sequence is not None:
        return sequence
    await connection.execute(insert_new(connection, table).values(project=project, config_sequence=0))
    return 0
