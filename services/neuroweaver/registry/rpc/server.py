"""RegistryService over gRPC, out of its parts: requests to operations, records to responses."""

from __future__ import annotations

from typing import Final

from neuroweaver.mesh.handlers.mutations import Mutations
from neuroweaver.mesh.handlers.read_cache import ReadCache
from neuroweaver.mesh.handlers.servicer import composed
from neuroweaver.mesh.wire.signing import SigningKey
from neuroweaver.registry.artifacts.store import ArtifactStore
from neuroweaver.registry.domain.sealing import Seal
from neuroweaver.registry.rpc.downloads import Downloads
from neuroweaver.registry.rpc.files import Files
from neuroweaver.registry.rpc.history import History
from neuroweaver.registry.rpc.models import Models
from neuroweaver.registry.rpc.releases import Releases
from neuroweaver.registry.rpc.versions import Versions
from neuroweaver.registry.rpc.webhooks import Webhooks
from neuroweaver.registry.storage.store import Store
from neuroweaver.registry.storage.writer import Writer
from neuroweaver.v1 import registry_pb2
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceServicer

SERVICE: Final = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"]


def servicer(
    store: Store,
    artifacts: ArtifactStore,
    key: SigningKey,
    seal: Seal,
    *,
    most_downloads: int,
    allow_private_webhooks: bool = False,
) -> RegistryServiceServicer:
    mutations: Mutations[Writer] = Mutations(store, SERVICE)
    answers = ReadCache(store.revisions())
    return composed(
        RegistryServiceServicer,
        Models(store, mutations, artifacts),
        Versions(store, mutations, artifacts, answers),
        Releases(store, mutations, artifacts, answers),
        History(store, key),
        Files(store, artifacts, Downloads(most_downloads)),
        Webhooks(store, mutations, seal, allow_private=allow_private_webhooks),
    )
