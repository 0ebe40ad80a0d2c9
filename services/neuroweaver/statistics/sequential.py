"""How far an estimate may ever be from the truth, however often one looks: asymptotic confidence sequences.

Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, arXiv 2103.06476 (equations as in its version 7), of a mean
of t values with the variance s2 (Theorem 2.2, eq. 9):

    mean +- sqrt(s2) * sqrt(2 (t r + 1) / (t^2 r) * log(sqrt(t r + 1) / alpha)),        r = rho^2

so in standard errors, with x = t r, sqrt((x + 1) / x * (log(x + 1) - 2 log(alpha))). It is tightest at a
planned number of values for x = c t / t_planned with c = -W(-alpha^2 / e) - 1, W the lower branch of
Lambert's function (eq. 161 gives an approximation).

Guarantee: as the first look moves to later samples, the chance that an interval at this or any later look
misses tends to at most alpha.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from neuroweaver.statistics.distributions import lambert_w_lower


def mixing(units: Any, planned_units: float, alpha: float) -> Any:
    """x: the variance of the mixture over effects, in squared standard errors. One-sided: of 2 alpha."""
    return _tuned(min(alpha, 1.0)) * units / planned_units


def boundary(x: Any, alpha: float) -> Any:
    """How many standard errors an estimate may ever be away, two-sided (eq. 9); x: a number or an array."""
    return np.sqrt((x + 1) / x * (np.log1p(x) - 2 * math.log(alpha)))


def boundary_one_sided(x: Any, alpha: float) -> Any:
    """How many standard errors an estimate may ever be above (eq. 134)."""
    return np.sqrt(2 * (x + 1) / x * np.log1p(np.sqrt(x + 1) / (2 * alpha)))


def p_value(z: Any, x: Any) -> Any:
    """The level at which `boundary` is |z| (eq. 155)."""
    exponent = np.log1p(x) / 2 - np.square(z) * x / (2 * (x + 1))
    return np.exp(np.minimum(0.0, exponent))


def p_value_one_sided(z: Any, x: Any) -> Any:
    """The level at which `boundary_one_sided` is z; 1 for z at or below 0."""
    evidence = np.minimum(700.0, np.square(np.maximum(z, 0.0)) * x / (2 * (x + 1)))
    grown = np.maximum(np.expm1(evidence), 1e-300)
    return np.minimum(1.0, np.sqrt(x + 1) / (2 * grown))


@lru_cache(maxsize=256)
def _tuned(alpha: float) -> float:
    """The x that minimises `boundary`; not below 0.05, since that goes to 0 as alpha nears 1."""
    return max(0.05, -lambert_w_lower(-(alpha**2) / math.e) - 1)
