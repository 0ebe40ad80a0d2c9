"""A treatment against the control on one metric, whatever kind of metric it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from neuroweaver.statistics import confidence_sequence, fixed, pairwise, quantile
from neuroweaver.statistics.effect import Effect
from neuroweaver.statistics.estimate import Bound, Inference, Interval
from neuroweaver.statistics.pairwise import Judgements
from neuroweaver.statistics.quantile import QuantileArm

# Of a win rate against the 0.5 of no difference: beyond, there is nothing to test.
_FARTHEST_WIN: Final = 0.5 - 1e-9


class Comparison(ABC):
    """What a method returns is None where nothing varies, or the data do not reach so far."""

    planned: float
    """Units (or judgements) per arm at which the always-valid interval is tightest."""

    @property
    @abstractmethod
    def normal(self) -> Effect | None:
        """The effect as a normal one, for what needs no more than that; None if there is none."""

    @property
    @abstractmethod
    def absolute(self) -> float: ...

    @abstractmethod
    def fixed_horizon(self, confidence: float) -> Inference | None: ...

    @abstractmethod
    def p_fixed_horizon(self, bound: Bound, *, above: bool) -> float | None:
        """One-sided: small if the effect is shown to lie above (or below) the bound."""

    def always_valid(self, confidence: float) -> Inference | None:
        normal = self.normal
        return None if normal is None else confidence_sequence.infer(normal, confidence, self.planned)

    def p_always_valid(self, bound: Bound, confidence: float, *, above: bool) -> float | None:
        """The same however often one looks; confidence: that of the verdict, which only tunes it."""
        if self.normal is None:
            return None
        return confidence_sequence.p_one_sided(
            self.normal, confidence, self.planned, self.bound(bound), above=above
        )

    def z(self, bound: Bound) -> float:
        """How many standard errors the effect lies above the bound; 0 if nothing varies."""
        normal = self.normal
        return 0.0 if normal is None or normal.is_constant else normal.z(self.bound(bound))

    def bound(self, bound: Bound) -> Bound:
        """As it applies to `normal`."""
        return bound


@dataclass(frozen=True)
class OfUnits(Comparison):
    """Means, counts, shares and ratios; and quantiles over several phases."""

    effect: Effect
    planned: float

    @property
    def normal(self) -> Effect:
        return self.effect

    @property
    def absolute(self) -> float:
        return self.effect.absolute

    def fixed_horizon(self, confidence: float) -> Inference | None:
        return fixed.infer(self.effect, confidence)

    def p_fixed_horizon(self, bound: Bound, *, above: bool) -> float | None:
        return fixed.p_one_sided(self.effect, bound, above=above)


@dataclass(frozen=True)
class OfQuantiles(Comparison):
    control: QuantileArm
    treatment: QuantileArm
    planned: float

    @cached_property
    def normal(self) -> Effect | None:
        return quantile.effect(self.control, self.treatment)

    @property
    def absolute(self) -> float:
        return self.treatment.value - self.control.value

    def fixed_horizon(self, confidence: float) -> Inference | None:
        return quantile.infer(self.control, self.treatment, confidence)

    def always_valid(self, confidence: float) -> Inference | None:
        return quantile.infer_always_valid(self.control, self.treatment, confidence, self.planned)

    def p_fixed_horizon(self, bound: Bound, *, above: bool) -> float | None:
        return quantile.p_one_sided(self.control, self.treatment, bound, above=above)

    def p_always_valid(self, bound: Bound, confidence: float, *, above: bool) -> float | None:
        return quantile.p_one_sided_always_valid(
            self.control, self.treatment, confidence, self.planned, bound, above=above
        )

    def z(self, bound: Bound) -> float:
        return quantile.critical_at(self.control, self.treatment, bound)


@dataclass(frozen=True)
class OfJudgements(Comparison):
    """The win rate minus 0.5; a relative bound is a share of these 0.5."""

    judgements: Judgements
    planned: float

    @cached_property
    def normal(self) -> Effect | None:
        return pairwise.effect(self.judgements)

    @property
    def absolute(self) -> float:
        return (self.judgements.win_rate or 0.0) - 0.5

    def fixed_horizon(self, confidence: float) -> Inference | None:
        rate = pairwise.interval(self.judgements, confidence)
        if rate is None:
            return None
        around = Interval(rate.lower - 0.5, rate.upper - 0.5, confidence)
        return Inference(around, None, pairwise.p_value(self.judgements))

    def p_fixed_horizon(self, bound: Bound, *, above: bool) -> float | None:
        return pairwise.p_one_sided(self.judgements, self.bound(bound).value, above=above)

    def bound(self, bound: Bound) -> Bound:
        value = bound.value / 2 if bound.is_relative else bound.value
        return Bound(max(-_FARTHEST_WIN, min(_FARTHEST_WIN, value)))
