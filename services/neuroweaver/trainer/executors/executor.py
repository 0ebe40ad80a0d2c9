"""What starts a job's worker, wherever that runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from neuroweaver.trainer.domain.job import Job

LOG_NAME: Final = "worker.log"


@dataclass(frozen=True)
class Exit:
    """How a worker ended. status: its exit status, or minus the number of the signal that killed it.

    cause: the error that it wrote last, without secrets; empty if it wrote none.
    """

    status: int
    ran_out_of_memory: bool = False
    cause: str = ""


class Worker(Protocol):
    """A worker that was started."""

    async def wait(self) -> Exit:
        """How it ended, once it has."""

    def stop(self) -> None:
        """Asks it to take a checkpoint and end."""

    def kill(self) -> None:
        """Ends it at once."""


class Executor(Protocol):
    async def start(self, job: Job, secret: str, folder: Path) -> Worker:
        """Starts a worker for a job that has just been given a new lease. Raises OSError.

        secret: proves the worker to the trainer. It goes through the worker's standard input, since arguments
        are everybody's to read and what a worker starts inherits its environment.
        """
