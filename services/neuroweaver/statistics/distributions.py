"""Tails and quantiles. A tail is the chance of more than a value: so extreme levels keep their digits."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

_NORMAL = NormalDist()
_FARTHEST_TAIL = 6.0


def normal_tail(z: float) -> float:
    return math.erfc(z / math.sqrt(2)) / 2


def normal_quantile(tail: float) -> float:
    """The value that is exceeded with the chance `tail`, in (0, 1)."""
    return -_NORMAL.inv_cdf(tail)


def normal_density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def t_tail(t: float, degrees_of_freedom: float) -> float:
    return float(_special().stdtr(degrees_of_freedom, -t))


def t_quantile(tail: float, degrees_of_freedom: float) -> float:
    return -float(_special().stdtrit(degrees_of_freedom, tail))


def student_critical(critical: float, degrees_of_freedom: float) -> float:
    """Student's critical value at the tail of a normal one; beyond 6 it grows in proportion."""
    tail = normal_tail(min(critical, _FARTHEST_TAIL))
    return t_quantile(tail, degrees_of_freedom) * max(1.0, critical / _FARTHEST_TAIL)


def noncentral_t_tail(t: float, degrees_of_freedom: float, noncentrality: float) -> float:
    return 1 - float(_special().nctdtr(degrees_of_freedom, noncentrality, t))


def lambert_w_lower(x: float) -> float:
    """The lower real branch of Lambert's function, for x in [-1/e, 0)."""
    return float(_special().lambertw(x, -1).real)


def _special() -> Any:
    from scipy import special  # noqa: PLC0415  # takes up to seconds, which only an analysis should pay

    return special
