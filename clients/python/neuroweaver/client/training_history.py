"""What a job's events add up to: its stages, their curves, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from neuroweaver.client.text import enum_name
from neuroweaver.v1 import trainer_pb2 as trainer

TITLES: Final[Mapping[int, str]] = {
    trainer.STAGE_UNSPECIFIED: "Waiting",
    trainer.STAGE_PREPARING: "Preparing",
    trainer.STAGE_SFT: "Fine-tuning",
    trainer.STAGE_RESPONSES: "Responses",
    trainer.STAGE_FEEDBACK: "AI feedback",
    trainer.STAGE_REWARD_MODEL: "Reward model",
    trainer.STAGE_PPO: "PPO",
    trainer.STAGE_VALIDATION: "Validation",
    trainer.STAGE_REGISTERING: "Registering",
}

STAGES: Final[tuple[int, ...]] = tuple(stage for stage in TITLES if stage)
"""In the order of a job."""

ENDED: Final = frozenset({trainer.JOB_STATE_SUCCEEDED, trainer.JOB_STATE_FAILED, trainer.JOB_STATE_CANCELLED})


def state_name(state: int) -> str:
    """SUCCEEDED for JOB_STATE_SUCCEEDED."""
    return enum_name(trainer.JobState.DESCRIPTOR, state)


def stage_name(stage: int) -> str:
    """SFT for STAGE_SFT."""
    return enum_name(trainer.Stage.DESCRIPTOR, stage)


def stage_title(stage: int) -> str:
    return TITLES.get(stage) or stage_name(stage)


def at(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)


@dataclass
class StageHistory:
    stage: int
    description: str = ""
    started: datetime | None = None
    duration_s: float = 0.0
    """Summed over attempts; 0 until the stage ends for the first time."""
    is_finished: bool = False
    is_reused: bool = False
    latest: trainer.Progress | None = None
    steps: dict[int, trainer.Progress] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of `loss`, `reward`, `kl`, `tokens_per_second` or a metric."""
        points = [
            (step, value)
            for step, progress in sorted(self.steps.items())
            if (value := value_of(progress, name)) is not None
        ]
        return [step for step, _ in points], [value for _, value in points]


def value_of(progress: trainer.Progress, name: str) -> float | None:
    match name:
        case "loss" | "reward" | "kl" | "tokens_per_second":
            return float(getattr(progress, name)) if progress.HasField(name) else None
        case _:
            return progress.metrics.get(name)


@dataclass
class History:
    """Give it every event in order by `add`."""

    job_id: str = ""
    state: int = trainer.JOB_STATE_UNSPECIFIED
    attempt: int = 1
    last_sequence: int = 0
    stage: int = trainer.STAGE_UNSPECIFIED
    started: datetime | None = None
    ended: datetime | None = None
    stages: dict[int, StageHistory] = field(default_factory=dict)
    notices: list[trainer.Notice] = field(default_factory=list)
    failure: trainer.Failure | None = None
    result: trainer.TrainingResult | None = None

    @classmethod
    def of(cls, events: Iterable[trainer.TrainingEvent]) -> History:
        history = cls()
        for event in events:
            history.add(event)
        return history

    @property
    def is_ended(self) -> bool:
        return self.state in ENDED

    def in_order(self) -> list[StageHistory]:
        """The stages that have begun."""
        return [self.stages[stage] for stage in STAGES if stage in self.stages]

    def add(self, event: trainer.TrainingEvent) -> None:
        self.job_id = event.job_id or self.job_id
        self.last_sequence = max(self.last_sequence, event.sequence)
        time = at(event.time)
        self.started = self.started or time
        match event.WhichOneof("event"):
            case "state_changed":
                self._move(event.state_changed)
            case "stage_started":
                self.stage = event.stage_started.stage
                stage = self._stage(event.stage_started.stage)
                stage.description = event.stage_started.description
                stage.started, stage.is_finished = time, False
            case "progress":
                self.stage = event.progress.stage
                stage = self._stage(event.progress.stage)
                stage.latest = event.progress
                stage.steps[event.progress.step] = event.progress
            case "stage_finished":
                self._finish(event.stage_finished)
            case "rewound":
                stage = self._stage(event.rewound.stage)
                stage.steps = {step: seen for step, seen in stage.steps.items() if step <= event.rewound.step}
                stage.latest = stage.steps.get(event.rewound.step)
            case "notice":
                self.notices.append(event.notice)
            case "finished":
                self._end(event.finished, time)

    def _stage(self, stage: int) -> StageHistory:
        return self.stages.setdefault(stage, StageHistory(stage))

    def _move(self, change: trainer.StateChanged) -> None:
        self.state = change.to_state
        self.attempt = max(self.attempt, change.attempt)
        if change.to_state not in ENDED:
            # A resumed job: how an earlier attempt ended is history.
            self.failure = self.ended = None

    def _finish(self, finished: trainer.StageFinished) -> None:
        stage = self._stage(finished.stage)
        stage.is_finished, stage.is_reused = True, finished.is_reused
        stage.duration_s += finished.duration.ToTimedelta().total_seconds()
        stage.metrics.update(finished.metrics)

    def _end(self, finished: trainer.JobFinished, time: datetime) -> None:
        self.state, self.ended = finished.state, time
        self.failure = finished.failure if finished.HasField("failure") else None
        self.result = finished.result if finished.HasField("result") else None
