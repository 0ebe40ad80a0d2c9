"""What is no longer needed: stored files that no version holds, and old events of watches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, delete, exists, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.registry.storage import deliveries, tables

# A sweep holds up the writers, so it is short; there is always a next one.
SWEEP_FILES: Final = 100


async def sweep(
    connection: AsyncConnection,
    drop: Callable[[str], Awaitable[None]],
    unused_since: datetime,
    hidden_since: datetime,
) -> int:
    """Deletes up to SWEEP_FILES files, row and content. Returns their number."""
    blobs = tables.blobs
    statement = (
        select(blobs.c.digest)
        .where(blobs.c.last_used < unused_since, ~_is_held(hidden_since))
        .order_by(blobs.c.last_used)
        .limit(SWEEP_FILES)
        .with_for_update()
    )
    digests = (await connection.execute(statement)).scalars().all()
    if digests:
        await connection.execute(delete(blobs).where(blobs.c.digest.in_(digests)))
        # Before the commit: until then whoever wants one of them waits at its row. Should the commit fail,
        # the rows are back without their files, which is how an upload that was never finished looks too.
        for digest in digests:
            await drop(digest)
    return len(digests)


def _is_held(hidden_since: datetime) -> ColumnElement[bool]:
    held, versions, models = tables.version_artifacts, tables.versions, tables.models
    of_version = [held.c[name] == versions.c[name] for name in ("project", "model_id", "precedence")]
    of_model = [versions.c[name] == models.c[name] for name in ("project", "model_id")]
    is_there = [
        or_(table.c.delete_time.is_(None), table.c.delete_time >= hidden_since)
        for table in (versions, models)
    ]
    return exists().where(held.c.digest == tables.blobs.c.digest, *of_version, *of_model, *is_there)


async def compact(connection: AsyncConnection, before: datetime) -> int:
    """Drops the events of watches from before a moment, except each project's last and what is to be sent."""
    events, heads = tables.model_events, tables.audit_heads
    needed = await deliveries.oldest_needed(connection)
    dropped = 0
    for row in (await connection.execute(select(heads.c.project, heads.c.sequence))).all():
        statement = delete(events).where(
            events.c.project == row.project,
            events.c.time < before,
            events.c.sequence < min(row.sequence, needed.get(row.project, row.sequence)),
        )
        dropped += (await connection.execute(statement)).rowcount
    return dropped
