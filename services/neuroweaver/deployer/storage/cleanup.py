"""What is dropped once it is old."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.deployer.domain.backend import Key
from neuroweaver.deployer.storage import tables
from neuroweaver.deployer.storage.reader import of, same
from neuroweaver.v1 import deployer_pb2 as pb


async def forget_measured(connection: AsyncConnection, before: datetime, after: datetime) -> int:
    """Drops measurements and reports from before one moment, and those a clock that ran ahead left from after
    another. Returns the number dropped.
    """
    dropped = 0
    for table in (tables.measurements, tables.samples):
        is_over = or_(table.c.time < before, table.c.time > after)
        dropped += (await connection.execute(delete(table).where(is_over))).rowcount
    return dropped


async def forget_gone(connection: AsyncConnection, before: datetime) -> int:
    """Drops deployments that were gone before a moment, with all that is theirs. Returns how many."""
    table, events = tables.deployments, tables.events
    statement = (
        select(table.c.project, table.c.model_id, table.c.name)
        .join(events, same(events, table))
        .where(
            table.c.state == pb.DEPLOYMENT_STATE_DELETED,
            events.c.sequence == table.c.last_sequence,
            events.c.time < before,
        )
        .with_for_update(of=table)
    )
    keys = [Key(*row) for row in await connection.execute(statement)]
    for key in keys:
        for owned in reversed(tables.METADATA.sorted_tables):
            if table in {owned, *(foreign.referred_table for foreign in owned.foreign_key_constraints)}:
                await connection.execute(delete(owned).where(of(owned, key)))
    return len(keys)


async def compact(connection: AsyncConnection, before: datetime) -> int:
    """Drops the events from before a moment, except each deployment's last. Returns the number dropped."""
    table, whose = tables.events, tables.deployments
    last = select(whose.c.last_sequence).where(same(whose, table)).scalar_subquery()
    statement = delete(table).where(table.c.time < before, table.c.sequence < last)
    return (await connection.execute(statement)).rowcount
