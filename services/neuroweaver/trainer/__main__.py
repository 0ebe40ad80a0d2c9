"""Starts the Trainer: `python -m neuroweaver.trainer`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import grpc

from neuroweaver.mesh.database import Database
from neuroweaver.mesh.migrations import migrate
from neuroweaver.mesh.serve import Service, run, serve
from neuroweaver.mesh.settings import Settings, SettingsError
from neuroweaver.trainer.admission import EMBEDDED_JUDGE, Premises
from neuroweaver.trainer.executor import LocalExecutor
from neuroweaver.trainer.server import TrainerServicer, WorkerServicer
from neuroweaver.trainer.supervisor import Policy, Supervisor
from neuroweaver.v1 import trainer_pb2_grpc, worker_pb2_grpc


async def main(settings: Settings) -> None:
    database = Database(settings.database_url, settings.service)
    await migrate(database, "neuroweaver.trainer")
    premises = premises_of(settings, os.environ)
    premises.data_folder.mkdir(parents=True, exist_ok=True)
    environ = dict(os.environ) | {
        "NEUROWEAVER_HOME": str(settings.home),
        "NEUROWEAVER_DATA": str(premises.data_folder),
        "NEUROWEAVER_TRAINER_ADDRESS": settings.addresses["trainer"],
        "NEUROWEAVER_REGISTRY_ADDRESS": settings.addresses["registry"],
    }
    supervisor = Supervisor(database, LocalExecutor(environ), settings.home / "jobs", policy_of(os.environ))
    trainer = TrainerServicer(database, supervisor, premises)

    def add(server: grpc.aio.Server) -> None:
        trainer_pb2_grpc.add_TrainerServiceServicer_to_server(trainer, server)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerServicer(supervisor), server)

    async def close() -> None:
        await supervisor.close()
        await database.close()

    service = Service(
        names=["neuroweaver.v1.TrainerService", "neuroweaver.v1.WorkerService"],
        add=add,
        background=[supervisor.run],
        close=close,
    )
    await serve(service, settings)


def premises_of(settings: Settings, environ: Mapping[str, str]) -> Premises:
    """Raises SettingsError."""
    data = Path(environ.get("NEUROWEAVER_DATA") or settings.home / "data").expanduser()
    if not data.is_absolute():
        raise SettingsError(f"NEUROWEAVER_DATA={data} is not an absolute path")
    return Premises(
        home=settings.home,
        data_folder=data,
        feedback_model=environ.get("NEUROWEAVER_FEEDBACK_MODEL") or EMBEDDED_JUDGE,
        has_judge_endpoint=bool(environ.get("OPENAI_API_KEY") or environ.get("OPENAI_BASE_URL")),
    )


def policy_of(environ: Mapping[str, str]) -> Policy:
    """Raises SettingsError."""
    slots = environ.get("NEUROWEAVER_TRAINER_SLOTS") or "1"
    if not (slots.isdecimal() and int(slots) > 0):
        raise SettingsError(f"NEUROWEAVER_TRAINER_SLOTS={slots} is not a number of workers above 0")
    return Policy(slots=int(slots))


if __name__ == "__main__":
    run("trainer", main)
