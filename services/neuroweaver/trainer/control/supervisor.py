"""Gives queued jobs to workers, takes in what workers report, and notices when one has gone."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from neuroweaver.mesh.wire.errors import FailedPrecondition
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.trainer.domain.job import OUT_OF_MEMORY_ADVICE, Job, State
from neuroweaver.trainer.executors.executor import LOG_NAME, Executor, Exit, Worker
from neuroweaver.trainer.storage.jobs import Writer
from neuroweaver.trainer.storage.store import SUPERVISOR, Key, Store
from neuroweaver.v1 import trainer_pb2 as pb
from neuroweaver.v1 import worker_pb2

_LOG: Final = logging.getLogger("neuroweaver.trainer")

POLL_S: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Policy:
    """slots: workers at the same time. lease_s: how long a worker may be silent before it counts as lost.

    cancel_s: how long a worker may take to stop before it is killed. shutdown_s: the same when the trainer
    ends.
    """

    slots: int = 1
    lease_s: float = 60.0
    cancel_s: float = 120.0
    shutdown_s: float = 15.0


class Supervisor:
    """The one writer of a running job's state.

    A lease is lost by silence that this process has observed, never by comparing clocks: after a restart
    every worker has a full `lease_s` to be heard again.
    """

    def __init__(
        self,
        store: Store,
        executor: Executor,
        jobs_folder: Path,
        policy: Policy,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self._executor = executor
        self._jobs_folder = jobs_folder
        self._policy = policy
        self._monotonic = monotonic
        self._last_heard: dict[Key, float] = {}
        self._cancelling_since: dict[Key, float] = {}
        self._workers: dict[Key, Worker] = {}
        self._tending: set[asyncio.Task[None]] = set()
        self._is_closing = False

    async def run(self) -> None:
        """Until cancelled: start what is queued, end what is lost."""
        while True:
            seen = self.store.queue_changed.count
            await self.end_lost()
            while job := await self.store.start_next(self._policy.slots):
                # A task of its own, so that `close` knows of a worker that is just being started when this
                # loop ends.
                task = asyncio.create_task(self._tend(job))
                self._tending.add(task)
                task.add_done_callback(self._tending.discard)
            await self.store.queue_changed.wait(seen, POLL_S)

    async def report(self, project: str, request: worker_pb2.ReportRequest) -> Job:
        """Stores a worker's report, and returns the job; a report that is stored already changes nothing.

        Raises NotFound, and FailedPrecondition if the worker's lease is no longer the job's.
        """
        if request.number == 0:
            job = await self.held_job(project, request)
        else:
            origin = ChangeOrigin(project, SUPERVISOR)
            job = await self.store.transact(origin, lambda jobs: _store_report(jobs, request))
        self._last_heard[_key(job)] = self._monotonic()
        return job

    async def held_job(self, project: str, request: worker_pb2.ReportRequest) -> Job:
        """The job of the worker that sent a report; no sign of that worker's life. Raises as `report`."""
        async with self.store.read(project) as jobs:
            job = await jobs.job(request.job_id)
        _is_stored(job, request)
        return job

    async def close(self) -> None:
        """Ends the workers of this machine; their jobs are queued again and go on from their checkpoints."""
        self._is_closing = True
        for worker in self._workers.values():
            worker.stop()
        if self._tending:
            await asyncio.wait(self._tending, timeout=self._policy.shutdown_s)
        for worker in list(self._workers.values()):
            worker.kill()
        if self._tending:
            await asyncio.wait(self._tending)

    async def _tend(self, job: Job) -> None:
        """Starts a job's worker and waits for its end.

        A worker that ends without having said how leaves a job that must not stay RUNNING.
        """
        key = _key(job)
        self._last_heard[key] = self._monotonic()
        try:
            worker = await self._executor.start(job, self._jobs_folder / job.output_dir)
        except OSError as error:
            _LOG.exception("cannot start a worker", extra={"job_id": job.job_id})
            reason = "DISK_FULL" if error.errno == errno.ENOSPC else "INTERNAL"
            await self._fail(job, reason, f"the worker could not be started: {error.strerror}")
            return
        self._workers[key] = worker
        if self._is_closing:
            worker.stop()
        ended = await worker.wait()
        self._workers.pop(key, None)
        if self._is_closing:
            await self._change(job, Job.release)
        else:
            await self._fail(job, *_reason_of(ended))

    async def end_lost(self) -> None:
        """Fails the jobs whose worker has been silent, or has been asked to stop, for too long."""
        held = await self.store.held()
        now = self._monotonic()
        self._last_heard = {_key(job): self._last_heard.get(_key(job), now) for job in held}
        cancelling = [job for job in held if job.state == State.JOB_STATE_CANCELLING]
        self._cancelling_since = {_key(job): self._cancelling_since.get(_key(job), now) for job in cancelling}
        for job in held:
            silent_s = now - self._last_heard[_key(job)]
            if silent_s > self._policy.lease_s:
                await self._lose(job, f"the worker has not reported for {silent_s:.0f} s")
        for job in cancelling:
            if now - self._cancelling_since[_key(job)] > self._policy.cancel_s:
                await self._lose(job, "the worker did not stop in time")

    async def _lose(self, job: Job, message: str) -> None:
        worker = self._workers.get(_key(job))
        if worker is not None:
            worker.kill()
        await self._fail(job, "WORKER_LOST", message)

    async def _fail(self, job: Job, reason: str, message: str) -> None:
        def fail(held: Job, now: datetime) -> Job:
            failure = pb.Failure(reason=reason, message=message, stage=held.stage, is_resumable=True)
            finished = pb.JobFinished(state=State.JOB_STATE_FAILED, failure=failure)
            return held.observe(pb.TrainingEvent(finished=finished), now)

        await self._change(job, fail)

    async def _change(self, job: Job, change: Callable[[Job, datetime], Job]) -> None:
        """Changes a job if the worker with the same lease still holds it."""

        async def work(jobs: Writer) -> None:
            held = await jobs.job(job.job_id)
            if held.holds_lease(job.lease_token):
                await jobs.save(change(held, jobs.now))

        await self.store.transact(ChangeOrigin(job.project, SUPERVISOR), work)


async def _store_report(jobs: Writer, request: worker_pb2.ReportRequest) -> Job:
    job = await jobs.job(request.job_id)
    if _is_stored(job, request):
        return job
    job = replace(job, reported=request.number)
    if request.WhichOneof("report") == "log":
        job = await jobs.append_log(job, request.log)
    else:
        job = job.observe(request.event, jobs.now)
    return await jobs.save(job)


def _is_stored(job: Job, request: worker_pb2.ReportRequest) -> bool:
    """Whether the report was stored before; one without a number has nothing to store.

    Raises FailedPrecondition if the worker's lease is no longer the job's.
    """
    is_repeated = request.number <= job.reported
    # A worker's last word may be repeated after it was stored and the job has ended.
    was_its_last = job.is_terminal and request.lease_token == job.lease_token and is_repeated
    if not (was_its_last or job.holds_lease(request.lease_token)):
        raise FailedPrecondition("LEASE_LOST", f"job {job.job_id} is no longer held by this worker")
    return is_repeated


def _key(job: Job) -> Key:
    return job.project, job.job_id


def _reason_of(ended: Exit) -> tuple[str, str]:
    """The reason and the sentence for a worker that ended without a report."""
    if ended.ran_out_of_memory:
        return (
            "OUT_OF_MEMORY",
            f"the machine ran out of memory and the worker was killed; {OUT_OF_MEMORY_ADVICE}",
        )
    if ended.status < 0:
        cause = f": {ended.cause}" if ended.cause else ""
        return "WORKER_KILLED", f"the worker was killed by signal {-ended.status}{cause}"
    cause = ended.cause or f"its {LOG_NAME} says why"
    return "WORKER_ENDED", f"the worker ended with status {ended.status}: {cause}"
