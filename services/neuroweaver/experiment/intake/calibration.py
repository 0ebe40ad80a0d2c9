"""Caps by quantiles examined again where no events make it happen, as when conversion windows end."""

from __future__ import annotations

import asyncio

from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment.domain.model import CONCLUDED, Experiment
from neuroweaver.experiment.domain.snapshot import CAPS_GROWTH_HOURLY
from neuroweaver.experiment.intake import sketching, snapshots
from neuroweaver.experiment.intake.ledger import Exam, Ledger
from neuroweaver.experiment.intake.projection import Projections
from neuroweaver.experiment.intake.readings import Plan, Reading
from neuroweaver.experiment.intake.units import Population
from neuroweaver.experiment.storage.store import Store
from neuroweaver.mesh.wire.clock import microseconds


async def reexamine(store: Store, projections: Projections, experiment: Experiment) -> int:
    """Takes caps again, of all units as they are, where data have grown or conversion windows have ended.

    Returns the number of metrics capped anew. A decided experiment stays as it is.
    """
    project, test_id, plan = experiment.project, experiment.test_id, Plan(experiment.spec)
    if experiment.state == CONCLUDED:
        return 0
    async with store.read(project) as experiments:
        totals = await snapshots.read(experiments.connection, project, plan, test_id)
        await snapshots.load_cells(experiments.connection, project, totals, None)
    if not totals.last_batch or not (totals.ledger.is_carried or _candidates(totals.ledger)):
        return 0
    async with projections.hold(project, [test_id]) as held:
        units = await sketching.all_units(store, experiment, held)

        async def put(connection: AsyncConnection) -> int:
            totals = await snapshots.claim(connection, project, plan, test_id)
            if totals.last_batch != units.batch:
                return 0  # another process took in more: the next time
            await snapshots.load_cells(connection, project, totals, None)
            # Not before now: a replay of a moment has the caps that were taken after its last events.
            ledger, time_us = totals.ledger, microseconds(store.clock())
            count = await asyncio.to_thread(_capped_anew, ledger, units.everyone, units.batch, time_us)
            await snapshots.save(connection, project, totals)
            return count

        return await store.database.transact(put)


def _candidates(ledger: Ledger) -> list[Reading]:
    """What is due, and what may have enough units now whose conversion window was not over the last time."""
    due = ledger.due(CAPS_GROWTH_HOURLY)
    waiting = [
        reading
        for reading in ledger.plan.readings
        if reading.span.window_us is not None
        and (exams := ledger.exams.get(reading.metric_id))
        and _has_more(reading, ledger.units(reading), exams[-1])
    ]
    return [reading for reading in ledger.plan.readings if reading in due or reading in waiting]


def _capped_anew(ledger: Ledger, units: Population, batch: int, time_us: int) -> int:
    count = 0
    for reading in _candidates(ledger):
        exam, exams = ledger.examine(reading, units, batch, time_us), ledger.exams.get(reading.metric_id)
        # Each that is kept is kept for good, for replays.
        if (
            not exams
            or ledger.is_of_earlier_version(reading)
            or _has_grown(exam.seen, exams[-1].seen)
            or _has_more(reading, exam.units, exams[-1])
        ):
            ledger.calibrate(reading, units, exam)
            count += 1
    ledger.catch_up(units, batch, time_us)
    return count


def _has_more(reading: Reading, units: int, last: Exam) -> bool:
    return last.units < reading.calibration <= units or _has_grown(units, last.units)


def _has_grown(count: int, last: int) -> bool:
    return count > last and count >= CAPS_GROWTH_HOURLY * last
