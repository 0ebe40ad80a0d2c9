"""When a confidence sequence will exclude a value, if the effect is a given one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from neuroweaver.statistics import sequential
from neuroweaver.statistics.bisection import least, threshold
from neuroweaver.statistics.effect import Effect
from neuroweaver.statistics.estimate import ZERO, Bound

# Looks on the way to the planned sample, evenly spaced. More of them find an effect hardly sooner.
LOOKS: Final = 100
_NODES: Final = 160
# How many standard deviations below 0 a one-sided sequence is followed.
_DEPTH: Final = 7.0
_MOST_GROWTH: Final = 1e6

Floats = npt.NDArray[np.float64]


# Far beyond where the power is 1, and its square still a number.
_MOST_DRIFT: Final = 1e6


@dataclass(frozen=True)
class Crossing:
    """A sequence at looks at 1/LOOKS, 2/LOOKS, ... 1 of its planned sample.

    Without effect the sum of influences, in units such that its variance is 1 at the planned sample, is a
    Brownian motion. points, density: (LOOKS, nodes), the values that it can have at a look without having
    crossed the boundary, and the chance of each (Armitage, McPherson & Rowe 1969, JRSS A 132:235, by
    Gauss-Legendre quadrature).
    """

    points: Floats
    density: Floats

    def power(self, drift: float, look: int = LOOKS) -> float:
        """The chance to have crossed by a look, from 1 to LOOKS.

        drift: the effect in standard errors at the planned sample. With it every path is likelier by
        exp(drift w - drift^2 time / 2) (Girsanov), so that one recursion serves all effects.
        """
        time = look / LOOKS
        drift = min(max(drift, -_MOST_DRIFT), _MOST_DRIFT)
        likelier = np.exp(drift * self.points[look - 1] - drift**2 * time / 2)
        return 1.0 - float(self.density[look - 1] @ likelier)

    def drift(self, power: float, look: int = LOOKS) -> float:
        """The smallest effect, in standard errors at the planned sample, that is found by a look with this
        power.
        """
        most = 12.0 / math.sqrt(look / LOOKS)
        return threshold(lambda drift: self.power(drift, look) >= power, 0.0, most)


@lru_cache(maxsize=64)
def crossing(alpha: float, *, one_sided: bool) -> Crossing:
    """Of the sequence that is tuned to its planned sample."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    times = np.arange(1, LOOKS + 1) / LOOKS
    x = sequential.mixing(times, 1.0, 2 * alpha if one_sided else alpha)
    boundary = sequential.boundary_one_sided if one_sided else sequential.boundary
    upper = boundary(x, alpha) * np.sqrt(times)
    lower = -_DEPTH * np.sqrt(times) if one_sided else -upper
    half = (upper - lower) / 2
    points = (upper + lower)[:, None] / 2 + half[:, None] * nodes
    density = np.empty_like(points)
    density[0] = _normal(points[0], times[0]) * weights * half[0]
    for look in range(1, LOOKS):
        steps = _normal(points[look][:, None] - points[look - 1][None, :], 1 / LOOKS)
        density[look] = (steps @ density[look - 1]) * weights * half[look]
    return Crossing(points, density)


def growth(
    effect: Effect, alpha: float, planned_units: float, bound: Bound = ZERO, *, above: bool | None = None
) -> float | None:
    """How many times the present units it takes until the sequence excludes the bound, if the effect stays
    what it looks like: at least 1. None if it is constant, or if a million times the units will not do.

    above: whether the effect is to be shown above (True) or below (False) the bound, by the one-sided test;
    None: either, by the two-sided one.
    """
    seen = effect.watched
    if seen.is_constant:
        return None
    z = seen.z(bound)
    z = abs(z) if above is None else z if above else -z
    boundary = sequential.boundary if above is None else sequential.boundary_one_sided

    def is_enough(times: float) -> bool:
        x = sequential.mixing(seen.units * times, planned_units, alpha if above is None else 2 * alpha)
        return bool(z * math.sqrt(times) >= boundary(x, alpha))

    return least(is_enough, 1.0, _MOST_GROWTH)


def _normal(distance: Floats, variance: float) -> Floats:
    return np.exp(-(distance**2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
