"""Whether a metric differs between two versions by more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from neuroweaver.registry.domain.model import Interval, Metric
from neuroweaver.statistics.distributions import normal_quantile, t_quantile, t_tail

# Samples this close to each other, relative to their size, differ by rounding alone.
_ROUNDING: Final = 1e-12
# Fourth powers of numbers within these powers of two, which Welch needs, neither overflow nor vanish.
_SAFE_EXPONENT: Final = 64


@dataclass(frozen=True)
class Estimate:
    """How far B is above A. What cannot be known is None; no number is NaN or infinite."""

    value: float | None
    interval: Interval | None = None
    p_value: float | None = None


def difference(a: Metric, b: Metric, confidence: float) -> Estimate:
    """How far B is above A, with interval and two-sided p-value, as far as samples and intervals allow.

    Samples on both sides: Welch's t-test. Else the two sides' own intervals, or the t-intervals of their
    samples, are combined by MOVER (Zou & Donner 2008, Statistics in Medicine 27:1693). The two sides count
    as independent, since nothing says which samples answer the same prompt: where some do, the interval is
    wider than it need be. Samples count only if the metric's value is their mean: those behind a median or a
    percentile say nothing about its error.
    """
    value = b.value - a.value
    if not math.isfinite(value):
        return Estimate(None)
    exponent = _exponent(a, b)
    sides = _Side.of(a, exponent), _Side.of(b, exponent)
    found = _welch(*sides, confidence) or _mover(*sides, confidence)
    if found is None:
        return Estimate(value)
    lower, upper, p_value = found
    return Estimate(value, _interval(lower, upper, confidence, exponent), _finite(p_value))


@dataclass(frozen=True)
class _Side:
    """What is known of one version's value. samples: an array, None if they say nothing about the value."""

    value: float
    interval: Interval | None
    samples: Any
    spread: float
    """Standard deviation of the samples; 0 if they are all the same, or none."""

    @classmethod
    def of(cls, metric: Metric, exponent: int) -> _Side:
        """The metric's numbers divided by 2**exponent."""
        value = math.ldexp(metric.value, -exponent)
        interval = metric.interval
        if interval is not None:
            lower, upper = (math.ldexp(bound, -exponent) for bound in (interval.lower, interval.upper))
            interval = Interval(lower, upper, interval.confidence)
        samples, spread = _sampled(metric.samples, value, exponent)
        return cls(value, interval, samples, spread)

    def reach(self, lent_by: _Side, confidence: float) -> tuple[float, float] | None:
        """How far its interval reaches below and above the value, for each unit of the normal quantile.

        Samples that never vary do not tell their spread, and none would be taken for certainty: they are
        lent the other side's.
        """
        if self.interval is not None and (reach := _reach(self.value, self.interval)):
            return reach
        lender = self if self.spread else lent_by
        if self.samples is None or not lender.spread:
            return None
        quantile = t_quantile((1 - confidence) / 2, lender.samples.size - 1)
        half = quantile * lender.spread / math.sqrt(self.samples.size) / _quantile(confidence)
        return half, half


def _welch(a: _Side, b: _Side, confidence: float) -> tuple[float, float, float] | None:
    """Lower and upper bound and p-value; None if a side has no samples that vary."""
    if not (a.spread and b.spread):
        return None
    from neuroweaver.statistics.effect import welch  # noqa: PLC0415  # it imports numpy, as below

    sizes = a.samples.size, b.samples.size
    errors = a.spread**2 / sizes[0], b.spread**2 / sizes[1]
    error, freedom = math.sqrt(sum(errors)), welch(errors[0], sizes[0], errors[1], sizes[1])
    # Not the difference of the values, which may be rounded.
    value = float(b.samples.mean() - a.samples.mean())
    half = t_quantile((1 - confidence) / 2, freedom) * error
    return value - half, value + half, 2 * t_tail(abs(value) / error, freedom)


def _mover(a: _Side, b: _Side, confidence: float) -> tuple[float, float, float] | None:
    """As above, from a side each; None if one has no interval, or claims to be certain.

    The p-value is 1 less the confidence at which the bound that faces zero reaches it. Away from the level
    at which an interval was given, it is taken to widen as a normal one.
    """
    quantile = _quantile(confidence)
    if not quantile:
        return None
    reach_a, reach_b = a.reach(b, confidence), b.reach(a, confidence)
    if reach_a is None or reach_b is None:
        return None
    value = b.value - a.value
    below, above = math.hypot(reach_b[0], reach_a[1]), math.hypot(reach_b[1], reach_a[0])
    facing = below if value > 0 else above if value < 0 else min(below, above)
    if not (facing and math.isfinite(facing)):
        return None
    p_value = math.erfc(abs(value) / facing / math.sqrt(2))
    return value - quantile * below, value + quantile * above, p_value


def _sampled(samples: Sequence[float], value: float, exponent: int) -> tuple[Any, float]:
    """An array of the scaled samples and their standard deviation; None if they say nothing about `value`."""
    if len(samples) < 2:
        return None, 0.0
    import numpy as np  # noqa: PLC0415  # takes a while, which only a comparison should pay

    scaled = np.ldexp(np.asarray(samples, dtype=float), -exponent)
    mean, spread = float(scaled.mean()), float(scaled.std(ddof=1))
    size = float(np.abs(scaled).max())
    if float(np.ptp(scaled)) <= _ROUNDING * size:
        return (scaled, 0.0) if abs(mean - value) <= 1e-9 * size else (None, 0.0)
    # Room for a value that was rounded; less than the error of the mean at every number of samples taken.
    slack = max(0.5 / math.sqrt(len(samples)), 0.01) * spread
    return (scaled, spread) if abs(mean - value) <= slack else (None, 0.0)


def _reach(value: float, interval: Interval) -> tuple[float, float] | None:
    """None if the interval does not hold the value, or its confidence is next to nothing."""
    quantile = _quantile(interval.confidence)
    below, above = value - interval.lower, interval.upper - value
    rounding = 1e-9 * (interval.upper - interval.lower)
    if not quantile or min(below, above) < -rounding:
        return None
    return max(below, 0.0) / quantile, max(above, 0.0) / quantile


def _quantile(confidence: float) -> float:
    """The normal quantile of a two-sided interval; from the tail, where a confidence near 1 keeps digits."""
    return normal_quantile((1 - confidence) / 2)


def _exponent(a: Metric, b: Metric) -> int:
    """The power of two to divide by, so that fourth powers stay doubles: 0 for all usual numbers."""
    size = 0.0
    for metric in (a, b):
        bounds = (metric.interval.lower, metric.interval.upper) if metric.interval else ()
        size = max(size, *map(abs, (metric.value, *bounds, *metric.samples)))
    exponent = math.frexp(size)[1]
    return exponent if abs(exponent) > _SAFE_EXPONENT else 0


def _interval(lower: float, upper: float, confidence: float, exponent: int) -> Interval | None:
    try:
        bounds = math.ldexp(lower, exponent), math.ldexp(upper, exponent)
    except OverflowError:
        return None
    return Interval(*bounds, confidence) if all(map(math.isfinite, bounds)) else None


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
