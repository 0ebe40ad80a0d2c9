"""Caps that limit the pull of extreme units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Caps:
    """In the metric's unit; None: no cap on that side."""

    lower: float | None = None
    upper: float | None = None

    def apply(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """A smaller value becomes the lower cap, a larger one the upper; any shape."""
        lower = -math.inf if self.lower is None else self.lower
        upper = math.inf if self.upper is None else self.upper
        return np.clip(np.asarray(values, dtype=np.float64), lower, upper)


NO_CAPS: Final = Caps()


def calibrated(values: npt.ArrayLike, lower_quantile: float | None, upper_quantile: float | None) -> Caps:
    """The caps at quantiles of the units of all variants together; none without units.

    values: (units,). A cap is a value that some unit has, and never one that more units share than it may
    cut: quantiles of such mass points are no stable property of the metric (Stigler 1973, Annals of
    Statistics 1:472), and what counts now and grows later would be cut to a constant. The next value beyond
    is taken, or there is no cap. Nor is there one where it would cut most of the units that stand out on its
    side: those beyond a most common value that is a mass point, such as the buyers among units that mostly
    buy nothing; else those beyond 0, such as the refunds among purchases. They are what is measured. (Without
    a mass point, a side no larger than what a cap may cut is extreme as a whole: the cap lies before it.)

    Caps may be taken again whenever data come in, if all units are then capped anew. As long as the arms do
    not differ, caps of all variants together are no function of who got what, and the difference of the arms
    has no first-order term in them: with P(Y > c) the same in both, d/dc of E min(Y, c) cancels. The caps
    themselves converge almost surely (Bahadur 1966, Annals of Mathematical Statistics 37:577), so what is
    left is of smaller order than the boundary of `sequential`, which holds for asymptotically linear
    estimates (arXiv 2103.06476, section 3). Caps of one arm alone, or units that keep the caps of their day,
    would have no such property. Where the arms do differ, the effect is one on the capped metric.
    """
    units = np.asarray(values, dtype=np.float64)
    if not len(units):
        return Caps()
    lower = None if lower_quantile is None else _upper(-units, 1 - lower_quantile)
    upper = None if upper_quantile is None else _upper(units, upper_quantile)
    if lower is not None and upper is not None and -lower >= upper:
        return Caps()
    return Caps(None if lower is None else -lower, upper)


def _upper(values: npt.NDArray[np.float64], quantile: float) -> float | None:
    distinct, counts = np.unique(values, return_counts=True)
    until = np.cumsum(counts)
    at = int(np.searchsorted(until, math.ceil(quantile * (len(values) - 1)), side="right"))
    if not at:
        return None  # most units have the smallest value: all that is above it is what is measured
    may_share = max(1.0, (1 - quantile) * len(values))
    while at < len(distinct) and counts[at] > may_share:
        at += 1
    if at == len(distinct):
        return None
    most = int(np.argmax(counts))
    centre = float(distinct[most]) if counts[most] > may_share else 0.0
    standing_out = np.count_nonzero(values > centre) if distinct[at] > centre else len(values)
    is_most_cut = 2 * (len(values) - until[at]) > standing_out
    return None if is_most_cut else float(distinct[at])
