"""The Trainer's servicers: proto to domain and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from google.protobuf.message import Message
from opentelemetry import trace
from sqlalchemy import ColumnElement
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh import telemetry
from neuroweaver.mesh.caller import caller_of
from neuroweaver.mesh.clock import utc_now
from neuroweaver.mesh.database import Database
from neuroweaver.mesh.errors import Error, FailedPrecondition, InvalidArgument, Unimplemented
from neuroweaver.mesh.idempotency import once
from neuroweaver.mesh.ids import new_id
from neuroweaver.mesh.pagination import Page
from neuroweaver.mesh.watch import follow
from neuroweaver.trainer import admission, dataset
from neuroweaver.trainer.model import Job, State, TransitionRefused
from neuroweaver.trainer.rows import Severity
from neuroweaver.trainer.specialization import Specialization, load_specializations
from neuroweaver.trainer.store import JOBS, Jobs
from neuroweaver.trainer.supervisor import Supervisor
from neuroweaver.trainer.tokens import TokenCount, count_tokens
from neuroweaver.v1 import common_pb2, trainer_pb2_grpc, worker_pb2, worker_pb2_grpc
from neuroweaver.v1 import trainer_pb2 as pb

M = TypeVar("M", bound=Message)

DEFAULT_MAX_SEQ_LENGTH: Final = 2048


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

            return await once(
                connection,
                project=project,
                method=method,
                request_id=request.request_id,
                request=request,
                response_type=pb.TrainingJob,
                operation=run,
            )

        answer = await self.database.transact(work)
        trace.get_current_span().set_attribute("neuroweaver.job_id", answer.job_id)
        for job in changed:
            self.supervisor.changed(job)
        return answer


@dataclass(frozen=True)
class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    supervisor: Supervisor

    async def Report(  # type: ignore[override]  # writes to the context instead of yielding
        self, requests: AsyncIterator[worker_pb2.ReportRequest], context: Any
    ) -> None:
        project = caller_of(context).project
        pushing: asyncio.Task[None] | None = None
        lock = asyncio.Lock()

        async def answer(job: Job) -> None:
            should_stop = job.state == State.JOB_STATE_CANCELLING
            async with lock:  # a stream takes one write at a time
                await context.write(
                    worker_pb2.ReportResponse(acknowledged=job.reported, should_stop=should_stop)
                )

        async def push_cancellation(beat: worker_pb2.ReportRequest) -> None:
            """A cancelled job's worker hears of it at once, not with its next report."""
            signal = self.supervisor.signals.of((project, beat.job_id))
            while True:
                seen = signal.count
                job = await self.supervisor.report(project, beat)
                if job.state == State.JOB_STATE_CANCELLING:
                    await answer(job)
                    return
                await signal.wait(seen, timeout_s=60.0)

        try:
            async for request in requests:
                await answer(await self.supervisor.report(project, request))
                if pushing is None:
                    beat = worker_pb2.ReportRequest(job_id=request.job_id, lease_token=request.lease_token)
                    pushing = asyncio.create_task(push_cancellation(beat))
        finally:
            if pushing is not None:
                pushing.cancel()
                await asyncio.gather(pushing, return_exceptions=True)


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


def to_proto(job: Job) -> pb.TrainingJob:
    answer = pb.TrainingJob(
        job_id=job.job_id,
        config=job.config,
        state=job.state,
        stage=job.stage,
        progress=job.progress,
        attempt=job.attempt,
        failure=job.failure,
        result=job.result,
        last_sequence=job.last_sequence,
        dataset_digest=job.dataset_digest,
    )
    answer.create_time.FromDatetime(job.create_time)
    if job.start_time is not None:
        answer.start_time.FromDatetime(job.start_time)
    if job.end_time is not None:
        answer.end_time.FromDatetime(job.end_time)
    return answer


def template(specialization: Specialization) -> pb.SpecializationTemplate:
    return pb.SpecializationTemplate(
        id=specialization.id,
        title=specialization.title,
        description=specialization.description,
        system_prompt=specialization.system_prompt,
        rubric=[
            pb.RubricCriterion(name=each.name, description=each.description, weight=each.weight)
            for each in specialization.rubric
        ],
        evaluation_prompts=[
            pb.EvaluationPrompt(id=each.id, prompt=each.prompt, reference=each.reference)
            for each in specialization.evaluation_prompts
        ],
    )


def validate_dataset(
    request: pb.ValidateDatasetRequest, premises: admission.Premises
) -> pb.ValidateDatasetResponse:
    """What a job would read; blocks for the disk. Raises InvalidArgument."""
    inspection = admission.inspect_dataset(request.dataset_path, request.specialization, premises)
    answer = pb.ValidateDatasetResponse(
        is_usable=inspection.is_usable,
        format=max(inspection.layouts, key=lambda name: inspection.layouts[name], default=""),
        rows=inspection.rows,
        usable_rows=inspection.usable,
        findings=[
            pb.DatasetFinding(
                line=each.line,
                field=each.column_or_field,
                is_error=each.severity is Severity.ERROR,
                reason=each.reason,
            )
            for each in inspection.findings
        ],
        digest=inspection.digest,
    )
    if request.base_model and inspection.usable:
        base = admission.find_base_model(request.base_model, premises)
        examples = dataset.iterate(
            inspection.path, system_prompts=admission.system_prompts(), specialization=request.specialization
        )
        limit = request.max_seq_length or DEFAULT_MAX_SEQ_LENGTH
        _add_counts(answer, count_tokens(base, examples, limit, premises.home))
    return answer


def _add_counts(answer: pb.ValidateDatasetResponse, count: TokenCount) -> None:
    answer.total_tokens = count.total
    answer.trained_tokens = count.trained
    answer.longest_row_tokens = count.longest
    answer.truncated_rows = count.truncated
    answer.preview.extend(
        pb.DatasetSegment(text=text, is_trained=is_trained) for text, is_trained in count.preview
    )
