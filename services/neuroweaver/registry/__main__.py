"""`python -m neuroweaver.registry`: the Registry as a process."""

from __future__ import annotations

import logging
from functools import partial
from typing import Final

from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.migrations import migrate
from neuroweaver.mesh.server.serve import Service, run, serve
from neuroweaver.mesh.wire.signing import SigningKey
from neuroweaver.registry.artifacts import allocator
from neuroweaver.registry.artifacts.object_store import connect
from neuroweaver.registry.artifacts.store import ArtifactStore
from neuroweaver.registry.dispatch.dispatcher import Dispatcher
from neuroweaver.registry.dispatch.sender import Sender
from neuroweaver.registry.domain.sealing import Seal
from neuroweaver.registry.housekeeping import keep_house
from neuroweaver.registry.rpc import server
from neuroweaver.registry.settings import RegistrySettings
from neuroweaver.registry.storage import deliveries
from neuroweaver.registry.storage.store import Store
from neuroweaver.v1 import registry_pb2_grpc

_LOG: Final = logging.getLogger("neuroweaver.registry")


async def main(settings: RegistrySettings) -> None:
    allocator.keep_freed()
    database = Database(settings.database_url, schema="registry")
    await migrate(database, "neuroweaver.registry")
    seal = _seal(settings)
    strangers = await database.transact(partial(deliveries.seal_secrets, seal=seal))
    if strangers:
        _LOG.error("webhooks whose secret this server's key does not open", extra={"webhooks": strangers})
    await serve(service(database, settings), settings)


def service(database: Database, settings: RegistrySettings) -> Service:
    """The Registry over a migrated database, which it closes at its end."""
    store = Store(database)
    folder = settings.home / "artifacts"
    artifacts = ArtifactStore(folder, connect(settings.artifacts_url, folder))
    key = SigningKey.load_or_create(settings.audit_key_file or settings.home / "registry-audit-key.pem")
    seal = _seal(settings)
    servicer = server.servicer(
        store,
        artifacts,
        key,
        seal,
        most_downloads=settings.downloads,
        allow_private_webhooks=settings.webhook_private,
    )
    sender = Sender(allow_private=settings.webhook_private)
    dispatcher = Dispatcher(database, sender, seal, changed=store.changed)

    return Service(
        names=[server.SERVICE.full_name],
        add=lambda grpc_server: registry_pb2_grpc.add_RegistryServiceServicer_to_server(
            servicer, grpc_server
        ),
        background=[dispatcher.run, store.topics.run, lambda: keep_house(store, artifacts)],
        check=database.check,
        close=database.close,
    )


def _seal(settings: RegistrySettings) -> Seal:
    return Seal.load_or_create(settings.webhook_key_file or settings.home / "registry-webhook-key")


if __name__ == "__main__":
    run("registry", RegistrySettings, main)
