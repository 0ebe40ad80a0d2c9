"""Weights that follow the chance of each variant to be the best (Thompson 1933, Biometrika 25:285)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

# Before every variant has this many units, what they show is too uncertain to follow.
LEAST_UNITS: Final = 100

NOTICE: Final = (
    "The weights follow the outcomes. Effects are compared within each stretch of the same weights and then"
    " averaged, which keeps the always-valid intervals right but makes them wider than an equal split of the"
    " same traffic would. The difference of the variants' overall values may be biased, and fixed-horizon"
    " intervals and p-values do not hold, since when the weights moved depended on the data."
)

# Points of the integral over the best value, and how many standard deviations of every variant it spans.
_POINTS: Final = 4001
_SPAN: Final = 8.0


@dataclass(frozen=True)
class Belief:
    """A variant's value: normal, around the estimate. units: those it rests on."""

    units: int
    value: float
    std_error: float


def weights(beliefs: Sequence[Belief], min_weight: float, *, higher_is_better: bool) -> list[float]:
    """A weight for each variant, which sum to 1; none is below min_weight, in [0, 1 / variants].

    Equal weights until every variant has LEAST_UNITS. To give a unit to a variant with the chance that it
    is the best one is Thompson sampling; the weights being that chance, the draw is the unit's bucket.
    """
    count = len(beliefs)
    if not 0 <= min_weight * count <= 1 + 1e-9:
        raise ValueError(f"{count} variants cannot each have a weight of {min_weight:g}")
    if any(belief.units < LEAST_UNITS for belief in beliefs):
        return [1 / count] * count
    return _floored(chances_to_be_best(beliefs, higher_is_better=higher_is_better), min_weight)


def chances_to_be_best(beliefs: Sequence[Belief], *, higher_is_better: bool) -> list[float]:
    """For each variant, that its value is the best; by an integral, so the same each time, without a seed."""
    from scipy.special import log_ndtr  # noqa: PLC0415  # takes up to seconds, which only few calls should pay

    sign = 1.0 if higher_is_better else -1.0
    means = sign * np.array([belief.value for belief in beliefs])
    errors = np.array([belief.std_error for belief in beliefs])
    # A variant without any spread is a step; a thousandth of the widest one stands for it.
    errors = np.maximum(errors, max(float(errors.max()) * 1e-3, float(np.abs(means).max()) * 1e-12, 1e-300))
    chances = np.zeros(len(beliefs))
    for i in range(len(beliefs)):
        z = np.linspace(-_SPAN, _SPAN, _POINTS)
        value = means[i] + z * errors[i]
        others = [log_ndtr((value - means[j]) / errors[j]) for j in range(len(beliefs)) if j != i]
        density = np.exp(-z * z / 2 + sum(others, np.zeros_like(z)))
        chances[i] = np.trapezoid(density, z)
    total = chances.sum()
    return list((chances / total).tolist())


def _floored(chances: Sequence[float], least: float) -> list[float]:
    """The floor for those below it; the others share the rest in proportion."""
    result: npt.NDArray[np.float64] = np.array(chances)
    held = np.zeros(len(chances), dtype=bool)
    while (low := (result < least) & ~held).any():
        held |= low
        result[held] = least
        if held.all():
            break
        free = 1 - least * int(held.sum())
        result[~held] = np.array(chances)[~held] / np.array(chances)[~held].sum() * free
    return list((result / result.sum()).tolist())
