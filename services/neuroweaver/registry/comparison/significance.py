"""Whether a metric differs between two versions by more than chance."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from neuroweaver.registry.domain.model import Metric
from neuroweaver.statistics import mover
from neuroweaver.statistics.distributions import normal_quantile, normal_tail, t_quantile
from neuroweaver.statistics.estimate import Inference, Interval

if TYPE_CHECKING:
    from neuroweaver.statistics.arm import Arm

# Beyond these powers of two all numbers are scaled, so that their squares neither overflow nor vanish.
_SAFE_EXPONENT: Final = 32


@dataclass(frozen=True)
class Estimate:
    """How far B is above A. What cannot be known is None; no number is NaN or infinite."""

    value: float | None
    interval: Interval | None = None
    p_value: float | None = None


def difference(a: Metric, b: Metric, confidence: float) -> Estimate:
    """How far B is above A, with interval and two-sided p-value, as far as samples and intervals allow.

    Samples on both sides: Welch's t-test. Else the two sides' own intervals, or the t-intervals of their
    samples, are combined by MOVER. The two sides count as independent, since nothing says which samples
    answer the same prompt: where some do, the interval is wider than it need be. Samples count only if the
    metric's value is their mean: those behind a median or a percentile say nothing about its error.
    """
    value = b.value - a.value
    if not math.isfinite(value):
        return Estimate(None)
    exponent = _exponent(a, b)
    a, b = _scaled(a, -exponent), _scaled(b, -exponent)
    arms = _arm(a), _arm(b)
    inference = _welch(*arms, confidence) or _mover((a, b), arms, confidence)
    if inference is None:
        return Estimate(value)
    p_value = inference.p_value if math.isfinite(inference.p_value) else None
    return Estimate(value, _stretched(inference.absolute, exponent), p_value)


def _arm(metric: Metric) -> Arm | None:
    """Its samples; None if they say nothing about its value."""
    if len(metric.samples) < 2:
        return None
    # numpy takes a fifth of a second, which only a comparison should pay.
    from neuroweaver.statistics.arm import Kind, Sample, arms  # noqa: PLC0415
    from neuroweaver.statistics.moments import Moments  # noqa: PLC0415

    (arm,) = arms(Kind.MEAN, [Sample(Moments.of(metric.samples))])
    assert arm is not None
    # Room for a value that was rounded; less than the error of the mean at every number of samples taken.
    slack = max(0.5 / math.sqrt(arm.units), 0.01) * math.sqrt(arm.variance) or 1e-9 * abs(arm.value)
    return arm if abs(arm.value - metric.value) <= slack else None


def _welch(a: Arm | None, b: Arm | None, confidence: float) -> Inference | None:
    """None if a side has no samples that vary."""
    if not (a and b and a.variance and b.variance):
        return None
    from neuroweaver.statistics.effect import effect  # noqa: PLC0415  # as above
    from neuroweaver.statistics.fixed import infer  # noqa: PLC0415

    gap = effect(a, b)
    return infer(gap, confidence) if gap else None


@dataclass(frozen=True)
class _Limits:
    """below, above: how far the interval reaches from the value for each unit of the normal quantile."""

    value: float
    below: float
    above: float

    def limits(self, critical: float) -> tuple[float, float]:
        return self.value - critical * self.below, self.value + critical * self.above


def _mover(
    metrics: tuple[Metric, Metric], arms: tuple[Arm | None, Arm | None], confidence: float
) -> Inference | None:
    """None if a side has no interval, or both claim to be certain.

    Away from the level at which an interval was given, it is taken to widen as a normal one.
    """
    critical = _quantile(confidence)
    a = _limits(metrics[0], arms[0], arms[1], confidence)
    b = _limits(metrics[1], arms[1], arms[0], confidence)
    if not critical or a is None or b is None:
        return None
    value = b.value - a.value
    lower, upper = mover.difference(a, b, critical)
    if (value >= 0 and lower == value) or (value <= 0 and upper == value):
        return None
    z = mover.critical_at(a, b, share=1.0, shift=0.0)
    return Inference(Interval(lower, upper, confidence), None, 2 * normal_tail(abs(z)))


def _limits(metric: Metric, arm: Arm | None, other: Arm | None, confidence: float) -> _Limits | None:
    """By the metric's own interval, else by its samples.

    Samples that never vary do not tell their spread, and none would be taken for certainty: they are lent
    the other side's.
    """
    if metric.interval and (limits := _interval_limits(metric.value, metric.interval)):
        return limits
    lender = arm if arm and arm.variance else other
    if arm is None or lender is None or not lender.variance:
        return None
    half = t_quantile((1 - confidence) / 2, lender.units - 1) * math.sqrt(lender.variance / arm.units)
    reach = half / (_quantile(confidence) or 1.0)
    return _Limits(metric.value, reach, reach)


def _interval_limits(value: float, interval: Interval) -> _Limits | None:
    """None if the interval does not hold the value, or its confidence is next to nothing."""
    quantile = _quantile(interval.confidence)
    below, above = value - interval.lower, interval.upper - value
    rounding = 1e-9 * (interval.upper - interval.lower)
    if not quantile or min(below, above) < -rounding:
        return None
    return _Limits(value, max(below, 0.0) / quantile, max(above, 0.0) / quantile)


def _quantile(confidence: float) -> float:
    """Of a two-sided interval."""
    return normal_quantile((1 - confidence) / 2)


def _exponent(*metrics: Metric) -> int:
    """The power of two to divide by: 0 for all usual numbers."""
    size = 0.0
    for metric in metrics:
        bounds = (metric.interval.lower, metric.interval.upper) if metric.interval else ()
        size = max(size, *map(abs, (metric.value, *bounds, *metric.samples)))
    exponent = math.frexp(size)[1]
    return exponent if abs(exponent) > _SAFE_EXPONENT else 0


def _scaled(metric: Metric, exponent: int) -> Metric:
    """Times 2**exponent."""
    samples = tuple(math.ldexp(sample, exponent) for sample in metric.samples)
    interval = metric.interval and _stretched(metric.interval, exponent)
    return replace(metric, value=math.ldexp(metric.value, exponent), interval=interval, samples=samples)


def _stretched(interval: Interval, exponent: int) -> Interval | None:
    """Times 2**exponent; None beyond the doubles."""
    try:
        bounds = math.ldexp(interval.lower, exponent), math.ldexp(interval.upper, exponent)
    except OverflowError:
        return None
    return replace(interval, lower=bounds[0], upper=bounds[1]) if all(map(math.isfinite, bounds)) else None
