from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from databases import prepare
from neuroweaver.mesh.database.database import Database


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await prepare(database_url, "neuroweaver.trainer")
    opened = Database(database_url, schema="trainer")
    yield opened
    await opened.close()
