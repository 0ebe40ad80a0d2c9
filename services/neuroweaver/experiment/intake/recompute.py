"""The statistics recomputed from the raw events: to verify the stored ones, and for past moments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment.domain.model import Experiment
from neuroweaver.experiment.domain.snapshot import Cell, Snapshot
from neuroweaver.experiment.intake import checkpoints, raw_events, sketching, snapshots
from neuroweaver.experiment.intake.events import Batch
from neuroweaver.experiment.intake.ingestion import phases_then
from neuroweaver.experiment.intake.joining import overridden
from neuroweaver.experiment.intake.keys import sketch_groups
from neuroweaver.experiment.intake.ledger import Exam, Ledger
from neuroweaver.experiment.intake.projection import Projection
from neuroweaver.experiment.intake.readings import Plan
from neuroweaver.experiment.storage.reader import Reader
from neuroweaver.mesh.wire.clock import microseconds
from neuroweaver.mesh.wire.errors import FailedPrecondition
from neuroweaver.mesh.wire.threads import check_wanted, in_thread
from neuroweaver.statistics.moments import Moments
from neuroweaver.statistics.sketch import GroupedSketch
from neuroweaver.v1 import experiment_pb2 as pb

TOLERANCE: Final = 1e-9
_LISTED: Final = 100
_SKETCHED: Final = "sketched"
# Of the sum of squares, from which a sum of squared deviations is what is left.
_NOISE: Final = 1e-9


@dataclass(frozen=True)
class Recomputed:
    """events: raw ones read. differences: the first hundred beyond the tolerance. is_replaced: whether
    this is stored now.
    """

    snapshot: Snapshot
    events: int
    max_relative_difference: float
    differences: Sequence[pb.StatisticDifference]
    is_replaced: bool


async def as_of(
    connection: AsyncConnection,
    project: str,
    test_id: str,
    moment: datetime,
    clock: pb.ReplayClock.ValueType = pb.REPLAY_CLOCK_RECEIVED,
) -> Snapshot:
    """What the statistics were at a moment. The quality counts those events alone that were taken in.

    Caps by quantiles are those in force at the moment. By the callers' clock there may have been none yet
    that the events call for, since some came late: these are taken from what had happened by then.

    Raises NotFound, and FailedPrecondition where raw events were dropped by age.
    """
    experiment = await Reader(connection, project).experiment(test_id)
    happened = clock == pb.REPLAY_CLOCK_HAPPENED
    stored = await _whole(connection, project, experiment)
    raw = await raw_events.until(connection, project, test_id, None if happened else moment)
    if happened:
        until = microseconds(moment)
        cut = ((number, each.chosen(np.flatnonzero(each.rows["time"] <= until))) for number, each in raw)
        raw = [(number, batch) for number, batch in cut if len(batch)]
    exams = _in_force(stored.ledger, moment, None if happened else max((n for n, _ in raw), default=0))
    recomputation = _Recomputation(project, experiment, exams, is_known=happened)
    return await in_thread(recomputation.of, raw, microseconds(moment))


async def recompute(
    connection: AsyncConnection,
    project: str,
    test_id: str,
    now: datetime,
    *,
    replace_stored: bool = False,
) -> Recomputed:
    """Compares with what is stored; if asked, replaces what differs. Raises NotFound, FailedPrecondition.

    After a replacement the experiment's projection is to be forgotten.
    """
    experiment = await Reader(connection, project).experiment(test_id)
    stored = await _whole(connection, project, experiment)
    before = await snapshots.load(connection, project, test_id)
    raw = await raw_events.until(connection, project, test_id)
    exams = {metric_id: exams[-1] for metric_id, exams in stored.ledger.exams.items()}
    recomputation = _Recomputation(project, experiment, exams)
    recomputed = await in_thread(recomputation.of, raw, microseconds(now))
    ledger = recomputation.ledger
    for metric_id, history in stored.ledger.exams.items():
        ledger.exams[metric_id] = history[:-1] + ledger.exams.get(metric_id, [])
    ledger.duplicates, ledger.rejections = stored.ledger.duplicates, stored.ledger.rejections
    ledger.late, ledger.rejected_exposures = stored.ledger.late, stored.ledger.rejected_exposures
    ledger.losing = stored.ledger.losing
    recomputed = ledger.snapshot()
    largest, differences = compared(before, recomputed)
    is_replaced = replace_stored and bool(differences or before.outdated)
    if is_replaced:
        totals = await snapshots.claim(connection, project, ledger.plan, test_id)
        totals.ledger = ledger
        await snapshots.forget_cells(connection, project, test_id)
        await checkpoints.forget(connection, project, test_id)
        await snapshots.save(connection, project, totals)
    return Recomputed(recomputed, ledger.accepted, largest, differences[:_LISTED], is_replaced)


def _in_force(ledger: Ledger, moment: datetime, last_batch: int | None) -> dict[str, Exam]:
    """By metric, where there was any. last_batch: that had come by then; None: caps are not taken again, and
    those of an earlier version of a ratio cannot be used.
    """
    outcomes = {reading.metric_id: reading.outcomes for reading in ledger.plan.readings}
    found: dict[str, Exam] = {}
    for metric_id, exams in ledger.exams.items():
        for each in exams:
            is_whole = len(each.caps) == outcomes[metric_id]
            is_usable = is_whole if last_batch is None else each.batch <= last_batch
            if is_usable and each.time_us <= microseconds(moment):
                found[metric_id] = each
    return found


async def _whole(connection: AsyncConnection, project: str, experiment: Experiment) -> snapshots.Totals:
    totals = await snapshots.read(connection, project, Plan(experiment.spec), experiment.test_id)
    if totals.expired_batches:
        raise FailedPrecondition(
            "RAW_EVENTS_EXPIRED",
            f"raw events of {experiment.test_id} are past their retention and were dropped: its statistics"
            " can no longer be recomputed",
            experiment.test_id,
        )
    return totals


class _Recomputation:
    """A ledger in the making. exams: those in force, by metric. is_known: their caps are taken as they are,
    and not again from the units of that time.
    """

    def __init__(
        self,
        project: str,
        experiment: Experiment,
        exams: Mapping[str, Exam],
        *,
        is_known: bool = False,
    ) -> None:
        self._experiment = experiment
        self._projection = Projection(project, experiment, Plan(experiment.spec))
        self.ledger = Ledger(self._projection.plan)
        if is_known:
            self.ledger.exams = {metric_id: [exam] for metric_id, exam in exams.items()}
        self._exams = {} if is_known else exams

    def of(self, raw: Sequence[tuple[int, Batch]], time_us: int) -> Snapshot:
        """Of all events, stopping where caps were taken. time_us: when caps are, that never were before."""
        for part in _parts(raw, {exam.batch for exam in self._exams.values()}):
            self._add(Batch.joined([batch for _, batch in part]))
            check_wanted()
            self._calibrate(part[-1][0])
        for reading in self.ledger.due():
            check_wanted()
            if reading.metric_id not in self.ledger.exams:
                everyone = self._projection.table.everyone()
                first = self.ledger.examine(reading, everyone, raw[-1][0], time_us)
                self.ledger.calibrate(reading, everyone, first)
        self._sketch([batch for _, batch in raw])
        return self.ledger.snapshot()

    def _calibrate(self, batch: int) -> None:
        for reading in self.ledger.plan.readings:
            exam = self._exams.get(reading.metric_id)
            if exam is not None and exam.batch == batch:
                everyone = self._projection.table.everyone()
                again = self.ledger.examine(reading, everyone, batch, exam.time_us)
                self.ledger.calibrate(reading, everyone, again)

    def _add(self, batch: Batch) -> None:
        ledger = self.ledger
        times = batch.events["time"]
        ledger.accepted += len(times)
        ledger.last_us = max(ledger.last_us, int(times.max(initial=0)))
        ledger.overridden += overridden(batch, self._projection.overrides)
        ledger.late += int(np.count_nonzero(phases_then(self._experiment, times)[1]))
        joined = self._projection.joined(batch)
        if joined is not None:
            keys, change = joined
            ledger.move(change, sketch_groups(keys))
            self._projection.table.put(keys, change)

    def _sketch(self, batches: Sequence[Batch]) -> None:
        readings = [reading for reading in self.ledger.plan.readings if reading.is_quantile]
        units = sketching.AllUnits.of(self._projection)
        check_wanted()
        sketches = sketching.of_means(units, readings)
        check_wanted()
        by_events = [reading for reading in readings if not reading.is_of_unit_means]
        sketching.of_events(units, by_events, batches, sketches)
        for key, cell in self.ledger.cells.items():
            cell.sketch, cell.is_stale = sketches.get(key), False


def _parts(raw: Sequence[tuple[int, Batch]], stops: set[int]) -> Iterator[list[tuple[int, Batch]]]:
    part: list[tuple[int, Batch]] = []
    for number, batch in raw:
        part.append((number, batch))
        if number in stops:
            yield part
            part = []
    if part:
        yield part


def compared(stored: Snapshot, recomputed: Snapshot) -> tuple[float, list[pb.StatisticDifference]]:
    """The largest relative difference, and all statistics that differ by more than the tolerance.

    A statistic is named such as `n`, `mean`, `m2`; that of a column above the first, `mean[1]`.
    """
    left = {key: (value, noise) for key, value, noise in _statistics(stored)}
    right = {key: (value, noise) for key, value, noise in _statistics(recomputed)}
    # A sketch that is not stored is computed again whenever it is read.
    unstored = {key for key in right if key[3] == _SKETCHED and key not in left}
    largest, differences = 0.0, []
    for key in sorted((left.keys() | right.keys()) - unstored):
        (one, noise), (other, other_noise) = left.get(key, (0.0, 0.0)), right.get(key, (0.0, 0.0))
        size = max(abs(one), abs(other), noise, other_noise)
        difference = abs(one - other) / size if size else 0.0
        largest = max(largest, difference)
        if difference > TOLERANCE:
            phase, variant_id, metric_id, statistic = key
            differing = pb.StatisticDifference(
                phase=phase, variant_id=variant_id, metric_id=metric_id, statistic=statistic
            )
            differing.stored, differing.recomputed = one, other
            differences.append(differing)
    return largest, differences


def _statistics(snapshot: Snapshot) -> Iterator[tuple[tuple[int, str, str, str], float, float]]:
    """By phase, variant, metric and name; with noise: smaller values are rounding, as of a variance of equal
    values after larger ones have passed through.
    """
    tallies = snapshot.tallies.items()
    counted: list[tuple[tuple[int, str, str], Any]] = [
        *(((phase, variant, ""), group) for (phase, variant), group in snapshot.groups.items()),
        *(((phase, f"{one}/{other}", metric), tally) for (phase, one, other, metric), tally in tallies),
    ]
    counted += [
        ((phase, variant, f"events {name}"), uses) for (phase, variant, name), uses in snapshot.uses.items()
    ]
    for place, counts in counted:
        for name, count in asdict(counts).items():
            yield (*place, name), count, 0.0
    yield from _of_times(snapshot)
    for key, cell in snapshot.cells.items():
        for name, value, noise in _of_cell(cell):
            yield (*key, name), value, noise
    for metric_id, caps in snapshot.calibrations.items():
        both = (("lower_cap", caps.lower), ("upper_cap", caps.upper))
        below = (("lower_cap[1]", caps.denominator.lower), ("upper_cap[1]", caps.denominator.upper))
        for name, cap in both + below:
            if cap is not None:
                yield (0, "", metric_id, name), cap, 0.0
    for day, units in snapshot.units_by_day.items():
        yield (0, "", "", f"units on {day}"), units, 0.0
    yield (0, "", "", "accepted"), snapshot.quality.accepted, 0.0
    yield (0, "", "", "unexposed"), snapshot.quality.unexposed, 0.0


def _of_times(snapshot: Snapshot) -> Iterator[tuple[tuple[int, str, str, str], float, float]]:
    for phase, count in snapshot.between.items():
        yield (phase, "", "", "judgements of two treatments"), count, 0.0
    for (phase, variant, event_name), timing in snapshot.timings.items():
        for name, value, noise in _of_moments("", timing):
            yield (phase, variant, f"times of {event_name}", name), value, noise
    for (phase, variant, metric_id), moments in snapshot.timed_values.items():
        for name, value, noise in _of_moments("timed_", moments):
            yield (phase, variant, metric_id, name), value, noise


def _of_cell(cell: Cell) -> Iterator[tuple[str, float, float]]:
    yield "events", cell.events, 0.0
    yield "units_without_events", cell.units_without_events, 0.0
    yield from _of_moments("", cell.sample.observed)
    if cell.sample.missing is not None:
        yield from _of_moments("missing_", cell.sample.missing)
    if cell.cuts is not None:
        yield from _of_moments("cut_", cell.cuts)
    if cell.sketch is not None:
        yield _SKETCHED, GroupedSketch.from_bytes(cell.sketch).events, 0.0


def _of_moments(prefix: str, moments: Moments) -> Iterator[tuple[str, float, float]]:
    yield f"{prefix}n", moments.n, 0.0
    sizes = [moments.squares(column) for column in range(moments.columns)]
    for column in range(moments.columns if moments.n else 0):
        place = f"[{column}]" if column else ""
        yield f"{prefix}mean{place}", moments.mean(column), 0.0
        yield f"{prefix}m2{place}", moments.m2(column), _NOISE * sizes[column]
    if moments.n and moments.columns > 1:
        comoments = moments.comoments()
        for i in range(moments.columns):
            for j in range(i + 1, moments.columns):
                noise = _NOISE * math.sqrt(sizes[i] * sizes[j])
                yield f"{prefix}comoment[{i},{j}]", float(comoments[i, j]), noise
