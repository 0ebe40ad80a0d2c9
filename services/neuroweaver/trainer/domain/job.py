"""Training jobs: their states and transitions."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from neuroweaver.mesh.wire.errors import FailedPrecondition
from neuroweaver.v1 import trainer_pb2 as pb

State = pb.JobState
Stage = pb.Stage

TERMINAL: Final = frozenset({State.JOB_STATE_SUCCEEDED, State.JOB_STATE_FAILED, State.JOB_STATE_CANCELLED})
HELD: Final = frozenset({State.JOB_STATE_RUNNING, State.JOB_STATE_CANCELLING})
"""States in which a worker holds the job's lease."""

OUT_OF_MEMORY_ADVICE: Final = "lower batch_size or max_seq_length, or set quantization to nf4"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training job. Every method that changes it returns a new one.

    It raises FailedPrecondition where the job's state does not allow the change.
    """

    job_id: str
    project: str
    config: pb.TrainingConfig
    dataset_digest: str
    create_time: datetime
    trace_parent: str = ""
    """W3C trace context of the call that started the job; its workers continue that trace."""
    state: State.ValueType = State.JOB_STATE_QUEUED
    stage: Stage.ValueType = Stage.STAGE_UNSPECIFIED
    progress: pb.Progress | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    attempt: int = 0
    lease_token: int = 0
    """Grows with every worker started: a worker with an older token is fenced off."""
    secret_digest: str = ""
    """Of the secret that proves the worker which holds the lease; empty where it was started without one."""
    reported: int = 0
    """Number of the last report stored of the worker that holds the lease."""
    failure: pb.Failure | None = None
    result: pb.TrainingResult | None = None
    last_sequence: int = 0
    last_log_sequence: int = 0
    events: tuple[pb.TrainingEvent, ...] = field(default=())
    """Events of transitions made since the job was loaded, not yet stored."""

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL

    @property
    def output_dir(self) -> str:
        """Folder of the job's files, relative to the jobs folder."""
        return self.config.output_dir or self.job_id

    def holds_lease(self, token: int) -> bool:
        return self.state in HELD and token == self.lease_token

    def is_proved_by(self, secret: str) -> bool:
        """Whether somebody who shows this secret is the worker of the last attempt."""
        shown = digest_of(secret) if secret else ""
        return hmac.compare_digest(shown, self.secret_digest)

    def start(self, now: datetime, secret_digest: str) -> Job:
        """Gives the job to a new worker, which will know the secret of this digest."""
        self._require(self.state == State.JOB_STATE_QUEUED, "started")
        started = replace(
            self,
            attempt=self.attempt + 1,
            lease_token=self.lease_token + 1,
            secret_digest=secret_digest,
            reported=0,
            start_time=self.start_time or now,
            failure=None,
        )
        return started._enter(State.JOB_STATE_RUNNING, now)

    def cancel(self, now: datetime) -> Job:
        """Asks the job to stop; one that has ended, or is already stopping, stays as it is."""
        if self.state == State.JOB_STATE_QUEUED:
            return self._end(State.JOB_STATE_CANCELLED, now)
        if self.state == State.JOB_STATE_RUNNING:
            return self._enter(State.JOB_STATE_CANCELLING, now)
        return self

    def resume(self, now: datetime) -> Job:
        """Queues an ended job again, unless it succeeded or failed for good."""
        self._require(self.state in {State.JOB_STATE_FAILED, State.JOB_STATE_CANCELLED}, "resumed")
        if self.failure is not None and not self.failure.is_resumable:
            raise self._refused(f"cannot be resumed: {self.failure.message}")
        return replace(self, end_time=None, failure=None)._enter(State.JOB_STATE_QUEUED, now)

    def release(self, now: datetime) -> Job:
        """Takes the job back from its worker, to be started again: the trainer shuts down."""
        if self.state == State.JOB_STATE_CANCELLING:
            return self._end(State.JOB_STATE_CANCELLED, now)
        self._require(self.state == State.JOB_STATE_RUNNING, "released")
        return self._enter(State.JOB_STATE_QUEUED, now)

    def observe(self, event: pb.TrainingEvent, now: datetime) -> Job:
        """Takes in what the worker reports. A `finished` event ends the job and writes its own event."""
        match event.WhichOneof("event"):
            case "finished":
                return self._finished(event.finished, now)
            case "stage_started":
                return replace(self, stage=event.stage_started.stage, progress=None)._with(event)
            case "progress":
                return replace(self, stage=event.progress.stage, progress=event.progress)._with(event)
            case _:
                return self._with(event)

    def _finished(self, finished: pb.JobFinished, now: datetime) -> Job:
        is_cancelling = self.state == State.JOB_STATE_CANCELLING
        match finished.state:
            case State.JOB_STATE_SUCCEEDED:
                return replace(self, result=finished.result, failure=None)._end(finished.state, now)
            case State.JOB_STATE_QUEUED:
                return self.release(now)
            case State.JOB_STATE_CANCELLED:
                return self._end(finished.state, now)
            case _ if is_cancelling:
                return self._end(State.JOB_STATE_CANCELLED, now)
            case _:
                return replace(self, failure=finished.failure)._end(State.JOB_STATE_FAILED, now)

    def _enter(self, state: State.ValueType, now: datetime) -> Job:
        changed = pb.StateChanged(from_state=self.state, to_state=state, attempt=self.attempt)
        event = pb.TrainingEvent(state_changed=changed)
        event.time.FromDatetime(now)
        return replace(self, state=state)._with(event)

    def _end(self, state: State.ValueType, now: datetime) -> Job:
        finished = pb.JobFinished(state=state, failure=self.failure, result=self.result)
        event = pb.TrainingEvent(finished=finished)
        event.time.FromDatetime(now)
        return replace(self, state=state, end_time=now)._with(event)

    def _with(self, event: pb.TrainingEvent) -> Job:
        return replace(self, events=(*self.events, event))

    def _require(self, is_allowed: bool, verb: str) -> None:
        if not is_allowed:
            state = State.Name(self.state).removeprefix("JOB_STATE_")
            raise self._refused(f"is {state} and cannot be {verb}")

    def _refused(self, why: str) -> FailedPrecondition:
        return FailedPrecondition("JOB_STATE", f"job {self.job_id} {why}", self.job_id)


def digest_of(secret: str) -> str:
    """What is kept of a worker's secret: whoever reads the database cannot report in the worker's place."""
    return hashlib.sha256(secret.encode()).hexdigest()
