"""Sketches made anew from the raw events: those of units' means, and those whose events moved elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment import raw_events, snapshots
from neuroweaver.experiment.events import Batch
from neuroweaver.experiment.joining import records, units_of
from neuroweaver.experiment.keys import keys_of, sketch_groups
from neuroweaver.experiment.ledger import CellKey, sketched, sketches_of_means
from neuroweaver.experiment.model import Experiment
from neuroweaver.experiment.projection import Projection
from neuroweaver.experiment.readings import Plan, Reading
from neuroweaver.experiment.snapshot import Snapshot
from neuroweaver.experiment.statistics.sketch import GroupedSketch
from neuroweaver.experiment.store import Store

_AT_ONCE: Final = 20


async def completed(store: Store, experiment: Experiment, snapshot: Snapshot) -> Snapshot:
    """With the sketches that are not stored. To be called outside of any transaction."""
    missing = {key for key, cell in snapshot.cells.items() if cell.sketch is None and cell.events}
    plan = Plan(experiment.spec)
    readings = [
        reading
        for reading in plan.readings
        if reading.is_quantile and any(key[2] == reading.metric_id for key in missing)
    ]
    if not readings:
        return snapshot
    project, test_id = experiment.project, experiment.test_id
    async with (
        store.projections.hold(project, [test_id]) as held,
        store.read(project) as experiments,
    ):
        projection = await held.current(experiments.connection, project, experiment, plan)
        made = await asyncio.to_thread(of_means, projection, readings)
        by_events = [reading for reading in readings if not reading.is_of_unit_means]
        if by_events:
            raw = raw_events.after(experiments.connection, project, test_id, 0, _AT_ONCE)
            async for read in raw:
                await asyncio.to_thread(of_events, projection, by_events, [each for _, each, _ in read], made)
    cells = {
        key: replace(cell, sketch=made[key].to_bytes()) if key in missing and key in made else cell
        for key, cell in snapshot.cells.items()
    }
    return replace(snapshot, cells=cells)


async def mend(store: Store, experiment: Experiment) -> int:
    """Puts sketches in the place of those whose events moved elsewhere. Gives how many."""
    project, test_id, plan = experiment.project, experiment.test_id, Plan(experiment.spec)
    if not any(reading.is_quantile for reading in plan.readings):
        return 0
    async with store.projections.hold(project, [test_id]) as held:

        async def work(connection: AsyncConnection) -> int:
            totals = await snapshots.claim(connection, project, plan, test_id)
            await snapshots.load_cells(connection, project, totals, None)
            stale = {key for key, cell in totals.ledger.cells.items() if cell.is_stale}
            if not stale or not totals.ledger.is_whole:
                return 0
            projection = await held.current(connection, project, experiment, plan)
            readings = [each for each in plan.readings if any(key[2] == each.metric_id for key in stale)]
            made: dict[CellKey, GroupedSketch] = {}
            async for read in raw_events.after(connection, project, test_id, 0, _AT_ONCE):
                await asyncio.to_thread(of_events, projection, readings, [each for _, each, _ in read], made)
            for key in stale:
                cell = totals.ledger.cells[key]
                cell.sketch, cell.is_stale = made.get(key), False
                totals.ledger.touched.add(key)
            await snapshots.save(connection, project, totals)
            return len(stale)

        return await store.database.transact(work)


def of_means(projection: Projection, readings: Iterable[Reading]) -> dict[CellKey, GroupedSketch]:
    """Of the readings that sketch the means of units, over all units."""
    made: dict[CellKey, GroupedSketch] = {}
    for reading in readings:
        if reading.is_of_unit_means:
            groups = sketch_groups(projection.table.index.keys())
            made |= sketches_of_means(reading, projection.table.everyone(), groups)
    return made


def of_events(
    projection: Projection,
    readings: Sequence[Reading],
    batches: Sequence[Batch],
    into: dict[CellKey, GroupedSketch],
) -> None:
    """Adds the events of some batches. projection: knows the units of all of them."""
    everyone = projection.table.everyone()
    for batch in batches:
        unit_ids, unit = units_of(batch, projection.overrides)
        if not unit_ids:
            continue
        keys = keys_of(projection.project, projection.test_id, unit_ids)
        places, groups = projection.table.index.find(keys), sketch_groups(keys)
        _, samples, _ = records(projection.plan, batch, unit)
        first, codes = everyone.first[places], everyone.codes[places]
        for reading in readings:
            is_its = samples.rows["name"] == reading.sources[0].name
            mine = samples.chosen(is_its & reading.span.holds(samples.rows["time"], first[samples.unit]))
            sketched(reading, projection.plan, codes[mine.unit], groups[mine.unit], mine.rows["value"], into)
