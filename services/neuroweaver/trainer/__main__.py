"""`python -m neuroweaver.trainer`: the Trainer as a process."""

from __future__ import annotations

import os
from datetime import timedelta

import grpc

from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.migrations import migrate
from neuroweaver.mesh.server.serve import Service, run, serve
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.trainer.control.admission import ServerCapabilities
from neuroweaver.trainer.control.housekeeping import keep_house
from neuroweaver.trainer.control.model_names import ModelNames
from neuroweaver.trainer.control.supervisor import Policy, Supervisor
from neuroweaver.trainer.executors.local import LocalExecutor
from neuroweaver.trainer.rpc import server
from neuroweaver.trainer.rpc.worker_service import WorkerServicer
from neuroweaver.trainer.settings import TrainerSettings
from neuroweaver.trainer.storage.store import Store
from neuroweaver.v1 import registry_pb2_grpc, trainer_pb2_grpc, worker_pb2, worker_pb2_grpc

_WORKER_SERVICE = worker_pb2.DESCRIPTOR.services_by_name["WorkerService"]


async def main(settings: TrainerSettings) -> None:
    database = Database(settings.database_url, settings.service)
    await migrate(database, "neuroweaver.trainer")
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    await serve(service(database, settings), settings)


def service(database: Database, settings: TrainerSettings) -> Service:
    """The Trainer over a migrated database, which it closes at its end."""
    store, jobs_folder = Store(database), settings.home / "jobs"
    capabilities = ServerCapabilities(
        home=settings.home,
        data_folder=settings.data_folder,
        feedback_model=settings.feedback_model,
        has_judge_endpoint=settings.has_judge_key or settings.has_judge_url,
    )
    supervisor = Supervisor(
        store, LocalExecutor(_worker_environment(settings)), jobs_folder, Policy(slots=settings.slots)
    )
    days_kept = timedelta(days=settings.days_kept)
    registry = channel(settings.addresses["registry"])
    names = ModelNames(registry_pb2_grpc.RegistryServiceStub(registry))

    def add(grpc_server: grpc.aio.Server) -> None:
        trainer_pb2_grpc.add_TrainerServiceServicer_to_server(
            server.servicer(store, capabilities, names.check), grpc_server
        )
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerServicer(supervisor), grpc_server)

    async def close() -> None:
        await supervisor.close()
        await registry.close()
        await database.close()

    return Service(
        names=[server.SERVICE.full_name, _WORKER_SERVICE.full_name],
        add=add,
        socket=settings.worker_socket,
        background=[supervisor.run, store.topics.run, lambda: keep_house(store, jobs_folder, days_kept)],
        check=database.check,
        close=close,
    )


def _worker_environment(settings: TrainerSettings) -> dict[str, str]:
    return dict(os.environ) | {
        "NEUROWEAVER_HOME": str(settings.home),
        "NEUROWEAVER_DATA": str(settings.data_folder),
        "NEUROWEAVER_TRAINER_ADDRESS": settings.addresses["trainer"],
        "NEUROWEAVER_REGISTRY_ADDRESS": settings.addresses["registry"],
    }


if __name__ == "__main__":
    run("trainer", TrainerSettings, main)
