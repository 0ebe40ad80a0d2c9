"""What the router counted of one revision: the ground of measurements and of a rollout's analysis."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from typing import Any, Final

# Milliseconds. Fine where thresholds usually lie: a percentile is read off between two bounds.
BOUNDS_MS: Final = (
    *(5, 10, 25, 50, 75, 100, 150, 200, 300, 400, 500, 650, 800, 1000, 1250, 1500, 1750, 2000, 2500, 3000),
    *(4000, 5000, 7500, 10000, 15000, 20000, 30000, 45000, 60000, 120000, 300000, 600000),
)

_CALLERS_FAULTS: Final = 400
_NO_ROOM: Final = 429
_SERVER_FAULTS: Final = 500


class Histogram:
    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_MS) + 1)
        self.sum_ms = 0.0

    def plain(self) -> list[Any]:
        """As JSON values, which `of_plain` reads."""
        return [self.sum_ms, self._counts]

    @classmethod
    def of_plain(cls, plain: list[Any]) -> Histogram:
        made = cls()
        made.sum_ms, made._counts = plain
        return made

    def add(self, milliseconds: float) -> None:
        self.sum_ms += milliseconds
        self._counts[bisect.bisect_left(BOUNDS_MS, milliseconds)] += 1

    def cumulative(self) -> Mapping[float, int]:
        """Upper bound, the last one infinite, to how many are not above it."""
        total, buckets = 0, {}
        for bound, count in zip((*BOUNDS_MS, math.inf), self._counts, strict=True):
            total += count
            buckets[float(bound)] = total
        return buckets


class Counts:
    """requests: that ended, also by the revision's failure (`errors`) or the caller's mistake.

    turned_away: not among them, since the revision had no room for it (429). That is a matter of its size and
    of its callers, and says nothing of how well it answers. One whose caller went away is not counted. Times
    are of successes, those of the first token of streams.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.turned_away = 0
        self.latency = Histogram()
        self.first_token = Histogram()

    def plain(self) -> list[Any]:
        """As JSON values, which `of_plain` reads."""
        times = [self.latency.plain(), self.first_token.plain()]
        return [self.requests, self.errors, self.turned_away, *times]

    @classmethod
    def of_plain(cls, plain: list[Any]) -> Counts:
        made = cls()
        made.requests, made.errors, made.turned_away, latency, first_token = plain
        made.latency, made.first_token = Histogram.of_plain(latency), Histogram.of_plain(first_token)
        return made

    def ended(self, status: int, first_ms: float | None, total_ms: float) -> None:
        """An answer that came whole. status: of HTTP."""
        if status == _NO_ROOM:
            self.turned_away += 1
        elif status >= _SERVER_FAULTS:
            self.failed()
        elif status >= _CALLERS_FAULTS:
            self.requests += 1
        else:
            self._succeeded(first_ms, total_ms)

    def failed(self) -> None:
        self.requests += 1
        self.errors += 1

    def _succeeded(self, first_ms: float | None, total_ms: float) -> None:
        self.requests += 1
        self.latency.add(total_ms)
        if first_ms is not None:
            self.first_token.add(first_ms)
