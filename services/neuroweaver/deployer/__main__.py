"""`python -m neuroweaver.deployer`: the Deployer as a process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Final

from neuroweaver.cluster.api import Api
from neuroweaver.cluster.errors import BackendError
from neuroweaver.deployer.artifacts.sources import BaseModels, Files
from neuroweaver.deployer.artifacts.versions import Versions
from neuroweaver.deployer.control.follower import Follower
from neuroweaver.deployer.control.housekeeping import keep_house
from neuroweaver.deployer.control.reconciler import Reconciler
from neuroweaver.deployer.domain.backend import Backend
from neuroweaver.deployer.domain.specification import Defaults
from neuroweaver.deployer.kubernetes.backend import KubernetesBackend
from neuroweaver.deployer.kubernetes.settings import ClusterSettings
from neuroweaver.deployer.local.backend import LocalSettings, local_backend
from neuroweaver.deployer.planning import Backends, Planner
from neuroweaver.deployer.rpc import server
from neuroweaver.deployer.settings import DeployerSettings
from neuroweaver.deployer.storage.lease import Lease, LeaseHolder
from neuroweaver.deployer.storage.store import Store
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.migrations import migrate
from neuroweaver.mesh.server.http_limits import HttpLimits
from neuroweaver.mesh.server.serve import Service, StartError, run, serve
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.mesh.wire.environment import read
from neuroweaver.v1 import deployer_pb2 as pb
from neuroweaver.v1 import deployer_pb2_grpc, registry_pb2_grpc

_BACKENDS: Final[Mapping[str, pb.DeploymentBackend.ValueType]] = {
    "local": pb.DEPLOYMENT_BACKEND_LOCAL,
    "kubernetes": pb.DEPLOYMENT_BACKEND_KUBERNETES,
}


async def main(settings: DeployerSettings) -> None:
    cluster = ClusterSettings.from_environment()
    database = Database(settings.database_url, schema="deployer")
    await migrate(database, "neuroweaver.deployer")
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(channel(settings.addresses["registry"]))
        registry: registry_pb2_grpc.RegistryServiceAsyncStub = registry_pb2_grpc.RegistryServiceStub(
            connection
        )
        store, versions = Store(database), Versions(registry)
        api = Api(cluster.access)
        kubernetes = KubernetesBackend(cluster, api)
        stack.push_async_callback(kubernetes.close)
        backends: dict[int, Backend] = {pb.DEPLOYMENT_BACKEND_KUBERNETES: kubernetes}
        if settings.deployment_backend == "local":
            backends[pb.DEPLOYMENT_BACKEND_LOCAL] = await _local(stack, settings, store, versions)
        defaults = Defaults(_BACKENDS[settings.deployment_backend], cluster.namespace)
        planner = Planner(backends, versions, defaults)
        # The local backend holds a lock on the home folder, where an embedded database lies too.
        is_alone = database.is_sqlite and pb.DEPLOYMENT_BACKEND_LOCAL in backends
        deployer = service(store, planner, backends, registry, is_alone=is_alone)
        await serve(deployer, settings)


def service(
    store: Store,
    planner: Planner,
    backends: Backends,
    registry: registry_pb2_grpc.RegistryServiceAsyncStub,
    *,
    is_alone: bool = False,
) -> Service:
    """The Deployer over a migrated database, which it closes at its end.

    is_alone: no other deployer of this database can be running.
    """
    reconciler = Reconciler(store, backends)
    follower = Follower(store, planner, registry)
    holder = LeaseHolder(store.database, is_alone=is_alone)

    async def lead(lease: Lease) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(reconciler.lead(lease))
            tasks.create_task(follower.run(lease))

    servicer = server.servicer(store, planner)
    return Service(
        names=[server.SERVICE.full_name],
        add=lambda grpc_server: deployer_pb2_grpc.add_DeployerServiceServicer_to_server(
            servicer, grpc_server
        ),
        background=[lambda: holder.run(lead), store.topics.run, lambda: keep_house(store.database)],
        check=store.database.check,
        close=store.database.close,
    )


async def _local(
    stack: AsyncExitStack, settings: DeployerSettings, store: Store, versions: Versions
) -> Backend:
    """Raises StartError if it cannot be had: this machine is what this deployer is for."""
    chosen = LocalSettings(
        home=settings.home, host=settings.host, port=settings.serving_port, limits=read(HttpLimits)
    )
    files, base_models = Files(store, versions), BaseModels(settings.home)
    try:
        return await stack.enter_async_context(local_backend(chosen, files.fetch, base_models.folder))
    except BackendError as error:
        raise StartError(str(error)) from error


if __name__ == "__main__":
    run("deployer", DeployerSettings, main)
