"""What notes what a worker says: a monitor that can stop the job, and a link that keeps its events."""

from __future__ import annotations

from neuroweaver.trainer.worker.process.monitor import Stopped


class Recorder:
    def __init__(self, *, stop_at_check: int | None = None) -> None:
        self.reports: list[dict] = []
        self.checks = 0
        self.stop_at_check = stop_at_check

    @property
    def steps(self) -> list[int]:
        return [report["step"] for report in self.reports]

    def report(self, *, step, total_steps, tokens=0, metrics=None) -> None:
        self.reports.append({"step": step, "total": total_steps, "tokens": tokens, **(metrics or {})})

    def check(self) -> None:
        self.checks += 1
        if self.stop_at_check is not None and self.checks >= self.stop_at_check:
            raise Stopped


class Events:
    def __init__(self) -> None:
        self.seen: list = []

    def event(self, event) -> None:
        self.seen.append(event)
