from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deployer.worlds import World, world
from neuroweaver.deployer.storage.store import Store
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.migrations import migrate


@pytest.fixture
async def mesh(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A real Registry and a real Deployer in this process, over the same kind of database; a fake backend."""
    async with world(database_url, tmp_path) as served:
        yield served


@pytest.fixture
async def lone(tmp_path: Path) -> AsyncIterator[World]:
    """The same over SQLite alone, for what does not depend on the database."""
    async with world(f"sqlite:///{tmp_path / 'test.db'}", tmp_path) as served:
        yield served


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, schema="deployer")
    await migrate(database, "neuroweaver.deployer")
    yield database
    await database.close()


@pytest.fixture
def store(database: Database) -> Store:
    return Store(database)
