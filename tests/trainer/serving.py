"""A real Trainer on a loopback port whose workers are played by the test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
from prometheus_client import CollectorRegistry

from databases import prepare
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.server.serve import Service, running
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.mesh.wire.settings import Settings
from neuroweaver.trainer.control.admission import ServerCapabilities
from neuroweaver.trainer.control.model_names import CheckName
from neuroweaver.trainer.control.supervisor import Policy, Supervisor
from neuroweaver.trainer.domain.job import Job
from neuroweaver.trainer.executors.executor import Exit
from neuroweaver.trainer.rpc import server
from neuroweaver.trainer.rpc.worker_service import WorkerServicer
from neuroweaver.trainer.storage.store import Store
from neuroweaver.v1 import trainer_pb2 as pb
from neuroweaver.v1 import trainer_pb2_grpc, worker_pb2, worker_pb2_grpc


@dataclass
class PlayedWorker:
    """A worker that does what the test says."""

    job: Job
    secret: str
    ended: asyncio.Future[Exit]
    was_stopped: bool = False

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What proves it to the trainer."""
        return (("authorization", f"Bearer {self.secret}"),)

    async def wait(self) -> Exit:
        return await asyncio.shield(self.ended)

    def end(self, status: int, *, ran_out_of_memory: bool = False) -> None:
        if not self.ended.done():
            self.ended.set_result(Exit(status, ran_out_of_memory))

    def stop(self) -> None:
        self.was_stopped = True

    def kill(self) -> None:
        self.end(-9)


@dataclass
class PlayedExecutor:
    started: list[PlayedWorker] = field(default_factory=list)
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def start(self, job: Job, secret: str, folder: Path) -> PlayedWorker:
        worker = PlayedWorker(job, secret, asyncio.get_running_loop().create_future())
        async with self.arrived:
            self.started.append(worker)
            self.arrived.notify_all()
        return worker

    async def worker(self, number: int = 1) -> PlayedWorker:
        """The worker started as the `number`-th."""
        async with asyncio.timeout(120), self.arrived:
            await self.arrived.wait_for(lambda: len(self.started) >= number)
        return self.started[number - 1]


@dataclass
class Trainer:
    address: str
    stub: trainer_pb2_grpc.TrainerServiceAsyncStub
    worker_stub: worker_pb2_grpc.WorkerServiceAsyncStub
    executor: PlayedExecutor
    supervisor: Supervisor
    store: Store
    data: Path

    async def state(self, job_id: str, wanted: pb.JobState.ValueType) -> pb.TrainingJob:
        """The job, once it is in the wanted state."""
        changed = self.store.signal(("default", job_id))
        async with asyncio.timeout(120):
            while True:
                seen = changed.count
                job = await self.stub.GetTrainingJob(pb.GetTrainingJobRequest(job_id=job_id))
                if job.state == wanted:
                    return job
                await changed.wait(seen, 20)

    async def report(
        self, worker: PlayedWorker, *events: pb.TrainingEvent, first: int = 1
    ) -> worker_pb2.ReportResponse:
        """Sends events as the worker; gives the answer to the last one."""
        call = self.worker_stub.Report(metadata=worker.metadata)
        answer = worker_pb2.ReportResponse()
        for number, event in enumerate(events, first):
            await call.write(
                worker_pb2.ReportRequest(
                    job_id=worker.job.job_id, lease_token=worker.job.lease_token, number=number, event=event
                )
            )
            answer = await call.read()
            if answer is grpc.aio.EOF:
                await call  # raises what the server said
        await call.done_writing()
        return answer


async def _any_name(name: str) -> None:
    """As while no Registry is there."""


@asynccontextmanager
async def trainer(
    home: Path,
    database_url: str = "",
    policy: Policy | None = None,
    capabilities: ServerCapabilities | None = None,
    monotonic: Callable[[], float] = time.monotonic,
    check_name: CheckName | None = None,
) -> AsyncIterator[Trainer]:
    url = database_url or f"sqlite:///{home / 'trainer.db'}"
    await prepare(url, "neuroweaver.trainer")
    database = Database(url, "trainer")
    executor = PlayedExecutor()
    data = home / "data"
    data.mkdir(parents=True, exist_ok=True)
    store = Store(database)
    policy = policy or Policy(shutdown_s=0.1)
    supervisor = Supervisor(store, executor, home / "jobs", policy, monotonic=monotonic)
    capabilities = capabilities or ServerCapabilities(home=home, data_folder=data)
    servicer = server.servicer(store, capabilities, check_name or _any_name)

    def add(grpc_server: grpc.aio.Server) -> None:
        trainer_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, grpc_server)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerServicer(supervisor), grpc_server)

    async def close() -> None:
        await supervisor.close()
        await database.close()

    settings = Settings(
        service="trainer", home=home, port=0, metrics_port=0, database_url=database_url, drain_s=0.2
    )
    names = ["neuroweaver.v1.TrainerService", "neuroweaver.v1.WorkerService"]
    with TemporaryDirectory() as folder:  # the test's own may have too long a path for a socket
        socket = Path(folder) / "run" / "trainer.sock"
        service = Service(names=names, add=add, socket=socket, background=[supervisor.run], close=close)
        async with (
            running(service, settings, registry=CollectorRegistry()) as started,
            channel(started.address) as connection,
            channel(f"unix:{socket}") as workers,
        ):
            yield Trainer(
                started.address,
                trainer_pb2_grpc.TrainerServiceStub(connection),
                worker_pb2_grpc.WorkerServiceStub(workers),
                executor,
                supervisor,
                store,
                data,
            )
