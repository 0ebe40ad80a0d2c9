"""Where a condition that holds from some number on begins to hold."""

from __future__ import annotations

import math
from collections.abc import Callable

_STEPS = 60


def threshold(is_enough: Callable[[float], bool], low: float, high: float) -> float:
    """The least number that is enough, within 2**-60 of `high - low`; `high` counts as enough."""
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if is_enough(middle):
            high = middle
        else:
            low = middle
    return high


def least(is_enough: Callable[[float], bool], low: float, high: float) -> float | None:
    """The least of positive numbers that is enough, to 1e-10 of it; None if none up to `high` is."""
    if is_enough(low):
        return low
    if not is_enough(high):
        return None
    return math.exp(threshold(lambda log: is_enough(math.exp(log)), math.log(low), math.log(high)))
