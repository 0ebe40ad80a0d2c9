"""Differences of a quantile, of all events or of one value a unit.

Method. The share of events at or below a fixed value is a mean of units (a ratio, if units have several
events), so that its standard error can be known though that of the quantile itself cannot; the limits of
the quantile are the values at the shares `level -+ critical * error` (Woodruff 1952, JASA 47:635), and the
difference of two quantiles is told from the limits of both by MOVER. No density is estimated, and a long
tail makes a lopsided interval as it should.

Events of one unit belong together. The error of the share comes from random groups of units (Wolter 2007,
Introduction to Variance Estimation, ch. 2): a unit falls into one of some dozens of groups by its hash, the
share is taken in every group, and their scatter is the error, whatever goes on within units. The scatter
holds the error of the groups' sketches too. Its price is a t distribution with groups - 1 degrees of
freedom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from neuroweaver.statistics import mover, sequential
from neuroweaver.statistics.distributions import normal_quantile, normal_tail, student_critical
from neuroweaver.statistics.effect import Effect
from neuroweaver.statistics.estimate import ZERO, Bound, Inference, Interval
from neuroweaver.statistics.moments import usable

# With fewer groups the scatter among them says little.
_LEAST_GROUPS: Final = 10

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class QuantileArm:
    """A quantile in one variant. points, shares: values in ascending order, and the share of events up to
    each.

    share_error: standard error of the share of events at or below `value`.
    """

    level: float
    value: float
    units: int
    points: Floats
    shares: Floats
    share_error: float
    degrees_of_freedom: float

    def limits(self, critical: float) -> tuple[float, float]:
        """Infinite where the data do not reach: the extreme quantiles of a small sample have no limits."""
        reach = student_critical(critical, self.degrees_of_freedom) * self.share_error
        return self._at(self.level - reach, -math.inf), self._at(self.level + reach, math.inf)

    @property
    def std_error(self) -> float | None:
        """Of `value`, by its limits one standard error away; None if the data do not reach so far."""
        lower, upper = (self._at(self.level + side * self.share_error, math.inf) for side in (-1, 1))
        return (upper - lower) / 2 if math.isfinite(upper) and math.isfinite(lower) else None

    def _at(self, share: float, beyond: float) -> float:
        return float(np.interp(share, self.shares, self.points)) if 0 < share < 1 else beyond


def of_events(
    values: npt.ArrayLike, weights: npt.ArrayLike, groups: npt.ArrayLike, units: int, level: float
) -> QuantileArm | None:
    """values, weights: (items,), events or what a sketch kept of them, each standing for `weight` events.
    groups: (items,), the group that the event's unit belongs to. units: how many there are. None with fewer
    than ten groups that have events, or if all values are the same.
    """
    points = usable(values)
    order = np.argsort(points, kind="stable")
    points = points[order]
    counts = np.asarray(weights, dtype=np.float64)[order]
    group = np.asarray(groups, dtype=np.int64)[order]
    if not len(points) or points[0] == points[-1]:
        return None
    totals = np.bincount(group, counts)
    used = totals > 0
    if used.sum() < _LEAST_GROUPS:
        return None
    arm = _arm(level, units, points, counts, 0.0, float(used.sum() - 1))
    below = np.bincount(group, counts * (points <= arm.value), minlength=len(totals))
    residuals = (below - below.sum() / totals.sum() * totals)[used]
    scatter = float(residuals @ residuals) * len(residuals) / (len(residuals) - 1)
    error = math.sqrt(scatter) / float(totals.sum())
    return _arm(level, units, points, counts, error, arm.degrees_of_freedom) if error else None


def infer(control: QuantileArm, treatment: QuantileArm, confidence: float) -> Inference | None:
    """For a single look; None if the data do not reach as far as the limits."""
    intervals = _limits(control, treatment, normal_quantile((1 - confidence) / 2), confidence)
    if intervals is None:
        return None
    z = critical_at(control, treatment)
    return Inference(*intervals, math.erfc(abs(z) / math.sqrt(2)))


def infer_always_valid(
    control: QuantileArm, treatment: QuantileArm, confidence: float, planned_units: float
) -> Inference | None:
    """However often one looks (see `sequential`); None if the data do not reach as far as the limits."""
    alpha = 1 - confidence
    x = sequential.mixing(_units(control, treatment), planned_units, alpha)
    intervals = _limits(control, treatment, float(sequential.boundary(x, alpha)), confidence)
    if intervals is None:
        return None
    return Inference(*intervals, float(sequential.p_value(critical_at(control, treatment), x)))


def p_one_sided(
    control: QuantileArm, treatment: QuantileArm, bound: Bound = ZERO, *, above: bool = True
) -> float:
    """For a single look: small if the effect is shown to lie above (or below) the bound."""
    z = critical_at(control, treatment, bound)
    return normal_tail(z if above else -z)


def p_one_sided_always_valid(
    control: QuantileArm,
    treatment: QuantileArm,
    confidence: float,
    planned_units: float,
    bound: Bound = ZERO,
    *,
    above: bool = True,
) -> float:
    """The same however often one looks; confidence: that of the verdict, which only tunes it."""
    x = sequential.mixing(_units(control, treatment), planned_units, 2 * (1 - confidence))
    z = critical_at(control, treatment, bound)
    return float(sequential.p_value_one_sided(z if above else -z, x))


def critical_at(control: QuantileArm, treatment: QuantileArm, bound: Bound = ZERO) -> float:
    """The critical value at which a limit of the effect reaches the bound: negative if the effect is below
    it.
    """
    sign = math.copysign(1.0, control.value)
    share, shift = (1 + sign * bound.value, 0.0) if bound.is_relative else (1.0, bound.value)
    return mover.critical_at(control, treatment, share=share, shift=shift)


def effect(control: QuantileArm, treatment: QuantileArm) -> Effect | None:
    """As a normal one, for what averages effects or looks ahead; its intervals are less exact than
    `infer`'s in a long tail. None if the data do not reach one standard error to both sides.
    """
    control_error, treatment_error = control.std_error, treatment.std_error
    if control_error is None or treatment_error is None:
        return None
    return Effect(
        absolute=treatment.value - control.value,
        variance=control_error**2 + treatment_error**2,
        baseline=control.value,
        baseline_variance=control_error**2,
        covariance=-(control_error**2),
        units=_units(control, treatment),
        degrees_of_freedom=min(1e9, control.degrees_of_freedom + treatment.degrees_of_freedom),
    )


def _arm(
    level: float, units: int, points: Floats, counts: Floats, error: float, degrees_of_freedom: float
) -> QuantileArm:
    # A point stands in the middle of the events that it stands for.
    shares = (np.cumsum(counts) - counts / 2) / counts.sum()
    value = float(np.interp(level, shares, points))
    return QuantileArm(level, value, units, points, shares, error, degrees_of_freedom)


def _limits(
    control: QuantileArm, treatment: QuantileArm, critical: float, confidence: float
) -> tuple[Interval, Interval | None] | None:
    limits = *control.limits(critical), *treatment.limits(critical)
    if not all(map(math.isfinite, limits)):
        return None
    relative = mover.relative(control, treatment, critical)
    return (
        Interval(*mover.difference(control, treatment, critical), confidence),
        Interval(*relative, confidence) if relative is not None else None,
    )


def _units(control: QuantileArm, treatment: QuantileArm) -> float:
    return 2 / (1 / control.units + 1 / treatment.units)
