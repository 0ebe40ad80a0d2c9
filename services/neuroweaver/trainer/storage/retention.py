"""What the database keeps of jobs that ended long ago: the job itself, and its last event."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

from sqlalchemy import ColumnElement, Table, and_, delete, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.trainer.domain.job import TERMINAL
from neuroweaver.trainer.storage.tables import EVENTS, JOBS, LOGS


async def drop_events(connection: AsyncConnection, before: datetime) -> int:
    """All but the last event of each job that ended before a moment. Returns the number dropped."""
    return await _drop(connection, EVENTS, before, EVENTS.c.sequence < JOBS.c.last_sequence)


async def drop_lines(connection: AsyncConnection, before: datetime) -> int:
    """The log of each job that ended before a moment. Returns the number of lines dropped."""
    return await _drop(connection, LOGS, before)


async def _drop(
    connection: AsyncConnection, table: Table, before: datetime, *conditions: ColumnElement[bool]
) -> int:
    # By the keys of old jobs, not row by row: young jobs have many rows, and their workers write meanwhile.
    key = table.c.project, table.c.job_id, table.c.sequence
    its_job = and_(table.c.project == JOBS.c.project, table.c.job_id == JOBS.c.job_id)
    old = select(*key).join_from(JOBS, table, its_job).where(_ended(before), *conditions)
    return (await connection.execute(delete(table).where(tuple_(*key).in_(old.correlate(None))))).rowcount


async def old_folders(connection: AsyncConnection, before: datetime) -> list[str]:
    """The output folders of jobs that ended before a moment, dropped ones included."""
    return list((await connection.execute(select(JOBS.c.output_dir).where(_ended(before)))).scalars())


async def while_ended(
    connection: AsyncConnection, output_dir: str, before: datetime, act: Callable[[], Awaitable[None]]
) -> bool:
    """Does something to the folder of a job that ended before a moment, while nobody can resume the job.

    False, and nothing is done, if it was resumed since, or if a younger job has its folder inside. `act` may
    run several times, as its transaction may.
    """
    inside = JOBS.c.output_dir.startswith(f"{output_dir}/", autoescape=True)
    own = select(JOBS.c.job_id).where(JOBS.c.output_dir == output_dir, _ended(before)).with_for_update()
    younger = select(JOBS.c.job_id).where(inside, ~_ended(before)).limit(1)
    if (await connection.execute(own)).first() is None or (await connection.execute(younger)).first():
        return False
    await act()
    return True


def _ended(before: datetime) -> ColumnElement[bool]:
    return and_(JOBS.c.state.in_(TERMINAL), JOBS.c.end_time < before)
