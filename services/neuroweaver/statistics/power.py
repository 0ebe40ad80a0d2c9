"""How many units an experiment needs, what it can find with those it gets, and how long that takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from neuroweaver.statistics import sequential
from neuroweaver.statistics.baseline import Baseline, ProportionBaseline
from neuroweaver.statistics.bisection import least
from neuroweaver.statistics.crossing import LOOKS, crossing
from neuroweaver.statistics.distributions import noncentral_t_tail, normal_quantile, normal_tail, t_quantile
from neuroweaver.statistics.effect import Effect

MOST_UNITS: Final = 10**15
# Beyond, Student's t is normal for every purpose of a plan.
_NORMAL_UNITS: Final = 20_000
_CURVE_POINTS: Final = 20


@dataclass(frozen=True)
class Design:
    """What is compared and how.

    weights: of the arms, the control first, each above 0; the plan is made for the treatment with the
    smallest. comparisons: how many share the error level, which is divided by them (what Holm's and every
    other correction is at its strictest). covariate_correlation: of a CUPED covariate with the metric.
    """

    baseline: Baseline
    confidence: float = 0.95
    is_non_inferiority: bool = False
    is_always_valid: bool = True
    weights: tuple[float, ...] = (0.5, 0.5)
    comparisons: int = 1
    covariate_correlation: float = 0.0

    @property
    def alpha(self) -> float:
        return (1 - self.confidence) / self.comparisons

    @property
    def smallest_share(self) -> float:
        """Units of the smallest treatment for each unit of the control."""
        return min(self.weights[1:]) / self.weights[0]

    def std_error(self, effect: float, units: float) -> float:
        """Of the difference, with so many units in the control. The treatment has the effect, unless it is
        shown to be not worse: then there is none in truth.
        """
        baseline = self.baseline
        treated = baseline.variance() if self.is_non_inferiority else baseline.shifted_variance(effect)
        left = 1 - self.covariate_correlation**2
        return math.sqrt(left * (baseline.variance() + treated / self.smallest_share) / units)


@dataclass(frozen=True)
class Point:
    """The smallest effect that is found with so many units in the control; days: None without a pace."""

    units: int
    days: float | None
    detectable_effect: float


@dataclass(frozen=True)
class Plan:
    """units: per arm, in the order of the weights. days: None without a pace. relative_effect: None if the
    baseline is 0. curve: what can be found on the way to these units.
    """

    units: tuple[int, ...]
    days: float | None
    power: float
    effect: float
    relative_effect: float | None
    curve: tuple[Point, ...]
    basis: str


def plan(
    design: Design,
    *,
    effect: float | None = None,
    units: int | None = None,
    power: float = 0.8,
    units_per_day: float | None = None,
) -> Plan:
    """Units from an effect, an effect from units of the control, or from both the power.

    effect: in the metric's unit, above 0; of non-inferiority the margin. power: what is asked of those that
    come out, and of the curve. units_per_day: those that take part, over all arms. ValueError if neither is
    given, if the effect is beyond what the metric can do, or too small for MOST_UNITS.
    """
    if units is None:
        if effect is None:
            raise ValueError("a plan needs an effect, units, or both")
        units = math.ceil(units_needed(design, effect, power) * (1 - 1e-12))
    smallest = detectable_effect(design, units, power) if effect is None else effect
    if smallest is None:
        raise ValueError(f"{units} units find no effect that the metric can have")
    reached = power_of(design, smallest, units)

    def days(control_units: float) -> float | None:
        total = control_units * sum(design.weights) / design.weights[0]
        return None if units_per_day is None else total / units_per_day

    size = abs(design.baseline.value)
    return Plan(
        units=tuple(math.ceil(units * weight / design.weights[0] - 1e-9) for weight in design.weights),
        days=days(units),
        power=reached,
        effect=smallest,
        relative_effect=smallest / size if size else None,
        curve=tuple(Point(point, days(point), smallest) for point, smallest in _curve(design, units, power)),
        basis=_basis(design),
    )


def units_needed(design: Design, effect: float, power: float) -> float:
    """Units in the control, not rounded. ValueError as in `plan`."""
    if effect <= 0:
        raise ValueError("an effect of 0 is never found")
    if design.is_always_valid:
        drift = crossing(design.alpha, one_sided=design.is_non_inferiority).drift(power)
        needed = (design.std_error(effect, 1.0) * drift / effect) ** 2
    else:
        enough = least(lambda units: power_of(design, effect, units) >= power, 2.0, MOST_UNITS)
        needed = MOST_UNITS if enough is None else enough
    if needed >= MOST_UNITS:
        raise ValueError("the effect is too small to be found")
    return max(2.0, needed)


def power_of(design: Design, effect: float, units: float) -> float:
    """The chance to show an effect: by the end of an always-valid test, which is looked at LOOKS times on
    the way and stops when it has shown one; at the one look of a fixed-horizon test.
    """
    error = design.std_error(effect, units)
    if design.is_always_valid:
        return crossing(design.alpha, one_sided=design.is_non_inferiority).power(effect / error)
    tail = design.alpha if design.is_non_inferiority else design.alpha / 2
    if isinstance(design.baseline, ProportionBaseline):
        return normal_tail((normal_quantile(tail) * _null_error(design, effect, units) - effect) / error)
    freedom = units * (1 + design.smallest_share) - 2
    if freedom > _NORMAL_UNITS:
        return normal_tail(normal_quantile(tail) - effect / error)
    freedom = max(freedom, 1e-3)
    return noncentral_t_tail(t_quantile(tail, freedom), freedom, effect / error)


def detectable_effect(design: Design, units: float, power: float, look: int = LOOKS) -> float | None:
    """The smallest effect that is shown with the power; None if the metric cannot have one so large.

    look: of an always-valid test that is planned for `units`, by which it is to be shown.
    """
    always_valid = (
        crossing(design.alpha, one_sided=design.is_non_inferiority) if design.is_always_valid else None
    )
    drift = always_valid.drift(power, look) if always_valid is not None else 0.0

    def is_found(effect: float) -> bool:
        if always_valid is not None:
            return effect >= drift * design.std_error(effect, units)
        return power_of(design, effect, units * look / LOOKS) >= power

    most = 1e6 * design.std_error(0.0, units)
    if isinstance(design.baseline, ProportionBaseline):
        most = max(design.baseline.value, 1 - design.baseline.value) * (1 - 1e-9)
    return least(is_found, most * 1e-12, most)


def detectable_now(
    effect: Effect, confidence: float, planned_units: float | None, power: float = 0.8
) -> float | None:
    """The smallest absolute effect that the units so far would show at this look; None if the effect is
    constant.

    planned_units: of the always-valid test; None: by the fixed-horizon one.
    """
    if planned_units is not None:
        effect = effect.watched
    if effect.is_constant:
        return None
    alpha = 1 - confidence
    if planned_units is None:
        critical = t_quantile(alpha / 2, effect.degrees_of_freedom)
    else:
        critical = float(sequential.boundary(sequential.mixing(effect.units, planned_units, alpha), alpha))
    return (critical + normal_quantile(1 - power)) * effect.std_error


def _null_error(design: Design, effect: float, units: float) -> float:
    """Standard error of the difference of two shares if there is none, as the score test takes it."""
    if design.is_non_inferiority or not isinstance(design.baseline, ProportionBaseline):
        return design.std_error(effect, units)
    share = design.smallest_share
    pooled = (design.baseline.value + share * design.baseline.shifted(effect)) / (1 + share)
    return replace(design, baseline=ProportionBaseline(pooled), is_non_inferiority=True).std_error(0.0, units)


def _curve(design: Design, units: int, power: float) -> list[tuple[int, float]]:
    points: dict[int, float] = {}
    for step in range(1, _CURVE_POINTS + 1):
        look = step * LOOKS // _CURVE_POINTS
        point = max(2, round(units * look / LOOKS))
        if (smallest := detectable_effect(design, units, power, look)) is not None:
            points[point] = smallest
    return list(points.items())


def _basis(design: Design) -> str:
    """Formula and assumptions, in words."""
    is_share = isinstance(design.baseline, ProportionBaseline)
    parts = [_hypothesis(design), _method(design, is_share=is_share), "Units are independent of each other."]
    if is_share:
        parts.append("A share moves in the direction that needs more units.")
    if design.covariate_correlation:
        parts.append(f"The covariate takes out {design.covariate_correlation**2:.4g} of the variance.")
    if len(design.weights) > 2:
        parts.append("Planned for the treatment with the smallest weight.")
    return " ".join(parts)


def _hypothesis(design: Design) -> str:
    level = f"at a level of {1 - design.confidence:.4g}"
    if design.comparisons > 1:
        level += f" divided by {design.comparisons} comparisons"
    if design.is_non_inferiority:
        return (
            "One-sided test that the treatment is not worse by the margin, while in truth there is no"
            f" difference, {level}."
        )
    return f"Two-sided test of a difference {level}."


def _method(design: Design, *, is_share: bool) -> str:
    if design.is_always_valid:
        return (
            "Asymptotic confidence sequence (arXiv 2103.06476), tuned to the planned units; the power is the"
            f" chance to have excluded the tested value at any of {LOOKS} evenly spaced looks by then, from"
            " the chance of a Brownian motion with drift to cross its boundary."
        )
    if is_share:
        return "Two-proportion test at one look, with the pooled variance if there is no difference."
    return "Welch's t-test at one look, from the noncentral t distribution with equal spread in both arms."
