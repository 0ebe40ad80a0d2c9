"""A share of units, with Wilson's interval."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt


@dataclass(frozen=True)
class Proportion:
    successes: int
    units: int

    @property
    def value(self) -> float:
        return self.successes / self.units

    def limits(self, critical: float) -> tuple[float, float]:
        """Shares that lie within `critical` standard errors of the observed (Wilson 1927, JASA 22:209)."""
        square = critical**2
        spread = critical * sqrt(square + 4 * self.successes * (1 - self.value))
        lower = (2 * self.successes + square - spread) / (2 * (self.units + square))
        upper = (2 * self.successes + square + spread) / (2 * (self.units + square))
        return (
            lower if self.successes else 0.0,
            upper if self.successes < self.units else 1.0,
        )
