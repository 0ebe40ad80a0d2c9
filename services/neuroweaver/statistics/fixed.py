"""Intervals and tests that hold for a single look, after a sample that was planned: Welch's t for means and
ratios.

Plain proportions go by Newcombe's interval instead of the normal one of the unpooled z-test, which holds the
truth in 89 % instead of 95 % of the cases for shares of 0.3 % of 19,000 and of 1,000 units, and certifies
0 of 1000 against 0 of 1000 as equal. Their p-values invert the same limits, so that no interval and p-value
ever disagree.

A rare or long-tailed mean in arms of very unequal size needs many units for Student's approximation; give
`effect.watched` instead of the effect to take its spread with caution.
"""

from __future__ import annotations

import math

from neuroweaver.statistics import mover
from neuroweaver.statistics.arm import Arm
from neuroweaver.statistics.distributions import normal_quantile, normal_tail, t_quantile, t_tail
from neuroweaver.statistics.effect import Effect
from neuroweaver.statistics.estimate import ZERO, Bound, Inference, Interval
from neuroweaver.statistics.wilson import Proportion


def infer(effect: Effect, confidence: float) -> Inference | None:
    """Two-sided; None if the effect is constant. confidence: in (0, 1)."""
    if effect.is_constant:
        return None
    if effect.proportions is not None:
        return _of_proportions(effect.proportions, confidence)
    critical = t_quantile((1 - confidence) / 2, effect.degrees_of_freedom)
    p_value = min(1.0, 2 * t_tail(abs(effect.z(ZERO)), effect.degrees_of_freedom))
    return effect.inference(critical, confidence, p_value)


def p_one_sided(effect: Effect, bound: Bound = ZERO, *, above: bool = True) -> float | None:
    """Small if the effect is shown to lie above (or below) the bound; None if it is constant."""
    if effect.is_constant:
        return None
    sign = 1 if above else -1
    if effect.proportions is None:
        return t_tail(sign * effect.z(bound), effect.degrees_of_freedom)
    control, treatment = effect.proportions
    share, shift = (1 + bound.value, 0.0) if bound.is_relative else (1.0, bound.value)
    return normal_tail(sign * mover.critical_at(control, treatment, share=share, shift=shift))


def arm_interval(arm: Arm, confidence: float) -> Interval | None:
    """Of the arm's own value, without covariates: Wilson's for a proportion, else Student's; None if it is
    constant.
    """
    tail = (1 - confidence) / 2
    if arm.successes is not None:
        lower, upper = Proportion(arm.successes, arm.units).limits(normal_quantile(tail))
        return Interval(lower, upper, confidence)
    if not arm.variance:
        return None
    half = t_quantile(tail, arm.units - 1) * arm.std_error
    return Interval(arm.value - half, arm.value + half, confidence)


def _of_proportions(arms: tuple[Proportion, Proportion], confidence: float) -> Inference:
    control, treatment = arms
    critical = normal_quantile((1 - confidence) / 2)
    lower, upper = mover.difference(control, treatment, critical)
    relative = mover.relative(control, treatment, critical)
    z = mover.critical_at(control, treatment, share=1.0, shift=0.0)
    return Inference(
        Interval(max(-1.0, lower), min(1.0, upper), confidence),
        Interval(*relative, confidence) if relative is not None else None,
        math.erfc(abs(z) / math.sqrt(2)),
    )
