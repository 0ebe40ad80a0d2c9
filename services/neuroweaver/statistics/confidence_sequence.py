"""Intervals and tests that hold however often one looks: asymptotic confidence sequences.

Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, arXiv 2103.06476 (equations as in its version 7), of a mean
of t values with the variance s2 (Theorem 2.2, eq. 9):

    mean +- sqrt(s2) * sqrt(2 (t r + 1) / (t^2 r) * log(sqrt(t r + 1) / alpha)),        r = rho^2

Two arms. Let a unit of the stream fall to the treatment with the chance q, and let its influence on the
effect be (y - m_T) / q in the treatment and -(y - m_C) / (1 - q) in the control. The difference of the two
means is, to first order, the effect plus the mean of the influences of all t = n_T + n_C units, whose
variance s2 = v_T / q + v_C / (1 - q) makes s2 / t the squared standard error v_T / n_T + v_C / n_C. So with
x = t r, eq. 9 is, whatever the split,

    effect +- std_error * sqrt((x + 1) / x * (log(x + 1) - 2 log(alpha)))

and the same for a ratio or a covariate, whose influences differ and whose standard error takes account of
it. While q stays, t is proportional to the harmonic mean n of the arms' units; hence x = c n / n_planned,
and the interval is tightest at the planned sample for c = -W(-alpha^2 / e) - 1, W the lower branch of
Lambert's function (eq. 161 gives an approximation). Where q changes from phase to phase see `phases`: by
Proposition 2.5 the sum over the phases needs only that what a unit is assigned does not depend on its own
outcome.

Guarantee: as the first look moves to later samples, the chance that an interval at this or any later look
misses tends to at most alpha. It is asymptotic: nothing is promised for looks at a handful of units, which
is what an experiment's minimum of units per variant is for. Outcomes that rest on few units need more of
them; where the arms are of unequal size the spread is taken with caution (`Effect.watched`).
"""

from __future__ import annotations

from neuroweaver.statistics.effect import Effect
from neuroweaver.statistics.estimate import ZERO, Bound, Inference, Interval
from neuroweaver.statistics.sequential import boundary, boundary_one_sided, mixing, p_value, p_value_one_sided


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
    critical = float(boundary(x, alpha))
    half = critical * effect.std_error
    relative = effect.relative_limits(critical)
    return Inference(
        Interval(effect.absolute - half, effect.absolute + half, confidence),
        Interval(*relative, confidence) if relative is not None else None,
        float(p_value(effect.z(ZERO), x)),
    )


def p_above(effect: Effect, confidence: float, planned_units: float, bound: Bound = ZERO) -> float | None:
    """One-sided, of an effect of at most the bound: small if it is shown to lie above. None if it is
    constant.

    confidence: that of the verdict; it only tunes the sequence.
    """
    effect = effect.watched
    if effect.is_constant:
        return None
    return float(
        p_value_one_sided(effect.z(bound), mixing(effect.units, planned_units, 2 * (1 - confidence)))
    )


def p_below(effect: Effect, confidence: float, planned_units: float, bound: Bound = ZERO) -> float | None:
    """One-sided, of an effect of at least the bound: small if it is shown to lie below. None if it is
    constant.
    """
    effect = effect.watched
    if effect.is_constant:
        return None
    return float(
        p_value_one_sided(-effect.z(bound), mixing(effect.units, planned_units, 2 * (1 - confidence)))
    )


def one_sided_limits(effect: Effect, confidence: float, planned_units: float) -> tuple[float, float] | None:
    """Lower and upper limit of the absolute effect, each of which holds by itself at the confidence."""
    effect = effect.watched
    if effect.is_constant:
        return None
    alpha = 1 - confidence
    half = float(boundary_one_sided(mixing(effect.units, planned_units, 2 * alpha), alpha)) * effect.std_error
    return effect.absolute - half, effect.absolute + half
