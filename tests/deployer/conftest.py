from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from databases import prepare
from deployer.worlds import World, world
from neuroweaver.deployer.storage.store import Store
from neuroweaver.mesh.database.database import Database


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
    await prepare(database_url, "neuroweaver.deployer")
    database = Database(database_url, schema="deployer")
    yield database
    await database.close()


@pytest.fixture
def store(database: Database) -> Store:
    return Store(database)
