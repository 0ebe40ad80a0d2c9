"""CUPED: takes out of a metric what covariates from before the exposure explain (Deng et al. 2013, WSDM)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from neuroweaver.statistics.moments import Moments, merged

# With fewer units the slope is too uncertain to gain anything.
_LEAST_UNITS: Final = 100
# Covariates whose correlation is closer to 1 than this count as one.
_COLLINEAR: Final = 1e-9


def completed(
    observed: Sequence[Moments], missing: Sequence[Moments | None], outcomes: int
) -> Sequence[Moments]:
    """Each variant's units, those without covariates taking the mean of those that have them.

    observed: a variant's units with covariates; columns: `outcomes` first, then the covariates. missing: its
    units without; columns: the outcomes alone. The mean is that over all variants: since the covariate is
    from before the exposure, it is the same in all of them. Which units lack it must not depend on the
    variant either.
    """
    everywhere = merged(observed, observed[0].columns) if observed else None
    if everywhere is None or not everywhere.n:
        means = [0.0] * (observed[0].columns - outcomes if observed else 0)
    else:
        means = [everywhere.mean(column) for column in range(outcomes, everywhere.columns)]
    return [
        have if lack is None or not lack.n else have + lack.with_constants(means)
        for have, lack in zip(observed, missing, strict=True)
    ]


def slopes(
    variants: Sequence[Moments], coefficients: Sequence[npt.NDArray[np.float64] | None], outcomes: int
) -> npt.NDArray[np.float64]:
    """theta: what a unit of each covariate explains of the metric, (covariates,); 0 where that is not known.

    coefficients: for each variant how its metric depends on the outcome columns, (outcomes,), None if there
    is no metric. Deviations are taken within the variants and then pooled, such that an effect is not
    mistaken for a slope; all variants share one theta, such that the differences of three of them add up.
    """
    estimable = [(m, c) for m, c in zip(variants, coefficients, strict=True) if c is not None]
    columns = variants[0].columns if variants else outcomes
    theta = np.zeros(columns - outcomes)
    if sum(m.n for m, _ in estimable) < _LEAST_UNITS or not theta.size:
        return theta
    explained = np.zeros_like(theta)
    spread = np.zeros((theta.size, theta.size))
    for moments, coefficient in estimable:
        comoments = moments.comoments()
        explained += comoments[outcomes:, :outcomes] @ coefficient
        spread += comoments[outcomes:, outcomes:]
    used = _independent(spread)
    if used:
        theta[used] = np.linalg.solve(spread[np.ix_(used, used)], explained[used])
    return theta


def _independent(spread: npt.NDArray[np.float64]) -> list[int]:
    """Covariates that vary, and not along with an earlier one."""
    used: list[int] = []
    for i in range(len(spread)):
        others = spread[np.ix_(used, used)]
        rest = spread[i, i]
        if used:
            rest -= spread[i, used] @ np.linalg.solve(others, spread[used, i])
        if rest > _COLLINEAR * spread[i, i]:
            used.append(i)
    return used
