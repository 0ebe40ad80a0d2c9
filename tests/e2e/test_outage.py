"""All four services over one PostgreSQL that is stopped and started under them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from prometheus_client import REGISTRY, CollectorRegistry

import postgres
from databases import prepare
from deployer.fakes import FakeBackend
from neuroweaver.deployer.__main__ import service as deployer_service
from neuroweaver.deployer.artifacts.versions import Versions
from neuroweaver.deployer.domain.specification import Defaults
from neuroweaver.deployer.planning import Planner
from neuroweaver.deployer.storage.store import Store
from neuroweaver.experiment.__main__ import service as experiment_service
from neuroweaver.experiment.conclusion.registry import Releases
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.server.serve import Service, running
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.mesh.wire.settings import Settings
from neuroweaver.registry.__main__ import service as registry_service
from neuroweaver.registry.settings import RegistrySettings
from neuroweaver.trainer.__main__ import service as trainer_service
from neuroweaver.trainer.settings import TrainerSettings
from neuroweaver.v1 import deployer_pb2, experiment_pb2, registry_pb2, trainer_pb2
from neuroweaver.v1.deployer_pb2_grpc import DeployerServiceStub
from neuroweaver.v1.experiment_pb2_grpc import ExperimentServiceStub
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub
from neuroweaver.v1.trainer_pb2_grpc import TrainerServiceStub

SERVICES = ("registry", "trainer", "deployer", "experiment")
# What each of them does by itself, as its metrics call it.
LOOPS = ("health", "supervisor", "webhooks", "lease", "experiments")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PATIENCE_S = 120.0


@dataclass
class Served:
    """A service that runs, and a call that reads its database."""

    health: health_pb2_grpc.HealthAsyncStub
    read: Any
    request: Any

    async def comes_to(self, status: int) -> None:
        async for told in self.health.Watch(health_pb2.HealthCheckRequest()):
            if told.status == status:
                return


@pytest.fixture(scope="module")
def database_server() -> Iterator[postgres.Server]:
    folder = postgres.binaries()
    if folder is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    with postgres.controlled(folder) as server:
        yield server


@asynccontextmanager
async def mesh(url: str, home: Path) -> AsyncIterator[dict[str, Served]]:
    await prepare(url, *(f"neuroweaver.{name}" for name in SERVICES))
    async with AsyncExitStack() as stack:
        common: dict[str, Any] = {
            "home": home,
            "port": 0,
            "metrics_port": 0,
            "database_url": url,
            "drain_s": 0.0,
            "addresses": dict.fromkeys(SERVICES, "127.0.0.1:1"),
        }

        async def started(service: Service, settings: Settings) -> grpc.aio.Channel:
            server = running(service, settings, registry=CollectorRegistry())
            address = (await stack.enter_async_context(server)).address
            return await stack.enter_async_context(channel(address))

        def database(name: str) -> Database:
            return Database(url, schema=name)

        of_registry = RegistrySettings(**common)
        registry = await started(registry_service(database("registry"), of_registry), of_registry)
        of_trainer = TrainerSettings(**common, data_folder=home / "data")
        trainer = await started(trainer_service(database("trainer"), of_trainer), of_trainer)
        store, backends = Store(database("deployer")), {deployer_pb2.DEPLOYMENT_BACKEND_LOCAL: FakeBackend()}
        stub = RegistryServiceStub(registry)
        planner = Planner(backends, Versions(stub), Defaults())
        deployer = await started(
            deployer_service(store, planner, backends, stub), Settings(service="deployer", **common)
        )
        experiment = await started(
            experiment_service(database("experiment"), Releases(stub)),
            Settings(service="experiment", **common),
        )
        yield {
            name: Served(health_pb2_grpc.HealthStub(connection), read, request)
            for name, connection, read, request in (
                ("registry", registry, stub.ListModels, registry_pb2.ListModelsRequest()),
                (
                    "trainer",
                    trainer,
                    TrainerServiceStub(trainer).ListTrainingJobs,
                    trainer_pb2.ListTrainingJobsRequest(),
                ),
                (
                    "deployer",
                    deployer,
                    DeployerServiceStub(deployer).ListDeployments,
                    deployer_pb2.ListDeploymentsRequest(),
                ),
                (
                    "experiment",
                    experiment,
                    ExperimentServiceStub(experiment).ListExperiments,
                    experiment_pb2.ListExperimentsRequest(),
                ),
            )
        }


def failures(loop: str) -> float:
    return REGISTRY.get_sample_value("neuroweaver_loop_failures_total", {"loop": loop}) or 0.0


async def until_all_failed(before: dict[str, float], times: int) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while late := [loop for loop in LOOPS if failures(loop) < before[loop] + times]:
        assert time.monotonic() < give_up, f"not met by the outage: {late}"
        await asyncio.sleep(0.05)


def retry_delay_s(error: grpc.aio.AioRpcError) -> float:
    info = error_details_pb2.RetryInfo()
    for detail in rpc_status.from_call(error).details:
        if detail.Unpack(info):
            return info.retry_delay.ToTimedelta().total_seconds()
    raise AssertionError("the error has no RetryInfo")


def told_of(caplog: pytest.LogCaptureFixture, message: str = "") -> list[logging.LogRecord]:
    """What loops have logged."""
    told = [record for record in caplog.records if record.name == "neuroweaver.loop"]
    return [record for record in told if message in record.message]


async def until_told(caplog: pytest.LogCaptureFixture, message: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while late := set(LOOPS) - {record.loop for record in told_of(caplog, message)}:
        assert time.monotonic() < give_up, f"not told of: {late}"
        await asyncio.sleep(0.05)


async def test_every_service_outlives_its_database(database_server, tmp_path, caplog):
    caplog.set_level(logging.INFO, "neuroweaver.loop")
    async with mesh(database_server.database(), tmp_path) as services, asyncio.timeout(2 * PATIENCE_S):
        for served in services.values():
            await served.comes_to(SERVING)
            await served.read(served.request)
        before = {loop: failures(loop) for loop in LOOPS}

        await asyncio.to_thread(database_server.stop)
        for served in services.values():
            await served.comes_to(NOT_SERVING)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await served.read(served.request)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert refused.value.details() == "the database cannot be reached"
            assert retry_delay_s(refused.value) == 1.0
        await until_all_failed(before, 3)

        await asyncio.to_thread(database_server.start)
        for served in services.values():
            await served.comes_to(SERVING)
            await served.read(served.request)
        await until_told(caplog, "recovered")

    told = told_of(caplog)
    assert not [record for record in told if record.levelname == "ERROR"]
    # Each of the loops, of which several have a name, tells of an outage a few times at most: once a cause.
    for loop in LOOPS:
        assert len([record for record in told if record.loop == loop and record.levelname == "WARNING"]) <= 16
