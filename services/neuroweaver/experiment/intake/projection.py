"""Projections: the units of an experiment as its raw events make them, in memory, rebuilt when they are not.

The raw events are the truth, and each transaction adds to them under the next number; a projection says up to
which number it goes. Whoever needs it reads what was added since, by this process or by another one. To begin
with all of them would take long once there are millions: a checkpoint (`checkpoints`) is where to begin.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Final

import numpy as np
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment.domain.model import Experiment
from neuroweaver.experiment.intake import checkpoints, raw_events
from neuroweaver.experiment.intake.event_ids import EventIds, Marks
from neuroweaver.experiment.intake.events import Batch
from neuroweaver.experiment.intake.joining import records, rejections, units_of
from neuroweaver.experiment.intake.keys import Keys, keys_of
from neuroweaver.experiment.intake.readings import JUDGEMENT_TYPE, SAMPLE_TYPE, Plan, indexes
from neuroweaver.experiment.intake.unit_table import UnitTable
from neuroweaver.experiment.intake.units import MOST_NOTED, Change, Ints, Records
from neuroweaver.experiment.settings import MEMORY_MIB
from neuroweaver.experiment.storage import tables

_LOG: Final = logging.getLogger("neuroweaver.experiment")

MEBIBYTE: Final = 1 << 20
_RECENT_S: Final = 600.0

# A server that begins anew joins some 300,000 events a second; a checkpoint writes some 100 bytes a unit.
_FRESH_EVENTS: Final = 500_000
_FRESH_A_UNIT: Final = 2


class Projection:
    """Up to the batch with the number `batch`. event_ids: of all raw events that are kept. fresh_events: how
    many came since the last checkpoint. expired_batches: how many had left by age when it began.
    """

    def __init__(self, project: str, experiment: Experiment, plan: Plan) -> None:
        self.project = project
        self.test_id = experiment.test_id
        self.plan = plan
        self.overrides = dict(experiment.spec.overrides)
        self.table = UnitTable(plan)
        self.event_ids = EventIds()
        self.batch = 0
        self.fresh_events = 0
        self.expired_batches = 0
        self.is_torn = False

    @property
    def nbytes(self) -> int:
        return self.table.nbytes + self.event_ids.nbytes

    @contextmanager
    def changing(self) -> Iterator[None]:
        """A change that fails half-way makes the projection unusable."""
        self.is_torn = True
        yield
        self.is_torn = False

    @property
    def is_due(self) -> bool:
        """Whether so many events came since the last checkpoint that another one is worth its cost."""
        return self.fresh_events >= max(_FRESH_EVENTS, _FRESH_A_UNIT * len(self.table))

    def joined(self, batch: Batch) -> tuple[Keys, Change] | None:
        """What some events would make of their units, whose keys come first; None if they are of no unit."""
        unit_ids, unit = units_of(batch, self.overrides)
        if not unit_ids:
            return None
        keys = keys_of(self.project, self.test_id, unit_ids)
        exposures, samples, judgements = records(self.plan, batch, unit)
        population = self.table.population(keys, exposures, judgements)
        return keys, population.joined(exposures, samples, judgements, rejections(self.plan, batch, unit))

    def codes(self, batch: Batch) -> tuple[Keys, Ints]:
        """The units of a batch, and `Population.codes` of each after its exposures."""
        unit_ids, unit = units_of(batch, self.overrides)
        keys = keys_of(self.project, self.test_id, unit_ids)
        exposures, _, _ = records(self.plan, batch, unit)
        none = Records.none(SAMPLE_TYPE), Records.none(JUDGEMENT_TYPE)
        return keys, self.table.population(keys, exposures, none[1]).joined(exposures, *none).new.codes

    def unnoted(self, batch: Batch) -> Ints:
        """The places of those samples, all rejected for their times, that are not noted yet; each once,
        however often a sender tries again, and MOST_NOTED of a unit and name at most. Values are marks.
        """
        unit_ids, unit = units_of(batch, self.overrides)
        keys = keys_of(self.project, self.test_id, unit_ids)
        noted, counts = self.table.noted(keys)
        before = set(
            zip(noted.unit.tolist(), *(noted.rows[each].tolist() for each in ("name", "mark")), strict=True)
        )
        name = indexes(self.plan.names, batch.names)[batch.rows["name"]]
        marks = batch.rows["value"]
        unnoted: list[int] = []
        for place in np.flatnonzero((unit >= 0) & (name >= 0)).tolist():
            at = int(unit[place]), int(name[place])
            key = *at, float(marks[place])
            if key not in before and counts[at] < MOST_NOTED:
                before.add(key)
                counts[at] += 1
                unnoted.append(place)
        return np.array(unnoted, np.int64)

    def take(self, batch: Batch) -> None:
        """Counts events that are of another transaction, or another process's."""
        joined = self.joined(batch)
        if joined is not None:
            self.table.put(*joined)
        self.fresh_events += len(batch)


class Projections:
    """Those of many experiments, the ones used last at hand. budget_bytes: of all together."""

    def __init__(self, budget_bytes: int = MEMORY_MIB * MEBIBYTE) -> None:
        self._budget_bytes = budget_bytes
        self._slots: OrderedDict[tuple[str, str], _Slot] = OrderedDict()

    @asynccontextmanager
    async def hold(self, project: str, test_ids: Iterable[str]) -> AsyncIterator[Held]:
        """Nobody else of this process uses or changes the projections of these experiments meanwhile.

        To be taken before a transaction and never within one: whoever waits must hold no lock of the
        database, for which the holder could wait in turn.
        """
        keys = [(project, test_id) for test_id in sorted(set(test_ids))]
        async with AsyncExitStack() as stack:
            for key in keys:
                slot = self._slots.setdefault(key, _Slot())
                slot.users += 1
                stack.callback(slot.leave)
                await stack.enter_async_context(slot.lock)
                self._slots.move_to_end(key)
            slots = {key: self._slots[key] for key in keys}
            try:
                yield Held(slots)
            finally:
                for slot in slots.values():
                    if slot.projection is not None and slot.projection.is_torn:
                        slot.projection = None
        self._trim()

    def due(self) -> list[tuple[str, str]]:
        """Project and id of the experiments that want a checkpoint."""
        return [key for key, slot in self._slots.items() if slot.projection and slot.projection.is_due]

    def forget(self, project: str, test_id: str) -> None:
        """For those who changed what projections are made of; while holding it."""
        slot = self._slots.get((project, test_id))
        if slot is not None:
            slot.projection = None

    def _trim(self) -> None:
        size = sum(slot.nbytes for slot in self._slots.values())
        for key, slot in list(self._slots.items()):
            is_last = key == next(reversed(self._slots))
            if slot.users or (slot.projection is not None and (size <= self._budget_bytes or is_last)):
                continue
            size -= slot.nbytes
            del self._slots[key]
            if slot.projection is not None and time.monotonic() - slot.used_at < _RECENT_S:
                _LOG.warning(
                    "units do not fit into memory and are read again and again; raise the setting",
                    extra={"test_id": key[1], "setting": "NEUROWEAVER_EXPERIMENT_MEMORY_MIB"},
                )


class _Slot:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.used_at = 0.0
        self.projection: Projection | None = None

    @property
    def nbytes(self) -> int:
        return 0 if self.projection is None else self.projection.nbytes

    def leave(self) -> None:
        self.users -= 1
        self.used_at = time.monotonic()


class Held:
    def __init__(self, slots: dict[tuple[str, str], _Slot]) -> None:
        self._slots = slots

    def is_at_hand(self, project: str, test_id: str) -> bool:
        """Whether it is in memory, and lacks at most what others took in since."""
        return self._slots[project, test_id].projection is not None

    async def current(
        self, connection: AsyncConnection, project: str, experiment: Experiment, plan: Plan
    ) -> Projection:
        """The projection over all raw events that the transaction sees."""
        slot = self._slots[project, experiment.test_id]
        expired = await _expired(connection, project, experiment.test_id)
        if slot.projection is not None and slot.projection.expired_batches != expired:
            # Batches that it has not seen may have left.
            slot.projection = None
        if slot.projection is None:
            slot.projection = await _begun(connection, project, experiment, plan)
            slot.projection.expired_batches = expired
        projection = slot.projection
        while read := await raw_events.after(connection, project, projection.test_id, projection.batch):
            with projection.changing():
                await asyncio.to_thread(_replay, projection, read)
        return projection


async def _expired(connection: AsyncConnection, project: str, test_id: str) -> int:
    table = tables.totals
    statement = select(table.c.expired_batches).where(tables.of_experiment(table, project, test_id))
    return (await connection.execute(statement)).scalar_one_or_none() or 0


async def _begun(connection: AsyncConnection, project: str, experiment: Experiment, plan: Plan) -> Projection:
    projection = Projection(project, experiment, plan)
    checkpoint = await checkpoints.load(connection, project, experiment.test_id, plan)
    if checkpoint is not None:
        projection.batch, projection.table = checkpoint
        until = raw_events.keys_until(connection, project, experiment.test_id, projection.batch)
        async for keys, marks in until:
            await asyncio.to_thread(projection.event_ids.add, keys, marks)
    return projection


def _replay(projection: Projection, read: Sequence[tuple[int, Batch, Keys, Marks]]) -> None:
    projection.take(Batch.joined([batch for _, batch, _, _ in read]))
    for number, _, keys, marks in read:
        projection.event_ids.add(keys, marks)
        projection.batch = number
