"""Training jobs: their configuration, states and transitions. Knows neither gRPC nor a database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from neuroweaver.v1 import trainer_pb2 as pb

State = pb.JobState
Stage = pb.Stage

TERMINAL: Final = frozenset({State.JOB_STATE_SUCCEEDED, State.JOB_STATE_FAILED, State.JOB_STATE_CANCELLED})
HELD: Final = frozenset({State.JOB_STATE_RUNNING, State.JOB_STATE_CANCELLING})
"""States in which a worker holds the job's lease."""

DEFAULTS: Final[Mapping[str, object]] = {
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "epochs": 3.0,
    "learning_rate": 2e-4,
    "batch_size": 8,
    "gradient_accumulation_steps": 4,
    "max_seq_length": 2048,
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "quantization": pb.QUANTIZATION_NONE,
    "mixed_precision": pb.MIXED_PRECISION_BF16,
    "gradient_checkpointing": False,
    "seed": 42,
    "validation_fraction": 0.1,
    "enable_rlaif": True,
    "feedback_model": "embedded",
    "rlaif_threshold": 7.0,
    "rlaif_samples": 64,
    "responses_per_prompt": 4,
    "algorithm": pb.ALGORITHM_PPO,
    "kl_coeff": 0.05,
    "target_kl": 6.0,
    "ppo_steps": 50,
    "ppo_batch_size": 16,
    "ppo_learning_rate": 1e-4,
    "ppo_epochs": 2,
    "reward_model_epochs": 2,
    "max_new_tokens": 128,
    "fall_back_to_sft": False,
}
"""What a field of TrainingConfig means when it is left unset, as its comment in the .proto says."""


OUT_OF_MEMORY_ADVICE: Final = "lower batch_size or max_seq_length, or set quantization to nf4"


class TransitionRefused(Exception):
    """The job's state does not allow what was asked. The message is for the caller."""


def is_set(config: pb.TrainingConfig, name: str) -> bool:
    """Whether the caller gave the field a value of its own."""
    if config.DESCRIPTOR.fields_by_name[name].has_presence:
        return config.HasField(name)  # type: ignore[arg-type]
    return bool(getattr(config, name))


def with_defaults(config: pb.TrainingConfig, *, context_length: int, **server: object) -> pb.TrainingConfig:
    """A copy in which every field holds the value in force.

    context_length: tokens that the base model can see, 0 if unknown. server: this server's own defaults.
    """
    complete = pb.TrainingConfig()
    complete.CopyFrom(config)
    for name, default in {**DEFAULTS, **server}.items():
        if not is_set(config, name):
            setattr(complete, name, default)
    if context_length and not is_set(config, "max_seq_length"):
        complete.max_seq_length = min(complete.max_seq_length, context_length)
    return complete


def unfit(config: pb.TrainingConfig, *, context_length: int) -> list[tuple[str, str]]:
    """What no single field's rule can see in a complete configuration: (field, reason) pairs."""
    found: list[tuple[str, str]] = []
    if context_length and config.max_seq_length > context_length:
        reason = f"{config.max_seq_length} exceeds the base model's context of {context_length}"
        found.append(("config.max_seq_length", reason))
    if context_length and config.max_new_tokens >= context_length:
        reason = f"{config.max_new_tokens} leaves no room in a context of {context_length}"
        found.append(("config.max_new_tokens", reason))
    if config.enable_rlaif and config.ppo_batch_size < 2:
        found.append(("config.ppo_batch_size", "must be at least 2: advantages are whitened over the batch"))
    return found


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training job. Every method that changes it gives a new one."""

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

    def start(self, now: datetime) -> Job:
        """Give the job to a new worker."""
        self._require(self.state == State.JOB_STATE_QUEUED, "start")
        started = replace(
            self,
            attempt=self.attempt + 1,
            lease_token=self.lease_token + 1,
            reported=0,
            start_time=self.start_time or now,
            failure=None,
        )
        return started._enter(State.JOB_STATE_RUNNING, now)

    def cancel(self, now: datetime) -> Job:
        """Ask the job to stop; one that has ended, or is already stopping, stays as it is."""
        if self.state == State.JOB_STATE_QUEUED:
            return self._end(State.JOB_STATE_CANCELLED, now)
        if self.state == State.JOB_STATE_RUNNING:
            return self._enter(State.JOB_STATE_CANCELLING, now)
        return self

    def resume(self, now: datetime) -> Job:
        """Queue an ended job again. Raises TransitionRefused unless it failed resumably or was cancelled."""
        self._require(self.state in {State.JOB_STATE_FAILED, State.JOB_STATE_CANCELLED}, "resume")
        if self.failure is not None and not self.failure.is_resumable:
            raise TransitionRefused(f"job {self.job_id} cannot be resumed: {self.failure.message}")
        return replace(self, end_time=None)._enter(State.JOB_STATE_QUEUED, now)

    def release(self, now: datetime) -> Job:
        """Take the job back from its worker, to be started again later: the trainer shuts down."""
        if self.state == State.JOB_STATE_CANCELLING:
            return self.cancelled(now)
        self._require(self.state == State.JOB_STATE_RUNNING, "release")
        return self._enter(State.JOB_STATE_QUEUED, now)

    def succeed(self, result: pb.TrainingResult, now: datetime) -> Job:
        return replace(self, result=result, failure=None)._end(State.JOB_STATE_SUCCEEDED, now)

    def fail(self, failure: pb.Failure, now: datetime) -> Job:
        return replace(self, failure=failure)._end(State.JOB_STATE_FAILED, now)

    def cancelled(self, now: datetime) -> Job:
        return self._end(State.JOB_STATE_CANCELLED, now)

    def observe(self, event: pb.TrainingEvent, now: datetime) -> Job:
        """Take in what the worker reports. A `finished` event ends the job and writes its own event."""
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
        if self.state == State.JOB_STATE_CANCELLING and finished.state != State.JOB_STATE_SUCCEEDED:
            return self.cancelled(now)
        match finished.state:
            case State.JOB_STATE_SUCCEEDED:
                return self.succeed(finished.result, now)
            case State.JOB_STATE_QUEUED:
                return self.release(now)
            case State.JOB_STATE_CANCELLED:
                return self.cancelled(now)
            case _:
                return self.fail(finished.failure, now)

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
            name = State.Name(self.state).removeprefix("JOB_STATE_")
            raise TransitionRefused(f"job {self.job_id} is {name}: it cannot {verb} now")
