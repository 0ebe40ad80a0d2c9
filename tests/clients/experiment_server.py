"""A real Experiment service on a free port of this process, in a thread of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from anyio.from_thread import start_blocking_portal
from prometheus_client import CollectorRegistry

from databases import prepare
from neuroweaver.experiment.__main__ import service
from neuroweaver.experiment.conclusion.registry import Releases
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.server.serve import running
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.mesh.wire.settings import Settings
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub

NOBODY: Final = "127.0.0.1:1"


@contextmanager
def experiments_at(home: Path, registry: str = NOBODY) -> Iterator[str]:
    """The address of the service over an embedded database in `home`. registry: the address of the Registry."""

    @asynccontextmanager
    async def serve() -> AsyncIterator[str]:
        url = f"sqlite:///{home / 'experiment.db'}"
        settings = Settings(
            service="experiment", home=home, port=0, metrics_port=0, database_url=url, drain_s=0.0
        )
        await prepare(settings.database_url, "neuroweaver.experiment")
        database = Database(settings.database_url, schema="experiment")
        async with channel(registry) as registry_channel:
            served = service(database, Releases(RegistryServiceStub(registry_channel)))
            async with running(served, settings, registry=CollectorRegistry()) as server:
                yield server.address

    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serve()) as address:
        yield address
