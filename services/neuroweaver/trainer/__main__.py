"""Starts the Trainer: `python -m neuroweaver.trainer`."""

from __future__ import annotations

import os

import grpc

from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.migrations import migrate
from neuroweaver.mesh.server.serve import Service, run, serve
from neuroweaver.trainer.control.admission import ServerCapabilities
from neuroweaver.trainer.control.supervisor import Policy, Supervisor
from neuroweaver.trainer.executors.local import LocalExecutor
from neuroweaver.trainer.rpc import server
from neuroweaver.trainer.rpc.worker_service import WorkerServicer
from neuroweaver.trainer.settings import TrainerSettings
from neuroweaver.trainer.storage.store import Store
from neuroweaver.v1 import trainer_pb2_grpc, worker_pb2_grpc


async def main(settings: TrainerSettings) -> None:
    database = Database(settings.database_url, settings.service)
    await migrate(database, "neuroweaver.trainer")
    capabilities = ServerCapabilities(
        home=settings.home,
        data_folder=settings.data_folder,
        feedback_model=settings.feedback_model,
        has_judge_endpoint=settings.has_judge_key or settings.has_judge_url,
    )
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    environ = dict(os.environ) | {
        "NEUROWEAVER_HOME": str(settings.home),
        "NEUROWEAVER_DATA": str(settings.data_folder),
        "NEUROWEAVER_TRAINER_ADDRESS": settings.addresses["trainer"],
        "NEUROWEAVER_REGISTRY_ADDRESS": settings.addresses["registry"],
    }
    store = Store(database)
    supervisor = Supervisor(
        store, LocalExecutor(environ), settings.home / "jobs", Policy(slots=settings.slots)
    )
    servicer = server.servicer(store, capabilities)

    def add(grpc_server: grpc.aio.Server) -> None:
        trainer_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, grpc_server)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerServicer(supervisor), grpc_server)

    async def close() -> None:
        await supervisor.close()
        await database.close()

    service = Service(
        names=[server.SERVICE.full_name, "neuroweaver.v1.WorkerService"],
        add=add,
        background=[supervisor.run],
        close=close,
    )
    await serve(service, settings)


if __name__ == "__main__":
    run("trainer", TrainerSettings, main)
