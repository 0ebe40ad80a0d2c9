"""Checkpoints in time, and raw events that leave by age."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment import checkpoints, raw_events, sketching, snapshots, tables
from neuroweaver.experiment.model import Experiment
from neuroweaver.experiment.readings import Plan
from neuroweaver.experiment.specification import length
from neuroweaver.experiment.store import Store
from neuroweaver.mesh.clock import microseconds


async def keep_checkpoint(store: Store, experiment: Experiment, *, is_forced: bool = False) -> bool:
    """Puts down the units of an experiment if many events came since it was done last; whether it did."""
    project, test_id, plan = experiment.project, experiment.test_id, Plan(experiment.spec)
    async with store.projections.hold(project, [test_id]) as held:
        async with store.read(project) as experiments:
            projection = await held.current(experiments.connection, project, experiment, plan)
        if not projection.batch or not (is_forced or projection.is_due):
            return False
        projection.fresh_events = 0
        oldest = _oldest(experiment, store.clock())
        projection.table.forget_loose(microseconds(oldest) - int(max(plan.lookback_us, default=0)))
        batch, arrays = projection.batch, dict(projection.table.arrays())
    return await checkpoints.save(store.database, project, test_id, plan, batch, arrays, store.clock())


async def expire(store: Store, experiment: Experiment, now: datetime) -> int:
    """Removes raw events beyond the retention, and what their ids were told by. Gives how many.

    Results stay as they are.
    """
    project, test_id, plan = experiment.project, experiment.test_id, Plan(experiment.spec)
    oldest = _oldest(experiment, now)
    async with store.read(project) as experiments:
        connection = experiments.connection
        last = await raw_events.last_before(connection, project, test_id, oldest)
        known = await _checkpointed(connection, project, test_id)
    if not last:
        return 0
    if known < last:
        await keep_checkpoint(store, experiment, is_forced=True)
    # Sketches cannot be made anew any more once events are gone.
    await sketching.mend(store, experiment)

    async def drop(connection: AsyncConnection) -> int:
        totals = await snapshots.claim(connection, project, plan, test_id)
        until = await _checkpointed(connection, project, test_id)
        batches, events = await raw_events.drop(connection, project, test_id, oldest, until)
        totals.expired_batches += batches
        await snapshots.save(connection, project, totals)
        return events

    async with store.projections.hold(project, [test_id]):
        dropped = await store.database.transact(drop)
        if dropped:
            # It still knows the ids of the events that left.
            store.projections.forget(project, test_id)
    return dropped


async def _checkpointed(connection: AsyncConnection, project: str, test_id: str) -> int:
    """The number of the last batch in the checkpoint; 0 without one."""
    table = tables.totals
    statement = select(table.c.checkpoint_batch).where(table.c.project == project, table.c.test_id == test_id)
    return (await connection.execute(statement)).scalar_one_or_none() or 0


def _oldest(experiment: Experiment, now: datetime) -> datetime:
    return now - length(experiment.spec.raw_event_retention)
