"""Runs a job's stages: announced, timed, traced, and done once however often the job is resumed."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from google.protobuf.message import Message

from neuroweaver.mesh.machine.files import read_json, write_json
from neuroweaver.mesh.wire import telemetry
from neuroweaver.trainer.worker.process.monitor import Monitor, Stopped
from neuroweaver.v1 import trainer_pb2 as pb

_LOG: Final = logging.getLogger(__name__)

# Progress is for eyes and curves; a step that takes a millisecond needs no event of its own.
MIN_PROGRESS_INTERVAL_S: Final = 0.1

M = TypeVar("M", bound=Message)

Result = dict[str, Any]
"""What a stage leaves behind, as JSON. Its numbers are shown as the stage's metrics."""


class Events(Protocol):
    def event(self, event: pb.TrainingEvent) -> None:
        """Tell the trainer."""


class Stages:
    """The record of finished stages lies in `folder`, one JSON file each, written when the stage is whole."""

    def __init__(self, folder: Path, events: Events, must_stop: threading.Event) -> None:
        self.current: pb.Stage.ValueType = pb.STAGE_UNSPECIFIED
        self._folder = folder
        self._events = events
        self._must_stop = must_stop

    def run(
        self,
        stage: pb.Stage.ValueType,
        description: str,
        work: Callable[[Monitor], Result],
        *,
        again: bool = False,
    ) -> Result:
        """The result of `work`, or the one of an earlier attempt.

        again: run it in every attempt, as it fetches what later stages hold in memory.
        Raises Stopped before a stage if the job is to stop, and whatever `work` raises.
        """
        if self._must_stop.is_set():
            raise Stopped
        self.current = stage
        name = name_of(stage)
        path = self._folder / f"{name.lower()}.json"
        earlier = read_json(path)
        if earlier is not None and not again:
            self._finished(stage, earlier, is_reused=True)
            return earlier
        _LOG.info("%s: %s", name, description)
        self._emit(stage_started=pb.StageStarted(stage=stage, description=description))
        started = time.monotonic()
        with telemetry.tracer.start_as_current_span(f"training {name}"):
            result = work(StageMonitor(stage, self._events, self._must_stop))
        result["seconds"] = time.monotonic() - started + (earlier or {}).get("seconds", 0.0)
        write_json(path, result)
        self._finished(stage, result, is_reused=False)
        return result

    def seconds(self) -> dict[str, float]:
        """What the finished stages took, by name, over all attempts."""
        records = {path.stem.upper(): read_json(path) or {} for path in self._folder.glob("*.json")}
        return {name: record["seconds"] for name, record in records.items() if "seconds" in record}

    def notice(self, reason: str, message: str) -> None:
        _LOG.warning("%s: %s", reason, message)
        self._emit(notice=pb.Notice(reason=reason, message=message))

    def notices(self, concerns: Iterable[tuple[str, str]]) -> None:
        """A notice for each reason and message."""
        for reason, message in concerns:
            self.notice(reason, message)

    def rewound(self, step: int) -> None:
        """Report that the current stage goes on after `step`."""
        self._emit(rewound=pb.Rewound(stage=self.current, step=step))

    def checkpoint_saved(self, step: int) -> None:
        self._emit(checkpoint_saved=pb.CheckpointSaved(stage=self.current, step=step))

    def _finished(self, stage: pb.Stage.ValueType, result: Result, *, is_reused: bool) -> None:
        finished = pb.StageFinished(stage=stage, metrics=numbers(result), is_reused=is_reused)
        finished.duration.FromNanoseconds(int(result.get("seconds", 0.0) * 1e9))
        self._emit(stage_finished=finished)

    def _emit(self, **event: Any) -> None:
        self._events.event(pb.TrainingEvent(**event))


class StageMonitor:
    """A stage's Monitor: makes progress events with rate and time left."""

    def __init__(self, stage: pb.Stage.ValueType, events: Events, must_stop: threading.Event) -> None:
        self._stage = stage
        self._events = events
        self._must_stop = must_stop
        self._started = time.monotonic()
        self._first_step: int | None = None
        self._last_report = -math.inf

    def check(self) -> None:
        if self._must_stop.is_set():
            raise Stopped

    def report(
        self, *, step: int, total_steps: int, tokens: int = 0, metrics: Mapping[str, float] | None = None
    ) -> None:
        now = time.monotonic()
        if self._first_step is None:
            self._first_step = step - 1  # a resumed stage begins where it was interrupted
        if now - self._last_report < MIN_PROGRESS_INTERVAL_S and step != total_steps:
            return
        self._last_report = now
        elapsed = max(now - self._started, 1e-6)
        progress = pb.Progress(stage=self._stage, step=step, total_steps=total_steps)
        for name, value in (metrics or {}).items():
            if not math.isfinite(value):
                continue
            if name in {"loss", "reward", "kl"}:
                setattr(progress, name, value)
            else:
                progress.metrics[name] = value
        if tokens:
            progress.tokens_per_second = tokens / elapsed
        done = step - self._first_step
        if total_steps and done:
            progress.eta.FromNanoseconds(int(elapsed / done * max(total_steps - step, 0) * 1e9))
        self._events.event(pb.TrainingEvent(progress=progress))


def name_of(stage: pb.Stage.ValueType) -> str:
    """`SFT`, for STAGE_SFT."""
    return pb.Stage.Name(stage).removeprefix("STAGE_")


def as_result(outcome: Any, folder: Path) -> Result:
    """The fields of a dataclass as a stage's result, paths relative to the job's folder."""
    return {
        name: str(value.relative_to(folder)) if isinstance(value, Path) else value
        for name, value in asdict(outcome).items()
    }


def as_message(kind: type[M], result: Result, **others: Any) -> M:
    """A message whose fields are those of a stage's result that have their names, and `others`."""
    return kind(**{name: result[name] for name in kind.DESCRIPTOR.fields_by_name if name in result}, **others)


def numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a result, by name."""
    return {
        name: float(value)
        for name, value in result.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
