"""Intervals and tests of two arms that hold however often one looks: `sequential` applied to an effect.

Let a unit of the stream fall to the treatment with the chance q, and let its influence on the
effect be (y - m_T) / q in the treatment and -(y - m_C) / (1 - q) in the control. The difference of the two
means is, to first order, the effect plus the mean of the influences of all t = n_T + n_C units, whose
variance s2 = v_T / q + v_C / (1 - q) makes s2 / t the squared standard error v_T / n_T + v_C / n_C. So
`sequential.boundary` holds in standard errors of the effect, whatever the split, and also for a ratio or a
covariate, whose influences differ and whose standard error takes account of it. While q stays, t is
proportional to the harmonic mean n of the arms' units; hence x = c n / n_planned. Where q changes from phase
to phase see `phases`: by Proposition 2.5 the sum over the phases needs only that what a unit is assigned does
not depend on its own outcome.

Guarantee: as the first look moves to later samples, the chance that an interval at this or any later look
misses tends to at most alpha. It is asymptotic: nothing is promised for looks at a handful of units, which
is what an experiment's minimum of units per variant is for. Outcomes that rest on few units need more of
them; where the arms are of unequal size the spread is taken with caution (`Effect.watched`).
"""

from __future__ import annotations

from neuroweaver.statistics.effect import Effect
from neuroweaver.statistics.estimate import ZERO, Bound, Inference
from neuroweaver.statistics.sequential import boundary, mixing, p_value, p_value_one_sided


def infer(effect: Effect, confidence: float, planned_units: float) -> Inference | None:
    """Two-sided; None if the effect is constant. planned_units: per arm, where the interval is to be
    tightest.

    The p-value may be kept as the smallest so far: the chance that it is ever below a level is at most that
    level.
    """
    effect = effect.watched
    if effect.is_constant:
        return None
    alpha = 1 - confidence
    x = mixing(effect.units, planned_units, alpha)
    return effect.inference(float(boundary(x, alpha)), confidence, float(p_value(effect.z(ZERO), x)))


def p_one_sided(
    effect: Effect, confidence: float, planned_units: float, bound: Bound = ZERO, *, above: bool = True
) -> float | None:
    """Small if the effect is shown to lie above (or below) the bound; None if it is constant.

    confidence: that of the verdict; it only tunes the sequence.
    """
    effect = effect.watched
    if effect.is_constant:
        return None
    z = effect.z(bound) if above else -effect.z(bound)
    return float(p_value_one_sided(z, mixing(effect.units, planned_units, 2 * (1 - confidence))))
