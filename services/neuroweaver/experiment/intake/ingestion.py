"""Taking in events: one transaction stores raw events and moves their units and the statistics."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

import numpy as np
import numpy.typing as npt
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment.domain.model import Experiment
from neuroweaver.experiment.domain.snapshot import Rejection
from neuroweaver.experiment.intake import raw_events, snapshots
from neuroweaver.experiment.intake.event_ids import Marks, marks_of
from neuroweaver.experiment.intake.events import EXPOSURE, JUDGEMENT, REJECTED, SAMPLE, Batch
from neuroweaver.experiment.intake.joining import overridden
from neuroweaver.experiment.intake.keys import Keys, keys_of, sketch_groups
from neuroweaver.experiment.intake.ledger import and_more
from neuroweaver.experiment.intake.projection import Held, Projection, Projections
from neuroweaver.experiment.intake.readings import Plan, indexes
from neuroweaver.experiment.intake.units import Change, Ints
from neuroweaver.experiment.storage.reader import Reader
from neuroweaver.experiment.storage.store import inputs_topic
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.handlers.topics import Topics
from neuroweaver.mesh.wire.clock import Clock, microseconds
from neuroweaver.mesh.wire.errors import NotFound
from neuroweaver.v1 import experiment_pb2 as pb

FUTURE: Final = timedelta(hours=24)

# For times that no event of an exposed unit has, unless clocks are wrong or its history is sent. What is too
# old may have been taken in before, and count.
_MISTIMED: Final = (pb.EVENT_REJECTION_BEFORE_START, pb.EVENT_REJECTION_IN_FUTURE)
# What a variant's client may do wrong alone, beside its clock.
_COMPARED: Final = (pb.EVENT_REJECTION_UNKNOWN_METRIC, pb.EVENT_REJECTION_ID_OF_ANOTHER_UNIT)
_ACCEPTED: Final = 0
_DUPLICATE: Final = -1


@dataclass(frozen=True)
class Outcome:
    """What became of a batch's events. rejected: by experiment and reason."""

    received: int = 0
    accepted: int = 0
    duplicates: int = 0
    late: int = 0
    rejected: Mapping[tuple[str, pb.EventRejection.ValueType], Rejection] = field(default_factory=dict)

    def __add__(self, other: Outcome) -> Outcome:
        rejected = dict(self.rejected)
        for key, more in other.rejected.items():
            rejected[key] = and_more(rejected[key], more) if key in rejected else more
        return Outcome(
            self.received + other.received,
            self.accepted + other.accepted,
            self.duplicates + other.duplicates,
            self.late + other.late,
            rejected,
        )


async def take_in(
    database: Database,
    projections: Projections,
    project: str,
    batches: Sequence[Batch],
    clock: Clock,
    topics: Topics,
) -> list[Outcome]:
    """What became of each batch, once that is on disk. Raises what the database raises, with nothing done."""
    # In one order everywhere, so that two that write the same experiments do not wait for each other.
    places: dict[str, list[int]] = {test_id: [] for test_id in sorted({batch.test_id for batch in batches})}
    for place, batch in enumerate(batches):
        places[batch.test_id].append(place)
    async with projections.hold(project, places) as held:
        moves: list[_Move] = []
        # Before the transaction, for which others wait.
        for test_id in places:
            if not held.is_at_hand(project, test_id):
                await _begin(database, project, held, test_id)

        async def work(connection: AsyncConnection) -> list[Outcome]:
            moves.clear()
            now = clock()
            outcomes: dict[int, Outcome] = {}
            for its in places.values():
                of_one = [batches[place] for place in its]
                ingested = await _ingest(connection, project, held, of_one, now, moves)
                outcomes |= dict(zip(its, ingested, strict=True))
            return [outcomes[place] for place in range(len(batches))]

        outcomes = await topics.transact(work, lambda: [inputs_topic(project, test_id) for test_id in places])
        for move in moves:
            with move.projection.changing():
                await asyncio.to_thread(move.put)
    return outcomes


async def _begin(database: Database, project: str, held: Held, test_id: str) -> None:
    async with database.read() as connection:
        with suppress(NotFound):
            experiment = await Reader(connection, project).experiment(test_id)
            await held.current(connection, project, experiment, Plan(experiment.spec))


@dataclass(frozen=True)
class _Move:
    """What a committed transaction makes of a projection."""

    projection: Projection
    number: int
    event_ids: Keys
    marks: Marks
    units: tuple[Keys, Change] | None

    def put(self) -> None:
        self.projection.event_ids.add(self.event_ids, self.marks)
        if self.units is not None:
            self.projection.table.put(*self.units)
        self.projection.batch = self.number
        self.projection.fresh_events += len(self.event_ids)


async def _ingest(
    connection: AsyncConnection,
    project: str,
    held: Held,
    batches: Sequence[Batch],
    now: datetime,
    moves: list[_Move],
) -> list[Outcome]:
    joined = Batch.joined(batches)
    try:
        experiment = await Reader(connection, project).experiment(joined.test_id)
    except NotFound:
        status = np.full(len(joined), pb.EVENT_REJECTION_UNKNOWN_EXPERIMENT, np.int64)
        return _outcomes(batches, status, np.zeros(len(joined), np.bool_), ())
    plan = Plan(experiment.spec)
    totals = await snapshots.claim(connection, project, plan, joined.test_id)
    projection = await held.current(connection, project, experiment, plan)
    # Off the event loop, which answers others meanwhile.
    settled = await asyncio.to_thread(_settle, projection, experiment, joined, now)
    outcomes = _outcomes(batches, settled.status, settled.is_late, plan.variants)
    together = sum(outcomes, Outcome())
    totals.ledger.accepted += together.accepted
    totals.ledger.duplicates += together.duplicates
    totals.ledger.late += together.late
    for rejection in together.rejected.values():
        totals.ledger.reject(rejection)
    totals.ledger.rejected_exposures.update(settled.rejected_exposures)
    totals.ledger.lose(settled.losing)
    if len(settled.batch):
        totals.last_batch += 1
        moves.append(_Move(projection, totals.last_batch, settled.event_ids, settled.marks, settled.units))
        await raw_events.add(
            connection,
            project,
            settled.batch,
            settled.event_ids,
            settled.marks,
            totals.last_batch,
            now,
            settled.payload,
        )
        await _count(connection, project, totals, projection, settled, now)
    await snapshots.save(connection, project, totals)
    return outcomes


@dataclass(frozen=True)
class _Settled:
    """status, is_late: of each event that came. batch: those accepted, and notes on samples that were not.
    event_ids: of those accepted; marks: of their units. rejected_exposures: for their times, by variant.
    losing: see `Ledger.lose`.
    """

    status: Ints
    is_late: npt.NDArray[np.bool_]
    batch: Batch
    event_ids: Keys
    marks: Marks
    payload: bytes
    units: tuple[Keys, Change] | None
    rejected_exposures: Mapping[str, int]
    losing: Mapping[pb.EventRejection.ValueType, Mapping[int, int]]


def _settle(projection: Projection, experiment: Experiment, batch: Batch, now: datetime) -> _Settled:
    batch, is_late = _placed(experiment, batch)
    keys = keys_of(projection.project, batch.test_id, batch.event_ids)
    marks = marks_of(batch.unit_ids)
    reasons = _reasons(experiment, projection.plan, batch, now)
    status = _classified(reasons, keys, marks, *projection.event_ids.find(keys, marks))
    accepted = np.flatnonzero(status == _ACCEPTED)
    is_mistimed = np.isin(status, _MISTIMED) & (experiment.start_time is not None)
    notes = _notes(projection, batch, keys, is_mistimed & (batch.rows["kind"] == SAMPLE), now)
    chosen = batch.chosen(accepted)
    chosen = (Batch.joined([chosen, notes]) if len(notes) else chosen).trimmed()
    return _Settled(
        status,
        (status == _ACCEPTED) & is_late,
        chosen,
        keys[accepted],
        marks[accepted],
        chosen.to_bytes() if len(chosen) else b"",
        projection.joined(chosen) if len(chosen) else None,
        _exposed(batch, is_mistimed & (batch.rows["kind"] == EXPOSURE), projection.plan.variants),
        {reason: _losing(projection, batch, status, reason) for reason in _COMPARED},
    )


def _notes(
    projection: Projection, batch: Batch, keys: Keys, is_chosen: npt.NDArray[np.bool_], now: datetime
) -> Batch:
    """What units keep of their samples that were rejected for their times."""
    places = np.flatnonzero(is_chosen)
    samples = batch.chosen(places)
    rows = samples.rows.copy()
    # A far time would keep raw events for ever.
    rows["kind"], rows["time"] = REJECTED, microseconds(now)
    # The bits of the key that a double holds.
    rows["value"] = (keys[places, 0] >> np.uint64(11)).astype(np.float64)
    notes = replace(samples, rows=rows)
    return notes.chosen(projection.unnoted(notes)) if len(notes) else notes


def _exposed(batch: Batch, is_chosen: npt.NDArray[np.bool_], variants: Sequence[str]) -> Mapping[str, int]:
    """The number of some exposures, by variant."""
    assigned = (batch.variants[place] for place in batch.rows["variant"][is_chosen].tolist())
    return Counter(variant for variant in assigned if variant in variants)


def _losing(
    projection: Projection, batch: Batch, status: Ints, reason: pb.EventRejection.ValueType
) -> Mapping[int, int]:
    """The exposed units of samples that are rejected for a reason: see `Ledger.lose`."""
    kind = batch.rows["kind"]
    is_lost = (status == reason) & (kind == SAMPLE)
    if not is_lost.any():
        return {}
    exposures = batch.chosen(np.flatnonzero((status == _ACCEPTED) & (kind == EXPOSURE)))
    samples = batch.chosen(np.flatnonzero(is_lost))
    rows = samples.rows.copy()
    rows["kind"] = REJECTED  # which makes them no part of their units
    keys, codes = projection.codes(Batch.joined([replace(samples, rows=rows), exposures]))
    # Units in the order of their first event: those of the samples first.
    count = len(set(samples.unit_ids) - projection.overrides.keys())
    of_units = zip(keys[:count, 0].tolist(), codes[:count].tolist(), strict=True)
    return {key: code for key, code in of_units if code >= 0}


async def _count(
    connection: AsyncConnection,
    project: str,
    totals: snapshots.Totals,
    projection: Projection,
    settled: _Settled,
    now: datetime,
) -> None:
    ledger = totals.ledger
    ledger.last_us = max(ledger.last_us, int(settled.batch.events["time"].max(initial=0)))
    ledger.overridden += overridden(settled.batch, projection.overrides)
    if settled.units is None:
        return
    keys, change = settled.units
    phases = set(change.old.exposures["phase"].tolist()) | set(change.new.exposures["phase"].tolist())
    # Caps are of all phases together.
    await snapshots.load_cells(connection, project, totals, None if ledger.plan.is_capped else phases)
    await asyncio.to_thread(ledger.move, change, sketch_groups(keys))
    if ledger.is_carried or ledger.due():
        everyone = await asyncio.to_thread(projection.table.everyone_after, keys, change)
        await asyncio.to_thread(ledger.catch_up, everyone, totals.last_batch, microseconds(now))


def _placed(experiment: Experiment, batch: Batch) -> tuple[Batch, npt.NDArray[np.bool_]]:
    """The events with their phases settled, and which of them are late."""
    rows = batch.rows.copy()
    phase_then, is_late = phases_then(experiment, rows["time"])
    given = rows["phase"]
    is_given = (given > 0) & (given <= len(experiment.phases))
    rows["phase"] = np.where(is_given, given, np.maximum(phase_then, 1))
    rows["phase"][rows["kind"] == SAMPLE] = 0
    return replace(batch, rows=rows), is_late


def phases_then(experiment: Experiment, time: Ints) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """The phase in which each event happened, 0 before the first, and whether it is over."""
    starts = np.array([microseconds(phase.start_time) for phase in experiment.phases], np.int64)
    phase = np.searchsorted(starts, time, side="right")
    return phase, (phase > 0) & (phase < len(starts))


def _reasons(experiment: Experiment, plan: Plan, batch: Batch, now: datetime) -> Ints:
    """Why each event cannot be used; 0: it can."""
    rows, time = batch.rows, batch.rows["time"]
    is_sample, is_judgement = rows["kind"] == SAMPLE, rows["kind"] == JUDGEMENT
    reasons = np.zeros(len(rows), np.int64)
    names = np.full(len(rows), -1, np.int64)
    if batch.names:
        names = np.where(
            is_judgement,
            indexes(plan.judgements, batch.names)[rows["name"]],
            indexes(plan.names, batch.names)[rows["name"]],
        )
    reasons[(is_sample | is_judgement) & (names < 0)] = pb.EVENT_REJECTION_UNKNOWN_METRIC
    if batch.variants:
        variants = indexes(plan.variants, batch.variants)
        is_unknown = (variants[rows["variant"]] < 0) | (variants[rows["other"]] < 0)
        reasons[~is_sample & is_unknown] = pb.EVENT_REJECTION_UNKNOWN_VARIANT
    if experiment.stop_time is not None:
        reasons[time >= microseconds(experiment.stop_time)] = pb.EVENT_REJECTION_AFTER_STOP
    reasons[time < microseconds(raw_events.oldest(experiment, now))] = pb.EVENT_REJECTION_TOO_OLD
    if experiment.start_time is None:
        reasons[:] = pb.EVENT_REJECTION_BEFORE_START
    else:
        start = np.full(len(rows), microseconds(experiment.start_time) - plan.grace_us, np.int64)
        # What happened before is read by metrics that look back from the exposure.
        reads_back = is_sample & (names >= 0)
        start[reads_back] -= plan.lookback_us[names[reads_back]] if len(plan.lookback_us) else 0
        reasons[time < start] = pb.EVENT_REJECTION_BEFORE_START
    reasons[time > microseconds(now + FUTURE)] = pb.EVENT_REJECTION_IN_FUTURE
    return reasons


def _classified(
    reasons: Ints,
    keys: Keys,
    marks: Marks,
    is_known: npt.NDArray[np.bool_],
    is_of_another_unit: npt.NDArray[np.bool_],
) -> Ints:
    """The status of each event. A duplicate is one whatever else is wrong: what was taken in stays so."""
    halves = np.sort(keys[:, 0])
    if not is_known.any() and (halves[1:] != halves[:-1]).all():
        return reasons
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    is_same = np.zeros(len(keys), np.bool_)
    is_same[1:] = (keys[order[1:]] == keys[order[:-1]]).all(1)
    status = reasons.copy()
    status[is_known] = _DUPLICATE
    status[is_of_another_unit] = pb.EVENT_REJECTION_ID_OF_ANOTHER_UNIT
    # Which of several in one transaction is the first that can be used.
    seen: dict[tuple[int, int], int] = {}
    several = np.unique(np.concatenate((order[is_same], order[:-1][is_same[1:]])))
    for place in several.tolist():
        key = int(keys[place, 0]), int(keys[place, 1])
        if key in seen:
            is_retry = seen[key] == marks[place]
            status[place] = _DUPLICATE if is_retry else pb.EVENT_REJECTION_ID_OF_ANOTHER_UNIT
        elif status[place] == _ACCEPTED:
            seen[key] = int(marks[place])
    return status


def _rejections(batch: Batch, status: Ints, variants: Sequence[str]) -> Iterator[Rejection]:
    for reason in np.unique(status[status > 0]).tolist():
        places = np.flatnonzero(status == reason)
        rows = batch.rows[places]
        names: list[str] = []
        if reason == pb.EVENT_REJECTION_UNKNOWN_METRIC:
            names = [batch.names[place] for place in dict.fromkeys(rows["name"].tolist())]
        elif reason == pb.EVENT_REJECTION_UNKNOWN_VARIANT:
            both = np.stack((rows["variant"], rows["other"]), 1).ravel()
            named = [batch.variants[place] for place in dict.fromkeys(both.tolist())]
            names = [name for name in named if name not in variants]
        ids = tuple(batch.event_ids[place] for place in places[:10].tolist())
        yield Rejection(reason, len(places), tuple(names[:10]), ids)


def _outcomes(
    batches: Sequence[Batch], status: Ints, is_late: npt.NDArray[np.bool_], variants: Sequence[str]
) -> list[Outcome]:
    outcomes, start = [], 0
    for batch in batches:
        part = slice(start, start := start + len(batch))
        accepted, duplicates = (int(np.count_nonzero(status[part] == s)) for s in (_ACCEPTED, _DUPLICATE))
        rejected = {(batch.test_id, each.reason): each for each in _rejections(batch, status[part], variants)}
        late = int(np.count_nonzero(is_late[part]))
        outcomes.append(Outcome(len(batch), accepted, duplicates, late, rejected))
    return outcomes
