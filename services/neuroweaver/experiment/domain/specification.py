"""Specifications: defaults filled in, and the checks that the messages themselves cannot state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration

from neuroweaver.experiment.domain import metrics
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.mesh.wire.text import check_text
from neuroweaver.v1 import experiment_pb2 as pb

MIN_UNITS: Final = 1000
CONFIDENCE: Final = 0.95
SAMPLE_RATIO_LEVEL: Final = 0.001
CALIBRATION_UNITS: Final = 1000
RETENTION: Final = timedelta(days=90)
EXPOSURE_GRACE: Final = timedelta(seconds=10)
RAMP_HOLD: Final = timedelta(days=1)
THOMPSON_INTERVAL: Final = timedelta(hours=1)
THOMPSON_MIN_WEIGHT: Final = 0.05

WEIGHT_SUM_TOLERANCE: Final = 1e-6

# Every assignment may look at all of them.
MAX_TARGETING_VALUES: Final = 2000


def completed(spec: pb.ExperimentSpec, now: datetime) -> pb.ExperimentSpec:
    """With every default written out. Raises InvalidArgument naming the field that is wrong."""
    _check_targeting(spec)
    complete = pb.ExperimentSpec()
    complete.CopyFrom(spec)
    _fill(complete)
    _check(complete, now)
    return complete


def _check_targeting(spec: pb.ExperimentSpec) -> None:
    values = sum(len(condition.values) for rule in spec.targeting for condition in rule.conditions)
    if values > MAX_TARGETING_VALUES:
        raise InvalidArgument(
            "spec.targeting",
            f"holds {values} values; at most {MAX_TARGETING_VALUES} are allowed in all: give the "
            "units that are meant an attribute of their own, and ask for that",
        )


def check_weights(field: str, weights: Mapping[str, float], control: str) -> None:
    """Raises InvalidArgument naming the field unless these can be the weights of an experiment."""
    total = sum(weights.values())
    if abs(total - 1) > WEIGHT_SUM_TOLERANCE:
        raise InvalidArgument(field, f"the weights must sum to 1, not {total:g}")
    if weights[control] <= 0:
        raise InvalidArgument(
            field, f"the control {control} needs a weight above 0: every variant is compared with it"
        )
    if sum(weight > 0 for weight in weights.values()) < 2:
        raise InvalidArgument(field, "at least one variant besides the control needs a weight above 0")


def _fill(spec: pb.ExperimentSpec) -> None:
    spec.unit = spec.unit or "user"
    spec.alias = spec.alias or "production"
    spec.verdict_method = spec.verdict_method or pb.INFERENCE_METHOD_ALWAYS_VALID
    spec.multiplicity_correction = spec.multiplicity_correction or pb.MULTIPLICITY_CORRECTION_HOLM
    _default(spec, "min_units_per_variant", MIN_UNITS)
    _default(spec, "confidence_level", CONFIDENCE)
    _default(spec, "planned_units_per_variant", spec.min_units_per_variant)
    _default(spec, "sample_ratio_level", SAMPLE_RATIO_LEVEL)
    _default(spec, "stop_on_guardrail_breach", value=True)
    if not spec.ramp:
        _default(spec, "coverage", 1.0)
    for step in spec.ramp:
        _default(step, "hold", RAMP_HOLD)
    _default(spec, "raw_event_retention", RETENTION)
    _default(spec, "exposure_grace", EXPOSURE_GRACE)
    rule = spec.decision_rule
    if not rule.all_of and not rule.any_of:
        rule.all_of.add(metric_id=spec.target_metric_id, superiority=pb.EffectSize(absolute=0.0))
    for variant in spec.variants:
        if variant.HasField("target"):
            variant.target.deployment = variant.target.deployment or "default"
    for metric in spec.metrics:
        _fill_metric(metric)
    if spec.HasField("thompson"):
        spec.thompson.metric_id = spec.thompson.metric_id or spec.target_metric_id
        _default(spec.thompson, "update_interval", THOMPSON_INTERVAL)
        _default(spec.thompson, "min_weight", THOMPSON_MIN_WEIGHT)


def _fill_metric(metric: pb.ExperimentMetric) -> None:
    metrics.fill_defaults(metric)
    caps = metric.winsorization
    if caps.HasField("lower_quantile") or caps.HasField("upper_quantile"):
        _default(caps, "calibration_units", CALIBRATION_UNITS)


def _default(message: Any, field: str, value: Any) -> None:
    if message.HasField(field):
        return
    if isinstance(value, timedelta):
        getattr(message, field).FromTimedelta(value)
    else:
        setattr(message, field, value)


def _check(spec: pb.ExperimentSpec, now: datetime) -> None:
    for field, text in _texts(spec):
        check_text(field, text)
    weights = {variant.variant_id: variant.weight for variant in spec.variants}
    check_weights("spec.variants", weights, spec.control_variant_id)
    for index, metric in enumerate(spec.metrics):
        _check_metric(f"spec.metrics[{index}]", metric, spec)
    for index, (step, following) in enumerate(pairwise(spec.ramp), start=1):
        if following.coverage <= step.coverage:
            raise InvalidArgument(f"spec.ramp[{index}].coverage", "must be above that of the step before")
    if spec.HasField("end_time") and spec.end_time.ToDatetime(tzinfo=UTC) <= now:
        raise InvalidArgument("spec.end_time", "has passed")
    if spec.HasField("thompson") and spec.thompson.min_weight * len(spec.variants) >= 1:
        raise InvalidArgument(
            "spec.thompson.min_weight",
            f"leaves nothing to move: give less than an equal share of {1 / len(spec.variants):.4g}",
        )
    for unit_id in spec.overrides:
        check_text("spec.overrides", unit_id)


def _check_metric(field: str, metric: pb.ExperimentMetric, spec: pb.ExperimentSpec) -> None:
    """Refuses what could never have an effect."""
    grace = length(spec.exposure_grace)
    if metric.cuped.HasField("lookback") and length(metric.cuped.lookback) <= grace:
        raise InvalidArgument(
            f"{field}.cuped.lookback",
            f"reads no event: what is up to `exposure_grace` ({grace.total_seconds():g} s) before the"
            " exposure counts as after it. Look back further, or give a shorter `exposure_grace`",
        )
    if metric.HasField("pairwise") and metric.HasField("conversion_window"):
        raise InvalidArgument(
            f"{field}.conversion_window",
            "has no effect on judgements, which have no exposure: leave it out of a pairwise metric",
        )
    _check_caps(f"{field}.winsorization", metric)


def _check_caps(field: str, metric: pb.ExperimentMetric) -> None:
    caps = metric.winsorization
    has_values = caps.HasField("lower_value") or caps.HasField("upper_value")
    if has_values and caps.HasField("calibration_units"):
        raise InvalidArgument(
            f"{field}.calibration_units", "has no effect on caps by values, which hold from the first unit"
        )
    if metrics.is_never_negative(metric) and caps.HasField("lower_value") and caps.lower_value <= 0:
        raise InvalidArgument(f"{field}.lower_value", "cuts nothing: no count is below 0. Leave it out")
    if metrics.is_never_negative(metric) and caps.HasField("upper_value") and caps.upper_value <= 0:
        raise InvalidArgument(
            f"{field}.upper_value",
            "must be above 0: every unit would count the same, since no count is below 0",
        )


def length(duration: Duration) -> timedelta:
    span: timedelta = duration.ToTimedelta()
    return span


def _texts(spec: pb.ExperimentSpec) -> Iterable[tuple[str, str]]:
    yield "spec.title", spec.title
    yield "spec.hypothesis", spec.hypothesis
    for index, variant in enumerate(spec.variants):
        yield f"spec.variants[{index}].title", variant.title
    for index, metric in enumerate(spec.metrics):
        yield f"spec.metrics[{index}].title", metric.title
        yield f"spec.metrics[{index}].unit", metric.unit
    for name, value in spec.labels.items():
        yield f'spec.labels["{name}"]', value
