"""What events make of units: a function of the set of a unit's events alone, in whatever order they come.

Of most events only totals are kept. Those to which an earlier first exposure, arriving late, would give
another part are kept themselves: what happened before the first exposure known so far, and all events of
names that a metric reads within a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from neuroweaver.experiment.domain.metrics import COUNT, MEAN
from neuroweaver.experiment.domain.snapshot import Uses
from neuroweaver.experiment.intake.readings import (
    EXTREMES,
    NOTE_TYPE,
    SAMPLE_TYPE,
    Plan,
    Reading,
    Source,
    Span,
    Total,
    TotalKind,
)
from neuroweaver.statistics import double_double as dd
from neuroweaver.statistics.moments import LARGEST, Moments
from neuroweaver.statistics.winsorization import NO_CAPS, Caps
from neuroweaver.v1 import experiment_pb2 as pb

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

# The time of the first exposure of a unit that has none.
NEVER: Final = int(np.iinfo(np.int64).max)
# More variants than an experiment can have.
VARIANTS: Final = 64
# Samples of a unit and a name that were rejected for their times; what are more tells nothing new.
MOST_NOTED: Final = 100

_Counted = dict[tuple[int, Span], tuple[Ints, Floats]]
"""The samples that began to count, of the names that quantile metrics read."""

_CANDIDATE: Final = pb.PAIRWISE_OUTCOME_CANDIDATE
_BASELINE: Final = pb.PAIRWISE_OUTCOME_BASELINE
_TIE: Final = pb.PAIRWISE_OUTCOME_TIE


@dataclass(frozen=True)
class Records:
    """Structured rows, and the unit of each by its index."""

    unit: Ints
    rows: npt.NDArray[Any]

    @classmethod
    def none(cls, kind: np.dtype[Any]) -> Records:
        return cls(np.zeros(0, np.int64), np.zeros(0, kind))

    def __len__(self) -> int:
        return len(self.unit)

    def __add__(self, other: Records) -> Records:
        if not len(other) or not len(self):
            return self if len(self) else other
        return Records(np.concatenate((self.unit, other.unit)), np.concatenate((self.rows, other.rows)))

    def chosen(self, places: Ints | Flags) -> Records:
        return Records(self.unit[places], self.rows[places])


@dataclass(frozen=True)
class Totals:
    """What was counted of each unit: a column for each of the plan's totals.

    numbers: (units, numbers). sums: (units, sums, 2), pairs of doubles. extremes: (units, maxima and minima).
    samples: (units,), all of them, whether they count or not. rejected: (units, names), how many were
    rejected for their times, MOST_NOTED at most.
    """

    numbers: Ints
    sums: Floats
    extremes: Floats
    samples: Ints
    rejected: npt.NDArray[np.uint8]

    @classmethod
    def none(cls, plan: Plan, units: int) -> Totals:
        extremes = np.zeros((units, plan.count(*EXTREMES)))
        for total in plan.totals:
            if total.kind in EXTREMES:
                extremes[:, total.place] = _EMPTY[total.kind]
        return cls(
            np.zeros((units, plan.count(TotalKind.NUMBER)), np.int64),
            np.zeros((units, plan.count(TotalKind.SUM), 2)),
            extremes,
            np.zeros(units, np.int64),
            np.zeros((units, len(plan.names)), np.uint8),
        )

    def copy(self) -> Totals:
        return Totals(*(getattr(self, each.name).copy() for each in fields(self)))

    def clear(self, total: Total, units: Ints) -> None:
        """In place: as without any event."""
        if total.kind is TotalKind.NUMBER:
            self.numbers[units, total.place] = 0
        elif total.kind is TotalKind.SUM:
            self.sums[units, total.place] = 0.0
        else:
            self.extremes[units, total.place] = _EMPTY[total.kind]

    def add(self, total: Total, unit: Ints, value: Floats) -> None:
        """In place: values of some units."""
        size = len(self.samples)
        if total.kind is TotalKind.NUMBER:
            reaching = unit if total.threshold == -np.inf else unit[value >= total.threshold]
            self.numbers[:, total.place] += np.bincount(reaching, minlength=size)
        elif total.kind is TotalKind.SUM:
            high, low = _sums(value, unit, size)
            before = self.sums[:, total.place, 0], self.sums[:, total.place, 1]
            self.sums[:, total.place, 0], self.sums[:, total.place, 1] = dd.add(before, (high, low))
        else:
            reach = np.maximum if total.kind is TotalKind.MAX else np.minimum
            reach.at(self.extremes[:, total.place], unit, value)


_EMPTY: Final = {TotalKind.MAX: -np.inf, TotalKind.MIN: np.inf}


@dataclass(frozen=True)
class Rows:
    """A metric in each unit of a population; without meaning for units without an exposure.

    outcomes: (units, outcomes), capped; uncapped: the same before that. is_there: whether the unit has a
    value. covariates: (units, covariates). is_explained: whether it has those. events: (units,), how many
    count.
    """

    outcomes: Floats
    uncapped: Floats
    is_there: Flags
    covariates: Floats
    is_explained: Flags
    events: Ints

    def differs(self, other: Rows) -> Flags:
        """In which units; of the same population."""
        differs: Flags = (
            (self.outcomes != other.outcomes).any(1)
            | (self.uncapped != other.uncapped).any(1)
            | (self.is_there != other.is_there)
            # NaN: not known, before and after.
            | ((self.covariates != other.covariates) & ~np.isnan(self.covariates + other.covariates)).any(1)
            | (self.is_explained != other.is_explained)
            | (self.events != other.events)
        )
        return differs


@dataclass(frozen=True)
class Population:
    """Some units. exposures: (units,), the first of each, its time NEVER for a unit without one.

    loose: the samples that are kept, in no order, at least those of all units whose first exposure is about
    to change. judgements: all of those of the units that are about to get more.
    """

    plan: Plan
    exposures: npt.NDArray[Any]
    totals: Totals
    loose: Records
    judgements: Records

    def __len__(self) -> int:
        return len(self.exposures)

    @property
    def first(self) -> Ints:
        """When each unit was first exposed."""
        time: Ints = self.exposures["time"]
        return time

    @cached_property
    def codes(self) -> Ints:
        """Phase and variant of each unit as one number, `phase * VARIANTS + variant`; -1 without exposure."""
        rows = self.exposures
        return np.where(self.first < NEVER, rows["phase"].astype(np.int64) * VARIANTS + rows["variant"], -1)

    @property
    def unexposed_samples(self) -> int:
        """Samples of units without an exposure."""
        return int(self.totals.samples[self.first == NEVER].sum())

    def uses(self) -> Mapping[tuple[int, int], Uses]:
        """What became of the samples of exposed units, by their code and the place of the samples' name."""
        found: dict[tuple[int, int], Uses] = {}
        chosen = np.flatnonzero(self.codes >= 0)
        kinds, group = np.unique(self.codes[chosen], return_inverse=True)
        for name in range(len(self.plan.names)):
            read_since, read_before = self._read(name)
            before, since = self.timed(name)[:, :2].T
            columns = (
                since + before,
                before > 0,
                before - read_before,
                since - read_since,
                self.totals.rejected[:, name] > 0,
            )
            sums = [np.bincount(group, column[chosen], len(kinds)) for column in columns]
            for code, counts in zip(kinds.tolist(), np.stack(sums, 1).astype(np.int64).tolist(), strict=True):
                if any(counts):
                    found[code, name] = Uses(*counts)
        return found

    def timed(self, name: int) -> Ints:
        """(units, 6 + windows), see `Snapshot.timings`; without meaning for units without an exposure."""
        # Checkpoints of an earlier version know those alone that are read.
        read_since, read_before = self._read(name)
        before = np.maximum(self._number(name, self.plan.before), read_before)
        last_day = self._number(name, self.plan.last_day)
        columns = [
            before,
            np.maximum(self._number(name, self.plan.since), read_since),
            self.totals.rejected[:, name].astype(np.int64),
            self._number(name, self.plan.last_hour),
            last_day,
            before - last_day,
            *(self._number(name, span) for span in self.plan.windows(name)),
        ]
        return np.stack(columns, 1)

    def timings(self) -> Mapping[tuple[int, int], Moments]:
        """`timed` of exposed units, by their code and the place of the samples' name."""
        codes = np.unique(self.codes[self.codes >= 0]).tolist()
        timed = enumerate(map(self.timed, range(len(self.plan.names))))
        return {(code, name): Moments.of(rows[self.codes == code]) for name, rows in timed for code in codes}

    def timed_values(self) -> Mapping[tuple[int, str], Moments]:
        """See `Snapshot.timed_values`; by code and metric."""
        codes = np.unique(self.codes[self.codes >= 0]).tolist()
        found: dict[tuple[int, str], Moments] = {}
        for reading in self.plan.valued:
            spans = self.plan.spans_of_values(reading)
            columns = [self._valued(source, span)[0] for span in spans for source in reading.sources]
            rows = np.clip(np.stack(columns, 1), -LARGEST, LARGEST)
            found |= {(code, reading.metric_id): Moments.of(rows[self.codes == code]) for code in codes}
        return found

    def between(self) -> Mapping[int, int]:
        """By phase, the judgements of two treatments."""
        rows = self.judgements.rows
        phases, counts = np.unique(rows["phase"][rows["baseline"] != 0], return_counts=True)
        return dict(zip(phases.tolist(), counts.tolist(), strict=True))

    def complete(self, reading: Reading, now_us: int) -> Flags:
        """The exposed units whose conversion window is over; without a window all of them."""
        return (self.first < NEVER) & (self.first <= now_us - (reading.span.window_us or 0))

    def joined(
        self, exposures: Records, samples: Records, judgements: Records, rejected: Records | None = None
    ) -> Change:
        """With further events. rejected: notes on samples that were, for their times; none twice."""
        shown = self._exposed(exposures)
        moved = np.flatnonzero((shown["time"] < self.first) | _is_elsewhere(shown, self.exposures))
        totals = self.totals.copy()
        counted: _Counted = {}
        kept = Records.none(SAMPLE_TYPE)
        if len(moved):
            kept = self._moved(moved, shown["time"], totals, counted)
        if len(samples):
            self._take(samples, shown["time"], totals, counted)
            kept = kept + samples.chosen(self._is_loose(samples, shown["time"]))
            totals.samples[:] += np.bincount(samples.unit, minlength=len(self))
        if rejected is not None:
            np.add.at(totals.rejected, (rejected.unit, rejected.rows["name"]), 1)
        new = replace(
            self, exposures=shown, totals=totals, loose=kept, judgements=self.judgements + judgements
        )
        notes = Records.none(NOTE_TYPE) if rejected is None else rejected
        return Change(self, new, moved, judgements, notes, counted, self._stale(moved, new))

    def rows(self, reading: Reading, caps: Sequence[Caps] = ()) -> Rows:
        """caps: by quantiles, of each outcome; none: those by values alone."""
        outcomes = np.zeros((len(self), reading.outcomes))
        is_there = np.ones(len(self), np.bool_)
        events = np.zeros(len(self), np.int64)
        for column, source in enumerate(reading.sources):
            outcomes[:, column], number = self._valued(source, reading.span)
            events += number
            if not source.is_always_there:
                is_there &= number > 0
        uncapped = np.clip(outcomes, -LARGEST, LARGEST, out=outcomes)
        if reading.is_capped:
            outcomes = _capped_by_values(uncapped, reading.caps)
            for column, each in enumerate(caps):
                outcomes[:, column] = each.apply(outcomes[:, column])
        covariates, is_explained = self._covariates(reading)
        return Rows(outcomes, uncapped, is_there, covariates, is_explained, events)

    def verdicts(self) -> tuple[npt.NDArray[Any], Ints]:
        """What was judged of each prompt: keys (n, 4) of phase, name, baseline and candidate, and (n, 5)
        counts of wins, ties, losses, flips and missing.

        Several judgements of a prompt are one: who won more of them. A judgement needs both orders.
        """
        if not len(self.judgements):
            return np.zeros((0, 4), np.int64), np.zeros((0, 5), np.int64)
        rows = self.judgements.rows
        first, second = rows["first"].astype(np.int64), rows["second"].astype(np.int64)
        columns = [rows[name].astype(np.int64) for name in ("phase", "name", "baseline", "candidate")]
        keys, prompt = np.unique(np.stack([self.judgements.unit, *columns], 1), axis=0, return_inverse=True)
        is_whole = (first > 0) & (second > 0)
        agreed = is_whole & (first == second)
        lead = np.bincount(prompt, (agreed & (first == _CANDIDATE)) * 1.0 - (agreed & (first == _BASELINE)))
        is_flip = is_whole & (first != second) & (first != _TIE) & (second != _TIE)
        flips, whole = np.bincount(prompt, is_flip), np.bincount(prompt, is_whole)
        is_tie = (whole > 0) & (lead == 0)
        counts = np.stack([lead > 0, is_tie, lead < 0, is_tie & (flips > 0), whole == 0], 1)
        pairs, pair = np.unique(keys[:, 1:], axis=0, return_inverse=True)
        totals = np.zeros((len(pairs), 5), np.int64)
        np.add.at(totals, pair, counts)
        return pairs, totals

    def _exposed(self, exposures: Records) -> npt.NDArray[Any]:
        """The first exposure of each unit, some more of them known."""
        if not len(exposures):
            return self.exposures
        is_exposed = np.zeros(len(self), np.bool_)
        is_exposed[exposures.unit] = self.first[exposures.unit] < NEVER
        places = np.flatnonzero(is_exposed)
        merged = _merged(Records(places, self.exposures[places]) + exposures)
        shown = self.exposures.copy()
        shown[merged.unit] = merged.rows
        return shown

    def _moved(self, moved: Ints, first: Ints, totals: Totals, counted: _Counted) -> Records:
        """What an earlier first exposure makes of the samples that are kept; those to be kept from now on."""
        is_moved = np.zeros(len(self), np.bool_)
        is_moved[moved] = True
        loose = self.loose.chosen(is_moved[self.loose.unit])
        for total in self.plan.totals:
            if not total.span.only_grows:
                totals.clear(total, moved)
        time, then = loose.rows["time"], self.first[loose.unit]
        self._take(loose, first, totals, counted, is_counted_already=time >= then - self.plan.grace_us)
        return loose.chosen(self._is_loose(loose, first))

    def _is_loose(self, samples: Records, first: Ints) -> Flags:
        is_loose: Flags = samples.rows["time"] < first[samples.unit] - self.plan.grace_us
        is_loose |= self.plan.is_kept[samples.rows["name"]]
        return is_loose

    def _take(
        self,
        samples: Records,
        first: Ints,
        totals: Totals,
        counted: _Counted,
        *,
        is_counted_already: Flags | None = None,
    ) -> None:
        """is_counted_already: in spans that only grow."""
        first_of = first[samples.unit]
        time, value, name = samples.rows["time"], samples.rows["value"], samples.rows["name"]
        held: dict[tuple[int, Span], tuple[Ints, Floats]] = {}
        for total in self.plan.totals:
            key = total.name, total.span
            if key not in held:
                chosen = total.span.holds(time, first_of)
                if len(self.plan.names) > 1:
                    chosen &= name == total.name
                if is_counted_already is not None and total.span.only_grows:
                    chosen &= ~is_counted_already
                held[key] = samples.unit[chosen], value[chosen]
            unit, values = held[key]
            if len(unit):
                totals.add(total, unit, values)
        for key in self.plan.sketched:
            unit, values = held[key]
            if key in counted:
                earlier_unit, earlier_value = counted[key]
                unit = np.concatenate((earlier_unit, unit))
                values = np.concatenate((earlier_value, values))
            counted[key] = unit, values

    def _stale(self, moved: Ints, new: Population) -> Mapping[str, Ints]:
        """The moved units whose events were counted otherwise before, by quantile metric."""
        stale_units: dict[str, Ints] = {}
        for reading in self.plan.readings if len(moved) else ():
            if reading.is_sketched:
                had = (
                    self.totals.numbers[moved, self.plan.number_of(reading.sources[0].name, reading.span)] > 0
                )
                is_other = self.codes[moved] != new.codes[moved]
                stale = moved[had & (is_other | (not reading.span.only_grows))]
                if len(stale):
                    stale_units[reading.metric_id] = stale
        return stale_units

    def _covariates(self, reading: Reading) -> tuple[Floats, Flags]:
        if reading.covariate is not None:
            values = self.exposures["covariates"][:, reading.covariate][:, None]
            return values, ~np.isnan(values[:, 0])
        span = reading.span_before
        if span is None:
            return np.zeros((len(self), 0)), np.ones(len(self), np.bool_)
        values = np.zeros((len(self), reading.outcomes))
        is_explained = np.ones(len(self), np.bool_)
        for column, source in enumerate(reading.sources):
            values[:, column], number = self._valued(source, span)
            if not source.is_always_there:
                is_explained &= number > 0
        return np.clip(values, -LARGEST, LARGEST), is_explained

    def _valued(self, source: Source, span: Span) -> tuple[Floats, Ints]:
        """One value for each unit, 0 for those without samples, and the number of samples."""
        number = self._number(source.name, span)
        total = self.plan.value_of(source, span)
        if source.is_share:
            return (self.totals.numbers[:, total.place] > 0).astype(np.float64), number
        if source.aggregation == COUNT:
            return number.astype(np.float64), number
        if total.kind is TotalKind.SUM:
            summed = self.totals.sums[:, total.place, 0]
            return (summed / np.maximum(number, 1) if source.aggregation == MEAN else summed), number
        return np.where(number > 0, self.totals.extremes[:, total.place], 0.0), number

    def _read(self, name: int) -> tuple[Ints, Ints]:
        """The numbers of events that metrics read, from the exposure on and before."""
        read = [self._number(name, span) for span in self.plan.used(name)]
        return read[0], read[1] if len(read) > 1 else np.zeros(len(self), np.int64)

    def _number(self, name: int, span: Span) -> Ints:
        return self.totals.numbers[:, self.plan.number_of(name, span)]


@dataclass(frozen=True)
class Change:
    """Units before and after some events. moved: those whose first exposure is another one.

    `new.loose` are the samples to be kept: of moved units all, of others those that are new. judgements,
    notes: the new ones. counted: by event name and span, the unit and the value of each sample that counts
    now and did not. stale: by quantile metric, the units whose events counted otherwise before.
    """

    old: Population
    new: Population
    moved: Ints
    judgements: Records
    notes: Records
    counted: Mapping[tuple[int, Span], tuple[Ints, Floats]]
    stale: Mapping[str, Ints]


def _is_elsewhere(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> Flags:
    is_elsewhere: Flags = (one["phase"] != other["phase"]) | (one["variant"] != other["variant"])
    return is_elsewhere


def unexposed(plan: Plan, units: int) -> npt.NDArray[Any]:
    rows = np.zeros(units, plan.exposure_type)
    rows["time"], rows["covariates"] = NEVER, np.nan
    return rows


def _merged(events: Records) -> Records:
    """One row for each unit, the earliest; of those at one instant always the same one.

    A unit counts in one phase alone: counted again in each, it would make intervals too narrow, and chance
    imbalances would grow into false alarms about the split.
    """
    rows = events.rows
    ties = [rows["covariates"][:, column] for column in range(rows["covariates"].shape[1])]
    order = np.lexsort((*ties, rows["variant"], rows["phase"], rows["time"], events.unit))
    unit, rows = events.unit[order], rows[order]
    is_new = np.ones(len(unit), np.bool_)
    is_new[1:] = unit[1:] != unit[:-1]
    starts = np.flatnonzero(is_new)
    first = rows[starts]
    first["is_mismatched"] = np.bitwise_or.reduceat(rows["is_mismatched"], starts)
    first["variants"] = np.bitwise_or.reduceat(rows["variants"], starts)
    return Records(unit[starts], first)


def _capped_by_values(outcomes: Floats, caps: Caps) -> Floats:
    """A copy. A ratio's caps are of each unit's own ratio: its numerator lies within the denominator times
    them, and is thus 0 where that is 0 and the ratio beyond every cap.
    """
    capped = outcomes.copy()
    if outcomes.shape[1] == 1:
        capped[:, 0] = caps.apply(outcomes[:, 0])
    elif caps != NO_CAPS:
        numerator, denominator = outcomes[:, 0], outcomes[:, 1]
        with np.errstate(all="ignore"):
            own = np.nan_to_num(numerator / denominator, nan=0.0, posinf=np.inf, neginf=-np.inf)
            held = caps.apply(own)
            capped[:, 0] = np.where(held == own, numerator, held * denominator)
    return np.clip(capped, -LARGEST, LARGEST)


def _sums(value: Floats, group: Ints, size: int) -> tuple[Floats, Floats]:
    """Sums by group as pairs of doubles that do not depend on the order, but for what lies 106 bits lower.

    Each value is cut where all that is above adds up exactly within its group (Demmel & Nguyen 2013,
    "Fast reproducible floating-point summation"), and what is left is cut once more.
    """
    largest = np.zeros(size)
    np.maximum.at(largest, group, np.abs(value))
    number = np.bincount(group, minlength=size)
    total = np.zeros(size), np.zeros(size)
    for _ in range(2):
        _, exponent = np.frexp(largest * number)
        cut = np.ldexp(1.5, exponent)[group]
        high = (value + cut) - cut
        total = dd.add(total, (np.bincount(group, high, size), np.zeros(size)))
        value, largest = value - high, np.ldexp(1.0, exponent - 52)
    rest = np.bincount(group, value, size), np.zeros(size)
    summed: tuple[Floats, Floats] = dd.add(total, rest)
    return summed
