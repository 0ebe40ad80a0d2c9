"""A metric as it is without treatment, for planning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Baseline(Protocol):
    @property
    def value(self) -> float: ...

    def variance(self) -> float:
        """Of one unit's influence on the value."""

    def shifted_variance(self, effect: float) -> float:
        """The same with an effect of this size, in the direction that needs more units.

        ValueError if the metric cannot move so far.
        """


@dataclass(frozen=True)
class MeanBaseline:
    """A mean over units. std_dev: over units, above 0."""

    value: float
    std_dev: float

    def variance(self) -> float:
        return self.std_dev**2

    def shifted_variance(self, effect: float) -> float:  # noqa: ARG002  # the spread stays
        return self.std_dev**2


@dataclass(frozen=True)
class ProportionBaseline:
    """A share of units, in (0, 1)."""

    value: float

    def variance(self) -> float:
        return self.value * (1 - self.value)

    def shifted_variance(self, effect: float) -> float:
        return (rate := self.shifted(effect)) * (1 - rate)

    def shifted(self, effect: float) -> float:
        rates = [rate for rate in (self.value + effect, self.value - effect) if 0 < rate < 1]
        if not rates:
            raise ValueError(f"a share of {self.value:g} cannot move by {effect:g}")
        return max(rates, key=lambda rate: rate * (1 - rate))


@dataclass(frozen=True)
class RatioBaseline:
    """A ratio of sums over units: means, standard deviations over units, and the correlation of both."""

    numerator_mean: float
    numerator_std_dev: float
    denominator_mean: float
    denominator_std_dev: float
    correlation: float = 0.0

    @property
    def value(self) -> float:
        return self.numerator_mean / self.denominator_mean

    def variance(self) -> float:
        """Of (y - R d) / mean(d): the delta method. ValueError if it is 0, which tells nothing."""
        scaled = self.value * self.denominator_std_dev
        spread = math.fsum(
            (self.numerator_std_dev**2, scaled**2, -2 * self.correlation * self.numerator_std_dev * scaled)
        )
        if spread <= 0:
            raise ValueError(
                "a ratio whose numerator is always the same share of the denominator does not vary"
            )
        return spread / self.denominator_mean**2

    def shifted_variance(self, effect: float) -> float:  # noqa: ARG002  # the spread stays
        return self.variance()
