"""A Registry and a Deployer on free ports of this process, and requests that most tests make."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from prometheus_client import CollectorRegistry

from databases import prepare
from deployer.fakes import FakeBackend
from neuroweaver.deployer.artifacts.versions import Versions
from neuroweaver.deployer.control.follower import Follower
from neuroweaver.deployer.control.reconciler import Pace, Reconciler
from neuroweaver.deployer.domain.backend import Key
from neuroweaver.deployer.domain.specification import Defaults
from neuroweaver.deployer.planning import Planner
from neuroweaver.deployer.rpc import server
from neuroweaver.deployer.rpc.deployments import answer
from neuroweaver.deployer.settings import DeployerSettings
from neuroweaver.deployer.storage.store import Store
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.server.serve import Service, running
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.mesh.wire.settings import Settings
from neuroweaver.registry.__main__ import service as registry_service
from neuroweaver.registry.settings import RegistrySettings
from neuroweaver.v1 import deployer_pb2 as pb
from neuroweaver.v1 import registry_pb2
from neuroweaver.v1.deployer_pb2_grpc import DeployerServiceStub, add_DeployerServiceServicer_to_server
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub
from registry.calls import safetensors, upload

S = TypeVar("S", bound=Settings)

KEY = Key("default", "advisor", "default")
QUICK = Pace(
    settled_s=0.2, moving_s=0.02, least_s=0.0, measured_s=0.0, logged_s=0.05, listed_s=0.2, max_backoff_s=0.2
)


@dataclass
class World:
    registry: Any
    deployer: Any
    store: Store
    backend: FakeBackend
    planner: Planner
    reconciler: Reconciler
    follower: Follower
    folder: Path

    async def settle(self, key: Key = KEY, looks: int = 60) -> pb.Deployment:
        """Looks again and again, as the loop would, until a look changes nothing; gives the deployment."""
        before = None
        for _ in range(looks):
            await self.reconciler.look(key)
            after = await self.seen(key)
            if after is None or after == before:
                return after
            before = after
        raise AssertionError(f"not settled after {looks} looks: {before}")

    async def seen(self, key: Key = KEY) -> Any:
        """The deployment, whatever became of it."""
        async with self.store.read(key.project) as deployments:
            kept = await deployments.find(key)
        return answer(kept) if kept else None

    async def events(self, key: Key = KEY) -> list[pb.DeploymentEvent]:
        """All that are kept, whoever made it anew."""
        async with self.store.read(key.project) as deployments:
            return await deployments.events(key, 0, 10_000)

    async def kinds(self, key: Key = KEY) -> list[str]:
        return [event.WhichOneof("event") for event in await self.events(key)]


@asynccontextmanager
async def world(database_url: str, folder: Path) -> AsyncIterator[World]:
    """Both services over one kind of database. The loop is left to the test: `world.reconciler`."""
    async with AsyncExitStack() as stack:
        registry, _ = await stack.enter_async_context(registry_of(database_url, folder))
        if "sqlite" in database_url:
            await prepare(database_url, "neuroweaver.deployer")
        own = Database(database_url, schema="deployer")
        stack.push_async_callback(own.close)
        store, backend = Store(own), FakeBackend()
        backends = {pb.DEPLOYMENT_BACKEND_LOCAL: backend, pb.DEPLOYMENT_BACKEND_KUBERNETES: backend}
        planner = Planner(backends, Versions(registry), Defaults(image="serving:1"))
        servicer = server.servicer(store, planner)
        served = Service(
            names=[server.SERVICE.full_name],
            add=lambda grpc_server: add_DeployerServiceServicer_to_server(servicer, grpc_server),
        )
        running_server = await stack.enter_async_context(
            running(
                served,
                _settings(DeployerSettings, database_url, folder, deployment_backend="local"),
                registry=CollectorRegistry(),
            )
        )
        client = await stack.enter_async_context(channel(running_server.address))
        yield World(
            registry,
            DeployerServiceStub(client),
            store,
            backend,
            planner,
            Reconciler(store, backends, pace=QUICK),
            Follower(store, planner, registry, period_s=0.1),
            folder,
        )


@asynccontextmanager
async def registry_of(database_url: str, folder: Path) -> AsyncIterator[tuple[Any, str]]:
    """A stub of a real server, and its address."""
    if "sqlite" in database_url:
        url = f"sqlite:///{folder / 'registry.db'}"
        await prepare(url, "neuroweaver.registry")
    else:  # which a Deployer shares
        url = database_url
        await prepare(url, "neuroweaver.registry", "neuroweaver.deployer")
    database = Database(url, schema="registry")
    settings = _settings(RegistrySettings, url, folder)
    async with (
        running(registry_service(database, settings), settings, registry=CollectorRegistry()) as served,
        channel(served.address) as client,
    ):
        yield RegistryServiceStub(client), served.address


def _settings(kind: type[S], url: str, folder: Path, **given: Any) -> S:
    return kind(home=folder, port=0, metrics_port=0, database_url=url, drain_s=0.2, **given)


async def publish(registry: Any, *versions: str, model_id: str = "advisor") -> None:
    """A model with validated versions, `production` naming the first."""
    await registry.RegisterModel(
        registry_pb2.RegisterModelRequest(model=registry_pb2.Model(model_id=model_id), allow_existing=True)
    )
    for version in versions:
        weights = await upload(registry, safetensors(version.encode()), "model.safetensors")
        await registry.CreateModelVersion(
            registry_pb2.CreateModelVersionRequest(
                model_id=model_id,
                version=version,
                artifacts=[weights],
                state=registry_pb2.VERSION_STATE_VALIDATED,
            )
        )
    await move(registry, versions[0], model_id=model_id)


async def move(registry: Any, version: str, *, alias: str = "production", model_id: str = "advisor") -> None:
    await registry.SetAlias(registry_pb2.SetAliasRequest(model_id=model_id, alias=alias, version=version))


async def deploy(world: World, spec: pb.DeploymentSpec | None = None, **fields: Any) -> pb.Deployment:
    request = {"model_id": "advisor", "spec": spec or pb.DeploymentSpec()} | fields
    return await world.deployer.DeployModel(pb.DeployModelRequest(**request))


async def served(
    world: World,
    spec: pb.DeploymentSpec | None = None,
    *,
    versions: Sequence[str] = ("1.0.0",),
    model_id: str = "advisor",
    **fields: Any,
) -> pb.Deployment:
    """A deployment of the first of these versions, or by a spec, once it is settled."""
    await publish(world.registry, *versions, model_id=model_id)
    await deploy(world, spec, model_id=model_id, **fields)
    return await world.settle(Key("default", model_id, "default"))


@asynccontextmanager
async def beside(*work: Coroutine[Any, Any, object]) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """What goes on during the block, and is cancelled at its end."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def get(world: World, model_id: str = "advisor", name: str = "") -> pb.Deployment:
    return await world.deployer.GetDeployment(pb.GetDeploymentRequest(model_id=model_id, name=name))


async def until(holds: Callable[[], Awaitable[Any]], seconds: float = 120.0) -> Any:
    """What `holds` gives once that is true."""
    give_up = time.monotonic() + seconds
    while True:
        found = await holds()
        if found:
            return found
        assert time.monotonic() < give_up, "waited in vain"
        await asyncio.sleep(0.02)


async def refusal(call: Any) -> grpc.RpcError:
    from registry.calls import refusal as refused

    return await refused(call)
