"""Where the statistics are kept, and the snapshot that an analysis reads."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment.domain.snapshot import Snapshot
from neuroweaver.experiment.intake.ledger import CellKey, Ledger, Sums
from neuroweaver.experiment.intake.readings import Plan
from neuroweaver.experiment.storage import tables
from neuroweaver.experiment.storage.reader import Reader
from neuroweaver.mesh.database.upsert import upsert
from neuroweaver.statistics.moments import Moments
from neuroweaver.statistics.sketch import GroupedSketch


@dataclass
class Totals:
    """The statistics of one experiment inside a transaction. last_batch: the number of the newest one."""

    test_id: str
    ledger: Ledger
    last_batch: int
    expired_batches: int


async def load(connection: AsyncConnection, project: str, test_id: str) -> Snapshot:
    """What is stored of an experiment's events; `sketching.completed` makes what is not. Raises NotFound."""
    experiment = await Reader(connection, project).experiment(test_id)
    totals = await read(connection, project, Plan(experiment.spec), test_id)
    await load_cells(connection, project, totals, None)
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
    fresh = insert(tables.totals).values(
        project=project, test_id=test_id, last_batch=0, expired_batches=0, counts=totals.ledger.dump()
    )
    await connection.execute(fresh)
    return totals


async def load_cells(
    connection: AsyncConnection, project: str, totals: Totals, phases: Iterable[int] | None
) -> None:
    """Those of some phases, or all, into the ledger."""
    ledger, table = totals.ledger, tables.cells
    statement = select(table).where(tables.of_experiment(table, project, totals.test_id))
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
            cuts=Moments.from_floats(reading.cuts, _floats(row.cuts)) if row.cuts else None,
            events=events,
            without=without,
            sketch=GroupedSketch.from_bytes(row.sketch) if row.sketch else None,
            is_stale=is_stale,
        )


async def save(connection: AsyncConnection, project: str, totals: Totals) -> None:
    """What was counted, and the cells that moved."""
    ledger, table = totals.ledger, tables.totals
    changed = update(table).where(tables.of_experiment(table, project, totals.test_id))
    counted = {"last_batch": totals.last_batch, "expired_batches": totals.expired_batches}
    await connection.execute(changed.values(**counted, counts=ledger.dump()))
    if ledger.touched:
        cells = [_cell(project, totals, key) for key in sorted(ledger.touched)]
        await upsert(connection, tables.cells, cells)


async def forget_cells(connection: AsyncConnection, project: str, test_id: str) -> None:
    """Drops the cells, to be recomputed."""
    cells = tables.cells
    await connection.execute(delete(cells).where(tables.of_experiment(cells, project, test_id)))


def _totals(project: str, test_id: str) -> Any:
    return select(tables.totals).where(tables.of_experiment(tables.totals, project, test_id))


def _found(row: Any, plan: Plan) -> Totals:
    ledger = Ledger.load(plan, row.counts)
    ledger.is_whole = not row.expired_batches
    return Totals(row.test_id, ledger, row.last_batch, row.expired_batches)


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
        "cuts": None if cell.cuts is None else _bytes(cell.cuts),
        "sketch": cell.sketch.to_bytes() if cell.sketch and not cell.is_stale else None,
    }


def _bytes(moments: Moments) -> bytes:
    floats = moments.to_floats()
    return struct.pack(f"<{len(floats)}d", *floats)


def _floats(data: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(data) // 8}d", data)
