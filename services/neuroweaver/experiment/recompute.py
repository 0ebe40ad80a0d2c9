"""The statistics made anew from the raw events: to verify the stored ones, and for past moments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import numpy as np
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment import rows_at_once, snapshots
from neuroweaver.experiment.events import Batch
from neuroweaver.experiment.ingestion import microseconds, records, units_of
from neuroweaver.experiment.keys import keys_of, sketch_groups
from neuroweaver.experiment.ledger import Ledger, sketched
from neuroweaver.experiment.model import Experiment
from neuroweaver.experiment.reader import Reader
from neuroweaver.experiment.readings import Plan
from neuroweaver.experiment.snapshot import Cell, Snapshot
from neuroweaver.experiment.specification import length
from neuroweaver.experiment.statistics.moments import Moments
from neuroweaver.experiment.statistics.sketch import GroupedSketch
from neuroweaver.experiment.units import Kept, Population
from neuroweaver.mesh.errors import FailedPrecondition
from neuroweaver.v1 import experiment_pb2 as pb

TOLERANCE: Final = 1e-9
_TOLD: Final = 100
_EXPIRED_AT_ONCE: Final = 100


@dataclass(frozen=True)
class Difference:
    """A statistic that is not the same; `statistic`: such as `n`, `mean`, `m2`, of a column above the first
    `mean[1]`.
    """

    phase: int
    variant_id: str
    metric_id: str
    statistic: str
    stored: float
    recomputed: float


@dataclass(frozen=True)
class Recomputed:
    """events: raw ones read. differences: the first hundred beyond the tolerance."""

    snapshot: Snapshot
    events: int
    max_relative_difference: float
    differences: Sequence[Difference]


async def as_of(
    connection: AsyncConnection,
    project: str,
    test_id: str,
    moment: datetime,
    clock: pb.ReplayClock.ValueType = pb.REPLAY_CLOCK_RECEIVED,
) -> Snapshot:
    """What the statistics were at a moment. The quality counts those events alone that were taken in.

    Raises NotFound, and FailedPrecondition where raw events were removed by age.
    """
    experiment = await Reader(connection, project).experiment(test_id)
    happened = clock == pb.REPLAY_CLOCK_HAPPENED
    stored = await _whole(connection, project, experiment)
    raw = await snapshots.batches(connection, project, test_id, None if happened else moment)
    if happened:
        until = microseconds(moment)
        cut = ((number, each.chosen(np.flatnonzero(each.rows["time"] <= until))) for number, each in raw)
        raw = [(number, batch) for number, batch in cut if len(batch)]
    made = _Made(project, experiment, stored.ledger if happened else None)
    made.take(raw, stored.ledger)
    return made.snapshot()


async def recompute(
    connection: AsyncConnection, project: str, test_id: str, *, replace_stored: bool = False
) -> Recomputed:
    """Compares with what is stored; if asked, replaces what differs. Raises NotFound, FailedPrecondition."""
    experiment = await Reader(connection, project).experiment(test_id)
    stored = await _whole(connection, project, experiment)
    known = await snapshots.load(connection, project, test_id)
    raw = await snapshots.batches(connection, project, test_id)
    made = _Made(project, experiment)
    made.take(raw, stored.ledger)
    ledger = made.ledger
    ledger.duplicates, ledger.rejections = stored.ledger.duplicates, stored.ledger.rejections
    ledger.late = stored.ledger.late
    found = made.snapshot()
    largest, differences = compared(known, found)
    if replace_stored and differences:
        totals = await snapshots.claim(connection, project, ledger.plan, test_id)
        totals.ledger = made.with_sketches()
        await snapshots.forget(connection, project, test_id)
        await snapshots.save_units(connection, made.keys, made.population.kept())
        await snapshots.save(connection, project, totals)
    return Recomputed(found, ledger.accepted, largest, differences[:_TOLD])


async def expire(connection: AsyncConnection, project: str, test_id: str, now: datetime) -> int:
    """Removes raw events beyond the retention, and what their ids were told by. Gives how many.

    At most some batches at once: to be called again until it gives 0. Results stay as they are.
    """
    experiment = await Reader(connection, project).experiment(test_id)
    plan = Plan(experiment.spec)
    totals = await snapshots.claim(connection, project, plan, test_id)
    oldest = now - length(experiment.spec.raw_event_retention)
    dropped = await snapshots.drop_batches(connection, project, test_id, oldest, _EXPIRED_AT_ONCE)
    if not dropped:
        return 0
    for batch in dropped:
        keys = keys_of(project, test_id, batch.event_ids)
        await rows_at_once.delete(connection, "event_ids", "event_key", keys)
    totals.expired_batches += len(dropped)
    await snapshots.save(connection, project, totals)
    return sum(map(len, dropped))


async def _whole(connection: AsyncConnection, project: str, experiment: Experiment) -> snapshots.Totals:
    totals = await snapshots.read(connection, project, Plan(experiment.spec), experiment.test_id)
    if totals.expired_batches:
        raise FailedPrecondition(
            "RAW_EVENTS_EXPIRED",
            f"raw events of {experiment.test_id} were removed by age: statistics cannot be made anew",
            experiment.test_id,
        )
    return totals


@dataclass
class _Made:
    """A ledger in the making. caps_of: where caps are known already, those."""

    project: str
    experiment: Experiment
    caps_of: Ledger | None = None
    keys: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plan = Plan(self.experiment.spec)
        self.ledger = Ledger(self.plan)
        self.population = Population.of(self.plan, [])
        if self.caps_of is not None:
            self.ledger.caps = dict(self.caps_of.caps)

    def take(self, raw: Sequence[tuple[int, Batch]], stored: Ledger) -> None:
        """All events, stopping where caps were taken. stored: knows where that was."""
        stops = set() if self.caps_of else {batch for _, batch in stored.caps.values()}
        for part in _parts(raw, stops):
            self._add([batch for _, batch in part])
            for phase, reading in self.ledger.uncalibrated():
                stop = stored.caps.get((phase, reading.metric_id))
                if stop is not None and stop[1] == part[-1][0]:
                    self.ledger.calibrate(phase, reading, [self.population], stop[1])

    def snapshot(self) -> Snapshot:
        self.with_sketches()
        return self.ledger.snapshot()

    def with_sketches(self) -> Ledger:
        made: dict[tuple[int, str, str], GroupedSketch] = {}
        for reading in self.plan.readings:
            if reading.is_quantile:
                sketched(reading, self.population, sketch_groups(self.keys), made)
        for key, cell in self.ledger.cells.items():
            cell.sketch, cell.is_stale = made.get(key), False
        return self.ledger

    def _add(self, batches: Sequence[Batch]) -> None:
        batch = Batch.joined(batches)
        ledger = self.ledger
        ledger.accepted += len(batch)
        ledger.last_us = max(ledger.last_us, int(batch.rows["time"].max()))
        ledger.late += self._late(batch)
        unit_ids, unit = units_of(batch, self.experiment.spec.overrides)
        places = {key: place for place, key in enumerate(self.keys)}
        new_keys = keys_of(self.project, self.experiment.test_id, unit_ids)
        moved = np.array([places.setdefault(key, len(places)) for key in new_keys] or [0], np.int64)
        self.keys = list(places)
        added = len(self.keys) - self.population.count
        old = Population.of(self.plan, [*self.population.kept(), *[Kept()] * added])
        self.population = old.joined(*records(self.plan, batch, np.where(unit >= 0, moved[unit], -1)))
        ledger.move(old, self.population, sketch_groups(self.keys))

    def _late(self, batch: Batch) -> int:
        starts = [microseconds(phase.start_time) for phase in self.experiment.phases]
        then = np.searchsorted(np.array(starts, np.int64), batch.rows["time"], side="right")
        return int(np.count_nonzero((then > 0) & (then < len(starts))))


def _parts(raw: Sequence[tuple[int, Batch]], stops: set[int]) -> Iterator[list[tuple[int, Batch]]]:
    part: list[tuple[int, Batch]] = []
    for number, batch in raw:
        part.append((number, batch))
        if number in stops:
            yield part
            part = []
    if part:
        yield part


def compared(stored: Snapshot, recomputed: Snapshot) -> tuple[float, list[Difference]]:
    """The largest relative difference, and all statistics that differ by more than the tolerance."""
    left, right = dict(_statistics(stored)), dict(_statistics(recomputed))
    largest, found = 0.0, []
    for key in sorted(left.keys() | right.keys()):
        one, other = left.get(key, 0.0), right.get(key, 0.0)
        size = max(abs(one), abs(other))
        difference = abs(one - other) / size if size else 0.0
        largest = max(largest, difference)
        if difference > TOLERANCE:
            found.append(Difference(*key, one, other))
    return largest, found


_Statistic = tuple[tuple[int, str, str, str], float]


def _statistics(snapshot: Snapshot) -> Iterator[_Statistic]:
    """Every number under (phase, variant, metric, name)."""
    for (phase, variant), group in snapshot.groups.items():
        for name in ("units", "mismatched", "multiply_exposed"):
            yield (phase, variant, "", name), float(getattr(group, name))
    for key, cell in snapshot.cells.items():
        yield from ((((*key, name)), value) for name, value in _of_cell(cell))
    for (phase, baseline, candidate, metric_id), tally in snapshot.tallies.items():
        for name in ("wins", "ties", "losses", "flips", "missing"):
            yield (phase, f"{baseline}/{candidate}", metric_id, name), float(getattr(tally, name))
    for (phase, metric_id), caps in snapshot.caps.items():
        for name, value in zip(("lower_cap", "upper_cap"), caps, strict=True):
            if value is not None:
                yield (phase, "", metric_id, name), value
    for day, units in snapshot.units_by_day.items():
        yield (0, "", "", f"units on {day}"), float(units)
    yield (0, "", "", "accepted"), float(snapshot.quality.accepted)
    yield (0, "", "", "unexposed"), float(snapshot.quality.unexposed)


def _of_cell(cell: Cell) -> Iterator[tuple[str, float]]:
    yield "events", float(cell.events)
    yield "units_without_events", float(cell.units_without_events)
    yield from _of_moments("", cell.sample.observed)
    if cell.sample.missing is not None:
        yield from _of_moments("missing_", cell.sample.missing)
    if cell.sketch is not None:
        yield "sketched", float(GroupedSketch.from_bytes(cell.sketch).events)


def _of_moments(prefix: str, moments: Moments) -> Iterator[tuple[str, float]]:
    yield f"{prefix}n", float(moments.n)
    for column in range(moments.columns if moments.n else 0):
        place = f"[{column}]" if column else ""
        yield f"{prefix}mean{place}", moments.mean(column)
        yield f"{prefix}m2{place}", moments.m2(column)
    if moments.n and moments.columns > 1:
        comoments = moments.comoments()
        for i in range(moments.columns):
            for j in range(i + 1, moments.columns):
                yield f"{prefix}comoment[{i},{j}]", float(comoments[i, j])
