"""Jobs: started, cancelled, resumed, shown, listed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from opentelemetry import trace

from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.handlers import filters
from neuroweaver.mesh.handlers.mutations import Mutations
from neuroweaver.mesh.wire import telemetry
from neuroweaver.mesh.wire.ids import new_id
from neuroweaver.mesh.wire.threads import in_thread
from neuroweaver.trainer.control.admission import DEADLINE_S, Admitted, ServerCapabilities, admit
from neuroweaver.trainer.control.model_names import CheckName
from neuroweaver.trainer.domain.job import Job
from neuroweaver.trainer.rpc.messages import to_proto
from neuroweaver.trainer.storage.jobs import Writer
from neuroweaver.trainer.storage.store import Store
from neuroweaver.v1 import trainer_pb2 as pb

_FILTERS: Final = ("state", "model_name")


async def start(jobs: Writer, job_id: str, admitted: Admitted) -> pb.TrainingJob:
    job = Job(
        job_id=job_id or new_id(),
        project=jobs.project,
        config=admitted.config,
        dataset_digest=admitted.dataset_digest,
        create_time=jobs.now,
        trace_parent=telemetry.to_environment().get("TRACEPARENT", ""),
    )
    return to_proto(await jobs.add(job))


async def cancel(jobs: Writer, job_id: str) -> pb.TrainingJob:
    job = await jobs.job(job_id)
    return to_proto(await jobs.change("job.cancelled", job.cancel(jobs.now)))


async def resume(jobs: Writer, job_id: str) -> pb.TrainingJob:
    job = await jobs.job(job_id)
    return to_proto(await jobs.change("job.resumed", job.resume(jobs.now)))


class Jobs:
    def __init__(
        self,
        store: Store,
        mutations: Mutations[Writer],
        capabilities: ServerCapabilities,
        check_name: CheckName,
    ) -> None:
        self._store = store
        self._mutations = mutations
        self._capabilities = capabilities
        self._check_name = check_name

    async def StartTraining(self, request: pb.StartTrainingRequest, context: Any) -> pb.TrainingJob:
        # Reading the data set and asking a model hub take long: neither belongs on the event loop or in a
        # transaction, and a retry needs neither.
        answer = await self._mutations.answered(request, context)
        if answer is not None:
            return _traced(answer)
        admitted = await in_thread(
            admit,
            request.config,
            self._capabilities,
            deadline_s=context.time_remaining() or DEADLINE_S,
        )
        await self._check_name(request.config.model_name)
        return await self._change(request, context, lambda jobs: start(jobs, request.job_id, admitted))

    async def CancelTraining(self, request: pb.CancelTrainingRequest, context: Any) -> pb.TrainingJob:
        return await self._change(request, context, lambda jobs: cancel(jobs, request.job_id))

    async def ResumeTraining(self, request: pb.ResumeTrainingRequest, context: Any) -> pb.TrainingJob:
        answer = await self._mutations.answered(request, context)
        if answer is not None:
            return _traced(answer)
        async with self._store.read(caller_of(context).project) as jobs:
            name = (await jobs.job(request.job_id)).config.model_name
        await self._check_name(name)
        return await self._change(request, context, lambda jobs: resume(jobs, request.job_id))

    async def GetTrainingJob(self, request: pb.GetTrainingJobRequest, context: Any) -> pb.TrainingJob:
        async with self._store.read(caller_of(context).project) as jobs:
            return to_proto(await jobs.job(request.job_id))

    async def ListTrainingJobs(
        self, request: pb.ListTrainingJobsRequest, context: Any
    ) -> pb.ListTrainingJobsResponse:
        project = caller_of(context).project
        page = Page.asked(request, project)
        terms = filters.parse(request.filter, _FILTERS)
        async with self._store.read(project) as reader:
            jobs, token = await reader.jobs(page, terms, descending=request.order_by != "create_time")
        return pb.ListTrainingJobsResponse(jobs=map(to_proto, jobs), next_page_token=token)

    async def _change(
        self, request: Any, context: Any, operation: Callable[[Writer], Awaitable[pb.TrainingJob]]
    ) -> pb.TrainingJob:
        return _traced(await self._mutations.run(request, context, operation))


def _traced(job: pb.TrainingJob) -> pb.TrainingJob:
    """The job, named in the call's trace."""
    trace.get_current_span().set_attribute("neuroweaver.job_id", job.job_id)
    return job
