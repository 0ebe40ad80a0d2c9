"""Accepted events that count in no metric, and whether that spoils the comparison.

Assignment is random, so what units did before they were exposed is the same in every variant, whatever the
treatment does. If units of one variant have such events more often, then its clocks lag, or its exposures
are recorded later: some of what the treatment did is taken for what came before it. It is the idea of the
test of the split, applied to times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Final

from neuroweaver.experiment.analysis.guardrails import LEAST_UNITS
from neuroweaver.experiment.analysis.study import Study
from neuroweaver.experiment.domain.metrics import Estimate, estimate_of, outcomes_of
from neuroweaver.experiment.domain.model import Phase
from neuroweaver.experiment.domain.snapshot import Uses
from neuroweaver.statistics import confidence_sequence
from neuroweaver.statistics import effect as effects
from neuroweaver.statistics import phases as across_phases
from neuroweaver.statistics.arm import Arm, Kind, Sample, arms
from neuroweaver.statistics.moments import Moments
from neuroweaver.v1 import experiment_pb2 as pb

_MOST_SHARE: Final = 0.5
"""Of the events of a name: if more than this are left out, a metric of it is not what it is meant to be."""

_REASONS: Final = {
    "before_exposure": pb.UNUSED_REASON_BEFORE_EXPOSURE,
    "after_window": pb.UNUSED_REASON_AFTER_WINDOW,
}


def unused(study: Study) -> Sequence[pb.UnusedEvents]:
    """All of them, by reason, name and variant."""
    found = [
        pb.UnusedEvents(reason=reason, name=name, variant_id=variant, count=count, share=count / use.events)
        for field, reason in _REASONS.items()
        for name in names(study)
        for variant in study.variants
        if (use := uses(study, variant, name)).events and (count := getattr(use, field))
    ]
    if study.snapshot.quality.overridden:
        count = study.snapshot.quality.overridden
        found.append(pb.UnusedEvents(reason=pb.UNUSED_REASON_OVERRIDE, count=count))
    control, phases = study.experiment.control, {phase.number for phase in study.phases}
    between = sum(
        tally.count + tally.missing
        for (phase, *pair, _), tally in study.snapshot.tallies.items()
        if phase in phases and control not in pair
    )
    if between:
        found.append(pb.UnusedEvents(reason=pb.UNUSED_REASON_WITHOUT_CONTROL, count=between))
    return found


def names(study: Study, metric_ids: Iterable[str] | None = None) -> Sequence[str]:
    """Of the events that some metrics read of units, or all metrics."""
    wanted = None if metric_ids is None else set(metric_ids)
    found = (
        outcome.event_name
        for metric in study.experiment.spec.metrics
        if estimate_of(metric) is not Estimate.WIN_RATE and (wanted is None or metric.metric_id in wanted)
        for outcome in outcomes_of(metric)
    )
    return list(dict.fromkeys(found))


def uses(study: Study, variant_id: str, name: str) -> Uses:
    found = [study.snapshot.uses.get((phase.number, variant_id, name), Uses()) for phase in study.phases]
    return Uses(*(sum(getattr(use, field.name) for use in found) for field in fields(Uses)))


@dataclass(frozen=True)
class Imbalance:
    """Events of a name that come before the exposure more often in a treatment than in the control, or less.

    treated, control: shares of the units that have any. p_value: always-valid. level: its own.
    """

    name: str
    treatment: str
    treated: float
    control: float
    p_value: float
    level: float


def imbalances(study: Study) -> Sequence[Imbalance]:
    """Over all names, treatments and looks together, the chance to see one where there is none is at most the
    level of the test of the split.
    """
    every = [(name, treatment) for name in names(study) for treatment in study.experiment.treatments]
    level = study.experiment.spec.sample_ratio_level / max(1, len(every))
    found = (_imbalance(study, name, treatment, level) for name, treatment in every)
    return [each for each in found if each is not None and each.p_value <= each.level]


def _imbalance(study: Study, name: str, treatment: str, level: float) -> Imbalance | None:
    control = study.experiment.control
    least = min(LEAST_UNITS, study.experiment.spec.min_units_per_variant)
    early = {variant: uses(study, variant, name).early_units for variant in (control, treatment)}
    if min(map(study.units, early)) < least or not any(early.values()):
        return None
    by_phase = [effects.effect(*_arms(study, phase, [control, treatment], name)) for phase in study.phases]
    effect = across_phases.combined([each for each in by_phase if each])
    inference = confidence_sequence.infer(effect, 1 - level, study.planned) if effect else None
    if inference is None:
        return None
    treated_share, control_share = (early[each] / study.units(each) for each in (treatment, control))
    return Imbalance(name, treatment, treated_share, control_share, inference.p_value, level)


def _arms(study: Study, phase: Phase, variants: Sequence[str], name: str) -> Sequence[Arm | None]:
    samples = []
    for variant in variants:
        use = study.snapshot.uses.get((phase.number, variant, name), Uses())
        ones = float(use.early_units)
        samples.append(Sample(Moments(study.units_in(phase, variant), 1, (ones, ones), (0.0, 0.0))))
    return arms(Kind.PROPORTION, samples)


def left_out(study: Study, name: str) -> float:
    """The share of the events of exposed units that is left out for having come before the exposure."""
    found = [uses(study, variant, name) for variant in study.variants]
    events = sum(use.events for use in found)
    return sum(use.before_exposure for use in found) / events if events else 0.0


def is_mostly_left_out(study: Study, name: str) -> bool:
    return left_out(study, name) > _MOST_SHARE


def differing(study: Study, imbalance: Imbalance) -> str:
    control, name = study.experiment.control, imbalance.name
    lost = {variant: uses(study, variant, name) for variant in (imbalance.treatment, control)}
    counts = " and ".join(
        f"{use.before_exposure:,} of the {use.events:,} of {variant}" for variant, use in lost.items()
    )
    return (
        f"{imbalance.treated:.2%} of the units of {imbalance.treatment} have {name} events from before their"
        f" exposure, and {imbalance.control:.2%} of those of {control} (always-valid p"
        f" {imbalance.p_value:.2g}, level {imbalance.level:.2g}); {counts} count in no metric. Clocks, or"
        " when exposures are recorded, differ between variants, so that no comparison can be trusted. Correct"
        f" the times and begin a new experiment{_grace(study)}."
    )


def mostly_left_out(study: Study, name: str) -> str:
    return (
        f"{left_out(study, name):.1%} of the {name} events of exposed units happened before the exposure and"
        " count in no metric. If they belong to it, correct the times, or record exposures before what"
        f" follows from them, and begin a new experiment{_grace(study)}. If they do not, send only what comes"
        " after the exposure, or have CUPED read them (`cuped.lookback`)."
    )


def _grace(study: Study) -> str:
    grace_s = study.experiment.spec.exposure_grace.ToTimedelta().total_seconds()
    return f"; `exposure_grace` (here {grace_s:g} s, at most an hour) covers a known lag"
