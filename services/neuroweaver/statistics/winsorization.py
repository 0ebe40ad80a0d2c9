"""Caps that limit the pull of extreme units."""

from __future__ import annotations

import math
from dataclasses import dataclass

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


def calibrated(values: npt.ArrayLike, lower_quantile: float | None, upper_quantile: float | None) -> Caps:
    """The caps at quantiles of the first units of all variants together; none without units.

    values: (units,). Taken once and then kept: caps that move with the data would make the units depend on
    each other, and the metric would mean another thing at every look. All variants together, so that the
    caps are the same for all and know nothing of which variant is better.

    A cap that would make all of these units equal is left out: where fewer units than the quantile spares
    have any value at all, it would cut off the very thing that is measured.
    """
    first = np.asarray(values, dtype=np.float64)
    if not len(first):
        return Caps()
    lower = None if lower_quantile is None else float(np.quantile(first, lower_quantile))
    upper = None if upper_quantile is None else float(np.quantile(first, upper_quantile))
    if lower is not None and lower >= first.max():
        lower = None
    if upper is not None and upper <= first.min():
        upper = None
    if lower is not None and upper is not None and lower >= upper:
        return Caps()
    return Caps(lower, upper)
