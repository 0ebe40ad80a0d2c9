"""Checkpoints in time, and raw events that leave by age."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import numpy.typing as npt
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment.domain.model import Experiment
from neuroweaver.experiment.intake import checkpoints, raw_events, sketching, snapshots
from neuroweaver.experiment.intake.projection import Projections
from neuroweaver.experiment.intake.readings import Plan
from neuroweaver.experiment.intake.unit_table import UnitTable
from neuroweaver.experiment.storage.store import Store
from neuroweaver.mesh.wire.clock import microseconds


async def keep_checkpoint(
    store: Store, projections: Projections, experiment: Experiment, *, is_forced: bool = False
) -> bool:
    """Stores the units of an experiment if many events came since the last time; whether it did."""
    project, test_id, plan = experiment.project, experiment.test_id, Plan(experiment.spec)
    async with projections.hold(project, [test_id]) as held:
        async with store.read(project) as experiments:
            projection = await held.current(experiments.connection, project, experiment, plan)
        if not projection.batch or not (is_forced or projection.is_due):
            return False
        oldest = raw_events.oldest(experiment, store.clock())
        lookback_us = int(max(plan.lookback_us, default=0))
        batch, fresh_events = projection.batch, projection.fresh_events
        with projection.changing():
            arrays = await asyncio.to_thread(_copied, projection.table, microseconds(oldest), lookback_us)
    is_saved = await checkpoints.save(store.database, project, test_id, plan, batch, arrays, store.clock())
    # Where another process was quicker, its checkpoint serves as well.
    projection.fresh_events -= fresh_events
    return is_saved


def _copied(table: UnitTable, oldest_us: int, lookback_us: int) -> dict[str, npt.NDArray[Any]]:
    table.forget_loose(oldest_us, lookback_us)
    return dict(table.arrays())


async def expire(store: Store, projections: Projections, experiment: Experiment, now: datetime) -> int:
    """Drops raw events beyond the retention, and the keys of their ids; results stay as they are.

    Returns the number dropped.
    """
    project, test_id, plan = experiment.project, experiment.test_id, Plan(experiment.spec)
    oldest = raw_events.oldest(experiment, now)
    async with store.read(project) as experiments:
        connection = experiments.connection
        last = await raw_events.last_before(connection, project, test_id, oldest)
        covered = await checkpoints.covered(connection, project, test_id, plan)
    if not last:
        return 0
    if covered < last:
        await keep_checkpoint(store, projections, experiment, is_forced=True)
    # Sketches cannot be recomputed once events are gone.
    await sketching.mend(store, projections, experiment)

    async def drop(connection: AsyncConnection) -> int:
        totals = await snapshots.claim(connection, project, plan, test_id)
        await snapshots.load_cells(connection, project, totals, None)
        if any(cell.is_stale for cell in totals.ledger.cells.values()):
            return 0  # a sketch became stale just now: the next time
        until = await checkpoints.covered(connection, project, test_id, plan)
        batches, events = await raw_events.drop(connection, project, test_id, oldest, until)
        totals.expired_batches += batches
        await snapshots.save(connection, project, totals)
        return events

    async with projections.hold(project, [test_id]):
        dropped = await store.database.transact(drop)
        if dropped:
            # It still knows the ids of the events that left.
            projections.forget(project, test_id)
    return dropped
