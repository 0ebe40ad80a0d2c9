# ruff: noqa: PT012  (a transaction raises inside its block or at the block's end)
from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import grpc
import psycopg
import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError

from neuroweaver.mesh.database import database as database_module
from neuroweaver.mesh.database.database import Database, UtcDateTime, ascii_text
from neuroweaver.mesh.database.refusals import as_error
from neuroweaver.mesh.wire.errors import (
    Aborted,
    DataLoss,
    FailedPrecondition,
    ResourceExhausted,
    Unavailable,
)
from neuroweaver.mesh.wire.status import code_of

METADATA = MetaData()
COUNTERS = Table("counters", METADATA, Column("name", String(20), primary_key=True), Column("value", Integer))
MOMENTS = Table("moments", METADATA, Column("id", Integer, primary_key=True), Column("at", UtcDateTime))
WORDS = Table("words", METADATA, Column("word", ascii_text(20), primary_key=True))
TICKS = Table(
    "ticks",
    METADATA,
    Column("id", BigInteger, primary_key=True),
    Column("counter", ForeignKey("counters.name")),
)


@pytest.fixture
async def database(database_url: str):
    """With the tables of this file and one counter at 0."""
    opened = Database(database_url, schema="testing")
    async with opened.alone() as connection:
        if not opened.is_sqlite:
            await connection.execute(text("CREATE SCHEMA testing"))
        await connection.run_sync(METADATA.create_all)
        await connection.execute(insert(COUNTERS).values(name="hits", value=0))
    yield opened
    await opened.close()


async def increment(connection) -> int:
    """Reads, decides and writes: what loses updates where writers are not kept apart."""
    value = (await connection.execute(select(COUNTERS.c.value))).scalar_one()
    await asyncio.sleep(0)
    await connection.execute(update(COUNTERS).values(value=value + 1))
    return value + 1


async def hits(database: Database) -> int:
    async with database.read() as connection:
        return (await connection.execute(select(COUNTERS.c.value))).scalar_one()


async def test_eight_writers_lose_none_of_their_hundred_increments(database):
    async def writer():
        for _ in range(100):
            await database.transact(increment, patience_s=60)

    await asyncio.gather(*(writer() for _ in range(8)))

    assert await hits(database) == 800


async def test_writers_of_two_processes_lose_nothing(database, database_url):
    """Two databases of one process have no lock in common, like two processes."""
    other = Database(database_url, schema="testing")

    async def writer(through: Database):
        for _ in range(50):
            await through.transact(increment, patience_s=60)

    await asyncio.gather(writer(database), writer(other))
    await other.close()

    assert await hits(database) == 100


async def test_a_block_that_raises_leaves_no_trace(database):
    with pytest.raises(LookupError):
        async with database.write() as connection:
            await increment(connection)
            raise LookupError

    assert await hits(database) == 0


async def test_work_that_raises_is_not_run_again(database):
    runs = 0

    async def work(connection):
        nonlocal runs
        runs += 1
        raise LookupError

    with pytest.raises(LookupError):
        await database.transact(work)
    assert runs == 1


async def test_a_cancelled_writer_leaves_no_trace_and_no_lock(database):
    wrote = asyncio.Event()

    async def work(connection):
        await increment(connection)
        wrote.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(database.transact(work))
    await wrote.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await database.transact(increment) == 1


async def test_a_read_sees_one_state(database):
    async with database.read() as connection:
        before = (await connection.execute(select(COUNTERS.c.value))).scalar_one()
        writing = asyncio.create_task(database.transact(increment))
        if not database.is_sqlite or database_module._WAL_IS_SAFE:
            await writing
        assert (await connection.execute(select(COUNTERS.c.value))).scalar_one() == before
    await writing

    assert await hits(database) == 1


async def test_a_read_refuses_to_write(database):
    with pytest.raises(DBAPIError, match=r"(?i)read-?only"):
        async with database.read() as connection:
            await connection.execute(update(COUNTERS).values(value=7))

    assert await hits(database) == 0


async def test_a_connection_that_read_can_write_afterwards(database):
    for _ in range(20):
        await hits(database)
    assert await database.transact(increment) == 1


async def test_foreign_keys_are_enforced(database):
    with pytest.raises(IntegrityError):
        async with database.write() as connection:
            await connection.execute(insert(TICKS).values(id=1, counter="no such counter"))


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC),
        datetime(2026, 7, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=45))),
    ],
)
async def test_a_moment_comes_back_to_the_microsecond_in_utc(database, moment):
    async with database.write() as connection:
        await connection.execute(insert(MOMENTS).values(id=1, at=moment))
    async with database.read() as connection:
        found = (await connection.execute(select(MOMENTS.c.at).where(MOMENTS.c.at <= moment))).scalar_one()

    assert found == moment
    assert found.tzinfo is UTC


async def test_a_moment_without_a_time_zone_is_refused(database):
    with pytest.raises(StatementError, match="time zone"):
        async with database.write() as connection:
            await connection.execute(insert(MOMENTS).values(id=1, at=datetime(2026, 1, 1)))  # noqa: DTZ001


async def test_ascii_text_sorts_byte_by_byte(database):
    words = ["a", "B", "a-b", "ab", "a_b", "aB", "Z"]

    async def add(connection):
        await connection.execute(insert(WORDS), [{"word": word} for word in words])

    await database.transact(add)
    async with database.read() as connection:
        found = await connection.execute(select(WORDS.c.word).order_by(WORDS.c.word))
        assert [row.word for row in found] == sorted(words, key=str.encode)


# SQLite


@pytest.fixture
async def embedded(tmp_path: Path):
    opened = Database(f"sqlite:///{tmp_path}/deep/down/test.db", schema="testing")
    async with opened.write() as connection:
        await connection.run_sync(METADATA.create_all)
        await connection.execute(insert(COUNTERS).values(name="hits", value=0))
    yield opened
    await opened.close()


async def test_an_embedded_database_is_set_up_to_lose_nothing(embedded):
    for mode in (embedded.read, embedded.write):
        async with mode() as connection:
            told = {
                name: (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
        wal = sqlite3.sqlite_version_info >= (3, 51, 3)
        assert told == {
            "journal_mode": "wal" if wal else "delete",
            "synchronous": 2,
            "foreign_keys": 1,
            "busy_timeout": 10_000,
        }


async def test_the_folder_of_an_embedded_database_is_its_owners_alone(embedded, tmp_path):
    assert (tmp_path / "deep" / "down").stat().st_mode & 0o077 == 0


def test_a_database_in_memory_is_refused():
    with pytest.raises(ValueError, match="needs a file"):
        Database("sqlite://", schema="testing")


async def test_a_full_disk_is_told_as_resource_exhausted(embedded):
    with pytest.raises(DBAPIError) as caught:
        async with embedded.write() as connection:
            pages = (await connection.exec_driver_sql("PRAGMA page_count")).scalar_one()
            await connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
            for index in range(10_000):
                await connection.execute(insert(COUNTERS).values(name=f"n{index}", value=index))

    assert isinstance(as_error(caught.value), ResourceExhausted)


async def test_a_locked_database_is_told_as_unavailable(embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(database_module, "_BUSY_TIMEOUT_S", 0.05)
    hurried = Database(f"sqlite:///{tmp_path}/deep/down/test.db", schema="testing")
    async with embedded.write():
        with pytest.raises(DBAPIError) as caught:
            await hurried.transact(increment, patience_s=0.3)
    await hurried.close()

    told = as_error(caught.value)
    assert isinstance(told, Unavailable)
    assert code_of(told) is grpc.StatusCode.UNAVAILABLE


async def test_a_file_that_cannot_be_opened_is_told_as_unavailable(tmp_path):
    (tmp_path / "test.db").mkdir()
    database = Database(f"sqlite:///{tmp_path}/test.db", schema="testing")
    with pytest.raises(DBAPIError) as caught:
        async with database.write():
            pass
    await database.close()

    assert isinstance(as_error(caught.value), Unavailable)


@pytest.mark.parametrize("attempt", ["read", "write", "check"])
@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_a_file_that_was_taken_away_is_told_of_and_not_made_anew(embedded, tmp_path, attempt, how):
    file, aside = tmp_path / "deep" / "down" / "test.db", tmp_path / "aside"
    await embedded.transact(increment)
    file.rename(aside)
    if how == "replaced":
        file.touch()

    attempts = {
        "read": lambda: value_of(embedded),
        "write": lambda: embedded.transact(increment),
        "check": embedded.check,
    }
    with pytest.raises(FailedPrecondition) as caught:
        await attempts[attempt]()
    assert caught.value.reason == "DATABASE_MOVED"
    assert str(tmp_path) not in caught.value.description
    assert file.exists() == (how == "replaced")

    aside.replace(file)
    await embedded.check()
    assert await embedded.transact(increment) == 2


async def test_a_database_that_cannot_be_written_is_told_as_read_only(embedded, monkeypatch):
    with pytest.raises(DBAPIError) as caught:
        async with embedded.read() as connection:
            await connection.execute(insert(COUNTERS).values(name="more", value=1))
    told = as_error(caught.value)
    assert isinstance(told, FailedPrecondition)
    assert told.reason == "DATABASE_READ_ONLY"

    monkeypatch.setattr(database_module.os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(FailedPrecondition, match="read-only"):
        await embedded.check()


@pytest.mark.parametrize("garbage", [b"no database at all " * 300, b"SQLite format 3\0" + b"\xff" * 4096])
async def test_a_corrupt_file_is_told_as_data_loss(tmp_path, garbage):
    (tmp_path / "test.db").write_bytes(garbage)
    database = Database(f"sqlite:///{tmp_path}/test.db", schema="testing")
    with pytest.raises(DBAPIError) as caught:
        await database.check()
    await database.close()

    told = as_error(caught.value)
    assert isinstance(told, DataLoss)
    assert str(tmp_path) not in told.description


async def value_of(database: Database) -> int:
    async with database.read() as connection:
        return (await connection.execute(select(COUNTERS.c.value))).scalar_one()


# PostgreSQL


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("08006", Unavailable),
        ("25006", FailedPrecondition),
        ("40001", Aborted),
        ("42501", FailedPrecondition),
        ("53100", ResourceExhausted),
        ("53300", Unavailable),
        ("57P03", Unavailable),
        ("58030", Unavailable),
        ("XX001", DataLoss),
    ],
)
def test_every_refusal_of_a_server_has_its_kind(state, kind):
    refusal = psycopg.errors.lookup(state)("words of the server")

    told = as_error(DBAPIError("SELECT", {}, refusal))
    assert isinstance(told, kind)
    assert "words of the server" not in told.description


async def test_a_server_that_is_well_passes_the_check_and_a_standby_does_not(postgres_url):
    database = Database(postgres_url, schema="public")
    await database.check()

    async with database.write() as connection:
        # Found before the server's own, as on a standby.
        await connection.exec_driver_sql(
            "CREATE FUNCTION public.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT true'"
        )
    await database.close()
    standby = Database(postgres_url, schema="public,pg_catalog")
    with pytest.raises(FailedPrecondition, match="read-only"):
        await standby.check()
    await standby.close()


async def test_a_lost_race_is_told_as_aborted(postgres_url):
    database = Database(postgres_url, schema="public")
    async with database.write() as connection:
        await connection.run_sync(METADATA.create_all)
        await connection.execute(insert(COUNTERS).values(name="hits", value=0))

    with pytest.raises(DBAPIError) as caught:
        async with database.write() as slow:
            await slow.execute(select(COUNTERS))
            await database.transact(increment)
            await increment(slow)
    await database.close()

    told = as_error(caught.value)
    assert isinstance(told, Aborted)
    assert told.reason == "CONCURRENT_UPDATE"


async def test_a_server_that_cannot_be_reached_is_told_as_unavailable():
    database = Database("postgresql://nobody:hunter2@127.0.0.1:1/none", schema="public")
    with pytest.raises(DBAPIError) as caught:
        async with database.read():
            pass

    told = as_error(caught.value)
    assert isinstance(told, Unavailable)
    assert "hunter2" not in told.description


async def test_a_connection_that_was_cut_is_told_as_unavailable_and_replaced(postgres_url):
    database = Database(postgres_url, schema="public")
    with pytest.raises(DBAPIError) as caught:
        async with database.write() as connection:
            backend = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
            with psycopg.connect(postgres_url) as admin:
                admin.execute("SELECT pg_terminate_backend(%s)", (backend,))
            await connection.execute(text("SELECT 1"))

    assert isinstance(as_error(caught.value), Unavailable)
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    await database.close()


async def test_a_fault_of_ours_is_not_told(database):
    with pytest.raises(DBAPIError) as caught:
        async with database.read() as connection:
            await connection.execute(text("SELECT no_such_column FROM counters"))

    assert as_error(caught.value) is None


async def test_two_schemas_of_one_database_do_not_meet(postgres_url):
    first, second = Database(postgres_url, schema="one"), Database(postgres_url, schema="two")
    for database in (first, second):
        async with database.alone() as connection:
            await connection.execute(text(f"CREATE SCHEMA {database.schema}"))
            await connection.run_sync(METADATA.create_all)
    async with first.write() as connection:
        await connection.execute(insert(COUNTERS).values(name="hits", value=1))
    async with second.read() as connection:
        assert not (await connection.execute(select(COUNTERS))).all()
    await first.close()
    await second.close()


async def test_a_cancelled_read_leaves_no_lock_behind(database_url):
    database = Database(database_url, "public")
    async with database.write() as connection:
        await connection.execute(text("CREATE TABLE rows (number INTEGER)"))
        await connection.execute(text("INSERT INTO rows VALUES (1), (2), (3)"))

    async def read() -> None:
        async with database.read() as connection:
            for _ in range(3):
                await connection.execute(text("SELECT * FROM rows"))

    chance = random.Random(1)
    cancelled = 0
    for _ in range(60):
        readers = [asyncio.create_task(read()) for _ in range(3)]
        await asyncio.sleep(chance.uniform(0, 0.006))
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)
        cancelled += sum(reader.cancelled() for reader in readers)
        async with asyncio.timeout(8), database.write() as connection:
            await connection.execute(text("INSERT INTO rows VALUES (4)"))
    await database.close()
    assert cancelled > 0


async def test_a_timeout_around_a_transaction_is_still_a_timeout(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'slow.db'}", "slow")
    counting = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) SELECT count(*) FROM n"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001), database.read() as connection:
            await connection.execute(text(counting))
            await asyncio.sleep(60)
    await database.close()
