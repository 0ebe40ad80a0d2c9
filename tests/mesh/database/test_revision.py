from __future__ import annotations

import asyncio
import sqlite3
import sys
import time
from collections.abc import AsyncIterator

import psycopg
import pytest
from sqlalchemy import text

from neuroweaver.mesh.database import row_revisions
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.revision import FileRevisions
from neuroweaver.mesh.database.row_revisions import RowRevisions

HEADS = "SELECT project, hash FROM heads WHERE project = ANY($1)"
STRANGE = ['quote"', "back\\slash", "{a,b}", "NULL", "", "имя", "a b"]


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """With one head, of project `p`."""
    opened = Database(database_url, schema="public")
    async with opened.write() as connection:
        await connection.execute(
            text("CREATE TABLE heads (project VARCHAR(64) PRIMARY KEY, hash VARCHAR(64))")
        )
        await connection.execute(text("INSERT INTO heads VALUES ('p', 'h0')"))
    yield opened
    await opened.close()


async def move(database: Database, value: object, project: str = "p") -> None:
    async with database.write() as connection:
        statement = text("UPDATE heads SET hash = :hash WHERE project = :project")
        await connection.execute(statement, {"hash": str(value), "project": project})


async def python(code: str) -> int:
    return await (await asyncio.create_subprocess_exec(sys.executable, "-c", code)).wait()


@pytest.fixture
async def postgres(postgres_url: str) -> AsyncIterator[Database]:
    """With the heads of 200 projects and of some with strange names."""
    opened = Database(postgres_url, schema="public")
    async with opened.write() as connection:
        await connection.execute(
            text("CREATE TABLE heads (project VARCHAR(64) PRIMARY KEY, hash VARCHAR(64))")
        )
        for project in [*map(str, range(200)), *STRANGE]:
            statement = text("INSERT INTO heads VALUES (:project, :hash)")
            await connection.execute(statement, {"project": project, "hash": f"of {project}"})
    yield opened
    await opened.close()


async def test_a_revision_stays_until_something_is_committed(database):
    revisions = database.revisions(HEADS)
    first = await revisions.of("p")
    assert first is not None

    async with database.read() as connection:
        await connection.execute(text("SELECT * FROM heads"))
    assert await revisions.of("p") == first
    async with database.write() as connection:
        await connection.execute(text("UPDATE heads SET hash = 'h1'"))
        assert await revisions.of("p") == first
    assert await revisions.of("p") != first


async def test_every_acknowledged_commit_is_seen(database, database_url):
    """Also those that came through another database object, which has nothing in common with this one."""
    revisions = database.revisions(HEADS)
    other = Database(database_url, schema="public")
    seen = [await revisions.of("p")]
    for step in range(40):
        await move(other if step % 2 else database, step)
        seen.append(await revisions.of("p"))
    await other.close()

    assert None not in seen
    assert len(set(seen)) == 41


async def test_a_commit_of_another_process_is_seen(database, database_url):
    revisions = database.revisions(HEADS)
    before = await revisions.of("p")
    statement = "UPDATE heads SET hash = 'theirs'"
    opened = (
        f"import sqlite3; c = sqlite3.connect({database_url.removeprefix('sqlite:///')!r})"
        if database.is_sqlite
        else f"import psycopg; c = psycopg.connect({database_url!r})"
    )
    assert await python(f"{opened}; c.execute({statement!r}); c.commit()") == 0

    assert await revisions.of("p") != before


async def test_after_its_end_nothing_is_told(database):
    revisions = database.revisions(HEADS)
    assert await revisions.of("p") is not None
    await database.close()

    assert await revisions.of("p") is None


# SQLite


async def test_while_a_writer_replaces_pages_nothing_is_told(tmp_path):
    writer = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    writer.execute("CREATE TABLE rows (number)")
    revisions = FileRevisions(tmp_path / "a.db")
    before = await revisions.of("p")

    writer.execute("BEGIN EXCLUSIVE")
    writer.execute("INSERT INTO rows VALUES (1)")
    assert await revisions.of("p") is None
    writer.execute("COMMIT")
    assert await revisions.of("p") not in {None, before}
    await revisions.close()
    writer.close()


@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_of_a_file_that_was_taken_away_nothing_is_told(tmp_path, how):
    file = tmp_path / "a.db"
    file.touch()
    revisions = FileRevisions(file)
    assert await revisions.of("p") is not None

    file.rename(tmp_path / "aside.db")
    if how == "replaced":
        file.touch()
    assert await revisions.of("p") is None
    (tmp_path / "aside.db").replace(file)
    assert await revisions.of("p") is not None
    await revisions.close()


async def test_asking_leaves_no_lock_behind(tmp_path):
    writer = sqlite3.connect(tmp_path / "a.db", isolation_level=None, timeout=0)
    writer.execute("CREATE TABLE rows (number)")
    revisions = FileRevisions(tmp_path / "a.db")
    for number in range(20):
        assert await revisions.of("p") is not None
        writer.execute("INSERT INTO rows VALUES (?)", (number,))  # raises at once where there is a lock
    await revisions.close()
    writer.close()


async def test_what_a_crash_left_half_written_counts_for_nothing(tmp_path):
    """Pages of a killed writer are in the file, and its journal beside it."""
    file = tmp_path / "a.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE rows (number)")
        connection.executemany("INSERT INTO rows VALUES (?)", ((number,) for number in range(5000)))
    connection.close()
    revisions = FileRevisions(file)
    assert await revisions.of("p") is not None
    crash = (
        "import os, sqlite3\n"
        f"c = sqlite3.connect({str(file)!r}, isolation_level=None)\n"
        "c.execute('PRAGMA cache_size = 1'); c.execute('PRAGMA cache_spill = 1'); c.execute('BEGIN EXCLUSIVE')\n"
        "c.execute('UPDATE rows SET number = -1')\n"
        "os._exit(1)\n"
    )
    before = file.read_bytes()
    assert await python(crash) == 1
    assert file.read_bytes() != before

    told = await revisions.of("p")
    assert told is not None
    assert file.read_bytes() == before
    reader = sqlite3.connect(file)
    assert reader.execute("SELECT count(*) FROM rows WHERE number < 0").fetchone() == (0,)
    assert await revisions.of("p") == told
    reader.execute("INSERT INTO rows VALUES (1)")
    reader.commit()
    assert await revisions.of("p") not in {None, told}
    reader.close()
    await revisions.close()


async def test_a_file_that_is_no_database_is_for_the_reader_to_tell(tmp_path):
    (tmp_path / "a.db").write_bytes(b"no database" * 1000)
    revisions = FileRevisions(tmp_path / "a.db")

    assert await revisions.of("p") is None
    await revisions.close()


# PostgreSQL


async def test_a_revision_is_its_own_rows(postgres):
    revisions = postgres.revisions(HEADS)
    other = await revisions.of("2")
    await move(postgres, "new", "1")

    assert await revisions.of("1") == "new"
    assert await revisions.of("2") == other
    assert await revisions.of("nobody's") is None


async def test_names_arrive_as_they_are(postgres):
    revisions = postgres.revisions(HEADS)

    assert [await revisions.of(name) for name in STRANGE] == [f"of {name}" for name in STRANGE]


async def test_those_who_come_together_share_a_question(postgres):
    asked: list[int] = []

    class Counted(RowRevisions):
        def _ask(self, connection) -> None:
            super()._ask(connection)
            asked.append(len(self._asked))

    _, arguments = postgres._reader.dialect.create_connect_args(postgres._url)
    revisions = Counted(arguments, "public", HEADS)
    await revisions.of("0")
    asked.clear()

    found = await asyncio.gather(*(revisions.of(str(number % 200)) for number in range(1000)))
    assert found == [f"of {number % 200}" for number in range(1000)]
    # The first one alone, then all the others, 64 projects at a time.
    assert asked == [1, 64, 64, 64, 8]
    await revisions.close()


async def test_nobody_is_told_what_was_asked_before_he_came(postgres, postgres_url):
    revisions = postgres.revisions(HEADS)
    await revisions.of("1")
    early = asyncio.create_task(revisions.of("1"))
    await asyncio.sleep(0)  # its question is on the way

    time.sleep(0.1)  # noqa: ASYNC251  # it is answered, and the event loop has not seen the answer
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("UPDATE heads SET hash = 'new' WHERE project = '1'")
    late = asyncio.create_task(revisions.of("1"))

    assert (await early, await late) == ("of 1", "new")


async def test_a_caller_that_leaves_disturbs_nobody(postgres):
    revisions = postgres.revisions(HEADS)
    await revisions.of("1")
    tasks = [asyncio.create_task(revisions.of(str(number % 9))) for number in range(90)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()

    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert found[1::2] == [f"of {number % 9}" for number in range(1, 90, 2)]
    assert all(isinstance(each, asyncio.CancelledError) for each in found[::2])


async def test_a_caller_that_leaves_while_the_connection_is_made_disturbs_nobody(postgres):
    revisions = postgres.revisions(HEADS)
    first, second = (asyncio.create_task(revisions.of("1")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()

    assert await second == "of 1"


async def test_a_connection_that_was_cut_is_replaced(postgres, postgres_url, monkeypatch):
    monkeypatch.setattr(row_revisions, "_RETRY_S", 0.0)
    revisions = postgres.revisions(HEADS)
    assert await revisions.of("1") == "of 1"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    assert await revisions.of("1") is None
    assert await revisions.of("1") == "of 1"


async def test_all_who_wait_for_a_lost_connection_are_told_nothing(postgres, postgres_url):
    revisions = postgres.revisions(HEADS)
    await revisions.of("1")
    async with postgres.write() as connection:
        # Nobody reads before this transaction ends, so the questions stay open.
        await connection.execute(text("LOCK TABLE heads IN ACCESS EXCLUSIVE MODE"))
        waiting = [asyncio.create_task(revisions.of(str(number))) for number in range(5)]
        await asyncio.sleep(0.1)
        with psycopg.connect(postgres_url, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND query LIKE 'PREPARE%' OR wait_event_type = 'Lock'"
            )
        assert await asyncio.gather(*waiting) == [None] * 5


async def test_a_server_that_does_not_answer_is_not_waited_for(postgres, monkeypatch):
    monkeypatch.setattr(row_revisions, "_STATEMENT_TIMEOUT_MS", 100)
    revisions = postgres.revisions(HEADS)
    await revisions.of("1")
    async with postgres.write() as connection:
        await connection.execute(text("LOCK TABLE heads IN ACCESS EXCLUSIVE MODE"))
        assert await revisions.of("1") is None


async def test_a_server_that_cannot_be_reached_is_not_tried_by_everybody():
    database = Database("postgresql://nobody:hunter2@127.0.0.1:1/none", schema="public")
    revisions = database.revisions(HEADS)

    assert await asyncio.gather(*(revisions.of("p") for _ in range(3))) == [None] * 3
    assert revisions._rest_until > asyncio.get_running_loop().time()
    assert await revisions.of("p") is None
    await database.close()


async def test_tables_that_are_not_there_yet_are_for_the_reader_to_tell(postgres_url):
    database = Database(postgres_url, schema="public")

    assert await database.revisions(HEADS).of("p") is None
    await database.close()
