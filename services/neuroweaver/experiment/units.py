"""The events of units, and what they make of each unit: a function of the set of its events alone.

Whatever order they come in and however they are batched, a unit's totals are the same, up to the last bits
of a sum. A unit's events are kept with it, so that an exposure that arrives late can still decide about
all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from neuroweaver.experiment.readings import (
    COUNT,
    JUDGEMENT_TYPE,
    MEAN,
    SAMPLE_TYPE,
    SUM,
    Plan,
    Reading,
    Source,
)
from neuroweaver.experiment.statistics.moments import LARGEST
from neuroweaver.experiment.statistics.winsorization import Caps
from neuroweaver.v1 import experiment_pb2 as pb

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_CANDIDATE: Final = pb.PAIRWISE_OUTCOME_CANDIDATE
_BASELINE: Final = pb.PAIRWISE_OUTCOME_BASELINE
_TIE: Final = pb.PAIRWISE_OUTCOME_TIE


class Kept(NamedTuple):
    """What is kept of one unit, in the types of `readings`."""

    exposures: bytes = b""
    samples: bytes = b""
    judgements: bytes = b""


@dataclass(frozen=True)
class Records:
    """Structured rows, and the unit of each by its index."""

    unit: Ints
    rows: npt.NDArray[Any]

    @classmethod
    def of(cls, parts: Sequence[bytes], kind: np.dtype[Any]) -> Records:
        """parts: of each unit in turn."""
        sizes = np.fromiter(map(len, parts), np.int64, len(parts)) // kind.itemsize
        return cls(np.repeat(np.arange(len(parts)), sizes), np.frombuffer(b"".join(parts), kind))

    def __add__(self, other: Records) -> Records:
        if not len(other.unit):
            return self
        return Records(np.concatenate((self.unit, other.unit)), np.concatenate((self.rows, other.rows)))

    def parts(self, count: int) -> list[bytes]:
        """Of each unit in turn; the order of a unit's rows stays."""
        order = np.argsort(self.unit, kind="stable")
        data, size = self.rows[order].tobytes(), self.rows.dtype.itemsize
        ends = (np.cumsum(np.bincount(self.unit, minlength=count)) * size).tolist()
        return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class Rows:
    """A metric in each exposure of a population.

    outcomes: (exposures, outcomes). is_there: whether the unit has a value. covariates: (exposures,
    covariates). is_explained: whether it has those. events: (exposures,), how many were read.
    """

    outcomes: Floats
    is_there: Flags
    covariates: Floats
    is_explained: Flags
    events: Ints


@dataclass(frozen=True)
class Population:
    """Some units with all of their events.

    exposures: one row for each unit that was exposed, its first, ordered by unit.
    """

    plan: Plan
    count: int
    exposures: Records
    samples: Records
    judgements: Records

    @classmethod
    def of(cls, plan: Plan, kept: Sequence[Kept]) -> Population:
        return cls(
            plan,
            len(kept),
            Records.of([each.exposures for each in kept], plan.exposure_type),
            Records.of([each.samples for each in kept], SAMPLE_TYPE),
            Records.of([each.judgements for each in kept], JUDGEMENT_TYPE),
        )

    def kept(self) -> list[Kept]:
        columns = (each.parts(self.count) for each in (self.exposures, self.samples, self.judgements))
        return [Kept(*each) for each in zip(*columns, strict=True)]

    def joined(self, exposures: Records, samples: Records, judgements: Records) -> Population:
        """With further events; the samples known so far stay first, in their order."""
        together = self.exposures
        if len(exposures.unit):
            together = _merged(self.exposures + exposures)
        return Population(
            self.plan, self.count, together, self.samples + samples, self.judgements + judgements
        )

    @cached_property
    def first(self) -> Ints:
        """Of each unit, its first exposure; -1 for units without one."""
        unit = self.exposures.unit
        found = np.full(self.count, -1, np.int64)
        found[unit[::-1]] = np.arange(len(unit))[::-1]
        return found

    @cached_property
    def owner(self) -> Ints:
        """Of each sample, the unit's latest exposure at or before it; -1 before the first one."""
        unit, time = self.samples.unit, self.samples.rows["time"]
        exposed_at = self.exposures.rows["time"]
        ends = np.cumsum(np.bincount(self.exposures.unit, minlength=self.count))
        starts = np.concatenate(([0], ends[:-1])) if self.count else ends
        place, end = starts[unit], ends[unit]
        owner = np.full(len(unit), -1, np.int64)
        rest = np.flatnonzero(place < end)
        while len(rest):
            rest = rest[exposed_at[place[rest]] <= time[rest]]
            owner[rest] = place[rest]
            place[rest] += 1
            rest = rest[place[rest] < end[rest]]
        return owner

    @cached_property
    def by_name(self) -> list[Ints]:
        """The samples of each name."""
        name = self.samples.rows["name"]
        if len(self.plan.names) == 1:
            return [np.arange(len(name))]
        return [np.flatnonzero(name == index) for index in range(len(self.plan.names))]

    @property
    def unexposed(self) -> int:
        """Samples of units without an exposure."""
        return int(np.count_nonzero(self.first[self.samples.unit] < 0))

    def counted(self, reading: Reading, source: Source) -> Ints:
        """The samples that count for a source, those of `owner` within the window."""
        chosen = self.by_name[source.name]
        chosen = chosen[self.owner[chosen] >= 0]
        if reading.window_us is None:
            return chosen
        waited: Ints = self.samples.rows["time"][chosen] - self.exposures.rows["time"][self.owner[chosen]]
        return chosen[waited <= reading.window_us]

    def rows(self, reading: Reading, caps: Mapping[int, Caps]) -> Rows:
        """caps: by quantiles, of each phase that has them."""
        size = len(self.exposures.unit)
        outcomes = np.zeros((size, reading.outcomes))
        is_there = np.ones(size, np.bool_)
        events = np.zeros(size, np.int64)
        for column, source in enumerate(reading.sources):
            chosen = self.counted(reading, source)
            values, number = self._aggregated(source, chosen, self.owner[chosen], size)
            outcomes[:, column] = values
            events += number
            if not source.is_always_there:
                is_there &= number > 0
        self._cap(outcomes, reading, caps)
        covariates, is_explained = self._covariates(reading)
        return Rows(outcomes, is_there, covariates, is_explained, events)

    def _cap(self, outcomes: Floats, reading: Reading, caps: Mapping[int, Caps]) -> None:
        if reading.caps != Caps():
            _capped(outcomes, np.ones(len(outcomes), np.bool_), reading.caps)
        for phase, found in caps.items():
            _capped(outcomes, self.exposures.rows["phase"] == phase, found)

    def _covariates(self, reading: Reading) -> tuple[Floats, Flags]:
        size = len(self.exposures.unit)
        first = self.first[self.exposures.unit]
        if reading.covariate is not None:
            found = self.exposures.rows["covariates"][first, reading.covariate][:, None]
            return found, ~np.isnan(found[:, 0])
        if reading.lookback_us is None:
            return np.zeros((size, 0)), np.ones(size, np.bool_)
        values = np.zeros((size, reading.outcomes))
        is_explained = np.ones(size, np.bool_)
        for column, source in enumerate(reading.sources):
            chosen = self.by_name[source.name]
            unit = self.samples.unit[chosen]
            start = self.first[unit]
            chosen, unit, start = chosen[start >= 0], unit[start >= 0], start[start >= 0]
            before = self.exposures.rows["time"][start] - self.samples.rows["time"][chosen]
            is_before = (before > 0) & (before <= reading.lookback_us)
            by_unit, number = self._aggregated(source, chosen[is_before], unit[is_before], self.count)
            values[:, column] = by_unit[self.exposures.unit]
            if not source.is_always_there:
                is_explained &= number[self.exposures.unit] > 0
        return values, is_explained

    def _aggregated(self, source: Source, chosen: Ints, group: Ints, size: int) -> tuple[Floats, Ints]:
        """One value for each group, 0 for those without samples, and the number of samples."""
        value = self.samples.rows["value"][chosen]
        number = np.bincount(group, minlength=size)
        if source.is_share:
            reaching = np.bincount(group[value >= source.threshold], minlength=size)
            return (reaching > 0).astype(np.float64), number
        if source.aggregation == COUNT:
            return number.astype(np.float64), number
        if source.aggregation in {SUM, MEAN}:
            total = _sums(value, group, number)
            return (total / np.maximum(number, 1) if source.aggregation == MEAN else total), number
        is_largest = source.aggregation == pb.UNIT_AGGREGATION_MAX
        extreme = np.full(size, -np.inf if is_largest else np.inf)
        (np.maximum if is_largest else np.minimum).at(extreme, group, value)
        return np.where(number > 0, extreme, 0.0), number

    def verdicts(self) -> tuple[npt.NDArray[Any], Ints]:
        """What was judged of each prompt: keys (n, 4) of phase, name, baseline and candidate, and (n, 5)
        counts of wins, ties, losses, flips and missing.

        Several judgements of a prompt are one: who won more of them. A judgement needs both orders.
        """
        if not len(self.judgements.unit):
            return np.zeros((0, 4), np.int64), np.zeros((0, 5), np.int64)
        rows = self.judgements.rows
        first, second = rows["first"].astype(np.int64), rows["second"].astype(np.int64)
        columns = [rows[field].astype(np.int64) for field in ("phase", "name", "baseline", "candidate")]
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
    found = rows[starts]
    found["is_mismatched"] = np.bitwise_or.reduceat(rows["is_mismatched"], starts)
    found["variants"] = np.bitwise_or.reduceat(rows["variants"], starts)
    return Records(unit[starts], found)


def _capped(outcomes: Floats, chosen: Flags, caps: Caps) -> None:
    """In place. A ratio is capped as each unit's own ratio, by way of its numerator."""
    if outcomes.shape[1] == 1:
        outcomes[chosen, 0] = np.clip(caps.apply(outcomes[chosen, 0]), -LARGEST, LARGEST)
        return
    chosen = chosen & (outcomes[:, 1] != 0)
    numerator, denominator = outcomes[chosen, 0], outcomes[chosen, 1]
    own = numerator / denominator
    held = caps.apply(own)
    outcomes[chosen, 0] = np.where(held == own, numerator, np.clip(held * denominator, -LARGEST, LARGEST))


def _sums(value: Floats, group: Ints, number: Ints) -> Floats:
    """Sums by group that do not depend on the order, but for the last bits of what lies 53 bits lower.

    Each value is cut where all that is above adds up exactly within its group (Demmel & Nguyen 2013,
    "Fast reproducible floating-point summation").
    """
    largest = np.zeros(len(number))
    np.maximum.at(largest, group, np.abs(value))
    _, exponent = np.frexp(largest * number)
    cut = np.ldexp(1.5, exponent)[group]
    high = (value + cut) - cut
    size = len(number)
    total: Floats = np.add(
        np.bincount(group, high, size), np.bincount(group, value - high, size), dtype=float
    )
    return total
