"""`python -m neuroweaver.registry`: the Registry as a process."""

from __future__ import annotations

from neuroweaver.mesh.database import Database
from neuroweaver.mesh.migrations import migrate
from neuroweaver.mesh.serve import Service, run, serve
from neuroweaver.mesh.settings import Settings
from neuroweaver.mesh.signing import SigningKey
from neuroweaver.registry import memory, server
from neuroweaver.registry.artifacts import ArtifactStore
from neuroweaver.registry.dispatcher import Dispatcher
from neuroweaver.registry.housekeeping import keep_house
from neuroweaver.registry.object_store import connect
from neuroweaver.registry.sender import Sender
from neuroweaver.registry.store import Store
from neuroweaver.v1 import registry_pb2_grpc


async def main(settings: Settings) -> None:
    memory.keep_freed()
    database = Database(settings.database_url, schema="registry")
    await migrate(database, "neuroweaver.registry")
    await serve(service(database, settings), settings)


def service(database: Database, settings: Settings) -> Service:
    """The Registry over a migrated database, which it closes at its end."""
    store = Store(database)
    folder = settings.home / "artifacts"
    artifacts = ArtifactStore(folder, connect(settings.artifacts_url, folder))
    key = SigningKey.load_or_create(settings.audit_key_file or settings.home / "registry-audit-key.pem")
    servicer = server.RegistryServicer(store, artifacts, key)
    dispatcher = Dispatcher(database, Sender(allow_private=settings.webhook_private), changed=store.changed)

    return Service(
        names=[server.NAME],
        add=lambda grpc_server: registry_pb2_grpc.add_RegistryServiceServicer_to_server(
            servicer, grpc_server
        ),
        background=[dispatcher.run, lambda: keep_house(store, artifacts)],
        close=database.close,
    )


if __name__ == "__main__":
    run("registry", main)
