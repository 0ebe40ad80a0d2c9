"""Where events, units and statistics are kept, and the snapshot that an analysis reads."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment import rows_at_once, tables
from neuroweaver.experiment.events import Batch
from neuroweaver.experiment.keys import sketch_groups, span_of
from neuroweaver.experiment.ledger import CellKey, Ledger, Sums, moment, sketched
from neuroweaver.experiment.reader import Reader
from neuroweaver.experiment.readings import Plan
from neuroweaver.experiment.snapshot import Snapshot
from neuroweaver.experiment.statistics.moments import Moments
from neuroweaver.experiment.statistics.sketch import GroupedSketch
from neuroweaver.experiment.units import Kept, Population

# Units that are looked at together when all of them are.
_AT_ONCE: Final = 10_000

_UNIT_COLUMNS: Final = ("unit_key", "exposures", "samples", "judgements")


@dataclass
class Totals:
    """The statistics of one experiment inside a transaction. last_batch: the number of the newest one."""

    test_id: str
    ledger: Ledger
    last_batch: int
    expired_batches: int


async def load(connection: AsyncConnection, project: str, test_id: str) -> Snapshot:
    """All that is known of an experiment's events. Raises NotFound."""
    experiment = await Reader(connection, project).experiment(test_id)
    totals = await read(connection, project, Plan(experiment.spec), test_id)
    await load_cells(connection, project, totals, None)
    await _sketch_anew(connection, project, totals)
    return totals.ledger.snapshot()


async def read(connection: AsyncConnection, project: str, plan: Plan, test_id: str) -> Totals:
    """What is counted, without the cells."""
    row = (await connection.execute(_totals(project, test_id))).one_or_none()
    return Totals(test_id, Ledger(plan), 0, 0) if row is None else _found(row, plan)


async def claim(connection: AsyncConnection, project: str, plan: Plan, test_id: str) -> Totals:
    """As `read`, and nobody else takes in events of the experiment before this transaction ends."""
    statement = _totals(project, test_id).with_for_update()
    row = (await connection.execute(statement)).one_or_none()
    if row is not None:
        return _found(row, plan)
    totals = Totals(test_id, Ledger(plan), 0, 0)
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    fresh = dialect.insert(tables.totals).values(
        project=project, test_id=test_id, last_batch=0, expired_batches=0, counts=totals.ledger.dump()
    )
    await connection.execute(fresh)
    return totals


async def load_cells(
    connection: AsyncConnection, project: str, totals: Totals, phases: Iterable[int] | None
) -> None:
    """Those of some phases, or all, into the ledger."""
    ledger, table = totals.ledger, tables.cells
    statement = select(table).where(table.c.project == project, table.c.test_id == totals.test_id)
    if phases is not None:
        statement = statement.where(table.c.phase.in_(list(phases)))
    readings = {reading.metric_id: reading for reading in ledger.plan.readings}
    for row in await connection.execute(statement):
        reading = readings[row.metric_id]
        events, without, is_stale = json.loads(row.counts)
        columns = reading.outcomes + reading.covariates
        ledger.cells[row.phase, row.variant_id, row.metric_id] = Sums(
            observed=Moments.from_floats(columns, _floats(row.observed)),
            missing=Moments.from_floats(reading.outcomes, _floats(row.missing)) if row.missing else None,
            events=events,
            without=without,
            sketch=GroupedSketch.from_bytes(row.sketch) if row.sketch else None,
            is_stale=is_stale,
        )


async def save(connection: AsyncConnection, project: str, totals: Totals) -> None:
    """What was counted, and the cells that moved."""
    ledger, table = totals.ledger, tables.totals
    changed = update(table).where(table.c.project == project, table.c.test_id == totals.test_id)
    values = {
        "last_batch": totals.last_batch,
        "expired_batches": totals.expired_batches,
        "counts": ledger.dump(),
    }
    await connection.execute(changed.values(values))
    if ledger.touched:
        cells = [_cell(project, totals, key) for key in sorted(ledger.touched)]
        dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
        statement = dialect.insert(tables.cells)
        names = ("counts", "observed", "missing", "sketch")
        changes = {name: statement.excluded[name] for name in names}
        keys = list(tables.cells.primary_key.columns)
        await connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changes), cells)


async def add_batch(
    connection: AsyncConnection, project: str, totals: Totals, batch: Batch, now: datetime
) -> None:
    """The raw events, under the next number."""
    totals.last_batch += 1
    times = batch.rows["time"]
    await connection.execute(
        insert(tables.event_batches).values(
            project=project,
            test_id=totals.test_id,
            number=totals.last_batch,
            received_time=now,
            first_event_time=moment(int(times.min())),
            last_event_time=moment(int(times.max())),
            events=len(batch),
            payload=batch.to_bytes(),
        )
    )


async def batches(
    connection: AsyncConnection, project: str, test_id: str, received_by: datetime | None = None
) -> list[tuple[int, Batch]]:
    """The raw events kept, in the order they were taken in, with the numbers of their batches."""
    table = tables.event_batches
    statement = select(table.c.number, table.c.payload).where(
        table.c.project == project, table.c.test_id == test_id
    )
    if received_by is not None:
        statement = statement.where(table.c.received_time <= received_by)
    rows = await connection.execute(statement.order_by(table.c.number))
    return [(row.number, Batch.from_bytes(test_id, row.payload)) for row in rows]


async def drop_batches(
    connection: AsyncConnection, project: str, test_id: str, before: datetime, limit: int
) -> list[Batch]:
    """Removes raw events of which all happened before a moment, at most so many batches."""
    table = tables.event_batches
    mine = table.c.project == project, table.c.test_id == test_id
    statement = select(table.c.number, table.c.payload).where(*mine, table.c.last_event_time < before)
    rows = (await connection.execute(statement.order_by(table.c.number).limit(limit))).all()
    numbers = [row.number for row in rows]
    await connection.execute(delete(table).where(*mine, table.c.number.in_(numbers)))
    return [Batch.from_bytes(test_id, row.payload) for row in rows]


async def units(connection: AsyncConnection, keys: Sequence[bytes]) -> list[Kept]:
    """What is kept of each unit; nothing of one that is new."""
    rows = await rows_at_once.select(connection, "units", _UNIT_COLUMNS, keys)
    known = {key: Kept(exposures, samples, judgements) for key, exposures, samples, judgements in rows}
    nothing = Kept()
    return [known.get(key, nothing) for key in keys]


async def save_units(connection: AsyncConnection, keys: Sequence[bytes], kept: Sequence[Kept]) -> None:
    # In the order of the keys: neighbours lie in the same pages.
    ordered = sorted(zip(keys, *zip(*kept, strict=True), strict=True))
    await rows_at_once.insert(connection, "units", _UNIT_COLUMNS, list(zip(*ordered, strict=True)))


async def all_units(
    connection: AsyncConnection, project: str, plan: Plan, test_id: str
) -> AsyncIterator[tuple[list[bytes], Population]]:
    """Every unit of the experiment, some at a time, with their keys."""
    table, (after, end) = tables.units, span_of(project, test_id)
    while True:
        statement = select(table).where(table.c.unit_key > after, table.c.unit_key < end)
        rows = (await connection.execute(statement.order_by(table.c.unit_key).limit(_AT_ONCE))).all()
        if not rows:
            return
        keys = [bytes(row.unit_key) for row in rows]
        yield keys, Population.of(plan, [Kept(row.exposures, row.samples, row.judgements) for row in rows])
        after = keys[-1]


async def forget(connection: AsyncConnection, project: str, test_id: str) -> None:
    """Drops units and cells, to be made anew."""
    start, end = span_of(project, test_id)
    table, cells = tables.units, tables.cells
    await connection.execute(delete(table).where(table.c.unit_key > start, table.c.unit_key < end))
    await connection.execute(delete(cells).where(cells.c.project == project, cells.c.test_id == test_id))


async def _sketch_anew(connection: AsyncConnection, project: str, totals: Totals) -> None:
    """The sketches that could not move with the events: those of units' means, and stale ones."""
    ledger = totals.ledger
    stale = {key for key, cell in ledger.cells.items() if cell.is_stale}
    readings = [
        reading
        for reading in ledger.plan.readings
        if reading.is_of_unit_means or any(key[2] == reading.metric_id for key in stale)
    ]
    if not readings:
        return
    made: dict[CellKey, GroupedSketch] = {}
    async for keys, population in all_units(connection, project, ledger.plan, totals.test_id):
        for reading in readings:
            sketched(reading, population, sketch_groups(keys), made)
    for key, sketch in made.items():
        if key in ledger.cells and (key in stale or ledger.cells[key].sketch is None):
            ledger.cells[key].sketch = sketch


def _totals(project: str, test_id: str) -> Any:
    table = tables.totals
    return select(table).where(table.c.project == project, table.c.test_id == test_id)


def _found(row: Any, plan: Plan) -> Totals:
    return Totals(row.test_id, Ledger.load(plan, row.counts), row.last_batch, row.expired_batches)


def _cell(project: str, totals: Totals, key: CellKey) -> dict[str, Any]:
    cell = totals.ledger.cells[key]
    phase, variant_id, metric_id = key
    return {
        "project": project,
        "test_id": totals.test_id,
        "phase": phase,
        "variant_id": variant_id,
        "metric_id": metric_id,
        "counts": json.dumps([cell.events, cell.without, cell.is_stale]),
        "observed": _bytes(cell.observed),
        "missing": b"" if cell.missing is None else _bytes(cell.missing),
        "sketch": cell.sketch.to_bytes() if cell.sketch and not cell.is_stale else None,
    }


def _bytes(moments: Moments) -> bytes:
    floats = moments.to_floats()
    return struct.pack(f"<{len(floats)}d", *floats)


def _floats(data: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(data) // 8}d", data)
