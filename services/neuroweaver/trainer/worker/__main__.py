"""A job's worker process, started by the trainer: `python -m neuroweaver.trainer.worker`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

from neuroweaver.mesh.server import logs
from neuroweaver.mesh.wire import telemetry
from neuroweaver.mesh.wire.channel import sync_channel
from neuroweaver.trainer.settings import TrainerSettings
from neuroweaver.trainer.worker.process.link import NO_ANSWER, RECONNECT_S, Link, LinkHandler
from neuroweaver.trainer.worker.process.monitor import Stopped
from neuroweaver.trainer.worker.process.stages import Stages
from neuroweaver.v1 import registry_pb2_grpc, trainer_pb2_grpc
from neuroweaver.v1 import trainer_pb2 as pb

_LOG: Final = logging.getLogger("neuroweaver.trainer.worker")

# A trainer that comes back must find out how the job ended; one that shuts us down no longer listens.
DELIVERY_S: Final = 24 * 3600.0
SHUTDOWN_DELIVERY_S: Final = 2.0


@dataclass(frozen=True)
class Assignment:
    """The job that the trainer gives a worker, by environment and standard input."""

    job_id: str
    lease_token: int
    secret: str = field(repr=False)
    folder: Path
    settings: TrainerSettings

    @classmethod
    def received(cls, environ: Mapping[str, str], secret: str) -> Assignment:
        """Raises KeyError naming what is missing: workers are started by the trainer, not by hand."""
        return cls(
            job_id=environ["NEUROWEAVER_JOB_ID"],
            lease_token=int(environ["NEUROWEAVER_LEASE_TOKEN"]),
            secret=secret,
            folder=Path(environ["NEUROWEAVER_JOB_FOLDER"]),
            settings=TrainerSettings.from_environment(environ),
        )


def main() -> int:
    assignment = Assignment.received(os.environ, sys.stdin.readline().strip())
    logs.configure("trainer-worker", debug=assignment.settings.debug, log_format="json")
    provider = telemetry.start("trainer-worker", assignment.settings.otlp_endpoint)
    with telemetry.continued(os.environ), telemetry.tracer.start_as_current_span("training job") as span:
        span.set_attribute("neuroweaver.job_id", assignment.job_id)
        status = work(assignment)
    provider.shutdown()
    return status


def work(assignment: Assignment) -> int:
    """Run the job and tell the trainer how it ended; returns the exit status."""
    link = Link(
        f"unix:{assignment.settings.worker_socket}",
        assignment.job_id,
        assignment.lease_token,
        assignment.secret,
    )
    logging.getLogger("neuroweaver").addHandler(LinkHandler(link, os.environ))
    is_shut_down = False

    def shut_down(_number: int, _frame: Any) -> None:
        nonlocal is_shut_down
        is_shut_down = True
        link.must_stop.set()

    signal.signal(signal.SIGTERM, shut_down)
    # Ctrl-C goes to the whole terminal; the trainer decides what becomes of its jobs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    finished = run(assignment, link)
    if finished.state == pb.JOB_STATE_CANCELLED and is_shut_down:
        finished.state = pb.JOB_STATE_QUEUED
    link.event(pb.TrainingEvent(finished=finished))
    is_delivered = link.close(SHUTDOWN_DELIVERY_S if is_shut_down else DELIVERY_S)
    return 0 if is_delivered and finished.state == pb.JOB_STATE_SUCCEEDED else 1


def job_of(
    assignment: Assignment, trainer: trainer_pb2_grpc.TrainerServiceStub, must_stop: threading.Event
) -> pb.TrainingJob:
    """Waits for a trainer that is away. Raises Stopped if the job is to stop, grpc.RpcError."""
    request = pb.GetTrainingJobRequest(job_id=assignment.job_id)
    while True:
        try:
            return trainer.GetTrainingJob(request, timeout=60)
        except grpc.RpcError as error:
            if error.code() not in NO_ANSWER:
                raise
        if must_stop.wait(RECONNECT_S):
            raise Stopped


def run(assignment: Assignment, link: Link) -> pb.JobFinished:
    """How the job ended."""
    # With the link up: importing torch can take longer than a trainer waits for a worker that is silent.
    from neuroweaver.trainer.worker import pipeline  # noqa: PLC0415
    from neuroweaver.trainer.worker.context import JobContext  # noqa: PLC0415
    from neuroweaver.trainer.worker.failures import explain  # noqa: PLC0415

    stages = Stages(assignment.folder / "stages", link, link.must_stop)
    try:
        with (
            sync_channel(assignment.settings.addresses["trainer"]) as trainer,
            sync_channel(assignment.settings.addresses["registry"]) as registry,
        ):
            stub = trainer_pb2_grpc.TrainerServiceStub(trainer)
            job = job_of(assignment, stub, link.must_stop)
            context = JobContext(
                job=job,
                stages=stages,
                folder=assignment.folder,
                home=assignment.settings.home,
                data_folder=assignment.settings.data_folder,
                registry=registry_pb2_grpc.RegistryServiceStub(registry),
                environ=os.environ,
            )
            result = pipeline.run(context)
    except Stopped:
        return pb.JobFinished(state=pb.JOB_STATE_CANCELLED)
    except Exception as error:  # noqa: BLE001  # whatever it is, the job must end with a reason
        _LOG.exception("the job failed")
        return pb.JobFinished(state=pb.JOB_STATE_FAILED, failure=explain(error, stages.current))
    return pb.JobFinished(state=pb.JOB_STATE_SUCCEEDED, result=result)


if __name__ == "__main__":
    sys.exit(main())
