"""Where jobs, their events and their logs are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    String,
    Table,
    UniqueConstraint,
    and_,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh.database import idempotency
from neuroweaver.mesh.database.database import UtcDateTime
from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.wire.errors import AlreadyExists, NotFound
from neuroweaver.trainer.domain.job import HELD, Job, State
from neuroweaver.v1 import trainer_pb2 as pb

METADATA: Final = MetaData()


JOBS: Final = Table(
    "jobs",
    METADATA,
    Column("project", String(128), primary_key=True),
    Column("job_id", String(64), primary_key=True),
    Column("model_name", String(63), nullable=False),
    Column("output_dir", String(255), nullable=False),
    Column("state", Integer, nullable=False),
    Column("stage", Integer, nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("start_time", UtcDateTime),
    Column("end_time", UtcDateTime),
    Column("attempt", Integer, nullable=False),
    Column("lease_token", BigInteger, nullable=False),
    Column("reported", BigInteger, nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
    Column("last_log_sequence", BigInteger, nullable=False),
    Column("dataset_digest", String(64), nullable=False),
    Column("trace_parent", String(64), nullable=False),
    Column("config", LargeBinary, nullable=False),
    Column("progress", LargeBinary),
    Column("failure", LargeBinary),
    Column("result", LargeBinary),
    UniqueConstraint("output_dir", name="jobs_output_dir_key"),
)
EVENTS: Final = Table(
    "events",
    METADATA,
    Column("project", String(128), primary_key=True),
    Column("job_id", String(64), primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("event", LargeBinary, nullable=False),
)
LOGS: Final = Table(
    "logs",
    METADATA,
    Column("project", String(128), primary_key=True),
    Column("job_id", String(64), primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("line", LargeBinary, nullable=False),
)
Index("jobs_create_time", JOBS.c.project, JOBS.c.create_time, JOBS.c.job_id)
Index("jobs_state", JOBS.c.state, JOBS.c.create_time)
idempotency.table(METADATA)


class Jobs:
    """The jobs as one transaction sees them. Gives Job objects, never rows.

    Writing methods need a write transaction; what they write is there with its commit or not at all.
    An event's sequence is one above the job's last, so a job's events are 1, 2, 3, … without holes.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection

    async def get(self, project: str, job_id: str) -> Job:
        """Raises NotFound."""
        rows = await self._select(_is(JOBS, project, job_id))
        if not rows:
            raise NotFound("training job", job_id)
        return rows[0]

    async def add(self, job: Job) -> Job:
        """Stores a new job with its events. Raises AlreadyExists for a taken job id or output folder."""
        taken = JOBS.c.output_dir == job.output_dir
        rows = await self._select(taken | _is(JOBS, job.project, job.job_id))
        if any(row.job_id == job.job_id for row in rows):
            raise AlreadyExists("training job", job.job_id)
        if rows:
            raise AlreadyExists("output folder", job.output_dir)
        try:
            await self.connection.execute(insert(JOBS).values(**_to_row(job)))
        except IntegrityError as error:
            raise AlreadyExists("training job", job.job_id) from error
        return await self.save(job)

    async def save(self, job: Job) -> Job:
        """Stores a job's state and appends the events of its transitions; gives the job with none left."""
        for event in job.events:
            job = replace(job, last_sequence=job.last_sequence + 1)
            stored = pb.TrainingEvent()
            stored.CopyFrom(event)
            stored.sequence, stored.job_id = job.last_sequence, job.job_id
            await self.connection.execute(
                insert(EVENTS).values(
                    project=job.project,
                    job_id=job.job_id,
                    sequence=stored.sequence,
                    event=stored.SerializeToString(),
                )
            )
        job = replace(job, events=())
        await self.connection.execute(
            update(JOBS).where(_is(JOBS, job.project, job.job_id)).values(**_to_row(job))
        )
        return job

    async def append_log(self, job: Job, line: pb.LogLine) -> Job:
        """The job with one more log line; `save` makes it known."""
        sequence = job.last_log_sequence + 1
        stored = pb.LogLine()
        stored.CopyFrom(line)
        stored.sequence = sequence
        await self.connection.execute(
            insert(LOGS).values(
                project=job.project, job_id=job.job_id, sequence=sequence, line=stored.SerializeToString()
            )
        )
        return replace(job, last_log_sequence=sequence)

    async def events(self, project: str, job_id: str, after: int, limit: int) -> list[pb.TrainingEvent]:
        """The first `limit` events after a sequence, in order."""
        rows = await self._after(EVENTS, project, job_id, after, limit)
        return [pb.TrainingEvent.FromString(row.event) for row in rows]

    async def logs(self, project: str, job_id: str, after: int, limit: int) -> list[pb.LogLine]:
        """The first `limit` log lines after a sequence, in order."""
        rows = await self._after(LOGS, project, job_id, after, limit)
        return [pb.LogLine.FromString(row.line) for row in rows]

    async def next_queued(self) -> Job | None:
        """The job that has waited longest."""
        rows = await self._select(JOBS.c.state == State.JOB_STATE_QUEUED, limit=1)
        return rows[0] if rows else None

    async def held(self) -> list[Job]:
        """Jobs that a worker holds, oldest first."""
        return await self._select(JOBS.c.state.in_(HELD))

    async def page(
        self, project: str, page: Page, filters: Sequence[ColumnElement[bool]], *, descending: bool
    ) -> tuple[list[Job], str]:
        """A page of a project's jobs by time of creation, and the token of the next page."""
        statement = select(JOBS).where(JOBS.c.project == project, *filters)
        statement = page.apply(statement, JOBS.c.create_time, JOBS.c.job_id, descending=descending)
        rows = (await self.connection.execute(statement)).all()
        shown, token = page.cut(rows, key=lambda row: (row.create_time, row.job_id))
        return [_to_job(row) for row in shown], token

    async def _select(self, condition: ColumnElement[bool], limit: int | None = None) -> list[Job]:
        statement = select(JOBS).where(condition).order_by(JOBS.c.create_time, JOBS.c.job_id).limit(limit)
        return [_to_job(row) for row in await self.connection.execute(statement)]

    async def _after(
        self, table: Table, project: str, job_id: str, after: int, limit: int
    ) -> Sequence[Row[Any]]:
        statement = select(table).where(_is(table, project, job_id), table.c.sequence > after)
        return (await self.connection.execute(statement.order_by(table.c.sequence).limit(limit))).all()


def _is(table: Table, project: str, job_id: str) -> ColumnElement[bool]:
    return and_(table.c.project == project, table.c.job_id == job_id)


def _to_row(job: Job) -> dict[str, Any]:
    return {
        "project": job.project,
        "job_id": job.job_id,
        "model_name": job.config.model_name,
        "output_dir": job.output_dir,
        "state": job.state,
        "stage": job.stage,
        "create_time": job.create_time,
        "start_time": job.start_time,
        "end_time": job.end_time,
        "attempt": job.attempt,
        "lease_token": job.lease_token,
        "reported": job.reported,
        "last_sequence": job.last_sequence,
        "last_log_sequence": job.last_log_sequence,
        "dataset_digest": job.dataset_digest,
        "trace_parent": job.trace_parent,
        "config": job.config.SerializeToString(deterministic=True),
        "progress": job.progress.SerializeToString() if job.progress else None,
        "failure": job.failure.SerializeToString() if job.failure else None,
        "result": job.result.SerializeToString() if job.result else None,
    }


def _to_job(row: Row[Any]) -> Job:
    return Job(
        job_id=row.job_id,
        project=row.project,
        config=pb.TrainingConfig.FromString(row.config),
        dataset_digest=row.dataset_digest,
        create_time=row.create_time,
        trace_parent=row.trace_parent,
        state=row.state,
        stage=row.stage,
        progress=pb.Progress.FromString(row.progress) if row.progress is not None else None,
        start_time=row.start_time,
        end_time=row.end_time,
        attempt=row.attempt,
        lease_token=row.lease_token,
        reported=row.reported,
        failure=pb.Failure.FromString(row.failure) if row.failure is not None else None,
        result=pb.TrainingResult.FromString(row.result) if row.result is not None else None,
        last_sequence=row.last_sequence,
        last_log_sequence=row.last_log_sequence,
    )
