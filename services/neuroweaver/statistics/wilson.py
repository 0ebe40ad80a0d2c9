"""The score interval of a share (Wilson 1927, JASA 22:209)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from neuroweaver.statistics.distributions import normal_quantile


def wilson_limits(successes: float, units: float, critical: float) -> tuple[float, float]:
    """The shares that lie within `critical` standard errors of the observed one; (0, 1) if `units` is 0.

    Without continuity correction (Newcombe 1998, Statistics in Medicine 17:857, method 3). Halves, which come
    from ties, vary less than a coin of the same mean: with ties the interval is rather too wide.
    """
    if not units or math.isinf(critical):
        return 0.0, 1.0
    square = critical**2
    middle = successes + square / 2
    spread = critical * math.sqrt(successes * (1 - successes / units) + square / 4)
    # The ends are exact where nothing or everything is a success.
    lower = (middle - spread) / (units + square) if successes > 0 else 0.0
    upper = (middle + spread) / (units + square) if successes < units else 1.0
    return max(0.0, lower), min(1.0, upper)


def wilson_interval(successes: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """`wilson_limits` at a confidence."""
    return wilson_limits(successes, n, normal_quantile((1 - confidence) / 2))


@dataclass(frozen=True)
class Proportion:
    """A share of units."""

    successes: int
    units: int

    @property
    def value(self) -> float:
        return self.successes / self.units

    def limits(self, critical: float) -> tuple[float, float]:
        return wilson_limits(self.successes, self.units, critical)
