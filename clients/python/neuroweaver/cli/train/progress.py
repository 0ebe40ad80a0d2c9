"""A job's progress: a live board on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, Literal

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from neuroweaver.cli.terminal.names import style_of
from neuroweaver.client.text import duration, number, plain
from neuroweaver.client.training_history import (
    STAGES,
    History,
    StageHistory,
    stage_title,
    state_name,
    value_of,
)
from neuroweaver.v1 import trainer_pb2 as trainer

_RLAIF_STAGES: Final[frozenset[int]] = frozenset(
    {trainer.STAGE_RESPONSES, trainer.STAGE_FEEDBACK, trainer.STAGE_REWARD_MODEL, trainer.STAGE_PPO}
)
_LINE_EVERY_S: Final = 10.0
_NOTICES_SHOWN: Final = 3
_BAR_WIDTH: Final = 30
_COLUMNS: Final[Sequence[tuple[Literal["left", "right"], int]]] = (
    ("left", 1),
    ("left", 12),
    ("left", 44),
    ("right", 14),
)
_COUNTS: Final = (
    ("rows", "rows"),
    ("responses", "responses"),
    ("judged", "judged"),
    ("mean_score", "mean score"),
    ("accuracy", "accuracy"),
    ("bytes", "bytes"),
)
_FIGURES: Final = (("loss", "loss"), ("reward", "reward"), ("kl", "KL"))


def stages_of(config: trainer.TrainingConfig) -> Sequence[int]:
    without_rlaif = config.HasField("enable_rlaif") and not config.enable_rlaif
    return [stage for stage in STAGES if not (without_rlaif and stage in _RLAIF_STAGES)]


class Board:
    """What a terminal shows of a job, and the lines where there is none."""

    def __init__(self, job: trainer.TrainingJob) -> None:
        self._stages = stages_of(job.config)
        self._history = History(job_id=job.job_id, state=job.state)
        self._spinner = Spinner("dots", style="cyan")
        self._printed_at = 0.0

    def add(self, event: trainer.TrainingEvent) -> None:
        self._history.add(event)

    def render(self) -> RenderableType:
        history = self._history
        grid = Table.grid(padding=(0, 1))
        # Fixed widths, so that the board stands still; together they fit into 80 columns.
        for justify, width in _COLUMNS:
            grid.add_column(justify=justify, min_width=width, no_wrap=justify == "right")
        for stage in self._stages:
            for row in self._rows(history.stages.get(stage) or StageHistory(stage)):
                grid.add_row(*row)
        notices = [
            Text(f"! {plain(notice.message)}", style="yellow") for notice in history.notices[-_NOTICES_SHOWN:]
        ]
        return Group(self._header(history), grid, *notices)

    def _header(self, history: History) -> Text:
        state = state_name(history.state)
        parts = [(history.job_id, "bold"), (f"  {state}", style_of(state))]
        if history.attempt > 1:
            parts.append((f"  attempt {history.attempt}", "dim"))
        if history.started:
            until = history.ended or datetime.now(UTC)
            parts.append((f"  {duration(max(0.0, (until - history.started).total_seconds()))}", "dim"))
        return Text.assemble(*parts)

    def _rows(self, stage: StageHistory) -> Iterator[Sequence[RenderableType]]:
        title = stage_title(stage.stage)
        if stage.is_finished:
            yield Text("✓", "green"), title, Text(summary(stage), "dim"), Text(_spent(stage), "dim")
        elif stage.started is None:
            yield Text("·", "dim"), Text(title, "dim"), "", ""
        elif self._history.is_ended:
            yield Text("✗", "red"), title, Text(summary(stage), "dim"), ""
        else:
            yield self._spinner, Text(title, "bold"), _bar(stage.latest), Text(_eta(stage.latest), "cyan")
            details = figures(stage.latest) if stage.latest else plain(stage.description)
            yield "", "", Text(details, "dim"), ""

    def line(self, event: trainer.TrainingEvent) -> str:
        """Every stage's begin and end, and in between a line now and then; empty for none."""
        line = ""
        match event.WhichOneof("event"):
            case "state_changed":
                line = state_name(event.state_changed.to_state)
            case "stage_started":
                line = f"{stage_title(event.stage_started.stage)}: {event.stage_started.description}"
            case "stage_finished":
                stage = self._history.stages[event.stage_finished.stage]
                line = f"{stage_title(stage.stage)} done in {_spent(stage)}  {summary(stage)}".rstrip()
            case "progress" if time.monotonic() - self._printed_at > _LINE_EVERY_S:
                done = f"{event.progress.step}/{event.progress.total_steps or '?'}"
                line = f"{stage_title(event.progress.stage)} {done}  {figures(event.progress)}"
            case "rewound":
                line = f"{stage_title(event.rewound.stage)}: back to step {event.rewound.step}"
            case "notice":
                line = f"! {event.notice.message}"
        if line:
            self._printed_at = time.monotonic()
        return line


def _spent(stage: StageHistory) -> str:
    return "reused" if stage.is_reused else duration(stage.duration_s)


def _bar(latest: trainer.Progress | None) -> RenderableType:
    if latest is None:
        return ProgressBar(total=None, width=_BAR_WIDTH)
    total = latest.total_steps or None
    count = f"{latest.step}/{total}" if total else str(latest.step)
    line = Table.grid(padding=(0, 1))
    line.add_row(ProgressBar(total=total, completed=latest.step, width=_BAR_WIDTH), count)
    return line


def _eta(latest: trainer.Progress | None) -> str:
    if latest is None or not latest.HasField("eta"):
        return ""
    return f"ETA {duration(latest.eta.ToTimedelta().total_seconds())}"


def figures(progress: trainer.Progress) -> str:
    """`loss 1.42  reward 0.31  KL 2.1  148 tok/s`, as far as they are known."""
    parts = [
        f"{label} {number(value)}"
        for name, label in _FIGURES
        if (value := value_of(progress, name)) is not None
    ]
    if progress.HasField("tokens_per_second"):
        parts.append(f"{progress.tokens_per_second:,.0f} tok/s")
    return "  ".join(parts)


def summary(stage: StageHistory) -> str:
    """What a stage that has ended did to its numbers."""
    metrics = stage.metrics
    parts = [f"{label} {number(metrics[name])}" for name, label in _COUNTS if name in metrics]
    if "loss_before" in metrics and "loss_after" in metrics:
        parts.append(f"held-out loss {number(metrics['loss_before'])} → {number(metrics['loss_after'])}")
    for name, label in _FIGURES:
        _, values = stage.curve(name)
        if values and not (name == "loss" and ("loss_after" in metrics or stage.stage == trainer.STAGE_PPO)):
            first = f"{number(values[0])} → " if len(values) > 1 else ""
            parts.append(f"{label} {first}{number(values[-1])}")
    return "  ".join(parts)
