"""Sketches recomputed from the raw events: those of units' means, and those whose events moved elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment.domain.model import Experiment
from neuroweaver.experiment.domain.snapshot import Snapshot
from neuroweaver.experiment.intake import raw_events, snapshots
from neuroweaver.experiment.intake.events import Batch
from neuroweaver.experiment.intake.joining import records, units_of
from neuroweaver.experiment.intake.key_index import KeyIndex
from neuroweaver.experiment.intake.keys import keys_of, sketch_groups
from neuroweaver.experiment.intake.ledger import CellKey, sketched, sketches_of_means
from neuroweaver.experiment.intake.projection import Held, Projection, Projections
from neuroweaver.experiment.intake.readings import Plan, Reading
from neuroweaver.experiment.intake.units import Population
from neuroweaver.experiment.storage.store import Store
from neuroweaver.statistics.sketch import GroupedSketch


@dataclass(frozen=True)
class AllUnits:
    """All units of a projection after the batch with the number `batch`."""

    projection: Projection
    index: KeyIndex
    everyone: Population
    batch: int

    @classmethod
    def of(cls, projection: Projection) -> AllUnits:
        """Copies, which the projection does not change any more."""
        table = projection.table
        return cls(projection, table.index.copy(), table.everyone(), projection.batch)


async def completed(
    store: Store, projections: Projections, experiment: Experiment, snapshot: Snapshot
) -> Snapshot:
    """With the sketches that are not stored. To be called outside of any transaction."""
    missing = {key for key, cell in snapshot.cells.items() if cell.sketch is None and cell.events}
    readings = _quantiles_of(experiment, missing)
    if not readings:
        return snapshot
    async with projections.hold(experiment.project, [experiment.test_id]) as held:
        units = await all_units(store, experiment, held)
    sketches = await _recomputed(store, experiment, units, readings)
    cells = {
        key: replace(cell, sketch=sketches[key].to_bytes()) if key in missing and key in sketches else cell
        for key, cell in snapshot.cells.items()
    }
    return replace(snapshot, cells=cells)


async def mend(store: Store, projections: Projections, experiment: Experiment) -> int:
    """Replaces sketches whose events moved elsewhere. Returns the number replaced.

    Events of the experiment wait meanwhile, other writers do not.
    """
    project, test_id, plan = experiment.project, experiment.test_id, Plan(experiment.spec)
    async with store.read(project) as experiments:
        totals = await snapshots.read(experiments.connection, project, plan, test_id)
        await snapshots.load_cells(experiments.connection, project, totals, None)
    stale = {key for key, cell in totals.ledger.cells.items() if cell.is_stale}
    readings = _quantiles_of(experiment, stale)
    if not readings or not totals.ledger.is_whole:
        return 0
    async with projections.hold(project, [test_id]) as held:
        units = await all_units(store, experiment, held)
        sketches = await _recomputed(store, experiment, units, readings)

        async def put(connection: AsyncConnection) -> int:
            totals = await snapshots.claim(connection, project, plan, test_id)
            if totals.last_batch != units.batch:
                return 0  # another process took in more: the next time
            await snapshots.load_cells(connection, project, totals, None)
            stale = [key for key, cell in totals.ledger.cells.items() if cell.is_stale]
            for key in stale:
                cell = totals.ledger.cells[key]
                cell.sketch, cell.is_stale = sketches.get(key), False
                totals.ledger.touched.add(key)
            await snapshots.save(connection, project, totals)
            return len(stale)

        return await store.database.transact(put)


def _quantiles_of(experiment: Experiment, cells: Iterable[CellKey]) -> list[Reading]:
    wanted = {metric_id for _, _, metric_id in cells}
    readings = Plan(experiment.spec).readings
    return [each for each in readings if each.is_quantile and each.metric_id in wanted]


async def all_units(store: Store, experiment: Experiment, held: Held) -> AllUnits:
    """As they are now."""
    async with store.read(experiment.project) as experiments:
        plan = Plan(experiment.spec)
        projection = await held.current(experiments.connection, experiment.project, experiment, plan)
        return await asyncio.to_thread(AllUnits.of, projection)


async def _recomputed(
    store: Store, experiment: Experiment, units: AllUnits, readings: Sequence[Reading]
) -> dict[CellKey, GroupedSketch]:
    """Raw events are read in many short transactions: they never change, and no writer waits for them."""
    sketches = await asyncio.to_thread(of_means, units, readings)
    by_events = [reading for reading in readings if not reading.is_of_unit_means]
    last = 0
    while by_events and last < units.batch:
        async with store.read(experiment.project) as experiments:
            connection = experiments.connection
            read = await raw_events.after(connection, experiment.project, experiment.test_id, last)
        batches = [batch for number, batch, _, _ in read if number <= units.batch]
        await asyncio.to_thread(of_events, units, by_events, batches, sketches)
        last = read[-1][0] if read else units.batch
    return sketches


def of_means(units: AllUnits, readings: Iterable[Reading]) -> dict[CellKey, GroupedSketch]:
    """Of the readings that sketch the means of units, over all units."""
    sketches: dict[CellKey, GroupedSketch] = {}
    for reading in readings:
        if reading.is_of_unit_means:
            sketches |= sketches_of_means(reading, units.everyone, sketch_groups(units.index.keys()))
    return sketches


def of_events(
    units: AllUnits, readings: Sequence[Reading], batches: Sequence[Batch], into: dict[CellKey, GroupedSketch]
) -> None:
    """Adds the events of some batches, of which all units are units."""
    projection, everyone = units.projection, units.everyone
    for batch in batches:
        unit_ids, unit = units_of(batch, projection.overrides)
        if not unit_ids:
            continue
        keys = keys_of(projection.project, projection.test_id, unit_ids)
        places, groups = units.index.find(keys), sketch_groups(keys)
        _, samples, _ = records(projection.plan, batch, unit)
        first, codes = everyone.first[places], everyone.codes[places]
        for reading in readings:
            is_its = samples.rows["name"] == reading.sources[0].name
            mine = samples.chosen(is_its & reading.span.holds(samples.rows["time"], first[samples.unit]))
            sketched(reading, projection.plan, codes[mine.unit], groups[mine.unit], mine.rows["value"], into)
