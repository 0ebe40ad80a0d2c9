"""Group commit: all batches that wait go into one transaction, and are answered once it is on disk."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.experiment.intake.events import Batch
from neuroweaver.experiment.intake.ingestion import Outcome, take_in
from neuroweaver.experiment.intake.projection import Projections
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.handlers.topics import Topics
from neuroweaver.mesh.wire.clock import Clock
from neuroweaver.mesh.wire.errors import Unavailable

# Events in one transaction: more would make the first of them wait longer than they save.
_TOGETHER: Final = 20_000
# Requests that wait, of all callers together; streams wait themselves long before.
_WAITING: Final = 4096


@dataclass
class _Request:
    project: str
    batches: Sequence[Batch]
    answer: asyncio.Future[Outcome]

    @property
    def events(self) -> int:
        return sum(map(len, self.batches))


class Committer:
    """Takes in requests in the order they come, whole or not at all."""

    def __init__(self, database: Database, projections: Projections, clock: Clock, topics: Topics) -> None:
        self._database = database
        self._topics = topics
        self.projections = projections
        self._clock = clock
        self._waiting: deque[_Request] = deque()
        self._writing: asyncio.Task[None] | None = None

    def put(self, project: str, batches: Sequence[Batch]) -> asyncio.Future[Outcome]:
        """The outcome, once it is durable. Raises Unavailable if too much waits already."""
        if len(self._waiting) >= _WAITING:
            raise Unavailable("too many events are waiting; send these again later")
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Request(project, batches, answer))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())
        return answer

    async def _write_all(self) -> None:
        while self._waiting:
            together = self._next()
            try:
                await self._write(together)
            except SQLAlchemyError as error:
                _fail(together, error)
            except Exception:  # noqa: BLE001  # one of them is at fault, and its caller alone is told
                await self._write_each(together)

    async def _write_each(self, together: Sequence[_Request]) -> None:
        for request in together:
            try:
                await self._write([request])
            except Exception as error:  # noqa: BLE001  # handed to the caller, whose interceptor logs it
                _fail([request], error)

    def _next(self) -> list[_Request]:
        """The oldest ones, of one project."""
        together = [self._waiting.popleft()]
        events = together[0].events
        while self._waiting and self._waiting[0].project == together[0].project and events < _TOGETHER:
            together.append(self._waiting.popleft())
            events += together[-1].events
        return together

    async def _write(self, together: Sequence[_Request]) -> None:
        project = together[0].project
        batches = [batch for request in together for batch in request.batches]
        taken = await take_in(self._database, self.projections, project, batches, self._clock, self._topics)
        outcomes = iter(taken)
        for request in together:
            outcome = sum((next(outcomes) for _ in request.batches), Outcome())
            if not request.answer.done():
                request.answer.set_result(outcome)


def _fail(requests: Sequence[_Request], error: Exception) -> None:
    for request in requests:
        if not request.answer.done():
            request.answer.set_exception(error)
