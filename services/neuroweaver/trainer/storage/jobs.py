"""The jobs of a project as one transaction sees them: Job objects, never rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime
from typing import Any, Final

from google.protobuf.message import Message
from sqlalchemy import ColumnElement, Row, Table, and_, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.handlers import filters
from neuroweaver.mesh.wire.errors import AlreadyExists, InvalidArgument, NotFound
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.trainer.domain.job import Job, State
from neuroweaver.trainer.storage.tables import CHANGES, EVENTS, JOBS, LOGS
from neuroweaver.v1 import trainer_pb2 as pb

STATES: Final[Mapping[str, State.ValueType]] = {
    name.removeprefix("JOB_STATE_"): value for name, value in State.items() if value
}


class Reader:
    """What one transaction sees of a project."""

    def __init__(self, connection: AsyncConnection, project: str) -> None:
        self.connection = connection
        self.project = project

    async def job(self, job_id: str) -> Job:
        """Raises NotFound."""
        jobs = await select_jobs(self.connection, _is(JOBS, self.project, job_id))
        if not jobs:
            raise NotFound("training job", job_id)
        return jobs[0]

    async def jobs(
        self, page: Page, terms: Sequence[filters.Term] = (), *, descending: bool = True
    ) -> tuple[list[Job], str]:
        """A page by time of creation, and the token of the next one. terms: of `state` and `model_name`.

        Raises InvalidArgument for a state that is none.
        """
        statement = select(JOBS).where(JOBS.c.project == self.project, *map(_condition, terms))
        statement = page.apply(statement, JOBS.c.create_time, JOBS.c.job_id, descending=descending)
        rows = (await self.connection.execute(statement)).all()
        shown, token = page.cut(rows, key=lambda row: (row.create_time, row.job_id))
        return [_to_job(row) for row in shown], token

    async def events(self, job: Job, after: int, limit: int) -> tuple[list[pb.TrainingEvent], int]:
        """The first `limit` events after a sequence, in order, and the sequence of the oldest one kept: one
        above the last where none is.
        """
        rows, oldest = await self._after(EVENTS, job.job_id, after, limit)
        return [pb.TrainingEvent.FromString(row.event) for row in rows], oldest or job.last_sequence + 1

    async def logs(self, job: Job, after: int, limit: int) -> tuple[list[pb.LogLine], int]:
        """As `events`, of the log's lines."""
        rows, oldest = await self._after(LOGS, job.job_id, after, limit)
        return [pb.LogLine.FromString(row.line) for row in rows], oldest or job.last_log_sequence + 1

    async def _after(
        self, table: Table, job_id: str, after: int, limit: int
    ) -> tuple[Sequence[Row[Any]], int | None]:
        its, sequence = _is(table, self.project, job_id), table.c.sequence
        statement = select(table).where(its, sequence > after).order_by(sequence).limit(limit)
        rows = (await self.connection.execute(statement)).all()
        return rows, (await self.connection.execute(select(func.min(sequence)).where(its))).scalar()


def events_topic(project: str, job_id: str) -> str:
    return f"events/{job_id}/{project}"


def logs_topic(project: str, job_id: str) -> str:
    return f"logs/{job_id}/{project}"


class Writer(Reader):
    """A write transaction: what it writes is there with its commit or not at all.

    An event's sequence is one above the job's last, so a job's events are 1, 2, 3, … without holes.
    """

    def __init__(self, connection: AsyncConnection, origin: ChangeOrigin, now: datetime) -> None:
        super().__init__(connection, origin.project)
        self.origin = origin
        self.now = now
        self.saved: list[Job] = []
        self.topics: set[str] = set()

    async def add(self, job: Job) -> Job:
        """Stores a new job with its events. Raises AlreadyExists for a taken job id or output folder."""
        taken = JOBS.c.output_dir == job.output_dir
        rivals = await select_jobs(self.connection, taken | _is(JOBS, job.project, job.job_id))
        if any((rival.project, rival.job_id) == (job.project, job.job_id) for rival in rivals):
            raise AlreadyExists("training job", job.job_id)
        if rivals:
            raise AlreadyExists("output folder", job.output_dir)
        try:
            await self.connection.execute(insert(JOBS).values(**_to_row(job)))
        except IntegrityError as error:
            raise AlreadyExists("training job", job.job_id) from error
        job = await self.save(job)
        await self._record("job.started", job)
        return job

    async def change(self, action: str, job: Job) -> Job:
        """Saves a change that somebody asked for, and who, why and when; nothing where nothing changed."""
        if not job.events:
            return job
        job = await self.save(job)
        await self._record(action, job)
        return job

    async def save(self, job: Job) -> Job:
        """Stores a job's state and appends the events of its transitions; returns the job with none left."""
        for event in job.events:
            job = replace(job, last_sequence=job.last_sequence + 1)
            numbered = pb.TrainingEvent()
            numbered.CopyFrom(event)
            numbered.sequence, numbered.job_id = job.last_sequence, job.job_id
            await self._append(EVENTS, job, job.last_sequence, event=numbered.SerializeToString())
        job = replace(job, events=())
        await self.connection.execute(
            update(JOBS).where(_is(JOBS, job.project, job.job_id)).values(**_to_row(job))
        )
        self.saved.append(job)
        self.topics.add(events_topic(job.project, job.job_id))
        if job.is_terminal:  # which ends the log too
            self.topics.add(logs_topic(job.project, job.job_id))
        return job

    async def append_log(self, job: Job, line: pb.LogLine) -> Job:
        """The job with one more log line; `save` makes it known."""
        job = replace(job, last_log_sequence=job.last_log_sequence + 1)
        numbered = pb.LogLine()
        numbered.CopyFrom(line)
        numbered.sequence = job.last_log_sequence
        await self._append(LOGS, job, numbered.sequence, line=numbered.SerializeToString())
        self.topics.add(logs_topic(job.project, job.job_id))
        return job

    async def _record(self, action: str, job: Job) -> None:
        change = {
            "project": job.project,
            "job_id": job.job_id,
            "sequence": job.last_sequence,
            "time": self.now,
            "action": action,
            "actor": self.origin.actor,
            "reason": self.origin.reason,
            "trace_id": self.origin.trace_id,
        }
        await self.connection.execute(insert(CHANGES).values(change))

    async def _append(self, table: Table, job: Job, sequence: int, **content: bytes) -> None:
        key = {"project": job.project, "job_id": job.job_id, "sequence": sequence}
        await self.connection.execute(insert(table).values(**key, **content))


async def select_jobs(
    connection: AsyncConnection, condition: ColumnElement[bool], limit: int | None = None
) -> list[Job]:
    """The jobs of every project that meet a condition, oldest first."""
    statement = select(JOBS).where(condition).order_by(JOBS.c.create_time, JOBS.c.job_id).limit(limit)
    return [_to_job(row) for row in await connection.execute(statement)]


def _is(table: Table, project: str, job_id: str) -> ColumnElement[bool]:
    return and_(table.c.project == project, table.c.job_id == job_id)


def _condition(term: filters.Term) -> ColumnElement[bool]:
    name, value = term[0], term[1].strip()
    if name == "model_name":
        return JOBS.c.model_name == value
    if value not in STATES:
        raise InvalidArgument("filter", f"names a state that is none of {', '.join(STATES)}")
    return JOBS.c.state == STATES[value]


_MESSAGES: Final[Mapping[str, type[Message]]] = {
    "config": pb.TrainingConfig,
    "progress": pb.Progress,
    "failure": pb.Failure,
    "result": pb.TrainingResult,
}
# Each in a column of its name; events have a table of their own.
_STORED: Final = tuple(field.name for field in fields(Job) if field.name != "events")


def _to_row(job: Job) -> dict[str, Any]:
    row = {name: getattr(job, name) for name in _STORED}
    messages = {
        name: row[name].SerializeToString(deterministic=True) for name in _MESSAGES if row[name] is not None
    }
    return row | messages | {"model_name": job.config.model_name, "output_dir": job.output_dir}


def _to_job(row: Row[Any]) -> Job:
    stored = {name: getattr(row, name) for name in _STORED}
    messages = {
        name: kind.FromString(stored[name]) for name, kind in _MESSAGES.items() if stored[name] is not None
    }
    return Job(**stored | messages)
