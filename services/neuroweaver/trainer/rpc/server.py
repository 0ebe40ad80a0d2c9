"""The Trainer's servicers: proto to domain and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message
from opentelemetry import trace
from sqlalchemy import ColumnElement
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.idempotency import once
from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.handlers.legacy import follow
from neuroweaver.mesh.wire import telemetry
from neuroweaver.mesh.wire.clock import utc_now
from neuroweaver.mesh.wire.errors import Error, FailedPrecondition, InvalidArgument, Unimplemented
from neuroweaver.mesh.wire.ids import new_id
from neuroweaver.trainer.control import admission
from neuroweaver.trainer.control.supervisor import Supervisor
from neuroweaver.trainer.data.specialization import load_specializations
from neuroweaver.trainer.domain.job import Job, State, TransitionRefused
from neuroweaver.trainer.rpc.messages import template, to_proto, validate_dataset
from neuroweaver.trainer.storage.store import JOBS, Jobs
from neuroweaver.v1 import common_pb2, trainer_pb2_grpc
from neuroweaver.v1 import trainer_pb2 as pb

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    database: Database
    supervisor: Supervisor
    premises: admission.Premises

    async def StartTraining(self, request: pb.StartTrainingRequest, context: Any) -> pb.TrainingJob:
        project = caller_of(context).project
        # Reading the data set and asking a model hub take long: neither belongs on the event loop or in a
        # transaction. A retry is answered from the store whatever has become of the file since.
        refusal: Error | None = None
        try:
            admitted = await asyncio.to_thread(admission.admit, request.config, self.premises)
        except Error as error:
            refusal = error

        async def start(jobs: Jobs) -> Job:
            if refusal is not None:
                raise refusal
            return await jobs.add(
                Job(
                    job_id=request.job_id or new_id(),
                    project=project,
                    config=admitted.config,
                    dataset_digest=admitted.dataset_digest,
                    create_time=utc_now(),
                    trace_parent=telemetry.to_environment().get("TRACEPARENT", ""),
                )
            )

        return await self._mutate("StartTraining", project, request, start)

    async def GetTrainingJob(self, request: pb.GetTrainingJobRequest, context: Any) -> pb.TrainingJob:
        async with self.database.read() as connection:
            return to_proto(await Jobs(connection).get(caller_of(context).project, request.job_id))

    async def ListTrainingJobs(
        self, request: pb.ListTrainingJobsRequest, context: Any
    ) -> pb.ListTrainingJobsResponse:
        project = caller_of(context).project
        filters = parse_filter(request.filter)
        page = Page.of(request.page_size, request.page_token, (project, request.filter, request.order_by))
        async with self.database.read() as connection:
            jobs, token = await Jobs(connection).page(
                project, page, filters, descending=request.order_by != "create_time"
            )
        return pb.ListTrainingJobsResponse(jobs=[to_proto(job) for job in jobs], next_page_token=token)

    async def CancelTraining(self, request: pb.CancelTrainingRequest, context: Any) -> pb.TrainingJob:
        project = caller_of(context).project

        async def cancel(jobs: Jobs) -> Job:
            return await jobs.save((await jobs.get(project, request.job_id)).cancel(utc_now()))

        return await self._mutate("CancelTraining", project, request, cancel)

    async def ResumeTraining(self, request: pb.ResumeTrainingRequest, context: Any) -> pb.TrainingJob:
        project = caller_of(context).project

        async def resume(jobs: Jobs) -> Job:
            job = await jobs.get(project, request.job_id)
            try:
                return await jobs.save(job.resume(utc_now()))
            except TransitionRefused as error:
                raise FailedPrecondition("JOB_STATE", str(error), job.job_id) from error

        return await self._mutate("ResumeTraining", project, request, resume)

    async def WatchTraining(
        self, request: pb.WatchTrainingRequest, context: Any
    ) -> AsyncIterator[pb.TrainingEvent]:
        key = (caller_of(context).project, request.job_id)
        end = _End()

        async def load(after: int, limit: int) -> list[pb.TrainingEvent]:
            async with self.database.read() as connection:
                jobs = Jobs(connection)
                end.of(await jobs.get(*key))
                return await jobs.events(*key, after, limit)

        def heartbeat(last: int) -> pb.TrainingEvent:
            return pb.TrainingEvent(
                sequence=last, job_id=request.job_id, heartbeat=common_pb2.Heartbeat(sequence=last)
            )

        signal = self.supervisor.signals.of(key)
        async for event in follow(
            load,
            since=request.since_sequence,
            sequence_of=lambda event: event.sequence,
            is_terminal=lambda event: event.sequence == end.sequence,
            heartbeat=heartbeat,
            signal=signal,
        ):
            yield event

    async def WatchLogs(self, request: pb.WatchLogsRequest, context: Any) -> AsyncIterator[pb.LogLine]:
        key = (caller_of(context).project, request.job_id)
        signal = self.supervisor.signals.of(key)
        last = request.since_sequence
        while True:
            seen = signal.count
            async with self.database.read() as connection:
                jobs = Jobs(connection)
                job = await jobs.get(*key)
                lines = await jobs.logs(*key, last, 256)
            for line in lines:
                yield line
                last = line.sequence
            if last >= job.last_log_sequence and (job.is_terminal or not request.follow):
                return
            if not lines:
                await signal.wait(seen, timeout_s=1.0)

    async def ValidateDataset(
        self, request: pb.ValidateDatasetRequest, context: Any
    ) -> pb.ValidateDatasetResponse:
        del context
        if request.specialization:
            admission.check_specialization(request.specialization)
        return await asyncio.to_thread(validate_dataset, request, self.premises)

    async def ListTemplates(self, request: pb.ListTemplatesRequest, context: Any) -> pb.ListTemplatesResponse:
        del request, context
        known = load_specializations()
        return pb.ListTemplatesResponse(templates=[template(known[name]) for name in sorted(known)])

    async def EstimateTraining(
        self, request: pb.EstimateTrainingRequest, context: Any
    ) -> pb.EstimateTrainingResponse:
        del request, context
        raise Unimplemented("this server does not estimate jobs yet; start one with few rows to measure")

    def EvaluateModel(
        self, request: pb.EvaluateModelRequest, context: Any
    ) -> AsyncIterator[pb.EvaluationEvent]:
        del request, context
        raise Unimplemented("this server evaluates models only as the validation stage of a training job")

    async def _mutate(
        self, method: str, project: str, request: Any, operation: Callable[[Jobs], Awaitable[Job]]
    ) -> pb.TrainingJob:
        """Run a change of a job in one transaction, once for each request id, and tell whoever watches."""
        changed: list[Job] = []

        async def work(connection: AsyncConnection) -> pb.TrainingJob:
            changed.clear()

            async def run() -> pb.TrainingJob:
                changed.append(await operation(Jobs(connection)))
                return to_proto(changed[0])

            return await once(Scope(connection, project), method, request, pb.TrainingJob, run)

        answer = await self.database.transact(work)
        trace.get_current_span().set_attribute("neuroweaver.job_id", answer.job_id)
        for job in changed:
            self.supervisor.changed(job)
        return answer


class Scope:
    def __init__(self, connection: AsyncConnection, project: str) -> None:
        self.connection, self.project = connection, project


class _End:
    """The sequence after which a watch has nothing more to show, as of the last look at the job."""

    sequence: int = -1

    def of(self, job: Job) -> None:
        self.sequence = job.last_sequence if job.is_terminal else -1


def parse_filter(text: str) -> Sequence[ColumnElement[bool]]:
    """Conditions for `state=RUNNING AND model_name=x`. Raises InvalidArgument."""
    conditions: list[ColumnElement[bool]] = []
    for term in filter(None, (part.strip() for part in text.split(" AND "))):
        name, equals, value = (part.strip() for part in term.partition("="))
        if name == "state" and f"JOB_STATE_{value}" in State.keys():  # noqa: SIM118  # no dict
            conditions.append(JOBS.c.state == State.Value(f"JOB_STATE_{value}"))
        elif name == "model_name" and equals and value:
            conditions.append(JOBS.c.model_name == value)
        else:
            known = "state=<QUEUED, RUNNING, …> and model_name=<name>, joined by AND"
            raise InvalidArgument("filter", f"cannot read {term!r}; use {known}")
    return conditions
