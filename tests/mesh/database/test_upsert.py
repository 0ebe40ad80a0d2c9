from __future__ import annotations

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, select, text

from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.upsert import insert_new, upsert

METADATA = MetaData()
THINGS = Table(
    "things",
    METADATA,
    Column("name", String(10), primary_key=True),
    Column("size", Integer, nullable=False),
    Column("note", String(10), nullable=False, default=""),
)


@pytest.fixture
async def database(database_url):
    opened = Database(database_url, schema="testing")
    async with opened.alone() as connection:
        if not opened.is_sqlite:
            await connection.execute(text("CREATE SCHEMA testing"))
        await connection.run_sync(METADATA.create_all)
    yield opened
    await opened.close()


async def things(database: Database) -> list[tuple[str, int, str]]:
    async with database.read() as connection:
        return [tuple(row) for row in await connection.execute(select(THINGS).order_by(THINGS.c.name))]


async def test_an_insert_leaves_what_is_there(database):
    for size in (1, 2):
        async with database.write() as connection:
            await connection.execute(insert_new(connection, THINGS).values(name="a", size=size))
    assert await things(database) == [("a", 1, "")]


async def test_rows_are_written_over_those_of_the_same_key(database):
    async with database.write() as connection:
        await upsert(connection, THINGS, {"name": "a", "size": 1, "note": "old"})
        await upsert(
            connection,
            THINGS,
            [{"name": "a", "size": 2, "note": "new"}, {"name": "b", "size": 3, "note": ""}],
        )
    assert await things(database) == [("a", 2, "new"), ("b", 3, "")]


async def test_only_the_columns_that_change_are_taken_over(database):
    async with database.write() as connection:
        for size, note in ((1, "old"), (2, "new")):
            await upsert(connection, THINGS, {"name": "a", "size": size, "note": note}, changing=["size"])
    assert await things(database) == [("a", 2, "old")]


async def test_no_rows_are_no_statement(database):
    async with database.write() as connection:
        await upsert(connection, THINGS, [])
    assert await things(database) == []
