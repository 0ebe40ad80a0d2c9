"""Whether the units are split as the weights say, asked as often as one likes (Lindon & Malek, arXiv
2011.03567).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# How many units the Dirichlet prior around the weights counts for. A small number finds a grossly broken
# split within tens of units, a large one finds a split that is off by a percent sooner; the mean of both
# Bayes factors has the merit of each for a factor of two.
_CONCENTRATIONS: Final = (100.0, 10_000.0)
# Units of a variant of weight 0: stragglers of a phase before are borne with up to this number and share.
_STRAY_UNITS: Final = 10
_STRAY_SHARE: Final = 0.001


@dataclass(frozen=True)
class PhaseCounts:
    """One phase: each variant's weight, and its number of units, those exposed for the first time in this
    phase.

    A unit counts once in the whole experiment. One that comes again in a later phase falls there by the
    same hash: counted again, a chance imbalance would be multiplied with the phases and raise a false
    alarm.
    """

    weights: Sequence[float]
    units: Sequence[int]


def p_value(phases: Sequence[PhaseCounts], previous: float = 1.0) -> float:
    """Always-valid; the chance that it ever falls below a level while the split is right is at most that
    level.

    Exact at any number of units, not asymptotic: 1 / p is at most the Bayes factor of the weights being
    off, a martingale as the units come in, of any phase and in any order. previous: the smallest so far,
    which is kept. 1 without units.
    """
    if any(_is_stray(phase) for phase in phases):
        return 0.0
    factors = [
        sum(_log_bayes_factor(phase, concentration) for phase in phases) for concentration in _CONCENTRATIONS
    ]
    top = max(factors)
    log_mean = top + math.log(math.fsum(math.exp(f - top) for f in factors) / len(factors))
    return min(previous, math.exp(min(0.0, -log_mean)))


def _log_bayes_factor(phase: PhaseCounts, concentration: float) -> float:
    """Of a Dirichlet(concentration * weights) over the shares, against the weights themselves."""
    weighted = [(w, n) for w, n in zip(phase.weights, phase.units, strict=True) if w > 0]
    whole = math.fsum(w for w, _ in weighted)
    total = sum(n for _, n in weighted)
    factor = math.lgamma(concentration) - math.lgamma(concentration + total)
    for weight, units in weighted:
        share = weight / whole
        prior = concentration * share
        factor += math.lgamma(prior + units) - math.lgamma(prior) - units * math.log(share)
    return factor


def _is_stray(phase: PhaseCounts) -> bool:
    """More units of variants of weight 0 than clients that had not heard of the new weights explain.

    Under the weights there are none at all, so this adds nothing to the chance of a false alarm.
    """
    strays = sum(n for w, n in zip(phase.weights, phase.units, strict=True) if w <= 0)
    return strays > _STRAY_UNITS + _STRAY_SHARE * sum(phase.units)
