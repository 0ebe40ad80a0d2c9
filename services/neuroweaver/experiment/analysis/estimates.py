"""Where an experiment's data stand, as its callers read it: estimates, the split and what came in.

No number in it is NaN or infinite: what cannot be said is unset, and a status says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from neuroweaver.experiment.analysis import event_use, winsorizing
from neuroweaver.experiment.analysis.comparison import Comparison
from neuroweaver.experiment.analysis.study import Study
from neuroweaver.experiment.domain.metrics import Estimate, estimate_of
from neuroweaver.mesh.wire.clock import timestamp
from neuroweaver.mesh.wire.messages import message_of
from neuroweaver.statistics import bayesian, effect, fixed, multiplicity, pairwise, sample_ratio
from neuroweaver.statistics.arm import Arm
from neuroweaver.statistics.distributions import normal_quantile
from neuroweaver.statistics.estimate import Inference, Interval, Status
from neuroweaver.statistics.multiplicity import Correction
from neuroweaver.statistics.power import detectable_now
from neuroweaver.v1 import common_pb2
from neuroweaver.v1 import experiment_pb2 as pb

_STATUSES: Final = {status: pb.EstimateStatus.Value(f"ESTIMATE_STATUS_{status.name}") for status in Status}
_CORRECTIONS: Final = {
    pb.MultiplicityCorrection.Value(f"MULTIPLICITY_CORRECTION_{correction.name}"): correction
    for correction in Correction
}
_METHODS: Final = ("fixed_horizon", "always_valid")


def analyse(
    study: Study, *, now: datetime, phase: int = 0, previous: pb.SampleRatioResult | None = None
) -> pb.ExperimentResults:
    """All but the verdict and the notices. previous: what the test of the split said last, which it keeps."""
    experiment, variants = study.experiment, summaries(study)
    results = pb.ExperimentResults(
        test_id=experiment.test_id,
        compute_time=timestamp(now),
        as_of=timestamp(now),
        phase=phase,
        state=experiment.state,
        variants=variants,
        metrics=[_metric(study, metric) for metric in experiment.spec.metrics],
        sample_ratio=_sample_ratio(study, now, previous),
        events=_quality(study, variants),
    )
    _adjust(study, results)
    return results


def summaries(study: Study) -> list[pb.VariantSummary]:
    """In the order of the experiment's variants."""
    ids = [variant.variant_id for variant in study.experiment.spec.variants]
    expected = _expected_shares(study, ids)
    total = sum(map(study.units, ids))
    result = []
    for variant_id in ids:
        found = (study.snapshot.groups.get((phase.number, variant_id)) for phase in study.phases)
        groups = [group for group in found if group]
        units = sum(group.units for group in groups)
        mismatched = sum(group.mismatched for group in groups)
        result.append(
            pb.VariantSummary(
                variant_id=variant_id,
                units=units,
                expected_share=expected[variant_id],
                observed_share=units / total if total else None,
                mismatched_units=mismatched,
                mismatch_share=mismatched / units if units else None,
                multiply_exposed_units=sum(group.multiply_exposed for group in groups),
            )
        )
    return result


def _expected_shares(study: Study, ids: Sequence[str]) -> Mapping[str, float]:
    """The weights, averaged over the phases by their units."""
    counts = {
        phase.number: sum(study.units_in(phase, variant_id) for variant_id in ids) for phase in study.phases
    }
    total = sum(counts.values())
    if not total:
        return study.phases[-1].weights if study.phases else study.experiment.weights
    return {
        variant_id: sum(
            phase.weights.get(variant_id, 0.0) * counts[phase.number] / total for phase in study.phases
        )
        for variant_id in ids
    }


def _metric(study: Study, metric: pb.ExperimentMetric) -> pb.MetricResult:
    estimate = estimate_of(metric)
    result = pb.MetricResult(metric_id=metric.metric_id)
    if estimate is Estimate.WIN_RATE:
        result.variants.extend(_judged(study, metric.metric_id, each) for each in study.experiment.treatments)
    elif estimate is Estimate.QUANTILE:
        result.variants.extend(_quantile(study, metric, each) for each in study.variants)
        errors = [study.sketch(each, metric.metric_id)[0].rank_error for each in study.variants]
        result.rank_error = max(errors)
    else:
        arms = study.pooled_arms(metric)
        result.variants.extend(_mean(study, metric.metric_id, each, arms[each]) for each in study.variants)
    result.effects.extend(_effect(study, metric, each) for each in study.experiment.treatments)
    _show_caps(study, metric, result)
    return result


def _estimate(study: Study, metric_id: str, variant_id: str) -> pb.VariantEstimate:
    """Without a value yet."""
    cells = study.cells(variant_id, metric_id)
    return pb.VariantEstimate(
        variant_id=variant_id,
        status=pb.ESTIMATE_STATUS_NOT_ENOUGH_DATA,
        units=sum(study.sampled(cell) for cell in cells),
        events=sum(cell.events for cell in cells),
    )


def _mean(study: Study, metric_id: str, variant_id: str, arm: Arm | None) -> pb.VariantEstimate:
    result = _estimate(study, metric_id, variant_id)
    if arm is None or not study.events(metric_id) or not math.isfinite(arm.value + arm.variance):
        return result
    result.value = arm.value
    result.std_dev = math.sqrt(arm.variance)
    interval = _interval(fixed.arm_interval(arm, study.confidence))
    if interval is None:
        result.status = pb.ESTIMATE_STATUS_CONSTANT
        return result
    result.status = pb.ESTIMATE_STATUS_OK
    result.std_error = arm.std_error
    result.interval.CopyFrom(interval)
    return result


def _quantile(study: Study, metric: pb.ExperimentMetric, variant_id: str) -> pb.VariantEstimate:
    result = _estimate(study, metric.metric_id, variant_id)
    arm = study.quantile_arm(metric, variant_id)
    if arm is None:
        return result
    critical = normal_quantile((1 - study.confidence) / 2)
    interval = _interval(Interval(*arm.limits(critical), study.confidence))
    status, std_error = pb.ESTIMATE_STATUS_OK, arm.std_error
    result.MergeFrom(
        pb.VariantEstimate(status=status, value=arm.value, std_error=std_error, interval=interval)
    )
    return result


def _judged(study: Study, metric_id: str, treatment: str) -> pb.VariantEstimate:
    """The treatment's win rate; its units are judgements."""
    judgements = study.judgements(metric_id, treatment)
    result = pb.VariantEstimate(
        variant_id=treatment,
        status=pb.ESTIMATE_STATUS_OK if judgements.count else pb.ESTIMATE_STATUS_NOT_ENOUGH_DATA,
        units=judgements.count,
        events=judgements.count + judgements.missing,
        value=judgements.win_rate,
        interval=_interval(pairwise.interval(judgements, study.confidence)),
    )
    normal = pairwise.effect(judgements)
    if normal is not None:
        result.std_error = normal.std_error
    return result


def _effect(study: Study, metric: pb.ExperimentMetric, treatment: str) -> pb.EffectEstimate:
    result = pb.EffectEstimate(
        variant_id=treatment,
        baseline_variant_id=study.experiment.control,
        status=pb.ESTIMATE_STATUS_NOT_ENOUGH_DATA,
    )
    if estimate_of(metric) is Estimate.WIN_RATE:
        result.pairwise.CopyFrom(_counts(study, metric.metric_id, treatment))
    comparison = study.comparisons[metric.metric_id, treatment]
    if comparison is None or not math.isfinite(comparison.absolute):
        return result
    result.absolute = comparison.absolute
    views = [comparison.fixed_horizon(study.confidence), comparison.always_valid(study.confidence)]
    result.status = _status(metric, comparison, views[0 if study.is_fixed_horizon else 1])
    for name, view in zip(_METHODS, views, strict=True):
        shown = _inference(view)
        if shown is not None:
            getattr(result, name).CopyFrom(shown)
    _add_normal(study, metric, comparison, result)
    return result


def _status(
    metric: pb.ExperimentMetric, comparison: Comparison, view: Inference | None
) -> pb.EstimateStatus.ValueType:
    if estimate_of(metric) is Estimate.WIN_RATE:
        return pb.ESTIMATE_STATUS_OK  # a win rate has no baseline to be a share of
    if estimate_of(metric) is Estimate.QUANTILE and view is None:
        return pb.ESTIMATE_STATUS_NOT_ENOUGH_DATA  # the data do not reach as far as the limits
    return _STATUSES[effect.status(comparison.normal, view)]


def _add_normal(
    study: Study, metric: pb.ExperimentMetric, comparison: Comparison, result: pb.EffectEstimate
) -> None:
    """What follows from the effect as a normal one."""
    normal, spec = comparison.normal, study.experiment.spec
    if normal is None:
        return
    if normal.relative is not None and result.status == pb.ESTIMATE_STATUS_OK:
        _set(result, "relative", normal.relative)
    _set(result, "variance_reduction", normal.variance_reduction)
    planned = None if study.is_fixed_horizon else study.planned
    _set(result, "detectable_effect", detectable_now(normal, study.confidence, planned))
    if not spec.HasField("bayesian"):
        return
    std_dev = spec.bayesian.prior_std_dev if spec.bayesian.HasField("prior_std_dev") else None
    prior = bayesian.Prior(spec.bayesian.prior_mean, std_dev)
    higher = metric.goal == pb.METRIC_GOAL_INCREASE
    posterior = bayesian.posterior(normal, study.confidence, prior, higher_is_better=higher)
    if posterior is not None and math.isfinite(posterior.chance_to_beat_control + posterior.expected_loss):
        credible = _interval(posterior.relative)
        result.bayesian.CopyFrom(message_of(pb.BayesianEstimate, posterior, relative=credible))


def _counts(study: Study, metric_id: str, treatment: str) -> pb.PairwiseCounts:
    judgements = study.judgements(metric_id, treatment)
    always_valid = pairwise.always_valid_interval(judgements, study.confidence, study.planned)
    return message_of(
        pb.PairwiseCounts,
        judgements,
        interval=_interval(pairwise.interval(judgements, study.confidence)),
        always_valid_interval=_interval(always_valid),
    )


def _inference(inference: Inference | None) -> pb.EffectInference | None:
    absolute = _interval(inference.absolute) if inference is not None else None
    if inference is None or absolute is None or not math.isfinite(inference.p_value):
        return None
    return pb.EffectInference(
        absolute=absolute, relative=_interval(inference.relative), p_value=min(1.0, inference.p_value)
    )


def _adjust(study: Study, results: pb.ExperimentResults) -> None:
    """One family: every metric of every treatment."""
    correction = _CORRECTIONS[study.experiment.spec.multiplicity_correction]
    effects = [estimate for metric in results.metrics for estimate in metric.effects]
    for name in _METHODS:
        views: list[pb.EffectInference] = [getattr(estimate, name) for estimate in effects]
        raw = [view.p_value if view.HasField("p_value") else None for view in views]
        for view, adjusted in zip(views, multiplicity.adjusted(raw, correction), strict=True):
            if adjusted is not None:
                view.adjusted_p_value = adjusted
                view.is_significant = adjusted < 1 - study.confidence


def _sample_ratio(study: Study, now: datetime, previous: pb.SampleRatioResult | None) -> pb.SampleRatioResult:
    level = study.experiment.spec.sample_ratio_level
    counts = [
        sample_ratio.PhaseCounts(
            [phase.weights[each] for each in study.variants],
            [study.units_in(phase, each) for each in study.variants],
        )
        for phase in study.phases
    ]
    p = sample_ratio.p_value(counts, previous.p_value if previous else 1.0)
    result = pb.SampleRatioResult(is_mismatch=p <= level, p_value=p, level=level)
    if result.is_mismatch:
        result.fire_time.FromDatetime(now)
        if previous and previous.HasField("fire_time"):
            result.fire_time.CopyFrom(previous.fire_time)
    return result


def _quality(study: Study, variants: Sequence[pb.VariantSummary]) -> pb.EventQuality:
    quality, test_id = study.snapshot.quality, study.experiment.test_id
    rejected = [message_of(pb.RejectedEvents, each, test_id=test_id) for each in quality.rejected]
    result = message_of(pb.EventQuality, quality, rejected=rejected, unused=event_use.unused(study))
    units = sum(each.units for each in variants)
    if units:
        result.mismatch_share = sum(each.mismatched_units for each in variants) / units
    return result


def _show_caps(study: Study, metric: pb.ExperimentMetric, result: pb.MetricResult) -> None:
    if (calibration := study.snapshot.calibrations.get(metric.metric_id)) is not None:
        _set(result, "winsorization_lower", calibration.lower)
        _set(result, "winsorization_upper", calibration.upper)
        _set(result, "winsorization_denominator_lower", calibration.denominator.lower)
        _set(result, "winsorization_denominator_upper", calibration.denominator.upper)
    cuts = study.cuts(metric.metric_id)
    if cuts is not None and cuts.n:
        _set(result, "winsorized_unit_share", cuts.mean(0))
        shares = [share for share in winsorizing.total_shares(cuts) if share is not None]
        _set(result, "winsorized_total_share", max(shares, default=None))


def _interval(interval: Interval | None) -> common_pb2.Interval | None:
    if interval is None or not math.isfinite(interval.lower) or not math.isfinite(interval.upper):
        return None
    return message_of(common_pb2.Interval, interval)


def _set(message: pb.EffectEstimate | pb.MetricResult, field: str, value: float | None) -> None:
    if value is not None and math.isfinite(value):
        setattr(message, field, value)
