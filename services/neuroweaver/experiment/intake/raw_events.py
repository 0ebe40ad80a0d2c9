"""The raw events as they are kept: those of a transaction in columns, numbered in the order they came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np
from sqlalchemy import ColumnElement, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment.domain.model import Experiment
from neuroweaver.experiment.domain.specification import length
from neuroweaver.experiment.intake.event_ids import Marks, marks_of, unknown_marks
from neuroweaver.experiment.intake.events import Batch
from neuroweaver.experiment.intake.keys import Keys, from_bytes, keys_of, to_bytes
from neuroweaver.experiment.storage import tables
from neuroweaver.mesh.wire.clock import from_microseconds

_TABLE: Final = tables.event_batches
# Batches that are read and decoded at once.
_AT_ONCE: Final = 20


def oldest(experiment: Experiment, now: datetime) -> datetime:
    """When what is taken in and kept happened at the earliest."""
    return now - length(experiment.spec.raw_event_retention)


async def add(
    connection: AsyncConnection,
    project: str,
    batch: Batch,
    keys: Keys,
    marks: Marks,
    number: int,
    now: datetime,
    payload: bytes,
) -> None:
    """keys: of the events, without the notes. marks: of their units. payload: `batch.to_bytes()`."""
    times = batch.rows["time"]
    await connection.execute(
        insert(_TABLE).values(
            project=project,
            test_id=batch.test_id,
            number=number,
            received_time=now,
            first_event_time=from_microseconds(int(times.min())),
            last_event_time=from_microseconds(int(times.max())),
            events=len(keys),
            payload=payload,
            event_keys=to_bytes(keys),
            unit_marks=marks.astype("<u4").tobytes(),
        )
    )


async def until(
    connection: AsyncConnection, project: str, test_id: str, received_by: datetime | None = None
) -> list[tuple[int, Batch]]:
    """All that is kept, in the order it was taken in, with the numbers of the batches."""
    statement = select(_TABLE.c.number, _TABLE.c.payload).where(_mine(project, test_id))
    if received_by is not None:
        statement = statement.where(_TABLE.c.received_time <= received_by)
    rows = await connection.execute(statement.order_by(_TABLE.c.number))
    return [(row.number, Batch.from_bytes(test_id, row.payload)) for row in rows]


async def after(
    connection: AsyncConnection, project: str, test_id: str, number: int
) -> list[tuple[int, Batch, Keys, Marks]]:
    """The next batches after one, with the keys of their events and the marks of their units.

    Some at a time, and none in the end.
    """
    statement = select(_TABLE.c.number, _TABLE.c.payload, _TABLE.c.event_keys).where(
        _mine(project, test_id), _TABLE.c.number > number
    )
    rows = (await connection.execute(statement.order_by(_TABLE.c.number).limit(_AT_ONCE))).all()
    return await asyncio.to_thread(_decoded, project, test_id, rows)


def _decoded(project: str, test_id: str, rows: Sequence[Any]) -> list[tuple[int, Batch, Keys, Marks]]:
    decoded = []
    for row in rows:
        batch = Batch.from_bytes(test_id, row.payload)
        keys = _keys(project, batch, row.event_keys)
        decoded.append((row.number, batch, keys, marks_of(batch.unit_ids[: len(keys)])))
    return decoded


async def keys_until(
    connection: AsyncConnection, project: str, test_id: str, number: int
) -> AsyncIterator[tuple[Keys, Marks]]:
    """The keys of the events of each batch up to one, and the marks of their units."""
    last = 0
    while True:
        statement = select(_TABLE.c.event_keys, _TABLE.c.unit_marks, _TABLE.c.number).where(
            _mine(project, test_id), _TABLE.c.number <= number, _TABLE.c.number > last
        )
        rows = (await connection.execute(statement.order_by(_TABLE.c.number).limit(_AT_ONCE))).all()
        if not rows:
            return
        for row in rows:
            if row.event_keys is not None:
                keys = from_bytes(row.event_keys)
                yield keys, _marks(row.unit_marks, len(keys))
                continue
            payload = select(_TABLE.c.payload).where(_mine(project, test_id), _TABLE.c.number == row.number)
            batch = Batch.from_bytes(test_id, (await connection.execute(payload)).scalar_one())
            yield _keys(project, batch, None), marks_of(batch.unit_ids)
        last = rows[-1].number


async def drop(
    connection: AsyncConnection, project: str, test_id: str, before: datetime, until_number: int
) -> tuple[int, int]:
    """Drops the batches up to a number of which all events happened before a moment.

    Returns the numbers of batches and of events dropped.
    """
    old = (_mine(project, test_id), _TABLE.c.last_event_time < before, _TABLE.c.number <= until_number)
    counts = (await connection.execute(select(_TABLE.c.events).where(*old))).scalars().all()
    if counts:
        await connection.execute(delete(_TABLE).where(*old))
    return len(counts), sum(counts)


async def last_before(connection: AsyncConnection, project: str, test_id: str, before: datetime) -> int:
    """The number of the last batch of which all events happened before a moment; 0 without one."""
    old = (_mine(project, test_id), _TABLE.c.last_event_time < before)
    statement = select(_TABLE.c.number).where(*old).order_by(_TABLE.c.number.desc()).limit(1)
    return (await connection.execute(statement)).scalar_one_or_none() or 0


def _mine(project: str, test_id: str) -> ColumnElement[bool]:
    return tables.of_experiment(_TABLE, project, test_id)


def _marks(stored: bytes | None, count: int) -> Marks:
    if stored is None:
        return unknown_marks(count)
    return np.frombuffer(stored, "<u4").astype(np.uint32, copy=False)


def _keys(project: str, batch: Batch, stored: bytes | None) -> Keys:
    # Batches of the time before keys were kept with them have none.
    return keys_of(project, batch.test_id, batch.event_ids) if stored is None else from_bytes(stored)
