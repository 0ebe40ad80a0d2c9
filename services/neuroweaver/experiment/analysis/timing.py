"""Whether the times of events fit their exposures, in all variants and between them.

Assignment is random, so what units did before they were exposed is the same in every variant, whatever the
treatment does. If units of one variant have such events more often, or less, or have more rejected for their
times, then its clocks are off, or its exposures are recorded at other times: some of what the treatment did
is taken for what came before it. It is the idea of the test of the split, applied to times. A long history
hides what a fault adds to it, so its last hour and its last day are looked at by themselves too, given the
history before them, and so is what metrics make of it, where that is more than a number of events.

What comes after a conversion window does depend on the treatment, so a difference alone is no fault there. It
is one where a variant keeps a far smaller share of its events, or of what a metric makes of them, than
another within the window, and less of them too; or where the comparison would be turned round if all events
counted.

Over all names, treatments, tests and looks together, the chance to see a difference where there is none is at
most the level of the test of the split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from neuroweaver.experiment.analysis import event_use
from neuroweaver.experiment.analysis.comparison import OfUnits
from neuroweaver.experiment.analysis.event_use import uses
from neuroweaver.experiment.analysis.guardrails import LEAST_UNITS
from neuroweaver.experiment.analysis.study import Study
from neuroweaver.experiment.domain.metrics import COUNT, SUM, outcomes_of
from neuroweaver.experiment.domain.model import Phase
from neuroweaver.experiment.domain.specification import length
from neuroweaver.statistics import confidence_sequence
from neuroweaver.statistics import effect as effects
from neuroweaver.statistics import phases as across_phases
from neuroweaver.statistics.arm import Kind, Sample, arms
from neuroweaver.statistics.effect import Effect
from neuroweaver.statistics.estimate import ZERO, Bound
from neuroweaver.statistics.moments import Moments, merged
from neuroweaver.v1 import experiment_pb2 as pb

_MOST_SHARE: Final = 0.5
"""Of the events of a name: if more than this are left out, a metric of it is not what it is meant to be."""
_NOTED_SHARE: Final = 0.01
"""Of events, or of units; what is less is noise that every system has."""
_LEAST_KEPT: Final = 0.75
"""Of what another variant keeps within a window: less is hardly the treatment's doing."""
_SHOWN_KEPT: Final = 0.9
"""What a variant that keeps so little is shown to keep at the most: few data may look like it by chance."""

_NOISE: Final = 2.0
"""Standard errors that a difference is from 0, at the most, where there is nothing."""

# Columns of `Snapshot.timings`; those of the windows follow.
_BEFORE: Final = 0
_SINCE: Final = 1
_REJECTED_EVENTS: Final = 2
_LAST_HOUR: Final = 3
_LAST_DAY: Final = 4
_OLDER: Final = 5
_WINDOWS: Final = 6


@dataclass(frozen=True)
class Fault:
    """Times of some events that do not fit. notice: its reason. metric_ids: of the metrics that read these
    events. blocker: what they block; None: they are only to be known. treatment: empty: of all variants.
    """

    notice: str
    message: str
    metric_ids: frozenset[str]
    blocker: pb.VerdictBlocker.ValueType | None = None
    treatment: str = ""


def faults(study: Study) -> Sequence[Fault]:
    names, treatments = event_use.names(study), study.experiment.treatments
    tests = sum(2 + _windowed_tests(study, name) for name in names) * len(treatments)
    level = study.experiment.spec.sample_ratio_level / max(1, tests)
    found: list[Fault] = []
    for name in names:
        pairs = [_Pair(study, name, treatment, level) for treatment in treatments]
        early = [each for pair in pairs for each in pair.early()]
        rejected = [each for pair in pairs for each in pair.rejected()]
        found += [
            *early,
            *rejected,
            *_left_out(
                study,
                name,
                is_early=bool(early),
                is_rejected=bool(rejected),
                is_tested=all(pair.is_tested for pair in pairs),
            ),
        ]
        after = [each for pair in pairs for each in pair.after_windows()]
        blocked = (fault.metric_ids for fault in after if fault.blocker is not None)
        found += [*after, *_after_windows_alike(study, name, frozenset[str]().union(*blocked))]
    return found


@dataclass(frozen=True)
class _Series:
    """Moments by phase, variant and key: of numbers of events by their name, or of values by metric."""

    table: Mapping[tuple[int, str, str], Moments]
    key: str
    is_count: bool


@dataclass(frozen=True)
class _Kept:
    """A column of what falls within a window, and that of all since the exposure."""

    series: _Series
    within: int
    since: int


@dataclass(frozen=True)
class _Shares:
    """What the treatment and the control keep. p: of their difference."""

    treated: float
    of_control: float
    p: float


@dataclass(frozen=True)
class _Windowed:
    """Within a window, and since the exposure: a column each, of a ratio two. what: for people."""

    series: _Series
    within: tuple[int, ...]
    since: tuple[int, ...]
    what: str
    window: timedelta
    metric_ids: frozenset[str]

    @property
    def pairs(self) -> Sequence[_Kept]:
        return [_Kept(self.series, *each) for each in zip(self.within, self.since, strict=True)]


@dataclass(frozen=True)
class _Pair:
    """The events of a name in a treatment and in the control. level: of each test."""

    study: Study
    name: str
    treatment: str
    level: float

    def early(self) -> Iterator[Fault]:
        """Events from before the exposure: how many units have any, how many there are of a unit in all and
        of late, and what metrics make of them.
        """
        p, seen = self._least_likely(self._early())
        if p <= self.level:
            variants = self.treatment, self.study.experiment.control
            lost = {each: uses(self.study, each, self.name) for each in variants}
            counts = " and ".join(
                f"{use.before_exposure:,} of the {use.events:,} of {variant}" for variant, use in lost.items()
            )
            yield self._fault(
                "EVENTS_BEFORE_EXPOSURE",
                f"{self._shares('early_units', 'events from before their exposure')}{seen} {self._said(p)};"
                f" {counts} count in no metric. {_DIFFERING}{_grace(self.study)}.",
                pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE,
            )

    def _early(self) -> Iterator[tuple[float, str]]:
        yield self._p_of_units("early_units"), ""
        counts = self._counts
        yield self._p(self._effect(counts, Kind.MEAN, _BEFORE)), self._a_unit(counts, _BEFORE)
        for band, of in (
            (_LAST_HOUR, " in the last hour before it"),
            (_LAST_DAY, " in the last day before it"),
        ):
            yield self._p(self._effect(counts, Kind.MEAN, band, _OLDER)), self._a_unit(counts, band, of)
        for metric in _valued(self.study, self.name):
            values, outcomes = self._values(metric), len(outcomes_of(metric))
            for column in range(2 * outcomes):
                of = f" of {metric.metric_id}"
                of += " in the last day before it" if column < outcomes else " before it"
                yield self._p(self._effect(values, Kind.MEAN, column)), self._a_unit(values, column, of)

    def rejected(self) -> Iterator[Fault]:
        found = [
            (self._p_of_units("rejected_units"), ""),
            (
                self._p(self._effect(self._counts, Kind.MEAN, _REJECTED_EVENTS)),
                self._a_unit(self._counts, _REJECTED_EVENTS),
            ),
        ]
        p, seen = self._least_likely(found)
        if p <= self.level:
            shares = self._shares("rejected_units", f"events that were {_REJECTED}")
            yield self._fault(
                "EVENTS_REJECTED",
                f"{shares}{seen} {self._said(p)}. {_DIFFERING}.",
                pb.VERDICT_BLOCKER_EVENTS_REJECTED,
            )

    @property
    def is_tested(self) -> bool:
        """Whether the tests could have shown a difference."""
        timings = self.study.snapshot.timings
        variants = self.treatment, self.study.experiment.control
        counted = [
            any((phase.number, each, self.name) in timings for phase in self.study.phases)
            for each in variants
        ]
        return self._are_enough and all(counted)

    @staticmethod
    def _least_likely(found: Iterable[tuple[float, str]]) -> tuple[float, str]:
        """The least p, by Bonferroni's correction for their number, and what was said of it."""
        every = list(found)
        p, seen = min(every, key=lambda each: each[0])
        return min(1.0, p * len(every)), seen

    def _a_unit(self, series: _Series, column: int, of: str = "") -> str:
        variants = self.treatment, self.study.experiment.control
        counted = (_pooled(self.study, each, series, column) for each in variants)
        rates = [rate for rate in counted if rate is not None]
        return f" ({rates[0]:.3g} and {rates[1]:.3g} a unit{of})" if len(rates) == 2 else ""

    def after_windows(self) -> Iterator[Fault]:
        for place, (window, metric_ids) in enumerate(_windows(self.study, self.name).items()):
            events = _Windowed(
                self._counts, (_WINDOWS + place,), (_SINCE,), f"the {self.name} events", window, metric_ids
            )
            found = [
                self._after_window(each) for each in (events, *self._windowed_values(window, metric_ids))
            ]
            # Of several that say the same, the gravest.
            faults_found = sorted((each for each in found if each), key=lambda each: each.blocker is None)
            graves = [each for each in faults_found if each.blocker is not None]
            yield from graves or faults_found[:1]

    def _windowed_values(self, window: timedelta, metric_ids: frozenset[str]) -> Iterator[_Windowed]:
        for metric in _valued(self.study, self.name):
            outcomes = len(outcomes_of(metric))
            # As of `Snapshot.timed_values`: two spans before the exposure come first.
            within, since = (tuple(range(span * outcomes, (span + 1) * outcomes)) for span in (2, 3))
            if metric.metric_id in metric_ids and _is_always_there(metric):
                what = f"what {metric.metric_id} counts"
                yield _Windowed(
                    self._values(metric), within, since, what, window, frozenset([metric.metric_id])
                )

    def _after_window(self, windowed: _Windowed) -> Fault | None:
        kept = min(map(self._kept, windowed.pairs), key=lambda each: each.p)
        is_turned = self._is_turned(windowed, kept.p)
        if kept.p > self.level and not is_turned:
            return None
        is_grave = is_turned or any(self._keeps_far_less(each) for each in windowed.pairs)
        message = (
            f"{kept.treated:.2%} of {windowed.what} of {self.treatment} since the exposure fall within the"
            f" conversion window of {windowed.window.total_seconds():,g} s, and {kept.of_control:.2%}"
            f" of that of {self.study.experiment.control} {self._said(kept.p)}; the others do not count."
        )
        if is_grave:
            message += (
                " Clocks, or when exposures are recorded, differ between variants, or the treatment changes"
                " when events happen, so much that the comparison within the window cannot be trusted."
                " Correct the times, or choose a longer `conversion_window` or none, and begin a new"
                " experiment."
            )
        else:
            message += " The treatment changes when events happen, or clocks differ: make sure which."
        blocker = pb.VERDICT_BLOCKER_EVENTS_AFTER_WINDOW if is_grave else None
        return Fault("EVENTS_AFTER_WINDOW", message, windowed.metric_ids, blocker, self.treatment)

    def _kept(self, pair: _Kept) -> _Shares:
        treated = _kept(self.study, self.treatment, pair)
        of_control = _kept(self.study, self.study.experiment.control, pair)
        return _Shares(
            treated, of_control, self._p(self._effect(pair.series, Kind.RATIO, pair.within, pair.since))
        )

    def _keeps_far_less(self, pair: _Kept) -> bool:
        """One of the two variants, of its events within a window, and less than the other in all.

        A treatment after which units come back more often keeps a smaller share, and no less.
        """
        kept = self._kept(pair)
        effect = self._effect(pair.series, Kind.RATIO, pair.within, pair.since)
        shares = kept.treated, kept.of_control
        if effect is None or not all(0 <= share <= 1 for share in shares):
            return False
        if min(shares) >= _LEAST_KEPT * max(shares):
            return False
        is_control = kept.of_control < kept.treated
        share = 1 / _SHOWN_KEPT if is_control else _SHOWN_KEPT
        p = confidence_sequence.p_one_sided(
            effect, 1 - self.level, self.study.planned, Bound(share - 1, is_relative=True), above=is_control
        )
        within = self._effect(pair.series, Kind.MEAN, pair.within)
        is_less = within is not None and (within.absolute > 0) == is_control and self._is_shown(within)
        return is_less and p is not None and p <= self.level

    def _is_turned(self, windowed: _Windowed, p: float) -> bool:
        """Whether all since the exposure is shown to go the other way than what falls within the window:
        either is shown to, or the difference of what variants keep is, and that within the window is more
        than noise: a treatment may do nothing within it, and much later. p: of what variants keep.
        """
        kind = Kind.RATIO if len(windowed.within) == 2 else Kind.MEAN
        within, since = (
            self._effect(windowed.series, kind, *columns) for columns in (windowed.within, windowed.since)
        )
        if within is None or since is None or within.absolute * since.absolute >= 0:
            return False
        is_more_than_noise = bool(within.variance) and abs(within.z(ZERO)) > _NOISE
        return self._is_shown(since) and ((p <= self.level and is_more_than_noise) or self._is_shown(within))

    def _is_shown(self, effect: Effect) -> bool:
        comparison = OfUnits(effect, self.study.planned)
        p = self.study.p_one_sided(comparison, ZERO, above=effect.absolute > 0)
        return self._are_enough and p is not None and p <= 1 - self.study.confidence

    @property
    def _are_enough(self) -> bool:
        return are_enough(self.study, self.treatment)

    def _fault(self, notice: str, message: str, blocker: pb.VerdictBlocker.ValueType) -> Fault:
        return Fault(notice, message, _readers(self.study, self.name), blocker, self.treatment)

    def _said(self, p: float) -> str:
        return said(p, self.level)

    def _shares(self, field: str, what: str) -> str:
        control = self.study.experiment.control
        treated, of_control = (
            getattr(uses(self.study, each, self.name), field) / self.study.units(each)
            for each in (self.treatment, control)
        )
        return (
            f"{treated:.2%} of the units of {self.treatment} have {self.name} {what}, and {of_control:.2%} of"
            f" those of {control}"
        )

    def _p_of_units(self, field: str) -> float:
        def moments(phase: Phase, variant: str) -> Moments:
            use = self.study.snapshot.uses.get((phase.number, variant, self.name), event_use.NO_USES)
            ones = float(getattr(use, field))
            return Moments(self.study.units_in(phase, variant), 1, (ones, ones), (0.0, 0.0))

        variants = self.study.experiment.control, self.treatment
        if not any(getattr(uses(self.study, each, self.name), field) for each in variants):
            return 1.0
        by_phase = [[moments(phase, each) for each in variants] for phase in self.study.phases]
        return self._p(combined(Kind.PROPORTION, by_phase))

    @property
    def _counts(self) -> _Series:
        return _Series(self.study.snapshot.timings, self.name, is_count=True)

    def _values(self, metric: pb.ExperimentMetric) -> _Series:
        return _Series(self.study.snapshot.timed_values, metric.metric_id, is_count=False)

    def _effect(self, series: _Series, kind: Kind, *columns: int) -> Effect | None:
        """Of outcomes, then covariates."""
        by_phase = []
        # As of a unit more with every event and one more with none, so that all of 1000 is no certainty.
        regular = Moments.of([[0.0, 1.0][: len(columns)], [1.0, 1.0][: len(columns)]])
        for phase in self.study.phases:
            found = [
                series.table.get((phase.number, each, series.key))
                for each in (self.study.experiment.control, self.treatment)
            ]
            whole = [each.chosen(columns) for each in found if each is not None]
            if len(whole) == len(found):
                by_phase.append([each + regular for each in whole] if series.is_count else whole)
        return combined(kind, by_phase)

    def _p(self, effect: Effect | None) -> float:
        return p_of(self.study, self.treatment, effect, self.level)


def are_enough(study: Study, treatment: str) -> bool:
    """Whether the treatment and the control have units enough to compare what became of their events."""
    return min(map(study.units, (study.experiment.control, treatment))) >= _least(study)


def p_of(study: Study, treatment: str, effect: Effect | None, level: float) -> float:
    """The always-valid p of a treatment's difference from the control; 1 where there are too few data."""
    if effect is None or not are_enough(study, treatment):
        return 1.0
    inference = confidence_sequence.infer(effect, 1 - level, study.planned)
    return inference.p_value if inference else 1.0


def said(p: float, level: float) -> str:
    return f"(always-valid p {p:.2g}, level {level:.2g})"


def combined(kind: Kind, by_phase: Sequence[Sequence[Moments]]) -> Effect | None:
    """by_phase: of the control and of the treatment."""
    each = [effects.effect(*arms(kind, [Sample(moments) for moments in pair])) for pair in by_phase]
    return across_phases.combined([effect for effect in each if effect])


def _windowed_tests(study: Study, name: str) -> int:
    """A test of the events for each window, and of each outcome of the metrics that have values."""
    windows = _windows(study, name)
    windowed = frozenset[str]().union(*windows.values())
    valued = [each for each in _valued(study, name) if each.metric_id in windowed and _is_always_there(each)]
    return len(windows) + sum(len(outcomes_of(each)) for each in valued)


def _after_windows_alike(study: Study, name: str, said: frozenset[str]) -> Iterator[Fault]:
    """Windows that leave out most events, of all variants. said: metrics that are blocked for it."""
    series = _Series(study.snapshot.timings, name, is_count=True)
    events = sum(study.units(each) * (_pooled(study, each, series, _SINCE) or 0.0) for each in study.variants)
    for place, (window, metric_ids) in enumerate(_windows(study, name).items()):
        within = sum(
            study.units(each) * (_pooled(study, each, series, _WINDOWS + place) or 0.0)
            for each in study.variants
        )
        share = 1 - within / events if events else 0.0
        if share > _MOST_SHARE and events >= _least(study) and metric_ids - said:
            message = (
                f"{share:.1%} of the {name} events of exposed units came after the conversion window of"
                f" {window.total_seconds():,g} s, and do not count in {', '.join(sorted(metric_ids - said))}."
                " If the window is meant to take them in, make sure that the clocks of samples are not ahead"
                " of those of exposures, or choose a longer `conversion_window` in a new experiment."
            )
            yield Fault("EVENTS_AFTER_WINDOW", message, metric_ids - said)


def _left_out(
    study: Study, name: str, *, is_early: bool, is_rejected: bool, is_tested: bool
) -> Iterator[Fault]:
    """What variants share. is_early, is_rejected: said of some variants already. is_tested: whether variants
    could be compared.
    """
    found = [uses(study, variant, name) for variant in study.variants]
    early, rejected = sum(use.before_exposure for use in found), sum(use.rejected_units for use in found)
    events, units = sum(use.events for use in found), sum(map(study.units, study.variants))
    # A unit's rejections count once, however often they are sent again.
    share = (early + rejected) / max(1, events + rejected)
    left_out_units = sum(use.early_units for use in found) + rejected
    metric_ids = _readers(study, name)
    if share > _MOST_SHARE and left_out_units >= _least(study):
        blocker = pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE
        message = (
            f"{share:.1%} of the {name} events of exposed units happened before the exposure, or were"
            f" {_REJECTED}, and count in no metric. If they belong to it, correct the times, or record"
            " exposures before what follows from them, and begin a new experiment"
            f"{_grace(study)}. If they do not, send only what comes after the exposure, or have CUPED read"
            " them (`cuped.lookback`)."
        )
        yield Fault("EVENTS_BEFORE_EXPOSURE", message, metric_ids, blocker)
        return
    alike = "as often in every variant" if is_tested else "in which variants cannot be compared yet"
    if not is_early and events and early / events > _NOTED_SHARE:
        message = (
            f"{early / events:.1%} of the {name} events of exposed units happened before the exposure,"
            f" {alike}, and count in no metric. If they belong to it, correct the times, or"
            " raise `exposure_grace` in a new experiment."
        )
        yield Fault("EVENTS_BEFORE_EXPOSURE", message, metric_ids)
    if not is_rejected and units and rejected / units > _NOTED_SHARE:
        message = (
            f"{rejected / units:.1%} of the units have {name} events that were {_REJECTED}, {alike}."
            " If they belong to the experiment, correct the times and send them again."
        )
        yield Fault("EVENTS_REJECTED", message, metric_ids)


def rejected_exposures(study: Study, variants: Sequence[str]) -> str:
    """How many exposures of some variants were rejected; empty: none."""
    counts = {each: study.snapshot.rejected_exposures.get(each, 0) for each in variants}
    if not any(counts.values()):
        return ""
    listed = ", ".join(f"{count:,} of {variant}" for variant, count in counts.items())
    return f"Exposures were {_REJECTED}: {listed}."


def is_lacking_exposures(study: Study, variant: str) -> bool:
    """Whether a notable share of its exposures was rejected for their times."""
    count = study.snapshot.rejected_exposures.get(variant, 0)
    return count > _NOTED_SHARE * (study.units(variant) + count)


def _kept(study: Study, variant: str, pair: _Kept) -> float:
    since = _pooled(study, variant, pair.series, pair.since)
    return (_pooled(study, variant, pair.series, pair.within) or 0.0) / since if since else 0.0


def _pooled(study: Study, variant: str, series: _Series, column: int) -> float | None:
    """A column's mean over the units of all phases; None if it was not counted."""
    found = [series.table.get((phase.number, variant, series.key)) for phase in study.phases]
    counted = merged([each.chosen([column]) for each in found if each is not None], 1)
    return counted.mean() if counted.n else None


def _valued(study: Study, name: str) -> Sequence[pb.ExperimentMetric]:
    """The metrics that read events of a name and have `Snapshot.timed_values`."""
    known = {metric_id for _, _, metric_id in study.snapshot.timed_values}
    readers = _readers(study, name) & known
    return [metric for metric in study.experiment.spec.metrics if metric.metric_id in readers]


def _is_always_there(metric: pb.ExperimentMetric) -> bool:
    """Whether a unit without events has a value too."""
    return all(each.threshold is not None or each.aggregation in {SUM, COUNT} for each in outcomes_of(metric))


def _windows(study: Study, name: str) -> Mapping[timedelta, frozenset[str]]:
    """The conversion windows in which metrics read events of a name, the shortest first, and the metrics."""
    found: dict[timedelta, set[str]] = {}
    for metric in study.experiment.spec.metrics:
        if metric.HasField("conversion_window") and name in event_use.names(study, [metric.metric_id]):
            found.setdefault(length(metric.conversion_window), set()).add(metric.metric_id)
    return {window: frozenset(found[window]) for window in sorted(found)}


def _readers(study: Study, name: str) -> frozenset[str]:
    metric_ids = (metric.metric_id for metric in study.experiment.spec.metrics)
    return frozenset(each for each in metric_ids if name in event_use.names(study, [each]))


def _least(study: Study) -> int:
    """Units without which nothing is said of the times."""
    return min(LEAST_UNITS, study.experiment.spec.min_units_per_variant)


def _grace(study: Study) -> str:
    grace_s = study.experiment.spec.exposure_grace.ToTimedelta().total_seconds()
    return f"; `exposure_grace` (here {grace_s:g} s, at most an hour) covers a known lag"


_REJECTED: Final = "rejected for their times (before the start, or more than a day ahead of the server)"
_DIFFERING: Final = (
    "Clocks, or when exposures are recorded, differ between variants, so that no comparison can be trusted."
    " Correct the times and begin a new experiment"
)
