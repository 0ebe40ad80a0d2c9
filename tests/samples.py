"""Short ways to arms and effects."""

from __future__ import annotations

import numpy as np

from neuroweaver.statistics.arm import Arm, Kind, Sample, arms
from neuroweaver.statistics.effect import Effect, effect
from neuroweaver.statistics.moments import Moments


def pair(kind: Kind, control, treatment) -> Effect:
    found = effect(*arms(kind, [Sample(Moments.of(control)), Sample(Moments.of(treatment))]))
    assert found is not None
    return found


def means(control, treatment) -> Effect:
    return pair(Kind.MEAN, control, treatment)


def ratios(control, treatment) -> Effect:
    return pair(Kind.RATIO, control, treatment)


def shares(control: tuple[int, int], treatment: tuple[int, int]) -> Effect:
    """Each as successes of units."""
    found = effect(share(*control), share(*treatment))
    assert found is not None
    return found


def share(successes: int, units: int) -> Arm:
    zeros = (0.0, 0.0)
    moments = Moments(units, 1, (float(successes), float(successes)), zeros)
    [arm] = arms(Kind.PROPORTION, [Sample(moments)])
    assert arm is not None
    return arm


def sums(units: int, total: float, squares: float) -> Moments:
    return Moments(units, 1, (total, squares), (0.0, 0.0))


def within(covered: int, runs: int, chance: float = 0.95, errors: float = 3.5) -> bool:
    """Whether a count of successes agrees with a chance, within Monte-Carlo error."""
    return bool(abs(covered / runs - chance) <= errors * np.sqrt(chance * (1 - chance) / runs))
