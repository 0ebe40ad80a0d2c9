"""Topics over real databases: what another process commits is heard of, whatever becomes of the connection."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import aiosqlite
import psycopg
import pytest
from sqlalchemy import text

import postgres
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.handlers.topic import Look
from neuroweaver.mesh.handlers.topics import Topics
from neuroweaver.mesh.handlers.watch import follow

PATIENCE_S = 120


@dataclass(frozen=True)
class Number:
    sequence: int

    def ByteSize(self) -> int:  # noqa: N802
        return 8


class Process:
    """What one process has of a service whose only topic counts from 1."""

    def __init__(self, url: str) -> None:
        self.database = Database(url, schema="counting")
        self.topics = Topics(self.database)
        self.reads = 0

    async def prepare(self) -> None:
        async with self.database.write() as connection:
            if not self.database.is_sqlite:
                await connection.execute(text("CREATE SCHEMA IF NOT EXISTS counting"))
            await connection.execute(text("CREATE TABLE numbers (number INTEGER PRIMARY KEY)"))

    async def append(self) -> None:
        async def work(connection) -> None:
            await connection.execute(
                text("INSERT INTO numbers SELECT coalesce(max(number), 0) + 1 FROM numbers")
            )

        await self.topics.transact(work, lambda: ["numbers"])

    async def look(self, after: int) -> Look[Number]:
        self.reads += 1
        async with self.database.read() as connection:
            rows = await connection.execute(
                text("SELECT number FROM numbers WHERE number > :after ORDER BY number"), {"after": after}
            )
            numbers = [Number(row.number) for row in rows]
        last = numbers[-1].sequence if numbers else after
        return Look(numbers, last, last)

    async def watch(self, seen: list[int], until: int) -> None:
        topic = self.topics.topic("numbers", self.look)
        watch = follow(topic, since=0, heartbeat=Number, look=self.look)
        async with aclosing(watch) as events:
            async for event in events:
                seen.append(event.sequence)
                if event.sequence == until:
                    return


@asynccontextmanager
async def processes(url: str) -> AsyncIterator[tuple[Process, Process]]:
    """One that writes, and another that hears of it."""
    one, other = Process(url), Process(url)
    await one.prepare()
    hearing = asyncio.create_task(other.topics.run())
    try:
        yield one, other
    finally:
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)
        await one.database.close()
        await other.database.close()


@asynccontextmanager
async def watching(process: Process, count: int, until: int) -> AsyncIterator[list[list[int]]]:
    """So many watches, which end with a number; within it they have all seen the first."""
    seen: list[list[int]] = [[] for _ in range(count)]
    tasks = [asyncio.create_task(process.watch(numbers, until)) for numbers in seen]
    async with asyncio.timeout(PATIENCE_S):
        while not all(seen):  # noqa: ASYNC110  # lists have no event
            await asyncio.sleep(0.01)
        yield seen
        await asyncio.gather(*tasks)


async def test_all_watches_of_another_process_hear_of_each_change(database_url):
    async with processes(database_url) as (one, other):
        await one.append()
        async with watching(other, 50, until=3) as seen:
            await one.append()
            await one.append()
        assert seen == [[1, 2, 3]] * 50


async def test_a_change_of_another_process_is_read_once_for_all(database_url):
    async with processes(database_url) as (one, other):
        await one.append()
        async with watching(other, 50, until=2):
            await asyncio.sleep(0)
            joined = other.reads
            await one.append()
        # Beginning to listen, and to poll, counts as a change once.
        assert other.reads - joined <= 2


async def test_what_a_process_commits_is_no_news_to_itself(database_url):
    async with processes(database_url) as (one, other):
        await one.append()
        async with watching(other, 5, until=4):
            await one.append()  # once this is heard, nothing from before is on its way
            async with asyncio.timeout(PATIENCE_S):
                while other.topics.topic("numbers", other.look)._last < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            reads = other.reads
            await other.append()
            await asyncio.sleep(0.05)
            await other.append()
        assert other.reads - reads <= 2


async def test_what_was_committed_for_a_caller_who_had_left_is_told(database_url):
    async with processes(database_url) as (one, other):
        await one.append()
        async with watching(one, 1, until=3) as here, watching(other, 1, until=3) as there:
            numbers = [1]
            while len(numbers) < 2:  # PostgreSQL may have rolled it back
                with pytest.raises(asyncio.CancelledError):
                    await cancelled_in_commit(one)
                numbers = [number.sequence for number in (await other.look(0)).events]
            async with asyncio.timeout(PATIENCE_S):
                while here[0] != numbers or there[0] != numbers:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await one.append()
        assert here == there == [[1, 2, 3]]


async def cancelled_in_commit(process: Process) -> None:
    changes = process.topics._changes
    announce = changes.announce

    async def last(connection, topics) -> None:
        await announce(connection, topics)
        asyncio.get_running_loop().call_soon(task.cancel)

    changes.announce = last
    task = asyncio.create_task(process.append())
    try:
        await task
    finally:
        changes.announce = announce


async def test_what_is_rolled_back_is_not_told(database_url):
    async with processes(database_url) as (one, other):

        async def fail(connection) -> None:
            await connection.execute(text("INSERT INTO numbers VALUES (100)"))
            raise ValueError

        await one.append()
        async with watching(other, 1, until=2) as seen:
            with pytest.raises(ValueError):
                await one.topics.transact(fail, lambda: ["numbers"])
            await one.append()
        assert seen == [[1, 2]]


async def test_a_file_that_cannot_be_read_for_a_while_ends_nothing(tmp_path, monkeypatch):
    failures = [sqlite3.OperationalError("disk I/O error"), sqlite3.DatabaseError("malformed")]
    real = aiosqlite.Connection.execute_fetchall

    async def failing(connection, *arguments):
        if failures:
            raise failures.pop()
        return await real(connection, *arguments)

    monkeypatch.setattr(aiosqlite.Connection, "execute_fetchall", failing)
    async with processes(f"sqlite:///{tmp_path / 'test.db'}") as (one, other):
        await one.append()
        async with watching(other, 2, until=2) as seen:
            await one.append()
        assert seen == [[1, 2]] * 2
    assert not failures


async def test_what_is_committed_while_nobody_can_listen_is_not_lost(postgres_server, postgres_url, caplog):
    name = postgres_url.rpartition("/")[2]
    async with processes(postgres_url) as (one, other):
        await one.append()
        async with watching(other, 20, until=3) as seen:
            await one.append()
            with psycopg.connect(postgres_server, autocommit=True) as admin:
                admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = %s AND query LIKE 'LISTEN%%'",
                    (name,),
                )
                await one.append()  # over a connection that is open already
                admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert seen == [[1, 2, 3]] * 20


async def test_watches_go_on_where_they_were_when_postgresql_comes_back():
    folder = postgres.binaries()
    if folder is None:
        pytest.skip("PostgreSQL's server is not installed")
    with postgres.server(folder) as url:
        async with processes(url) as (one, other):
            await one.append()
            async with watching(other, 20, until=4) as seen:
                with psycopg.connect(url) as victim:
                    # The end of one backend restarts the whole server: every connection is cut.
                    os.kill(victim.info.backend_pid, signal.SIGKILL)
                for _ in range(3):
                    await until_committed(one)
            assert seen == [[1, 2, 3, 4]] * 20


async def until_committed(process: Process) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await process.append()
            except Exception:  # noqa: BLE001  # it is starting
                await asyncio.sleep(0.05)
