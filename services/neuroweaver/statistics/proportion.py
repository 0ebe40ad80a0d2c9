"""A share of units, with Wilson's interval."""

from __future__ import annotations

from dataclasses import dataclass

from neuroweaver.statistics.wilson import wilson_limits


@dataclass(frozen=True)
class Proportion:
    successes: int
    units: int

    @property
    def value(self) -> float:
        return self.successes / self.units

    def limits(self, critical: float) -> tuple[float, float]:
        """Shares that lie within `critical` standard errors of the observed (Wilson 1927, JASA 22:209)."""
        return wilson_limits(self.successes, self.units, critical)
