from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from neuroweaver.mesh.database import Database
from neuroweaver.mesh.migrations import migrate
from neuroweaver.registry.store import Store


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, schema="registry")
    await migrate(database, "neuroweaver.registry")
    yield database
    await database.close()


@pytest.fixture
def store(database: Database) -> Store:
    return Store(database)
