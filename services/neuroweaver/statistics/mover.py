"""Differences and quotients of two independent estimates from the limits of each (MOVER).

Zou & Donner 2008, Statistics in Medicine 27:1693; Donner & Zou 2012, Statistical Methods in Medical Research
21:347. For Wilson's limits the difference is Newcombe's (1998, Statistics in Medicine 17:873, method 10).
"""

from __future__ import annotations

import math
from typing import Final, Protocol

from neuroweaver.statistics.bisection import threshold


class Estimate(Protocol):
    """A value whose limits move away from it as the critical value (standard errors) grows."""

    @property
    def value(self) -> float: ...

    def limits(self, critical: float) -> tuple[float, float]: ...


# More standard errors than any level asks for.
_FARTHEST: Final = 38.0


def difference(control: Estimate, treatment: Estimate, critical: float) -> tuple[float, float]:
    """Limits of treatment - control."""
    return (
        _limit(control, treatment, 1.0, critical, upper=False),
        _limit(control, treatment, 1.0, critical, upper=True),
    )


def relative(control: Estimate, treatment: Estimate, critical: float) -> tuple[float, float] | None:
    """Limits of treatment / control - 1 for values that cannot be negative; None if the control may be 0.

    They enclose 0 if and only if those of the difference do.
    """
    a, b = control.value, treatment.value
    (a_lower, a_upper), (b_lower, b_upper) = control.limits(critical), treatment.limits(critical)
    if a_lower <= 0 or a <= 0 or b_lower < 0:
        return None
    # The root r of b - r a = hypot(b - b_lower, r (a_upper - a)), and that of its mirror image.
    lowest, highest = b_lower * (2 * b - b_lower), b_upper * (2 * b - b_upper)
    far, near = a_upper * (2 * a - a_upper), a_lower * (2 * a - a_lower)
    divisor = a * b + math.sqrt(max(0.0, (a * b) ** 2 - lowest * far))
    upper = (a * b + math.sqrt(max(0.0, (a * b) ** 2 - highest * near))) / near
    return (lowest / divisor if divisor else 0.0) - 1, upper - 1


def critical_at(control: Estimate, treatment: Estimate, *, share: float, shift: float) -> float:
    """The critical value at which a limit of `treatment - share * control` reaches `shift`; signed like
    their distance, at most 38 in size. 0 if they are the same.
    """
    distance = treatment.value - share * control.value - shift
    if not distance:
        return 0.0

    def reaches(critical: float) -> bool:
        limit = _limit(control, treatment, share, critical, upper=distance < 0)
        return (limit > shift) != (distance > 0)

    return math.copysign(threshold(reaches, 0.0, _FARTHEST), distance)


def _limit(control: Estimate, treatment: Estimate, share: float, critical: float, *, upper: bool) -> float:
    a, b = control.value, treatment.value
    (a_lower, a_upper), (b_lower, b_upper) = control.limits(critical), treatment.limits(critical)
    middle = b - share * a
    # A share below 0 turns the control's limits round.
    a_reach = a - a_lower if upper == (share > 0) else a_upper - a
    if upper:
        return middle + math.hypot(b_upper - b, share * a_reach)
    return middle - math.hypot(b - b_lower, share * a_reach)
