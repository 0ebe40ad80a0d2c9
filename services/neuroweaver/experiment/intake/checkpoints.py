"""Checkpoints, with which projections begin: the units of an experiment as they were after a batch."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

import numpy.typing as npt
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment.intake.readings import Plan, Total
from neuroweaver.experiment.intake.unit_table import UnitTable, packed, unpacked
from neuroweaver.experiment.storage import tables
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.wire.ids import new_id

_PART_BYTES: Final = 4 << 20
_LEVEL: Final = 1


async def load(
    connection: AsyncConnection, project: str, test_id: str, plan: Plan
) -> tuple[int, UnitTable] | None:
    """The number of its last batch, and the units; None if there is no checkpoint that the plan can read.

    Raises RuntimeError if there is none and raw events are no longer whole: units cannot be told then.
    """
    table, parts = tables.totals, tables.checkpoints
    statement = select(table).where(tables.of_experiment(table, project, test_id))
    row = (await connection.execute(statement)).one_or_none()
    # While all raw events are there, units are rather made of them again: no form knows less than those.
    forms = [form_of(plan), *([first_form_of(plan)] if row is not None and row.expired_batches else [])]
    if row is None or row.checkpoint_id is None or row.checkpoint_form not in forms:
        if row is not None and row.expired_batches:
            raise RuntimeError(
                f"the units of {test_id} are kept in the form {row.checkpoint_form or 'none'}, which this "
                f"version cannot read (it reads {form_of(plan)})"
            )
        return None
    wanted = select(parts.c.payload).where(
        tables.of_experiment(parts, project, test_id), parts.c.checkpoint_id == row.checkpoint_id
    )
    payloads = (await connection.execute(wanted.order_by(parts.c.part))).scalars().all()
    units = await asyncio.to_thread(_unpacked, plan, b"".join(payloads))
    return row.checkpoint_batch, units


async def covered(connection: AsyncConnection, project: str, test_id: str, plan: Plan) -> int:
    """The number of the last batch in the checkpoint; 0 without one that the plan can read."""
    table = tables.totals
    statement = select(table.c.checkpoint_batch).where(
        tables.of_experiment(table, project, test_id), table.c.checkpoint_form == form_of(plan)
    )
    return (await connection.execute(statement)).scalar_one_or_none() or 0


async def save(
    database: Database,
    project: str,
    test_id: str,
    plan: Plan,
    batch: int,
    arrays: Mapping[str, npt.NDArray[Any]],
    now: datetime,
) -> bool:
    """Stores the units as they are after a batch (`UnitTable.arrays`); whether it became the checkpoint.

    Written in small transactions that delay nobody; it holds once the last of them is committed.
    """
    data = await asyncio.to_thread(lambda: zlib.compress(packed(arrays), _LEVEL))
    form, table, written = form_of(plan), tables.totals, tables.checkpoints
    key = {"project": project, "test_id": test_id, "checkpoint_id": new_id()}
    parts = [
        key | {"part": part, "create_time": now, "payload": data[start : start + _PART_BYTES]}
        for part, start in enumerate(range(0, len(data), _PART_BYTES))
    ]
    for row in parts:
        await database.transact(partial(_add, row))
    mine, own = (tables.of_experiment(each, project, test_id) for each in (table, written))
    is_its = written.c.checkpoint_id == key["checkpoint_id"]

    async def settle(connection: AsyncConnection) -> bool:
        statement = select(table.c.checkpoint_batch, table.c.checkpoint_form).where(mine).with_for_update()
        row = (await connection.execute(statement)).one_or_none()
        stored = select(func.count()).select_from(written).where(own, is_its)
        is_whole = (await connection.execute(stored)).scalar_one() == len(parts)
        is_newest = row is not None and (
            row.checkpoint_batch < batch or (row.checkpoint_batch == batch and row.checkpoint_form != form)
        )
        if not (is_whole and is_newest):  # another one was quicker
            await connection.execute(delete(written).where(own, is_its))
            return False
        values = {"checkpoint_id": key["checkpoint_id"], "checkpoint_batch": batch, "checkpoint_form": form}
        await connection.execute(update(table).where(mine).values(values))
        await connection.execute(delete(written).where(own, ~is_its))
        return True

    return await database.transact(settle)


async def _add(row: Mapping[str, Any], connection: AsyncConnection) -> None:
    await connection.execute(insert(tables.checkpoints).values(row))


async def forget(connection: AsyncConnection, project: str, test_id: str) -> None:
    """Drops the checkpoint: all begins with the raw events again."""
    table, written = tables.totals, tables.checkpoints
    none = {"checkpoint_id": None, "checkpoint_batch": 0, "checkpoint_form": ""}
    mine = tables.of_experiment(table, project, test_id)
    await connection.execute(update(table).where(mine).values(none))
    await connection.execute(delete(written).where(tables.of_experiment(written, project, test_id)))


def form_of(plan: Plan) -> str:
    """Another one for every plan that keeps other columns."""
    return f"2.{_digest(plan, [[*_column(total), total.span.grace_us] for total in plan.totals])}"


def first_form_of(plan: Plan) -> str:
    """That of versions which did not count the events that no metric uses, nor knew a grace."""
    return f"1.{_digest(plan, [_column(total) for total in plan.totals[: plan.used_totals]])}"


def _column(total: Total) -> list[object]:
    span = total.span
    return [
        total.name,
        span.window_us,
        span.lookback_us,
        total.kind.value,
        total.place,
        repr(total.threshold),
    ]


def _digest(plan: Plan, columns: Sequence[Sequence[object]]) -> str:
    plain = [plan.variants, plan.names, plan.covariates, plan.judgements, columns]
    return f"{zlib.crc32(json.dumps(plain).encode()):08x}"


def _unpacked(plan: Plan, data: bytes) -> UnitTable:
    return UnitTable.from_arrays(plan, unpacked(zlib.decompress(data)))
