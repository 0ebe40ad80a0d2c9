"""The score interval of a share."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(successes: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a binomial share, without continuity correction; (0, 1) if n is 0.

    Wilson 1927, doi 10.1080/01621459.1927.10502953; Newcombe 1998, method 3,
    doi 10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E. Halves, which come from ties, vary
    less than a coin of the same mean, so with ties the interval is rather too wide than too narrow.
    """
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
