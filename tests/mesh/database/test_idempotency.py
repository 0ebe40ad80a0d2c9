from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.echo import pb
from neuroweaver.mesh.database import idempotency
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.wire.errors import InvalidArgument

METADATA = MetaData()
DONE = Table("done", METADATA, Column("id", Integer, primary_key=True, autoincrement=True))
ANSWERS = idempotency.table(METADATA)


@dataclass
class Scope:
    connection: AsyncConnection
    project: str


@pytest.fixture
async def database(database_url):
    opened = Database(database_url, schema="testing")
    async with opened.alone() as connection:
        if not opened.is_sqlite:
            await connection.execute(text("CREATE SCHEMA testing"))
        await connection.run_sync(METADATA.create_all)
    yield opened
    await opened.close()


async def say(
    database: Database, word: str, request_id: str, *, project="default", method="Say", fails=False
):
    """A mutation: leaves one row behind and answers with its number."""

    async def work(connection):
        async def operation():
            number = (await connection.execute(insert(DONE).returning(DONE.c.id))).scalar_one()
            await asyncio.sleep(0.01)
            if fails:
                raise LookupError
            return pb.Answer(text=word, sequence=number)

        request = pb.Ask(text=word, request_id=request_id)
        return await idempotency.once(Scope(connection, project), method, request, pb.Answer, operation)

    return await database.transact(work, patience_s=60)


async def done(database: Database) -> int:
    async with database.read() as connection:
        return (await connection.execute(select(func.count()).select_from(DONE))).scalar_one()


async def test_a_retry_reads_the_first_answer(database):
    first = await say(database, "hello", "r1")

    assert await say(database, "hello", "r1") == first
    assert await done(database) == 1


async def test_eight_callers_with_one_request_id_do_it_once(database, database_url):
    others = [Database(database_url, schema="testing") for _ in range(2)]
    everyone = [database, *others]

    answers = await asyncio.gather(*(say(everyone[index % 3], "hello", "r1") for index in range(8)))

    assert len({answer.SerializeToString() for answer in answers}) == 1
    assert await done(database) == 1
    for each in others:
        await each.close()


async def test_a_request_id_with_another_request_is_refused(database):
    await say(database, "hello", "r1")

    with pytest.raises(InvalidArgument) as caught:
        await say(database, "goodbye", "r1")
    assert caught.value.violations == [("request_id", "was used before with a different request")]


@pytest.mark.parametrize("other", [{"project": "p2"}, {"method": "Shout"}])
async def test_a_request_id_belongs_to_its_project_and_method(database, other):
    await say(database, "hello", "r1")
    await say(database, "goodbye", "r1", **other)

    assert await done(database) == 2


async def test_without_a_request_id_each_call_counts(database):
    await say(database, "hello", "")
    await say(database, "hello", "")

    assert await done(database) == 2


async def test_a_call_that_failed_may_be_retried(database):
    with pytest.raises(LookupError):
        await say(database, "hello", "r1", fails=True)

    await say(database, "hello", "r1")
    assert await done(database) == 1


async def test_old_answers_can_be_forgotten(database):
    await say(database, "hello", "r1")

    async with database.write() as connection:
        assert await idempotency.forget(connection, before=datetime.now(UTC) - timedelta(hours=1)) == 0
        assert await idempotency.forget(connection, before=datetime.now(UTC) + timedelta(hours=1)) == 1
    await say(database, "hello", "r1")
    assert await done(database) == 2
