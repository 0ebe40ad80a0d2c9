"""A metric in one variant: its value, and how far the influence of one unit on it varies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import sqrt
from typing import Final

import numpy as np
import numpy.typing as npt

from neuroweaver.statistics import adjustment
from neuroweaver.statistics.moments import Moments, standard_error

# A ratio is told only where its denominator is this many standard errors away from 0: nearer, the linear
# approximation of the delta method does not hold.
_CLEAR_OF_ZERO: Final = 3
# What a covariate leaves of a variance at least, since less is rounding.
_LEAST_LEFT: Final = 1e-9


class Kind(Enum):
    """What is made of a unit's row, and how many of its columns are outcomes."""

    MEAN = "mean"
    """Counts too: one column, the unit's value."""
    PROPORTION = "proportion"
    """One column, 0 or 1."""
    RATIO = "ratio"
    """Two columns, numerator and denominator."""

    @property
    def outcomes(self) -> int:
        return 2 if self is Kind.RATIO else 1


@dataclass(frozen=True)
class Sample:
    """The units of one variant. observed: rows of outcomes, then covariates. missing: the units that have no
    covariates, outcomes alone; None without covariates.
    """

    observed: Moments
    missing: Moments | None = None


@dataclass(frozen=True)
class Arm:
    """A metric in one variant; at least two units.

    The value is, to first order, a mean of influence values over units: y for a mean, (y - R d) / mean(d) for
    a ratio R (Deng et al. 2018, KDD). variance is theirs over units, such that value has the standard error
    sqrt(variance / units). The adjusted ones are y - theta x instead, and covariance is that of both; without
    covariates all three are the same.

    successes: of a proportion, without covariates; None for anything else.
    """

    units: int
    value: float
    variance: float
    adjusted_value: float
    adjusted_variance: float
    covariance: float
    successes: int | None = None

    @property
    def is_adjusted(self) -> bool:
        return (self.adjusted_value, self.adjusted_variance) != (self.value, self.variance)

    @property
    def std_error(self) -> float:
        """Of `value`."""
        return sqrt(self.variance / self.units)


def arms(kind: Kind, samples: Sequence[Sample]) -> Sequence[Arm | None]:
    """Every variant's metric, adjusted by its covariates if there are any; the control and all treatments
    go in together, since they share the slope. None: fewer than two units, or a ratio without a clear
    denominator.
    """
    if not samples:
        return []
    observed = [sample.observed for sample in samples]
    variants = adjustment.completed(observed, [sample.missing for sample in samples], kind.outcomes)
    coefficients = [_coefficients(kind, moments) for moments in variants]
    theta = adjustment.slopes(variants, coefficients, kind.outcomes)
    return [
        None if coefficient is None else _arm(kind, moments, coefficient, theta)
        for moments, coefficient in zip(variants, coefficients, strict=True)
    ]


def _coefficients(kind: Kind, moments: Moments) -> npt.NDArray[np.float64] | None:
    """How a unit's influence depends on its outcomes."""
    if moments.n < 2:
        return None
    if kind is not Kind.RATIO:
        return np.ones(1)
    denominator = moments.mean(1)
    if abs(denominator) <= _CLEAR_OF_ZERO * standard_error(moments, 1):
        return None
    return np.array([1.0, -moments.mean(0) / denominator]) / denominator


def _arm(
    kind: Kind, moments: Moments, coefficients: npt.NDArray[np.float64], theta: npt.NDArray[np.float64]
) -> Arm:
    value = moments.mean(0) / moments.mean(1) if kind is Kind.RATIO else moments.mean(0)
    spread = moments.covariances()
    plain = np.concatenate((coefficients, np.zeros_like(theta)))
    adjusted = np.concatenate((coefficients, -theta))
    variance = max(0.0, float(plain @ spread @ plain))
    adjusted_variance = max(_LEAST_LEFT * variance, float(adjusted @ spread @ adjusted))
    covariance = float(plain @ spread @ adjusted)
    successes = None
    if kind is Kind.PROPORTION:
        successes = round(moments.sum(0))
        regular = _regular_variance(successes, moments.n)
        unexplained, shared = (
            (adjusted_variance / variance, covariance / variance) if variance else (1.0, 1.0)
        )
        variance, adjusted_variance, covariance = regular, regular * unexplained, regular * shared
    shift = sum(slope * moments.mean(kind.outcomes + i) for i, slope in enumerate(theta))
    return Arm(
        units=moments.n,
        value=value,
        variance=variance,
        adjusted_value=value - shift,
        adjusted_variance=adjusted_variance,
        covariance=covariance,
        successes=successes if not theta.any() else None,
    )


def _regular_variance(successes: int, units: int) -> float:
    """With a success and a failure more than there were (Agresti & Caffo 2000, The American Statistician
    54:280), so that 0 of 1000 is not taken for certainty.
    """
    share = (successes + 1) / (units + 2)
    return share * (1 - share)
