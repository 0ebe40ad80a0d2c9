"""Gives queued jobs to workers, takes in what workers report, and notices when one has gone."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.handlers.watch import Signal, Signals
from neuroweaver.mesh.wire.clock import Clock, utc_now
from neuroweaver.mesh.wire.errors import FailedPrecondition
from neuroweaver.trainer.domain.job import OUT_OF_MEMORY_ADVICE, Job, State
from neuroweaver.trainer.executors.executor import LOG_NAME, Executor, Exit, Worker
from neuroweaver.trainer.storage.store import Jobs
from neuroweaver.v1 import trainer_pb2 as pb
from neuroweaver.v1 import worker_pb2

_LOG: Final = logging.getLogger("neuroweaver.trainer")

Key = tuple[str, str]
"""A job: its project and its id."""


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
        database: Database,
        executor: Executor,
        jobs_folder: Path,
        policy: Policy,
        *,
        clock: Clock = utc_now,
    ) -> None:
        self.signals = Signals()
        self._database = database
        self._executor = executor
        self._jobs_folder = jobs_folder
        self._policy = policy
        self._clock = clock
        self._wake = Signal()
        self._heard: dict[Key, float] = {}
        self._told_to_stop: dict[Key, float] = {}
        self._workers: dict[Key, Worker] = {}
        self._waits: set[asyncio.Task[None]] = set()
        self._is_closing = False

    def changed(self, job: Job) -> None:
        """Tell watchers, and this supervisor, that a job was committed with something new."""
        self.signals.notify(_key(job))
        if job.is_terminal or job.state == State.JOB_STATE_QUEUED:
            self._wake.notify()

    async def run(self) -> None:
        """Until cancelled: start what is queued, end what is lost."""
        while True:
            seen = self._wake.count
            await self._end_lost()
            while await self._start_next():
                pass
            await self._wake.wait(seen, timeout_s=1.0)

    async def report(self, project: str, request: worker_pb2.ReportRequest) -> Job:
        """Store what a worker says; a report that is stored already changes nothing.

        Raises FailedPrecondition if the worker's lease is no longer the job's.
        """
        key = (project, request.job_id)

        async def store(connection: AsyncConnection) -> Job:
            jobs = Jobs(connection)
            job = await jobs.get(*key)
            # A worker's last word may be repeated after it was stored and the job has ended.
            if job.is_terminal and request.lease_token == job.lease_token and request.number <= job.reported:
                return job
            if not job.holds_lease(request.lease_token):
                raise FailedPrecondition("LEASE_LOST", f"job {job.job_id} is no longer held by this worker")
            if request.number <= job.reported:
                return job
            job = replace(job, reported=request.number)
            if request.WhichOneof("report") == "log":
                job = await jobs.append_log(job, request.log)
            else:
                job = job.observe(request.event, self._clock())
            return await jobs.save(job)

        if request.number == 0:
            async with self._database.read() as connection:
                job = await store(connection)
        else:
            job = await self._database.transact(store)
            self.changed(job)
        self._heard[key] = time.monotonic()
        return job

    async def close(self) -> None:
        """Ends the workers of this machine; their jobs are queued again and go on from their checkpoints."""
        self._is_closing = True
        for worker in self._workers.values():
            worker.stop()
        if self._waits:
            await asyncio.wait(self._waits, timeout=self._policy.shutdown_s)
        for worker in list(self._workers.values()):
            worker.kill()
        if self._waits:
            await asyncio.wait(self._waits)

    async def _start_next(self) -> bool:
        """Start the job that has waited longest, if there is one and a worker is free."""

        async def claim(connection: AsyncConnection) -> Job | None:
            jobs = Jobs(connection)
            if len(await jobs.held()) >= self._policy.slots:
                return None
            queued = await jobs.next_queued()
            return await jobs.save(queued.start(self._clock())) if queued else None

        # Most wake-ups find nothing: look before taking the write lock.
        async with self._database.read() as connection:
            jobs = Jobs(connection)
            if await jobs.next_queued() is None or len(await jobs.held()) >= self._policy.slots:
                return False
        job = await self._database.transact(claim)
        if job is None:
            return False
        self.changed(job)
        # A task of its own, so that `close` knows of a worker that is just being started when this loop ends.
        task = asyncio.create_task(self._tend(job))
        self._waits.add(task)
        task.add_done_callback(self._waits.discard)
        return True

    async def _tend(self, job: Job) -> None:
        """Start a job's worker and wait for its end.

        A worker that ends without having said how leaves a job that must not stay RUNNING.
        """
        key = _key(job)
        self._heard[key] = time.monotonic()
        try:
            worker = await self._executor.start(job, self._jobs_folder / job.output_dir)
        except OSError as error:
            _LOG.exception("cannot start a worker", extra={"job_id": job.job_id})
            reason = "DISK_FULL" if error.errno == errno.ENOSPC else "INTERNAL"
            await self._fail(
                key, job.lease_token, reason, f"the worker could not be started: {error.strerror}"
            )
            return
        self._workers[key] = worker
        if self._is_closing:
            worker.stop()
        ended = await worker.wait()
        self._workers.pop(key, None)
        if self._is_closing:
            await self._change(key, job.lease_token, lambda held: held.release(self._clock()))
            return
        reason, message = _why(ended)
        await self._fail(key, job.lease_token, reason, message)

    async def _end_lost(self) -> None:
        async with self._database.read() as connection:
            held = await Jobs(connection).held()
        now = time.monotonic()
        self._heard = {_key(job): self._heard.get(_key(job), now) for job in held}
        stopping = [job for job in held if job.state == State.JOB_STATE_CANCELLING]
        self._told_to_stop = {_key(job): self._told_to_stop.get(_key(job), now) for job in stopping}
        for job in held:
            silent_s = now - self._heard[_key(job)]
            if silent_s > self._policy.lease_s:
                await self._lose(job, f"the worker has not been heard of for {silent_s:.0f} s")
        for job in stopping:
            if now - self._told_to_stop[_key(job)] > self._policy.cancel_s:
                await self._lose(job, "the worker did not stop in time")

    async def _lose(self, job: Job, message: str) -> None:
        worker = self._workers.get(_key(job))
        if worker is not None:
            worker.kill()
        await self._fail(_key(job), job.lease_token, "WORKER_LOST", message)

    async def _fail(self, key: Key, token: int, reason: str, message: str) -> None:
        def fail(job: Job) -> Job:
            failure = pb.Failure(reason=reason, message=message, stage=job.stage, is_resumable=True)
            finished = pb.JobFinished(state=State.JOB_STATE_FAILED, failure=failure)
            return job.observe(pb.TrainingEvent(finished=finished), self._clock())

        await self._change(key, token, fail)

    async def _change(self, key: Key, token: int, change: Callable[[Job], Job]) -> None:
        """Change a job if the worker with this token still holds it."""

        async def work(connection: AsyncConnection) -> Job | None:
            jobs = Jobs(connection)
            job = await jobs.get(*key)
            return await jobs.save(change(job)) if job.holds_lease(token) else None

        job = await self._database.transact(work)
        if job is not None:
            self.changed(job)


def _key(job: Job) -> Key:
    return job.project, job.job_id


def _why(ended: Exit) -> tuple[str, str]:
    """The reason and the sentence for a worker that ended without a word."""
    if ended.ran_out_of_memory:
        said = "the machine ran out of memory and the worker was killed"
        return "OUT_OF_MEMORY", f"{said}; {OUT_OF_MEMORY_ADVICE}"
    if ended.status < 0:
        return "WORKER_KILLED", f"the worker was killed by signal {-ended.status}"
    return "WORKER_ENDED", f"the worker ended with status {ended.status}; its {LOG_NAME} says why"
