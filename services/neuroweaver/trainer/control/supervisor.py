"""Gives queued jobs to workers, takes in what workers report, and notices when one has gone."""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from neuroweaver.mesh.handlers.loop import Outage, repeat
from neuroweaver.mesh.handlers.signals import Signal
from neuroweaver.mesh.machine import processes
from neuroweaver.mesh.wire.errors import FailedPrecondition, NotFound, PermissionDenied
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.trainer.domain.job import OUT_OF_MEMORY_ADVICE, Job, State, digest_of
from neuroweaver.trainer.executors.executor import LOG_NAME, Executor, Exit, Worker
from neuroweaver.trainer.storage.jobs import Writer
from neuroweaver.trainer.storage.store import SUPERVISOR, Key, Store
from neuroweaver.v1 import trainer_pb2 as pb
from neuroweaver.v1 import worker_pb2

_LOG: Final = logging.getLogger("neuroweaver.trainer")

POLL_S: Final = 1.0

Change = Callable[[Job, datetime], Job]


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
        self._closing = Signal()

    async def run(self) -> None:
        """Until cancelled: start what is queued, end what is lost."""
        await repeat("supervisor", self._turn, POLL_S, wake=self.store.queue_changed)

    async def _turn(self) -> None:
        begun, was_listening = time.monotonic(), False
        try:
            await self.end_lost()
            secret = secrets.token_urlsafe()
            while job := await self.store.start_next(self._policy.slots, digest_of(secret)):
                # A task of its own, so that `close` knows of a worker that is just being started when this
                # loop ends.
                task = asyncio.create_task(self._tend(job, secret))
                self._tending.add(task)
                task.add_done_callback(self._tending.discard)
                secret = secrets.token_urlsafe()
            was_listening = time.monotonic() - begun < self._policy.lease_s / 4
        finally:
            if not was_listening:
                # The database was away, so no report could be taken in: the silence was not the workers'.
                self._last_heard.clear()
                self._cancelling_since.clear()

    async def report(self, project: str, request: worker_pb2.ReportRequest, secret: str) -> Job:
        """Stores a worker's report, and returns the job; a report that is stored already changes nothing.

        secret: what the worker showed; empty: nothing. Raises NotFound, PermissionDenied for another secret
        than the attempt's, and FailedPrecondition if the worker's lease is no longer the job's or a report is
        missing before this one.
        """
        if request.number == 0:
            job = await self.held_job(project, request, secret)
        else:
            origin = ChangeOrigin(project, SUPERVISOR)
            job = await self.store.transact(origin, lambda jobs: _store_report(jobs, request, secret))
        self._last_heard[_key(job)] = self._monotonic()
        return job

    async def held_job(self, project: str, request: worker_pb2.ReportRequest, secret: str) -> Job:
        """The job of the worker that sent a report; no sign of that worker's life. Raises as `report`."""
        async with self.store.read(project) as jobs:
            job = await jobs.job(request.job_id)
        _is_stored(job, request, secret)
        return job

    async def close(self) -> None:
        """Ends the workers of this machine; their jobs are queued again and go on from their checkpoints."""
        self._closing.notify()
        for worker in self._workers.values():
            worker.stop()
        if self._tending:
            await asyncio.wait(self._tending, timeout=self._policy.shutdown_s)
        for worker in list(self._workers.values()):
            worker.kill()
        if self._tending:
            await asyncio.wait(self._tending)

    async def _tend(self, job: Job, secret: str) -> None:
        """Starts a job's worker and waits for its end.

        A worker that ends without having said how leaves a job that must not stay RUNNING.
        """
        key = _key(job)
        self._last_heard[key] = self._monotonic()
        try:
            worker = await self._executor.start(job, secret, self._jobs_folder / job.output_dir)
        except Exception as error:  # noqa: BLE001  # whatever it is, the job must not stay RUNNING
            _LOG.exception("cannot start a worker", extra={"job_id": job.job_id})
            await self._settle(job, partial(_failed, *_reason_of_no_start(error)))
            return
        self._workers[key] = worker
        if self._closing.count:
            worker.stop()
        ended = await worker.wait()
        self._workers.pop(key, None)
        await self._settle(job, Job.release if self._closing.count else partial(_failed, *_reason_of(ended)))

    async def _settle(self, job: Job, change: Change) -> None:
        """Makes a change, however long the database is away; only once if the trainer ends meanwhile."""
        outage = Outage("worker", job_id=job.job_id)
        while True:
            with outage.survived():
                await self._change(job, change)
            if not outage.backoff_s or self._closing.count:
                return
            await self._closing.wait(0, outage.backoff_s)

    async def end_lost(self) -> None:
        """Fails the jobs whose worker has been silent, or has been asked to stop, for too long.

        One that nobody has ever worked on is queued again.
        """
        held = await self.store.held()
        now = self._monotonic()
        self._last_heard = {_key(job): self._last_heard.get(_key(job), now) for job in held}
        cancelling = [job for job in held if job.state == State.JOB_STATE_CANCELLING]
        self._cancelling_since = {_key(job): self._cancelling_since.get(_key(job), now) for job in cancelling}
        for job in held:
            silent_s = now - self._last_heard[_key(job)]
            if silent_s <= self._policy.lease_s:
                continue
            if not job.reported and _key(job) not in self._workers:
                # Given away in a moment when the trainer or its database died: there may be no worker at all.
                await self._change(job, Job.release)
            else:
                await self._lose(job, f"the worker has not reported for {silent_s:.0f} s")
        for job in cancelling:
            if now - self._cancelling_since[_key(job)] > self._policy.cancel_s:
                await self._lose(job, "the worker did not stop in time")

    async def _lose(self, job: Job, message: str) -> None:
        worker = self._workers.get(_key(job))
        if worker is not None:
            worker.kill()
        await self._change(job, partial(_failed, "WORKER_LOST", message))

    async def _change(self, job: Job, change: Change) -> None:
        """Changes a job if the worker with the same lease still holds it."""

        async def work(jobs: Writer) -> None:
            held = await jobs.job(job.job_id)
            if held.holds_lease(job.lease_token):
                await jobs.save(change(held, jobs.now))

        with suppress(NotFound):  # a backup from before the job was restored
            await self.store.transact(ChangeOrigin(job.project, SUPERVISOR), work)


async def _store_report(jobs: Writer, request: worker_pb2.ReportRequest, secret: str) -> Job:
    job = await jobs.job(request.job_id)
    if _is_stored(job, request, secret):
        return job
    if request.number > job.reported + 1:
        raise FailedPrecondition(
            "REPORT_MISSING", f"report {job.reported + 1} must come before {request.number}"
        )
    job = replace(job, reported=request.number)
    if request.WhichOneof("report") == "log":
        job = await jobs.append_log(job, request.log)
    else:
        job = job.observe(request.event, jobs.now)
    return await jobs.save(job)


def _is_stored(job: Job, request: worker_pb2.ReportRequest, secret: str) -> bool:
    """Whether the report was stored before; one without a number has nothing to store.

    Raises as `Supervisor.report`.
    """
    is_repeated = request.number <= job.reported
    # A worker's last word may be repeated after it was stored and the job has ended.
    was_its_last = job.is_terminal and request.lease_token == job.lease_token and is_repeated
    if not (was_its_last or job.holds_lease(request.lease_token)):
        raise FailedPrecondition("LEASE_LOST", f"job {job.job_id} is no longer held by this worker")
    if not job.is_proved_by(secret):
        raise PermissionDenied(f"only the worker of job {job.job_id} may report of it")
    return is_repeated


def _failed(reason: str, message: str, held: Job, now: datetime) -> Job:
    failure = pb.Failure(reason=reason, message=message, stage=held.stage, is_resumable=True)
    finished = pb.JobFinished(state=State.JOB_STATE_FAILED, failure=failure)
    return held.observe(pb.TrainingEvent(finished=finished), now)


def _key(job: Job) -> Key:
    return job.project, job.job_id


def _reason_of_no_start(error: Exception) -> tuple[str, str]:
    if isinstance(error, OSError):
        reason = "DISK_FULL" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "INTERNAL"
        return reason, f"the worker could not be started: {error.strerror}"
    return "INTERNAL", "the worker could not be started; the trainer's log has the details"


def _reason_of(ended: Exit) -> tuple[str, str]:
    """The reason and the sentence for a worker that ended without a report."""
    if ended.ran_out_of_memory:
        return (
            "OUT_OF_MEMORY",
            f"the machine ran out of memory and the worker was killed; {OUT_OF_MEMORY_ADVICE}",
        )
    reason = "WORKER_KILLED" if ended.status < 0 else "WORKER_ENDED"
    cause = ended.cause or f"its {LOG_NAME} may say why"
    return reason, f"the worker {processes.ending(ended.status)}: {cause}"
