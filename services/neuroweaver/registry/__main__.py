"""`python -m neuroweaver.registry`: the Registry as a process."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.mesh.clock import utc_now
from neuroweaver.mesh.database import Database
from neuroweaver.mesh.migrations import migrate
from neuroweaver.mesh.serve import Service, run, serve
from neuroweaver.mesh.settings import Settings
from neuroweaver.registry import server
from neuroweaver.registry.artifacts import ArtifactStore
from neuroweaver.registry.store import Store
from neuroweaver.v1 import registry_pb2_grpc

_LOG: Final = logging.getLogger("neuroweaver.registry")

# How late a retry still reads the first answer.
ANSWERS_KEPT: Final = timedelta(days=7)


async def main(settings: Settings) -> None:
    database = Database(settings.database_url, schema="registry")
    await migrate(database, "neuroweaver.registry")
    await serve(service(database, settings), settings)


def service(database: Database, settings: Settings) -> Service:
    """The Registry over a migrated database, which it closes at its end."""
    store = Store(database)
    artifacts = ArtifactStore(settings.home / "artifacts")
    # What it does not define answers UNIMPLEMENTED, as the generated base class has it.
    servicer = server.RegistryServicer(store, artifacts)  # type: ignore[abstract]

    async def forget() -> None:
        while True:
            try:
                await store.forget_answers(utc_now() - ANSWERS_KEPT)
            except SQLAlchemyError as error:  # the database may be back in an hour
                _LOG.warning("old answers not forgotten", extra={"cause": type(error).__name__})
            await asyncio.sleep(3600)

    return Service(
        names=[server.NAME],
        add=lambda grpc_server: registry_pb2_grpc.add_RegistryServiceServicer_to_server(
            servicer, grpc_server
        ),
        background=[forget],
        close=database.close,
    )


if __name__ == "__main__":
    run("registry", main)
