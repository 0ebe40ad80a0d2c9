"""What a stage reports to its job, and asks of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol


class Stopped(Exception):
    """The job was cancelled or shut down: leave the stage, keep what is whole."""


class Monitor(Protocol):
    """A stage's view of its job. Both calls are cheap and never wait for the network."""

    def report(
        self, *, step: int, total_steps: int, tokens: int = 0, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Announce that `step` of `total_steps` is done; `tokens` counts what this stage processed so far."""

    def check(self) -> None:
        """Raise Stopped if the job is to stop; called at least once a step and once a batch."""


class Silent:
    """A Monitor for use without a job: reports nothing, never stops."""

    def report(self, **progress: Any) -> None:
        del progress

    def check(self) -> None:
        return None


SILENT: Final = Silent()
