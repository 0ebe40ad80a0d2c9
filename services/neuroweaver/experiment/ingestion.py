"""Taking in events: one transaction moves raw events, what is known of their units, and the statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment import rows_at_once, snapshots
from neuroweaver.experiment.events import EXPOSURE, JUDGEMENT, SAMPLE, Batch
from neuroweaver.experiment.keys import keys_of, sketch_groups
from neuroweaver.experiment.ledger import EPOCH, and_more
from neuroweaver.experiment.model import Experiment
from neuroweaver.experiment.reader import Reader
from neuroweaver.experiment.readings import JUDGEMENT_TYPE, SAMPLE_TYPE, Plan, indexes
from neuroweaver.experiment.snapshot import Rejection
from neuroweaver.experiment.specification import length
from neuroweaver.experiment.units import Ints, Population, Records
from neuroweaver.mesh.errors import NotFound
from neuroweaver.v1 import experiment_pb2 as pb

FUTURE: Final = timedelta(hours=24)

_ACCEPTED: Final = 0
_DUPLICATE: Final = -1


@dataclass(frozen=True)
class Outcome:
    """What became of a batch's events. rejected: by experiment and reason."""

    received: int = 0
    accepted: int = 0
    duplicates: int = 0
    late: int = 0
    rejected: Mapping[tuple[str, pb.EventRejection.ValueType], Rejection] | None = None

    def __add__(self, other: Outcome) -> Outcome:
        rejected = dict(self.rejected or {})
        for key, more in (other.rejected or {}).items():
            rejected[key] = and_more(rejected[key], more) if key in rejected else more
        return Outcome(
            self.received + other.received,
            self.accepted + other.accepted,
            self.duplicates + other.duplicates,
            self.late + other.late,
            rejected,
        )


async def ingest(
    connection: AsyncConnection, project: str, batches: Sequence[Batch], now: datetime
) -> list[Outcome]:
    """What became of each batch. To be run in a write transaction, which may run it several times."""
    await rows_at_once.prepare(connection)
    outcomes = [Outcome() for _ in batches]
    # In one order everywhere, so that two that write the same experiments do not wait for each other.
    for test_id in sorted({batch.test_id for batch in batches}):
        places = [place for place, batch in enumerate(batches) if batch.test_id == test_id]
        found = await _ingest(connection, project, [batches[place] for place in places], now)
        for place, outcome in zip(places, found, strict=True):
            outcomes[place] = outcome
    return outcomes


async def _ingest(
    connection: AsyncConnection, project: str, batches: Sequence[Batch], now: datetime
) -> list[Outcome]:
    joined = Batch.joined(batches)
    try:
        experiment = await Reader(connection, project).experiment(joined.test_id)
    except NotFound:
        unknown = pb.EVENT_REJECTION_UNKNOWN_EXPERIMENT
        status = np.full(len(joined), unknown, np.int64)
        return _outcomes(batches, joined, status, np.zeros(len(joined), np.bool_), ())
    plan = Plan(experiment.spec)
    totals = await snapshots.claim(connection, project, plan, joined.test_id)
    read = _Read.of(experiment, plan, joined, now)
    keys = keys_of(project, joined.test_id, joined.event_ids)
    known = await rows_at_once.known(connection, "event_ids", "event_key", keys)
    status = _settled(read.reasons, keys, known)
    accepted = np.flatnonzero(status == _ACCEPTED)
    is_late = (status == _ACCEPTED) & read.is_late
    totals.ledger.duplicates += int(np.count_nonzero(status == _DUPLICATE))
    totals.ledger.late += int(np.count_nonzero(is_late))
    for rejection in _rejections(joined, status, plan.variants):
        totals.ledger.reject(rejection)
    if len(accepted):
        await rows_at_once.insert(connection, "event_ids", ["event_key"], [sorted(keys[i] for i in accepted)])
        chosen = read.chosen(accepted)
        await snapshots.add_batch(connection, project, totals, chosen.batch, now)
        await _move(connection, project, experiment, totals, chosen)
    await snapshots.save(connection, project, totals)
    return _outcomes(batches, joined, status, is_late, plan.variants)


async def _move(
    connection: AsyncConnection,
    project: str,
    experiment: Experiment,
    totals: snapshots.Totals,
    read: _Read,
) -> None:
    ledger = totals.ledger
    ledger.accepted += len(read.batch)
    ledger.last_us = max(ledger.last_us, int(read.batch.rows["time"].max()))
    unit_ids, unit = units_of(read.batch, experiment.spec.overrides)
    if not unit_ids:
        return
    keys = keys_of(project, experiment.test_id, unit_ids)
    old = Population.of(ledger.plan, await snapshots.units(connection, keys))
    new = old.joined(*records(ledger.plan, read.batch, unit))
    phases = set(old.exposures.rows["phase"].tolist()) | set(new.exposures.rows["phase"].tolist())
    await snapshots.load_cells(connection, project, totals, phases)
    ledger.move(old, new, sketch_groups(keys))
    await snapshots.save_units(connection, keys, new.kept())
    for phase, reading in ledger.uncalibrated():
        everyone = [
            each
            async for _, each in snapshots.all_units(connection, project, ledger.plan, experiment.test_id)
        ]
        ledger.calibrate(phase, reading, everyone, totals.last_batch)


def units_of(batch: Batch, overrides: Mapping[str, str]) -> tuple[list[str], Ints]:
    """The units of a batch, and the place of each event's among them; -1 for those that are not analysed."""
    places: dict[str, int] = {}
    if overrides:
        found = [-1 if each in overrides else places.setdefault(each, len(places)) for each in batch.unit_ids]
    else:
        found = [places.setdefault(each, len(places)) for each in batch.unit_ids]
    return list(places), np.array(found, np.int64)


def records(plan: Plan, batch: Batch, unit: Ints) -> tuple[Records, Records, Records]:
    """The events of a batch by kind, as units keep them. Names and variants are known, phases settled."""
    rows = batch.rows
    variants = indexes(plan.variants, batch.variants)
    kinds = [np.flatnonzero((rows["kind"] == kind) & (unit >= 0)) for kind in (EXPOSURE, SAMPLE, JUDGEMENT)]
    at, sampled, judged = kinds
    exposures = np.zeros(len(at), plan.exposure_type)
    if len(at):
        exposures["time"], exposures["phase"] = rows["time"][at], rows["phase"][at]
        exposures["variant"] = variants[rows["variant"][at]]
        exposures["is_mismatched"] = rows["variant"][at] != rows["other"][at]
        exposures["variants"] = 1 << exposures["variant"].astype(np.uint32)
        exposures["covariates"] = np.nan
        for place, event in enumerate(at.tolist() if batch.covariates else ()):
            given = batch.covariates.get(event, {})
            for column, name in enumerate(plan.covariates):
                exposures["covariates"][place, column] = given.get(name, np.nan)
    samples = np.zeros(len(sampled), SAMPLE_TYPE)
    if len(sampled):
        samples["time"], samples["value"] = rows["time"][sampled], rows["value"][sampled]
        samples["name"] = indexes(plan.names, batch.names)[rows["name"][sampled]]
    judgements = np.zeros(len(judged), JUDGEMENT_TYPE)
    if len(judged):
        _fill_judgements(judgements, plan, batch, rows[judged], variants)
    return Records(unit[at], exposures), Records(unit[sampled], samples), Records(unit[judged], judgements)


def _fill_judgements(
    judgements: npt.NDArray[Any], plan: Plan, batch: Batch, rows: npt.NDArray[Any], variants: Ints
) -> None:
    """With the variant first that comes first in the plan, whichever the judge called the baseline."""
    one, other = variants[rows["variant"]], variants[rows["other"]]
    is_turned = one > other
    judgements["phase"] = rows["phase"]
    judgements["name"] = indexes(plan.judgements, batch.names)[rows["name"]]
    judgements["baseline"], judgements["candidate"] = np.minimum(one, other), np.maximum(one, other)
    # The outcomes by place: none, baseline, candidate, tie.
    turned = np.array([0, 2, 1, 3], np.uint8)
    judgements["first"] = np.where(is_turned, turned[rows["second"]], rows["first"])
    judgements["second"] = np.where(is_turned, turned[rows["first"]], rows["second"])


@dataclass(frozen=True)
class _Read:
    """Events with their phases settled, and why they cannot be used (0: they can)."""

    batch: Batch
    reasons: Ints
    is_late: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, experiment: Experiment, plan: Plan, batch: Batch, now: datetime) -> _Read:
        rows = batch.rows.copy()
        starts = np.array([microseconds(phase.start_time) for phase in experiment.phases], np.int64)
        phase_then = np.searchsorted(starts, rows["time"], side="right")
        given = rows["phase"]
        is_given = (given > 0) & (given <= len(starts))
        rows["phase"] = np.where(is_given, given, np.maximum(phase_then, 1))
        rows["phase"][rows["kind"] == SAMPLE] = 0
        settled = Batch(
            batch.test_id,
            batch.event_ids,
            batch.unit_ids,
            rows,
            batch.names,
            batch.variants,
            batch.covariates,
            batch.judges,
        )
        is_late = (phase_then > 0) & (phase_then < len(starts))
        return cls(settled, _reasons(experiment, plan, settled, now), is_late)

    def chosen(self, places: Ints) -> _Read:
        return _Read(self.batch.chosen(places), self.reasons[places], self.is_late[places])


def _reasons(experiment: Experiment, plan: Plan, batch: Batch, now: datetime) -> Ints:
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
    if experiment.start_time is None:
        reasons[:] = pb.EVENT_REJECTION_BEFORE_START
    else:
        start = np.full(len(rows), microseconds(experiment.start_time), np.int64)
        # What happened before is read by metrics that look back from the exposure.
        reads_back = is_sample & (names >= 0)
        start[reads_back] -= plan.lookback_us[names[reads_back]] if len(plan.lookback_us) else 0
        reasons[time < start] = pb.EVENT_REJECTION_BEFORE_START
    oldest = now - length(experiment.spec.raw_event_retention)
    reasons[time < microseconds(oldest)] = pb.EVENT_REJECTION_TOO_OLD
    reasons[time > microseconds(now + FUTURE)] = pb.EVENT_REJECTION_IN_FUTURE
    return reasons


def microseconds(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1)


def _settled(reasons: Ints, keys: Sequence[bytes], known: set[bytes]) -> Ints:
    """Duplicates are told before anything else: an event that was taken in stays so."""
    if not known and len(set(keys)) == len(keys):
        return reasons
    status = reasons.copy()
    seen = set(known)
    for place, key in enumerate(keys):
        if key in seen:
            status[place] = _DUPLICATE
        elif status[place] == _ACCEPTED:
            seen.add(key)
    return status


def _rejections(batch: Batch, status: Ints, variants: Sequence[str]) -> list[Rejection]:
    found = []
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
        found.append(Rejection(reason, len(places), tuple(names[:10]), ids))
    return found


def _outcomes(
    batches: Sequence[Batch],
    joined: Batch,
    status: Ints,
    is_late: npt.NDArray[np.bool_],
    variants: Sequence[str],
) -> list[Outcome]:
    outcomes, start = [], 0
    for batch in batches:
        part = slice(start, start := start + len(batch))
        found: list[Rejection] = []
        if (status[part] > 0).any():
            found = _rejections(joined.chosen(np.arange(part.start, part.stop)), status[part], variants)
        outcomes.append(
            Outcome(
                received=len(batch),
                accepted=int(np.count_nonzero(status[part] == _ACCEPTED)),
                duplicates=int(np.count_nonzero(status[part] == _DUPLICATE)),
                late=int(np.count_nonzero(is_late[part])),
                rejected={(batch.test_id, each.reason): each for each in found},
            )
        )
    return outcomes
