"""What a person should know before trusting the results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from neuroweaver.experiment.analysis import timing, winsorizing
from neuroweaver.experiment.analysis.study import Study
from neuroweaver.experiment.analysis.timing import Fault
from neuroweaver.experiment.domain import messages
from neuroweaver.experiment.domain.metrics import Estimate, estimate_of
from neuroweaver.statistics import effect as effects
from neuroweaver.statistics import phases as across_phases
from neuroweaver.v1 import experiment_pb2 as pb

# Shares of units below these are noise that every system has.
_MISMATCH_SHARE: Final = 0.01
_MULTIPLE_SHARE: Final = 0.01
_LATE_SHARE: Final = 0.01
_SILENT_SHARE: Final = 0.01
_UNKNOWN_SHARE: Final = 0.01
_UNUSED: Final = {
    pb.UNUSED_REASON_OVERRIDE: "events are of units that `overrides` assigns, and count in no metric.",
    pb.UNUSED_REASON_WITHOUT_CONTROL: (
        "judgements compare two treatments and count in no metric: judge each treatment against the control."
    ),
}
# Standard errors, far enough out that a look a second for weeks seldom raises a false alarm.
_CLEAR: Final = 5.0


def notices(
    study: Study, results: pb.ExperimentResults, faults: Sequence[Fault], *, is_ramp_held: bool
) -> Sequence[pb.ExperimentNotice]:
    """results, faults: of the same study."""
    return [
        *messages.notices(study.experiment),
        *_weights(study, is_ramp_held=is_ramp_held),
        *_exposures(results),
        *_late(results),
        *_reused_ids(results),
        *_unknown_names(results),
        *_silent(study),
        *_times(faults),
        *_rejected_exposures(study),
        *_unused(results),
        *winsorizing.notices(study),
        *_unexplained(study),
        *_fading(study),
    ]


def _weights(study: Study, *, is_ramp_held: bool) -> Iterable[pb.ExperimentNotice]:
    if len(study.phases) > 1:
        yield pb.ExperimentNotice(
            reason="WEIGHTS_CHANGED",
            message=(
                f"The weights changed {len(study.phases) - 1} times. Every phase is compared within itself"
                " and the effects are then averaged, so they need not be the difference of the values."
            ),
        )
    if is_ramp_held:
        step = study.experiment.ramp.step if study.experiment.ramp else 0
        yield pb.ExperimentNotice(
            reason="RAMP_HELD",
            message=(
                f"The ramp-up stays at step {step} ({study.experiment.coverage:.4g} of the units): a"
                " guardrail is breached, the split is not as the weights say, the times of events do not fit"
                " their exposures, or an earlier version counted the events."
            ),
        )


def _exposures(results: pb.ExperimentResults) -> Iterable[pb.ExperimentNotice]:
    for variant in results.variants:
        if variant.mismatch_share > _MISMATCH_SHARE:
            yield pb.ExperimentNotice(
                reason="SERVED_MISMATCH",
                message=(
                    f"{variant.mismatched_units} of the {variant.units} units of {variant.variant_id} were at"
                    " least once served another variant. They are analysed as assigned, which makes effects"
                    " look smaller."
                ),
                variant_id=variant.variant_id,
            )
        if variant.multiply_exposed_units > _MULTIPLE_SHARE * variant.units:
            yield pb.ExperimentNotice(
                reason="MULTIPLE_EXPOSURE",
                message=(
                    f"{variant.multiply_exposed_units} of the {variant.units} units of {variant.variant_id}"
                    " were exposed under another variant too, and are analysed under the first."
                ),
                variant_id=variant.variant_id,
            )


def _late(results: pb.ExperimentResults) -> Iterable[pb.ExperimentNotice]:
    events = results.events
    if events.late > _LATE_SHARE * events.accepted:
        yield pb.ExperimentNotice(
            reason="LATE_EVENTS",
            message=(
                f"{events.late} of {events.accepted} events came after the phase in which they happened; they"
                " count there, so that results of earlier phases still move."
            ),
        )


def _reused_ids(results: pb.ExperimentResults) -> Iterable[pb.ExperimentNotice]:
    """Any at all: a client that makes ids like that loses events of every unit but the first."""
    for rejected in results.events.rejected:
        if rejected.reason == pb.EVENT_REJECTION_ID_OF_ANOTHER_UNIT:
            yield pb.ExperimentNotice(
                reason="EVENT_ID_REUSED",
                message=(
                    f"{rejected.count} events were not used, since their event_id is that of another unit's"
                    f" event, such as {rejected.event_ids[0]}. Give every event an id of its own, and send"
                    " them again."
                ),
            )


def _unknown_names(results: pb.ExperimentResults) -> Iterable[pb.ExperimentNotice]:
    for rejected in results.events.rejected:
        sent = results.events.accepted + rejected.count
        is_unknown = rejected.reason == pb.EVENT_REJECTION_UNKNOWN_METRIC
        if is_unknown and rejected.count > _UNKNOWN_SHARE * sent:
            yield pb.ExperimentNotice(
                reason="EVENT_NAMES_UNKNOWN",
                message=(
                    f"{rejected.count:,} events were not used, since no metric reads their names; those that"
                    f" came first are {', '.join(rejected.names)}. If a name is misspelt, correct it and send"
                    " them again: where one variant's client misspells it, the comparison lacks its events,"
                    " and the verdict does not know."
                ),
            )


def _silent(study: Study) -> Iterable[pb.ExperimentNotice]:
    for metric in study.experiment.spec.metrics:
        # Without any event at all the verdict says so.
        for variant in study.variants if study.events(metric.metric_id) else ():
            sampled = sum(map(study.sampled, study.cells(variant, metric.metric_id)))
            silent = study.units(variant) - sampled
            if silent > _SILENT_SHARE * study.units(variant):
                yield pb.ExperimentNotice(
                    reason="UNITS_WITHOUT_EVENTS",
                    message=(
                        f"{silent} of the {study.units(variant)} units of {variant} have no value of"
                        f" {metric.metric_id} and are left out. If a treatment changes which units those are,"
                        " the comparison is not one of like with like."
                    ),
                    metric_id=metric.metric_id,
                    variant_id=variant,
                )


def _times(faults: Iterable[Fault]) -> Iterable[pb.ExperimentNotice]:
    for fault in faults:
        yield pb.ExperimentNotice(reason=fault.notice, message=fault.message, variant_id=fault.treatment)


def _rejected_exposures(study: Study) -> Iterable[pb.ExperimentNotice]:
    lacking = [each for each in study.variants if timing.is_lacking_exposures(study, each)]
    if lacking:
        message = (
            f"{timing.rejected_exposures(study, study.variants)} Units without another exposure are not"
            " analysed. Correct the clocks and send them again."
        )
        yield pb.ExperimentNotice(reason="EXPOSURES_REJECTED", message=message)


def _unused(results: pb.ExperimentResults) -> Iterable[pb.ExperimentNotice]:
    for each in results.events.unused:
        if each.reason in _UNUSED:
            yield pb.ExperimentNotice(
                reason="EVENTS_NOT_USED", message=f"{each.count:,} {_UNUSED[each.reason]}"
            )


def _unexplained(study: Study) -> Iterable[pb.ExperimentNotice]:
    """Units that CUPED knows nothing of, such as all those whose covariate has another name."""
    for metric in study.experiment.spec.metrics:
        cells = [cell for variant in study.variants for cell in study.cells(variant, metric.metric_id)]
        lacking = sum(cell.sample.missing.n for cell in cells if cell.sample.missing is not None)
        units = sum(map(study.sampled, cells))
        if metric.HasField("cuped") and lacking > _SILENT_SHARE * units:
            name = metric.cuped.exposure_covariate
            way_out = (
                f" Send `{name}` with the first exposure; one that comes later is not used." if name else ""
            )
            yield pb.ExperimentNotice(
                reason="COVARIATES_MISSING",
                message=(
                    f"{lacking:,} of the {units:,} units of {metric.metric_id} have no covariate and take the"
                    " mean of the others: CUPED gains less, and where a treatment changes which units those"
                    f" are, it shifts the effect.{way_out}"
                ),
                metric_id=metric.metric_id,
            )


def _fading(study: Study) -> Iterable[pb.ExperimentNotice]:
    """Whether an effect on the target metric wears off, as far as several phases let that be seen: units of
    the first one against those that came since. Relative effects, since later units had less time for
    everything, in the control too.
    """
    target = study.experiment.metric(study.experiment.spec.target_metric_id)
    if target is None or len(study.phases) < 2 or estimate_of(target) is not Estimate.ARMS:
        return
    by_phase = [each.pooled_arms(target) for each in study.by_phase]
    for treatment in study.experiment.treatments:
        first, *later = (effects.effect(arms[study.experiment.control], arms[treatment]) for arms in by_phase)
        since = across_phases.combined([each for each in later if each])
        before = first.relative_with_error(_CLEAR) if first else None
        after = since.relative_with_error(_CLEAR) if since else None
        if before is None or after is None or abs(before[0]) < _CLEAR * before[1]:
            continue
        fall = math.copysign(1.0, before[0]) * (before[0] - after[0])
        if fall > _CLEAR * math.hypot(before[1], after[1]):
            yield pb.ExperimentNotice(
                reason="NOVELTY_SUSPECTED",
                message=(
                    f"The effect of {treatment} on {target.metric_id} was {before[0]:+.2%} for the units of"
                    f" the first phase and is {after[0]:+.2%} for those since: it may wear off, or other"
                    " units have come. Let it run on before deciding."
                ),
                metric_id=target.metric_id,
                variant_id=treatment,
            )
