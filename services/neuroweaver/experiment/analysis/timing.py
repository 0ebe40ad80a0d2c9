"""Whether the times of events fit their exposures, in all variants and between them.

Assignment is random, so what units did before they were exposed is the same in every variant, whatever the
treatment does. If units of one variant have such events more often, or less, or have more rejected for their
times, then its clocks are off, or its exposures are recorded at other times: some of what the treatment did
is taken for what came before it. It is the idea of the test of the split, applied to times.

What comes after a conversion window does depend on the treatment, so a difference alone is no fault there. It
is one where a variant keeps far less of its events than another within the window, or where the comparison
would be turned round if all events counted.

Over all names, treatments, tests and looks together, the chance to see a difference where there is none is at
most the level of the test of the split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from neuroweaver.experiment.analysis import event_use
from neuroweaver.experiment.analysis.comparison import OfUnits
from neuroweaver.experiment.analysis.event_use import uses
from neuroweaver.experiment.analysis.guardrails import LEAST_UNITS
from neuroweaver.experiment.analysis.study import Study
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

# Columns of `Snapshot.timings`; those of the windows follow.
_BEFORE: Final = 0
_SINCE: Final = 1
_WINDOWS: Final = 2


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
    tests = sum(2 + len(_windows(study, name)) for name in names) * len(treatments)
    level = study.experiment.spec.sample_ratio_level / max(1, tests)
    found: list[Fault] = []
    for name in names:
        pairs = [_Pair(study, name, treatment, level) for treatment in treatments]
        early = [each for pair in pairs for each in pair.early()]
        rejected = [each for pair in pairs for each in pair.rejected()]
        found += [
            *early,
            *rejected,
            *_left_out(study, name, is_early=bool(early), is_rejected=bool(rejected)),
        ]
        found += [each for pair in pairs for each in pair.after_windows()]
    return found


@dataclass(frozen=True)
class _Pair:
    """The events of a name in a treatment and in the control. level: of each test."""

    study: Study
    name: str
    treatment: str
    level: float

    def early(self) -> Iterator[Fault]:
        """Events from before the exposure: how many units have any, and how many there are of a unit."""
        p = min(self._p_of_units("early_units"), self._p_of_early_events()) * 2
        if p <= self.level:
            variants = self.treatment, self.study.experiment.control
            counted = (_pooled(self.study, each, self.name, _BEFORE) for each in variants)
            rates = [rate for rate in counted if rate is not None]
            a_unit = " ({:.3g} and {:.3g} a unit)".format(*rates) if len(rates) == 2 else ""
            lost = {each: uses(self.study, each, self.name) for each in variants}
            counts = " and ".join(
                f"{use.before_exposure:,} of the {use.events:,} of {variant}" for variant, use in lost.items()
            )
            yield self._fault(
                "EVENTS_BEFORE_EXPOSURE",
                f"{self._shares('early_units', 'events from before their exposure')}{a_unit} {self._said(p)};"
                f" {counts} count in no metric. {_DIFFERING}{_grace(self.study)}.",
                pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE,
            )

    def rejected(self) -> Iterator[Fault]:
        p = self._p_of_units("rejected_units")
        if p <= self.level:
            shares = self._shares("rejected_units", f"events that were {_REJECTED}")
            yield self._fault(
                "EVENTS_REJECTED",
                f"{shares} {self._said(p)}. {_DIFFERING}.",
                pb.VERDICT_BLOCKER_EVENTS_REJECTED,
            )

    def after_windows(self) -> Iterator[Fault]:
        for place, (window, metric_ids) in enumerate(_windows(self.study, self.name).items()):
            column = _WINDOWS + place
            p = self._p(self._effect(Kind.RATIO, column, _SINCE))
            is_turned = self._is_turned(column, p)
            if p <= self.level or is_turned:
                yield self._after_window(column, window, metric_ids, p, is_turned=is_turned)

    def _after_window(
        self, column: int, window: timedelta, metric_ids: frozenset[str], p: float, *, is_turned: bool
    ) -> Fault:
        control = self.study.experiment.control
        kept, of_control = (_kept(self.study, each, self.name, column) for each in (self.treatment, control))
        is_grave = is_turned or self._keeps_far_less(column, kept, of_control)
        message = (
            f"{kept:.2%} of the {self.name} events of {self.treatment} since the exposure fall within the"
            f" conversion window of {window.total_seconds():,g} s, and {of_control:.2%} of those of {control}"
            f" {self._said(p)}; the others do not count."
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
        return Fault("EVENTS_AFTER_WINDOW", message, metric_ids, blocker, self.treatment)

    def _keeps_far_less(self, column: int, kept: float, of_control: float) -> bool:
        """One of the two variants, of its events within a window. kept: by the treatment."""
        effect = self._effect(Kind.RATIO, column, _SINCE)
        if effect is None or min(kept, of_control) >= _LEAST_KEPT * max(kept, of_control):
            return False
        is_control = of_control < kept
        share = 1 / _SHOWN_KEPT if is_control else _SHOWN_KEPT
        p = confidence_sequence.p_one_sided(
            effect, 1 - self.level, self.study.planned, Bound(share - 1, is_relative=True), above=is_control
        )
        return p is not None and p <= self.level

    def _is_turned(self, column: int, p: float) -> bool:
        """Whether all events since the exposure are shown to go the other way than those within the window:
        either is shown to, or the difference of what variants keep is. p: of that.
        """
        within, since = self._effect(Kind.MEAN, column), self._effect(Kind.MEAN, _SINCE)
        if within is None or since is None or within.absolute * since.absolute >= 0:
            return False
        return self._is_shown(since) and (p <= self.level or self._is_shown(within))

    def _is_shown(self, effect: Effect) -> bool:
        comparison = OfUnits(effect, self.study.planned)
        p = self.study.p_one_sided(comparison, ZERO, above=effect.absolute > 0)
        return self._are_enough and p is not None and p <= 1 - self.study.confidence

    @property
    def _are_enough(self) -> bool:
        units = map(self.study.units, (self.study.experiment.control, self.treatment))
        return min(units) >= _least(self.study)

    def _fault(self, notice: str, message: str, blocker: pb.VerdictBlocker.ValueType) -> Fault:
        return Fault(notice, message, _readers(self.study, self.name), blocker, self.treatment)

    def _said(self, p: float) -> str:
        return f"(always-valid p {p:.2g}, level {self.level:.2g})"

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
        return self._p(_combined(Kind.PROPORTION, by_phase))

    def _p_of_early_events(self) -> float:
        return self._p(self._effect(Kind.MEAN, _BEFORE))

    def _effect(self, kind: Kind, *columns: int) -> Effect | None:
        """Of columns of the timings."""
        by_phase = []
        # As of a unit more with every event and one more with none, so that all of 1000 is no certainty.
        regular = Moments.of([[0.0, 1.0][: len(columns)], [1.0, 1.0][: len(columns)]])
        for phase in self.study.phases:
            timings = [
                self.study.snapshot.timings.get((phase.number, each, self.name))
                for each in (self.study.experiment.control, self.treatment)
            ]
            whole = [each.chosen(columns) + regular for each in timings if each is not None]
            if len(whole) == len(timings):
                by_phase.append(whole)
        return _combined(kind, by_phase)

    def _p(self, effect: Effect | None) -> float:
        if effect is None or not self._are_enough:
            return 1.0
        inference = confidence_sequence.infer(effect, 1 - self.level, self.study.planned)
        return inference.p_value if inference else 1.0


def _combined(kind: Kind, by_phase: Sequence[Sequence[Moments]]) -> Effect | None:
    """by_phase: of the control and of the treatment."""
    each = [effects.effect(*arms(kind, [Sample(moments) for moments in pair])) for pair in by_phase]
    return across_phases.combined([effect for effect in each if effect])


def _left_out(study: Study, name: str, *, is_early: bool, is_rejected: bool) -> Iterator[Fault]:
    """What variants share. is_early, is_rejected: said of some variants already."""
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
    if not is_early and events and early / events > _NOTED_SHARE:
        message = (
            f"{early / events:.1%} of the {name} events of exposed units happened before the exposure, as"
            " often in every variant, and count in no metric. If they belong to it, correct the times, or"
            " raise `exposure_grace` in a new experiment."
        )
        yield Fault("EVENTS_BEFORE_EXPOSURE", message, metric_ids)
    if not is_rejected and units and rejected / units > _NOTED_SHARE:
        message = (
            f"{rejected / units:.1%} of the units have {name} events that were {_REJECTED}, as often in every"
            " variant. If they belong to the experiment, correct the times and send them again."
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


def _kept(study: Study, variant: str, name: str, column: int) -> float:
    since = _pooled(study, variant, name, _SINCE)
    return (_pooled(study, variant, name, column) or 0.0) / since if since else 0.0


def _pooled(study: Study, variant: str, name: str, column: int) -> float | None:
    """A column's mean over the units of all phases; None if it was not counted."""
    timings = [study.snapshot.timings.get((phase.number, variant, name)) for phase in study.phases]
    counted = merged([each.chosen([column]) for each in timings if each is not None], 1)
    return counted.mean() if counted.n else None


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
