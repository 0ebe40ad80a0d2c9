"""One effect from several phases of different weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from neuroweaver.statistics.effect import Effect, Spread


def combined(effects: Sequence[Effect]) -> Effect | None:
    """Each phase compared within itself, and the differences averaged by the phases' units (harmonic mean
    of the arms), so that a change of weights while outcomes change with time (Simpson's paradox) pulls at
    nothing.

    Weights by units are the best ones if all units vary alike, and unlike those by estimated variance they
    are not pulled towards phases in which a skewed outcome came out low. They do not depend on outcomes of
    their own phase, so the sum stays a martingale, and the sequential intervals hold, even where weights
    follow earlier outcomes (arXiv 2103.06476, Proposition 2.5).

    A unit belongs to one phase, that of its first exposure in the experiment: units that came again in every
    phase would be taken for new ones, and the intervals would be too narrow. None without effects.
    """
    units = sum(effect.units for effect in effects)
    if not effects or len(effects) == 1:
        return effects[0] if effects else None
    weights = [effect.units / units for effect in effects]
    pairs = list(zip(weights, effects, strict=True))
    spread = _spread(pairs)
    parts = [
        (w * w * e.variance / spread.variance if spread.variance else 0.0, e.degrees_of_freedom)
        for w, e in pairs
    ]
    scatter = sum(part * part / freedom for part, freedom in parts)
    reductions = [e.variance_reduction for e in effects]
    return Effect(
        absolute=math.fsum(w * e.absolute for w, e in pairs),
        baseline=math.fsum(w * e.baseline for w, e in pairs),
        **vars(spread),
        units=units,
        degrees_of_freedom=1 / scatter if scatter else sum(freedom for _, freedom in parts),
        variance_reduction=None if None in reductions else _reduction(pairs),
        cautious=_spread([(weight, effect.watched) for weight, effect in pairs]),
    )


def _spread(pairs: Sequence[tuple[float, Effect]]) -> Spread:
    return Spread(
        variance=sum(w * w * e.variance for w, e in pairs),
        baseline_variance=sum(w * w * e.baseline_variance for w, e in pairs),
        covariance=sum(w * w * e.covariance for w, e in pairs),
    )


def _reduction(pairs: Sequence[tuple[float, Effect]]) -> float:
    """The share that covariates took out of the variance of the average."""
    adjusted = plain = 0.0
    for weight, effect in pairs:
        left = 1 - (effect.variance_reduction or 0.0)
        adjusted += weight * weight * effect.variance
        plain += weight * weight * effect.variance / left if left else 0.0
    return 1 - adjusted / plain if plain else 0.0
