"""The effect of a treatment: the difference of two arms, with all that is needed to test it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from neuroweaver.statistics.arm import Arm
from neuroweaver.statistics.estimate import Bound, Inference, Interval, Status
from neuroweaver.statistics.wilson import Proportion

# A value less than the square root of this many standard errors from 0 rests on a few of its units, as if it
# had been made by fewer events than this: its spread is then as uncertain as the value itself, and too small
# when the value is.
_RELIABLE_EVENTS: Final = 300
# Between arms of sizes nearer to each other than this, such errors cancel.
_UNEVEN: Final = 1.5


@dataclass(frozen=True)
class Spread:
    """variance: of the absolute effect. baseline_variance: of the control's value. covariance: of both."""

    variance: float
    baseline_variance: float
    covariance: float


@dataclass(frozen=True)
class Effect:
    """Treatment minus control, in the metric's unit.

    variance: of `absolute`. baseline: the control's value, unadjusted. covariance: of absolute and baseline.
    units: the harmonic mean of the two arms' numbers of units, which is that of each arm of an equal split
    that would tell as much. variance_reduction: the share that covariates took out; None without covariates.
    proportions: control and treatment, where the effect is the difference of two plain proportions.
    cautious: the spread that sequential tests take, see `watched`; None: the same.
    """

    absolute: float
    variance: float
    baseline: float
    baseline_variance: float
    covariance: float
    units: float
    degrees_of_freedom: float
    variance_reduction: float | None = None
    proportions: tuple[Proportion, Proportion] | None = None
    cautious: Spread | None = None

    @property
    def std_error(self) -> float:
        return math.sqrt(self.variance)

    @property
    def relative(self) -> float | None:
        """As a share of the size of the control's value; None if that is 0."""
        return self.absolute / abs(self.baseline) if self.baseline else None

    @property
    def is_constant(self) -> bool:
        """Nothing varies in either arm, so that nothing tells how certain the effect is."""
        return not self.variance

    @property
    def watched(self) -> Effect:
        """The effect as looks at any time should see it: with the cautious spread.

        A rare or long-tailed outcome in the smaller of two unequal arms is first seen too low together with
        its spread. Watched, such an arm would be found worse than the other one far too often; so it takes
        the other's spread where that is larger.
        """
        if self.cautious is None:
            return self
        return replace(self, **vars(self.cautious), cautious=None)

    def z(self, bound: Bound) -> float:
        """How many standard errors the effect lies above the bound. The effect is not constant.

        A relative bound asks whether `absolute - bound * |baseline|` is above 0 (Fieller 1954, JRSS B
        16:175), which holds for every size of the control's value.
        """
        share = bound.value if bound.is_relative else 0.0
        distance = self.absolute - (share * abs(self.baseline) if bound.is_relative else bound.value)
        covariance = math.copysign(1.0, self.baseline) * self.covariance
        variance = self.variance - 2 * share * covariance + share**2 * self.baseline_variance
        return distance / math.sqrt(variance) if variance > 0 else 0.0

    def relative_limits(self, critical: float) -> tuple[float, float] | None:
        """Every relative bound that lies within `critical` standard errors of the effect (Fieller 1954).

        None where these are not an interval: the control's value is within as many standard errors of 0. The
        limits enclose 0 if and only if `absolute` is within that many standard errors of 0, which the delta
        method does not ensure; and they need no approximation of a quotient.
        """
        if not self.baseline:
            return None
        size = abs(self.baseline)
        effect, variance = self.absolute / size, self.variance / size**2
        baseline_variance = self.baseline_variance / size**2
        covariance = math.copysign(1.0, self.baseline) * self.covariance / size**2
        square = critical**2
        curvature = 1 - square * baseline_variance
        if curvature <= 0:
            return None
        middle = effect - square * covariance
        root = math.sqrt(max(0.0, middle**2 - curvature * (effect**2 - square * variance)))
        return (middle - root) / curvature, (middle + root) / curvature

    def inference(self, critical: float, confidence: float, p_value: float) -> Inference:
        """The intervals that reach `critical` standard errors to both sides."""
        half = critical * self.std_error
        relative = self.relative_limits(critical)
        return Inference(
            Interval(self.absolute - half, self.absolute + half, confidence),
            Interval(*relative, confidence) if relative is not None else None,
            p_value,
        )

    def relative_with_error(self, clear_of_zero: float) -> tuple[float, float] | None:
        """The relative effect and its standard error by the delta method.

        None if it is constant, or if the control's value is within `clear_of_zero` standard errors of 0,
        where a quotient is nothing like normal.
        """
        share, size = self.relative, abs(self.baseline)
        if self.is_constant or share is None or size <= clear_of_zero * math.sqrt(self.baseline_variance):
            return None
        covariance = math.copysign(1.0, self.baseline) * self.covariance
        variance = self.variance - 2 * share * covariance + share**2 * self.baseline_variance
        return (share, math.sqrt(variance) / size) if variance > 0 else None


def effect(control: Arm | None, treatment: Arm | None) -> Effect | None:
    """Treatment minus control; None without either.

    Values that never vary do not tell their spread, and none would be taken for certainty: such an arm is
    lent the other one's.
    """
    if control is None or treatment is None:
        return None
    control, treatment = _lent(control, treatment), _lent(treatment, control)
    spread = _spread(control, treatment)
    parts = control.adjusted_variance / control.units, treatment.adjusted_variance / treatment.units
    plain = control.variance / control.units + treatment.variance / treatment.units
    return Effect(
        absolute=treatment.adjusted_value - control.adjusted_value,
        baseline=control.value,
        **vars(spread),
        units=2 / (1 / control.units + 1 / treatment.units),
        degrees_of_freedom=welch(parts[0], control.units, parts[1], treatment.units),
        variance_reduction=max(0.0, 1 - spread.variance / plain) if plain and control.is_adjusted else None,
        proportions=_proportions(control, treatment),
        cautious=_spread(_cautious(control, treatment), _cautious(treatment, control)),
    )


def status(effect_: Effect | None, inference: Inference | None) -> Status:
    """What could be estimated. inference: of the effect, by the method that is asked about."""
    if effect_ is None:
        return Status.NOT_ENOUGH_DATA
    if inference is None:
        return Status.CONSTANT
    return Status.OK if inference.relative is not None else Status.ZERO_BASELINE


def _lent(arm: Arm, other: Arm) -> Arm:
    return arm if arm.adjusted_variance else _with_spread_of(arm, other)


def _cautious(arm: Arm, other: Arm) -> Arm:
    is_reliable = arm.value**2 * arm.units > _RELIABLE_EVENTS * arm.variance
    if is_reliable or arm.units * _UNEVEN >= other.units or arm.variance >= other.variance:
        return arm
    return _with_spread_of(arm, other)


def _with_spread_of(arm: Arm, other: Arm) -> Arm:
    return replace(
        arm, variance=other.variance, adjusted_variance=other.adjusted_variance, covariance=other.covariance
    )


def _spread(control: Arm, treatment: Arm) -> Spread:
    return Spread(
        variance=control.adjusted_variance / control.units + treatment.adjusted_variance / treatment.units,
        baseline_variance=control.variance / control.units,
        covariance=-control.covariance / control.units,
    )


def welch(a: float, a_units: int, b: float, b_units: int) -> float:
    """Degrees of freedom by Welch and Satterthwaite. a, b: squared standard errors of two means."""
    total = a + b
    if not total:
        return float(a_units + b_units - 2)
    a, b = a / total, b / total
    return 1 / (a * a / (a_units - 1) + b * b / (b_units - 1))


def _proportions(control: Arm, treatment: Arm) -> tuple[Proportion, Proportion] | None:
    if control.successes is None or treatment.successes is None:
        return None
    return Proportion(control.successes, control.units), Proportion(treatment.successes, treatment.units)
