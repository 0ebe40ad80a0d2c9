"""What handlers of RPCs that change something build on, over a store as small as one can be."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh import idempotency
from neuroweaver.mesh.database import Database
from neuroweaver.mesh.errors import InvalidArgument
from neuroweaver.mesh.mutations import answered, mutated
from neuroweaver.v1 import registry_pb2

METADATA = MetaData()
ANSWERS = idempotency.table(METADATA)


@dataclass
class Transaction:
    connection: AsyncConnection
    project: str


class Counter:
    """Counts how often it was told to, which is what a retry must not do again."""

    def __init__(self, database: Database) -> None:
        self.count = 0
        self._database = database

    @asynccontextmanager
    async def read(self, project: str):
        async with self._database.read() as connection:
            yield Transaction(connection, project)

    async def increment(self, request_id: str, alias: str = "production", project: str = "default") -> int:
        async def transact(work):
            return await self._database.transact(lambda connection: work(Transaction(connection, project)))

        async def operation(transaction: Transaction) -> Timestamp:
            assert transaction.project == project
            self.count += 1
            return Timestamp(seconds=self.count)

        answer = await mutated(transact, "Increment", asked(request_id, alias), Timestamp, operation)
        return answer.seconds

    async def answered(self, request_id: str, alias: str = "production", project: str = "default"):
        return await answered(self.read(project), "Increment", asked(request_id, alias), Timestamp)


def asked(request_id: str, alias: str) -> registry_pb2.SetAliasRequest:
    return registry_pb2.SetAliasRequest(request_id=request_id, alias=alias)


@pytest.fixture
async def counter(database_url):
    opened = Database(database_url, schema="testing")
    async with opened.alone() as connection:
        if not opened.is_sqlite:
            await connection.execute(text("CREATE SCHEMA testing"))
        await connection.run_sync(METADATA.create_all)
    yield Counter(opened)
    await opened.close()


async def test_a_retry_reads_the_first_answer(counter):
    assert await counter.answered("r") is None
    assert [await counter.increment("r") for _ in range(3)] == [1, 1, 1]
    assert (await counter.answered("r")).seconds == 1
    assert counter.count == 1


async def test_without_a_request_id_every_call_is_a_new_one(counter):
    assert [await counter.increment("") for _ in range(2)] == [1, 2]
    assert await counter.answered("") is None


async def test_projects_do_not_read_each_others_answers(counter):
    assert await counter.increment("r") == 1
    assert await counter.answered("r", project="other") is None
    assert await counter.increment("r", project="other") == 2


async def test_a_request_id_of_another_request_is_refused(counter):
    await counter.increment("r")
    for call in (counter.increment, counter.answered):
        with pytest.raises(InvalidArgument, match="request_id"):
            await call("r", alias="staging")
    assert counter.count == 1


async def test_a_request_id_with_control_characters_is_refused(counter):
    for call in (counter.increment, counter.answered):
        with pytest.raises(InvalidArgument, match="request_id"):
            await call("r\0")
    assert counter.count == 0
