"""The Registry while its process, or its database, dies under load: what was acknowledged is there, once."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import inspect

import postgres
from neuroweaver.mesh.database.database import Database
from neuroweaver.registry.storage import tables
from registry.faults import (
    Told,
    crashing_postgres,
    kill_and_restart,
    load_through,
    register,
    servers,
    under_way,
    verify,
)

POINTS = 5
KILLED_MIGRATIONS = 8
EVERY_TABLE = set(tables.METADATA.tables) | {"alembic_version"}

MIGRATE = """
import asyncio, sys
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.migrations import migrate

async def main():
    database = Database(sys.argv[1], schema="registry")
    print("begun", flush=True)
    await migrate(database, "neuroweaver.registry")

asyncio.run(main())
"""


async def test_nothing_is_lost_or_done_twice_when_the_server_is_killed_under_load(
    database_url: str, tmp_path: Path
):
    with servers(tmp_path, database_url) as (server,):
        await server.ready()
        await register(server.address)

        told, watcher = await load_through(
            server.address, lambda told: kill_and_restart(server, POINTS, random.Random(7), told)
        )

        assert told.retries  # the kills were felt
        assert watcher.resumed >= POINTS
        assert len(told.made) > POINTS
        await verify(server.address, told, watcher)
        assert not server.faults()


@pytest.mark.skipif(postgres.binaries() is None, reason="PostgreSQL's server is not installed")
async def test_a_crash_of_the_database_is_no_more_than_unavailable(tmp_path: Path):
    with crashing_postgres() as (url, crash_and_restart), servers(tmp_path, url) as (server,):
        await server.ready()
        await register(server.address)
        process = server.process

        async def disturb(told: Told) -> None:
            for _ in range(3):
                await under_way(told, random.Random(7))
                await crash_and_restart()
            await under_way(told, random.Random(7))

        told, watcher = await load_through(server.address, disturb)

        assert {reason.partition(" ")[0] for reason in told.retries} == {"UNAVAILABLE"}
        await verify(server.address, told, watcher)
        assert process
        assert process.poll() is None
        assert not server.faults()


async def test_a_migration_that_is_killed_leaves_all_tables_or_none(database_url: str, tmp_path: Path):
    if database_url.startswith("sqlite"):
        database_url = f"sqlite:///{tmp_path / 'registry.db'}"  # where the server looks for it
    chance, found = random.Random(7), []
    for _ in range(KILLED_MIGRATIONS):
        await empty(database_url)
        with migrating(database_url) as process:
            await asyncio.sleep(chance.uniform(0, 0.1))
            process.kill()
        found.append(await tables_of(database_url))
        assert found[-1] in (set(), EVERY_TABLE)

    # Whatever the last one left, the server goes on from there.
    with servers(tmp_path, database_url) as (server,):
        await server.ready()
        await register(server.address)
        assert not server.faults()
    assert await tables_of(database_url) == EVERY_TABLE


@contextmanager
def migrating(database_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has just begun to migrate."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-c", MIGRATE, database_url], env=environment, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == b"begun\n"
        yield process
    finally:
        process.kill()
        process.communicate()


async def empty(database_url: str) -> None:
    if database_url.startswith("sqlite"):
        path = Path(database_url.removeprefix("sqlite:///"))
        for suffix in ("", "-journal", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return
    database = Database(database_url, schema="registry")
    async with database.alone() as connection:
        await connection.exec_driver_sql("DROP SCHEMA IF EXISTS registry CASCADE")
    await database.close()


async def tables_of(database_url: str) -> set[str]:
    database = Database(database_url, schema="registry")
    # Alone: a killed process' statement may still be running in PostgreSQL.
    async with database.alone() as connection:
        found = await connection.run_sync(lambda synchronous: inspect(synchronous).get_table_names())
    await database.close()
    return set(found)
