"""WorkerService over gRPC: a worker's reports up, acknowledgements and cancellation down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.trainer.control.supervisor import Supervisor
from neuroweaver.trainer.domain.job import Job, State
from neuroweaver.v1 import worker_pb2, worker_pb2_grpc

# For cancellations that another process of the trainer stored.
POLL_S: Final = 60.0

_SOCKET: Final = "unix:"
_SCHEME: Final = "Bearer "


@dataclass(frozen=True)
class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    supervisor: Supervisor

    async def Report(  # type: ignore[override]  # writes to the context instead of yielding
        self, requests: AsyncIterator[worker_pb2.ReportRequest], context: Any
    ) -> None:
        project, secret = caller_of(context).project, _secret(context)
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
            signal = self.supervisor.store.signal((project, beat.job_id))
            while True:
                seen = signal.count
                job = await self.supervisor.held_job(project, beat, secret)
                if job.state == State.JOB_STATE_CANCELLING:
                    await answer(job)
                    return
                await signal.wait(seen, POLL_S)

        try:
            async for request in requests:
                await answer(await self.supervisor.report(project, request, secret))
                if pushing is None:
                    beat = worker_pb2.ReportRequest(job_id=request.job_id, lease_token=request.lease_token)
                    pushing = asyncio.create_task(push_cancellation(beat))
        finally:
            if pushing is not None:
                pushing.cancel()
                await asyncio.gather(pushing, return_exceptions=True)


def _secret(context: Any) -> str:
    """What the caller shows as a worker's secret: nothing, unless it came through the workers' socket."""
    if not context.peer().startswith(_SOCKET):
        return ""
    shown = dict(context.invocation_metadata() or ()).get("authorization", "")
    return str(shown).removeprefix(_SCHEME)
