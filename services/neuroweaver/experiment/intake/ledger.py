"""The sufficient statistics as they move: what units were is taken out, what they are is put in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, fields, replace
from datetime import date
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from neuroweaver.experiment.domain.snapshot import (
    CAPS_GROWTH,
    Calibration,
    Cell,
    Group,
    Quality,
    Rejection,
    Snapshot,
    Uses,
)
from neuroweaver.experiment.intake.readings import Plan, Reading
from neuroweaver.experiment.intake.units import VARIANTS, Change, Ints, Population, Rows
from neuroweaver.mesh.wire.clock import from_microseconds
from neuroweaver.statistics.arm import Sample
from neuroweaver.statistics.moments import LARGEST, Moments
from neuroweaver.statistics.pairwise import Judgements
from neuroweaver.statistics.sketch import GroupedSketch
from neuroweaver.statistics.winsorization import NO_CAPS, Caps, calibrated
from neuroweaver.v1 import experiment_pb2 as pb

_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
_DAY_US: Final = 86_400_000_000
_NAMED: Final = 10
# Units that lose samples, by reason: those of the lowest hashes, which is the same sample of every variant.
_LOSING: Final = 500
_NUMBERS: Final = ("unexposed", "accepted", "duplicates", "late", "last_us", "overridden")

CellKey = tuple[int, str, str]


@dataclass
class Sums:
    """A cell. is_stale: events left it, which no sketch can forget; it is recomputed where it is read.

    cuts: see `snapshot.Cell`; None of a metric without caps, too.
    """

    observed: Moments
    missing: Moments | None
    cuts: Moments | None = None
    events: int = 0
    without: int = 0
    sketch: GroupedSketch | None = None
    is_stale: bool = False

    @classmethod
    def none(cls, reading: Reading) -> Sums:
        """Of a metric without any unit."""
        columns = reading.outcomes + reading.covariates
        missing = Moments.zero(reading.outcomes) if reading.covariates else None
        cuts = Moments.zero(reading.cuts) if reading.is_capped else None
        return cls(Moments.zero(columns), missing, cuts)

    @property
    def units(self) -> int:
        """Those that have a value."""
        return self.observed.n + (self.missing.n if self.missing else 0)

    def take(self, rows: Rows, chosen: npt.NDArray[np.bool_], sign: int) -> None:
        """Puts units in (sign 1), or takes them out (-1)."""
        if not chosen.any():
            return
        self.events += sign * int(rows.events[chosen].sum())
        self.without += sign * int(np.count_nonzero(rows.events[chosen] == 0))
        valued = chosen & rows.is_there
        whole = valued & rows.is_explained
        joined = Moments.of(np.concatenate((rows.outcomes[whole], rows.covariates[whole]), axis=1))
        self.observed = self.observed + joined if sign > 0 else self.observed - joined
        if self.missing is not None:
            rest = Moments.of(rows.outcomes[valued & ~rows.is_explained])
            self.missing = self.missing + rest if sign > 0 else self.missing - rest
        if self.cuts is not None:
            cuts = Moments.of(_cuts(rows.uncapped[valued], rows.outcomes[valued]))
            self.cuts = self.cuts + cuts if sign > 0 else self.cuts - cuts


@dataclass(frozen=True)
class Exam:
    """Caps as they were taken. batch: the number of the last one by then. time_us: when, by the server's
    clock. seen: units and events of the metric. units: the complete ones, from which the caps are. caps: of
    each outcome; of those of an earlier version of a ratio, of the units' own ratios alone.
    """

    batch: int
    time_us: int
    seen: int
    units: int
    caps: tuple[Caps, ...]


@dataclass
class Ledger:
    """Everything counted of one experiment. cells: at least those of the phases in which units move.

    exams: of the caps of each metric, the newest last. losing: see `lose`. touched: the cells that moved.
    is_whole: whether all raw events are still there; else a sketch that should forget some cannot be
    recomputed, and stays as it is. is_carried: an earlier version counted all this, which did not know
    `uses`, `timings`, `timed_values`, `between` and `Sums.cuts`.
    """

    plan: Plan
    groups: Counter[tuple[int, int, str]] = field(default_factory=Counter)
    cells: dict[CellKey, Sums] = field(default_factory=dict)
    tallies: Counter[tuple[int, str, str, str, int]] = field(default_factory=Counter)
    days: Counter[int] = field(default_factory=Counter)
    uses: Counter[tuple[int, int, str, str]] = field(default_factory=Counter)
    timings: dict[tuple[int, str, str], Moments] = field(default_factory=dict)
    timed_values: dict[tuple[int, str, str], Moments] = field(default_factory=dict)
    between: Counter[int] = field(default_factory=Counter)
    rejected_exposures: Counter[str] = field(default_factory=Counter)
    exams: dict[str, list[Exam]] = field(default_factory=dict)
    unexposed: int = 0
    accepted: int = 0
    duplicates: int = 0
    late: int = 0
    last_us: int = 0
    overridden: int = 0
    rejections: dict[pb.EventRejection.ValueType, Rejection] = field(default_factory=dict)
    losing: dict[pb.EventRejection.ValueType, dict[int, int]] = field(default_factory=dict)
    touched: set[CellKey] = field(default_factory=set)
    is_whole: bool = True
    is_carried: bool = False

    def move(self, change: Change, sketch_groups: Ints) -> None:
        """Units, before and after. sketch_groups: of each unit."""
        old, new = change.old, change.new
        self._count(old, -1)
        self._count(new, 1)
        is_elsewhere = old.codes != new.codes
        for reading in self.plan.readings:
            caps = self.caps(reading)
            before, after = old.rows(reading, caps), new.rows(reading, caps)
            is_other = is_elsewhere | before.differs(after)
            self.take(reading, old.codes, before, -1, is_other)
            self.take(reading, new.codes, after, 1, is_other)
            if reading.is_sketched:
                self._sketch(reading, change, sketch_groups)

    def take(
        self, reading: Reading, codes: Ints, rows: Rows, sign: int, chosen: npt.NDArray[np.bool_]
    ) -> None:
        """codes: of each unit, see `Population.codes`."""
        for code in np.unique(codes[chosen & (codes >= 0)]).tolist():
            self.cell(code, reading).take(rows, chosen & (codes == code), sign)

    def cell(self, code: int, reading: Reading) -> Sums:
        key = (code // VARIANTS, self.plan.variants[code % VARIANTS], reading.metric_id)
        self.touched.add(key)
        return self.cells.setdefault(key, Sums.none(reading))

    def caps(self, reading: Reading) -> tuple[Caps, ...]:
        """Those by quantiles that are in force."""
        exams = self.exams.get(reading.metric_id)
        return exams[-1].caps if exams else ()

    def due(self, growth: float = CAPS_GROWTH) -> list[Reading]:
        """The metrics to be capped anew, since their data have grown so much; asks for all cells."""
        return [
            reading for reading in self.plan.readings if reading.is_capped and self._is_due(reading, growth)
        ]

    def is_of_earlier_version(self, reading: Reading) -> bool:
        """Whether units of a capped metric are still capped as one did."""
        return any(cell.cuts is None for cell in self._cells_of(reading))

    def units(self, reading: Reading) -> int:
        """Those that have a value; of a ratio those with an event, since the others are no part of it."""
        cells = self._cells_of(reading)
        return sum(cell.units - (cell.without if reading.is_ratio else 0) for cell in cells)

    def examine(self, reading: Reading, units: Population, batch: int, time_us: int) -> Exam:
        """The caps that these units, all there are, call for."""
        rows = units.rows(reading)
        chosen = rows.is_there & units.complete(reading, time_us)
        if reading.is_ratio:
            chosen &= rows.events > 0
        complete, quantiles = int(np.count_nonzero(chosen)), (reading.lower_quantile, reading.upper_quantile)
        caps = tuple(
            calibrated(column, *quantiles) if complete >= reading.calibration else NO_CAPS
            for column in rows.outcomes[chosen].T
        )
        return Exam(batch, time_us, self._seen(reading), complete, caps)

    def calibrate(self, reading: Reading, units: Population, exam: Exam) -> None:
        """Counts all units again under these caps; under those by values, where the metric has such."""
        if reading.calibration:
            self.exams.setdefault(reading.metric_id, []).append(exam)
        for key in [key for key in self.cells if key[2] == reading.metric_id]:
            self.cells[key] = Sums.none(reading)
            self.touched.add(key)
        rows = units.rows(reading, self.caps(reading))
        self.take(reading, units.codes, rows, 1, units.codes >= 0)

    def catch_up(self, units: Population, batch: int, time_us: int) -> None:
        """Does what is due, with all units there are; asks for all cells."""
        for reading in self.due():
            self.calibrate(reading, units, self.examine(reading, units, batch, time_us))
        if self.is_carried:
            for counted in (self.uses, self.timings, self.timed_values, self.between):
                counted.clear()
            self._use(units, 1)
            self.is_carried = False

    def reject(self, rejection: Rejection) -> None:
        before = self.rejections.get(rejection.reason, Rejection(rejection.reason, 0))
        self.rejections[rejection.reason] = and_more(before, rejection)

    def lose(self, codes: Mapping[pb.EventRejection.ValueType, Mapping[int, int]]) -> None:
        """Exposed units with samples rejected for a reason. codes: by hash, see `Population.codes`."""
        for reason, found in codes.items():
            kept = self.losing.setdefault(reason, {})
            kept |= found
            for each in sorted(kept)[_LOSING:]:
                del kept[each]

    def snapshot(self) -> Snapshot:
        groups: dict[tuple[int, str], Group] = {}
        for (kind, phase, variant), count in self.groups.items():
            group = groups.get((phase, variant), Group())
            groups[phase, variant] = replace(group, **{_GROUP_FIELDS[kind]: count})
        tallies: dict[tuple[int, str, str, str], Judgements] = {}
        for (phase, baseline, candidate, metric_id, kind), count in self.tallies.items():
            key = (phase, baseline, candidate, metric_id)
            tallies[key] = replace(tallies.get(key, Judgements()), **{_TALLY_FIELDS[kind]: count})
        uses: dict[tuple[int, str, str], Uses] = {}
        for (kind, phase, variant, name), count in self.uses.items():
            place = phase, variant, name
            uses[place] = replace(uses.get(place, Uses()), **{_USES_FIELDS[kind]: count})
        return Snapshot(
            groups={key: group for key, group in groups.items() if group.units},
            cells={
                key: Cell(
                    Sample(each.observed, each.missing),
                    each.events,
                    each.without,
                    None if each.sketch is None else each.sketch.to_bytes(),
                    each.cuts,
                )
                for key, each in self.cells.items()
                if each.units or each.without
            },
            tallies={key: tally for key, tally in tallies.items() if tally != Judgements()},
            calibrations={metric_id: _calibration(exams[-1]) for metric_id, exams in self.exams.items()},
            uses={key: each for key, each in uses.items() if each != Uses()},
            timings={key: each for key, each in self.timings.items() if each.n},
            timed_values={key: each for key, each in self.timed_values.items() if each.n},
            between={phase: count for phase, count in self.between.items() if count},
            rejected_exposures=self.rejected_exposures,
            quality=Quality(
                accepted=self.accepted,
                duplicates=self.duplicates,
                late=self.late,
                unexposed=self.unexposed,
                overridden=self.overridden,
                rejected=tuple(self.rejections[reason] for reason in sorted(self.rejections)),
                last_event_time=from_microseconds(self.last_us) if self.last_us else None,
            ),
            units_by_day={
                date.fromordinal(day + _EPOCH_DAY): count for day, count in self.days.items() if count
            },
            losing={
                (reason, code // VARIANTS, self.plan.variants[code % VARIANTS]): count
                for reason, found in self.losing.items()
                for code, count in Counter(found.values()).items()
            },
            outdated=frozenset(each.metric_id for each in self.plan.readings if self._is_outdated(each)),
        )

    def dump(self) -> str:
        """All but the cells, as JSON."""
        return json.dumps(
            {
                "groups": [[*key, count] for key, count in self.groups.items() if count],
                "tallies": [[*key, count] for key, count in self.tallies.items() if count],
                "days": [[day, count] for day, count in self.days.items() if count],
                "uses": [[*key, count] for key, count in self.uses.items() if count],
                "timings": [[*key, each.to_floats()] for key, each in self.timings.items() if each.n],
                "timed_values": [
                    [*key, each.to_floats()] for key, each in self.timed_values.items() if each.n
                ],
                "between": [[phase, count] for phase, count in self.between.items() if count],
                "rejected_exposures": self.rejected_exposures,
                "exams": [
                    [
                        metric_id,
                        each.batch,
                        each.time_us,
                        each.seen,
                        each.units,
                        *(end for caps in each.caps for end in (caps.lower, caps.upper)),
                    ]
                    for metric_id, exams in self.exams.items()
                    for each in exams
                ],
                "losing": [[reason, *found.items()] for reason, found in self.losing.items()],
                "carried": self.is_carried,
                "numbers": [getattr(self, name) for name in _NUMBERS],
                "rejected": [[r.reason, r.count, r.names, r.event_ids] for r in self.rejections.values()],
            }
        )

    @classmethod
    def load(cls, plan: Plan, counts: str) -> Ledger:
        """What `dump` gave."""
        plain: dict[str, Any] = json.loads(counts)
        exams: dict[str, list[Exam]] = {}
        for metric_id, batch, time_us, seen, units, *ends in plain["exams"]:
            caps = tuple(Caps(*pair) for pair in zip(ends[::2], ends[1::2], strict=True))
            exams.setdefault(metric_id, []).append(Exam(batch, time_us, seen, units, caps))
        # Timings of a version that knew no values had fewer columns.
        is_timed = "timed_values" in plain
        values = {each.metric_id: len(plan.spans_of_values(each)) * each.outcomes for each in plan.valued}
        return cls(
            plan,
            groups=Counter({(kind, phase, variant): n for kind, phase, variant, n in plain["groups"]}),
            tallies=Counter({tuple(key): n for *key, n in plain["tallies"]}),
            days=Counter(dict(plain["days"])),
            uses=Counter({tuple(key): n for *key, n in plain["uses"]}),
            timings={
                (phase, variant, name): Moments.from_floats(plan.timed_columns(name), floats)
                for phase, variant, name, floats in (plain["timings"] if is_timed else [])
            },
            timed_values={
                (phase, variant, metric_id): Moments.from_floats(values[metric_id], floats)
                for phase, variant, metric_id, floats in plain.get("timed_values", [])
            },
            between=Counter(dict(plain.get("between", []))),
            rejected_exposures=Counter(plain.get("rejected_exposures", {})),
            exams=exams,
            losing={reason: dict(found) for reason, *found in plain.get("losing", [])},
            is_carried=plain["carried"] or not is_timed,
            **dict(zip(_NUMBERS, plain["numbers"], strict=True)),
            rejections={
                reason: Rejection(reason, count, tuple(names), tuple(ids))
                for reason, count, names, ids in plain["rejected"]
            },
        )

    def _is_outdated(self, reading: Reading) -> bool:
        """See `Snapshot.outdated`; asks for all cells."""
        is_of_times = self.is_carried and self.accepted > 0
        return is_of_times or (reading.is_capped and self.is_of_earlier_version(reading))

    def _is_due(self, reading: Reading, growth: float) -> bool:
        if self.is_of_earlier_version(reading):
            return True
        if not reading.calibration or self.units(reading) < reading.calibration:
            return False
        exams = self.exams.get(reading.metric_id)
        return not exams or self._seen(reading) >= growth * exams[-1].seen

    def _seen(self, reading: Reading) -> int:
        return sum(cell.units + cell.events for cell in self._cells_of(reading))

    def _cells_of(self, reading: Reading) -> list[Sums]:
        return [cell for (_, _, metric_id), cell in self.cells.items() if metric_id == reading.metric_id]

    def _count(self, units: Population, sign: int) -> None:
        self.unexposed += sign * units.unexposed_samples
        rows, codes = units.exposures, units.codes
        is_multiple = (rows["variants"] & (rows["variants"] - 1)) != 0
        is_there = codes >= 0
        for kind, mask in enumerate((is_there, rows["is_mismatched"] != 0, is_multiple)):
            for code, count in zip(*np.unique(codes[is_there & mask], return_counts=True), strict=True):
                key = (kind, int(code) // VARIANTS, self.plan.variants[int(code) % VARIANTS])
                self.groups[key] += sign * int(count)
        first = units.first[is_there]
        for day, count in zip(*np.unique(first // _DAY_US, return_counts=True), strict=True):
            self.days[int(day)] += sign * int(count)
        self._tally(units, sign)
        self._use(units, sign)

    def _use(self, units: Population, sign: int) -> None:
        for (code, name), uses in units.uses().items():
            place = code // VARIANTS, self.plan.variants[code % VARIANTS], self.plan.names[name]
            for kind, count in enumerate(astuple(uses)):
                self.uses[kind, *place] += sign * count
        for phase, count in units.between().items():
            self.between[phase] += sign * count
        for (code, name), timing in units.timings().items():
            key = code // VARIANTS, self.plan.variants[code % VARIANTS], self.plan.names[name]
            before = self.timings.get(key, Moments.zero(timing.columns))
            self.timings[key] = before + timing if sign > 0 else before - timing
        for (code, metric_id), moments in units.timed_values().items():
            key = code // VARIANTS, self.plan.variants[code % VARIANTS], metric_id
            before = self.timed_values.get(key, Moments.zero(moments.columns))
            self.timed_values[key] = before + moments if sign > 0 else before - moments

    def _tally(self, units: Population, sign: int) -> None:
        for (phase, name, baseline, candidate), counts in zip(
            *map(np.ndarray.tolist, units.verdicts()), strict=True
        ):
            pair = self.plan.variants[baseline], self.plan.variants[candidate]
            for metric_id, event_name in self.plan.pairwise:
                if event_name == self.plan.judgements[name]:
                    for kind, count in enumerate(counts):
                        self.tallies[phase, *pair, metric_id, kind] += sign * count

    def _sketch(self, reading: Reading, change: Change, groups: Ints) -> None:
        stale = change.stale.get(reading.metric_id)
        if stale is not None and self.is_whole:
            for codes in (change.old.codes[stale], change.new.codes[stale]):
                for code in np.unique(codes[codes >= 0]).tolist():
                    self.cell(code, reading).is_stale = True
        unit, value = change.counted.get((reading.sources[0].name, reading.span), _NOTHING)
        if stale is not None and not self.is_whole:
            # Some of these are in the sketch already.
            is_new = ~np.isin(unit, stale)
            unit, value = unit[is_new], value[is_new]
        codes = change.new.codes[unit]
        for code in np.unique(codes).tolist():
            cell = self.cell(code, reading)
            if not cell.is_stale:
                chosen = codes == code
                cell.sketch = cell.sketch or GroupedSketch()
                cell.sketch.add(groups[unit[chosen]], value[chosen])


_NOTHING: Final = np.zeros(0, np.int64), np.zeros(0)
_GROUP_FIELDS: Final = [each.name for each in fields(Group)]
_TALLY_FIELDS: Final = [each.name for each in fields(Judgements)]
_USES_FIELDS: Final = [each.name for each in fields(Uses)]


def _cuts(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """See `snapshot.Cell`; before, after: (units, outcomes), the values. Of a value that a cap takes to the
    other side of 0, or away from it, what it moves is no part of what there was.
    """
    moved = np.minimum(np.abs(before - after), LARGEST)
    whole = np.maximum(moved, np.maximum(np.abs(before), np.abs(after)))
    sizes = np.stack((moved, whole), 2).reshape(len(before), -1)
    return np.column_stack(((before != after).any(1), sizes))


def _calibration(exam: Exam) -> Calibration:
    own, *denominator = exam.caps
    return Calibration(own.lower, own.upper, exam.units, *denominator)


def and_more(one: Rejection, more: Rejection) -> Rejection:
    """Both together."""
    names = tuple(dict.fromkeys((*one.names, *more.names)))[:_NAMED]
    ids = (*one.event_ids, *more.event_ids)[:_NAMED]
    return Rejection(one.reason, one.count + more.count, names, ids)


def sketches_of_means(reading: Reading, units: Population, groups: Ints) -> dict[CellKey, GroupedSketch]:
    """Of the units' means, by phase and variant. groups: of each unit."""
    rows = units.rows(reading)
    return sketched(
        reading, units.plan, np.where(rows.is_there, units.codes, -1), groups, rows.outcomes[:, 0], {}
    )


def sketched(
    reading: Reading,
    plan: Plan,
    codes: Ints,
    groups: Ints,
    values: npt.NDArray[np.float64],
    into: dict[CellKey, GroupedSketch],
) -> dict[CellKey, GroupedSketch]:
    """`into`, with values of phases and variants given as codes; -1: of none. groups: of each value."""
    for code in np.unique(codes[codes >= 0]).tolist():
        chosen = codes == code
        key = (code // VARIANTS, plan.variants[code % VARIANTS], reading.metric_id)
        into.setdefault(key, GroupedSketch()).add(groups[chosen], values[chosen])
    return into
