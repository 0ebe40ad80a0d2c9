from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from databases import prepare
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.server.serve import running
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.registry.__main__ import service
from neuroweaver.registry.settings import RegistrySettings
from neuroweaver.registry.storage.store import Store
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await prepare(database_url, "neuroweaver.registry")
    database = Database(database_url, schema="registry")
    yield database
    await database.close()


@pytest.fixture
def store(database: Database) -> Store:
    return Store(database)


@pytest.fixture
async def registry(database_url: str, tmp_path: Path) -> AsyncIterator[Any]:
    """A stub of a real server."""
    settings = RegistrySettings(
        home=tmp_path, port=0, metrics_port=0, database_url=database_url, drain_s=0.0, webhook_private=True
    )
    await prepare(database_url, "neuroweaver.registry")
    database = Database(settings.database_url, schema="registry")
    async with (
        running(service(database, settings), settings, registry=CollectorRegistry()) as server,
        channel(server.address) as client,
    ):
        yield RegistryServiceStub(client)
