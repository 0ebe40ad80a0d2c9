"""Values of one revision with limits, from slices of time (`evidence`) as the units.

The limits of a share are Wilson's (1927, JASA 22:209), of a quantile Woodruff's (1952, JASA 47:635), of a
mean symmetric. All go by the scatter among slices, with Student's t for their number; those of shares and
quantiles are no narrower than if requests were independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from neuroweaver.deployer.domain.metrics.counts import Histogram, Sum
from neuroweaver.statistics import mover
from neuroweaver.statistics.distributions import student_critical
from neuroweaver.statistics.wilson import wilson_limits

PERCENTILE: Final = 0.95
# A mean of so many times fewer requests than the other one takes the larger of the two spreads: what is rare
# it has not met yet, and its spread is too small when its value is.
_UNEVEN: Final = 1.5


@dataclass(frozen=True)
class Exact:
    """A value that is known, such as a limit's."""

    value: float

    def limits(self, critical: float) -> tuple[float, float]:  # noqa: ARG002  # as every estimate has it
        return self.value, self.value


@dataclass(frozen=True)
class Scaled:
    """A multiple of another estimate; factor: above 0."""

    estimate: mover.Estimate
    factor: float

    @property
    def value(self) -> float:
        return self.factor * self.estimate.value

    def limits(self, critical: float) -> tuple[float, float]:
        lower, upper = self.estimate.limits(critical)
        return self.factor * lower, self.factor * upper


@dataclass(frozen=True)
class Share:
    """design: by how much the scatter among slices exceeds that of independent requests; at least 1."""

    value: float
    requests: float
    design: float
    slices: int

    def limits(self, critical: float) -> tuple[float, float]:
        lower, upper = wilson_limits(self.value * self.requests, self.requests, critical)
        requests = self.requests / self.design
        wide = wilson_limits(self.value * requests, requests, student(critical, self.slices))
        return min(lower, wide[0]), max(upper, wide[1])


@dataclass(frozen=True)
class Mean:
    value: float
    requests: float
    std_error: float
    slices: int

    def limits(self, critical: float) -> tuple[float, float]:
        reach = student(critical, self.slices) * self.std_error if self.std_error else 0.0
        return self.value - reach, self.value + reach

    def cautious(self, other: Mean) -> Mean:
        """With the other's spread, where its own tells too little."""
        lent = other.std_error * math.sqrt(other.requests / self.requests)
        is_small = self.requests * _UNEVEN < other.requests
        return (
            replace(self, std_error=lent) if lent > self.std_error * (1 if is_small else math.inf) else self
        )


@dataclass(frozen=True)
class Quantile:
    """share_error: of the share of values below `value`, by the scatter among slices."""

    value: float
    histogram: Histogram
    share_error: float
    slices: int

    @property
    def requests(self) -> float:
        return self.histogram.weight

    def limits(self, critical: float) -> tuple[float, float]:
        independent = critical * math.sqrt(PERCENTILE * (1 - PERCENTILE) / self.requests)
        reach = max(independent, student(critical, self.slices) * self.share_error)
        lower = self.histogram.limit(max(0.0, PERCENTILE - reach), beyond_last=None)
        share = PERCENTILE + reach
        upper = self.histogram.limit(share, beyond_last=math.inf) if share < 1 else math.inf
        return min(lower, self.value), max(upper, self.value)


Estimate = Share | Mean | Quantile


def share(parts: Sequence[Sum]) -> Share | None:
    """parts: one a slice; None without requests."""
    requests = sum(part.weight for part in parts)
    if not requests:
        return None
    value = min(1.0, sum(part.total for part in parts) / requests)
    independent = value * (1 - value) * requests
    design = (
        _scatter([part.total - value * part.weight for part in parts]) / independent if independent else 1.0
    )
    return Share(value, requests, max(1.0, design), len(parts))


def mean(parts: Sequence[Sum]) -> Mean | None:
    """parts: one a slice; None without requests."""
    requests = sum(part.weight for part in parts)
    if not requests:
        return None
    value = sum(part.total for part in parts) / requests
    residuals = [part.total - value * part.weight for part in parts]
    # Sums of equal values differ by rounding alone.
    size = max(abs(part.total) for part in parts)
    residuals = [residual if abs(residual) > 1e-12 * size else 0.0 for residual in residuals]
    return Mean(value, requests, math.sqrt(_scatter(residuals)) / requests, len(parts))


def quantile(parts: Sequence[Histogram]) -> Quantile | None:
    """parts: one a slice; None without values."""
    whole = sum(parts, Histogram())
    value = whole.quantile(PERCENTILE)
    if value is None:
        return None
    below = whole.below(value) / whole.weight
    residuals = [part.below(value) - below * part.weight for part in parts]
    return Quantile(value, whole, math.sqrt(_scatter(residuals)) / whole.weight, len(parts))


def student(critical: float, slices: int) -> float:
    """The critical value of a spread that so many slices tell."""
    return student_critical(critical, slices - 1) if slices >= 2 else math.inf


def _scatter(residuals: Sequence[float]) -> float:
    """The variance of their sum, each slice being independent of the others."""
    if len(residuals) < 2:
        return 0.0
    return sum(residual**2 for residual in residuals) * len(residuals) / (len(residuals) - 1)
