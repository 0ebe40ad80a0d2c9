"""Counts over the last while, ready at any moment: time in buckets, the oldest of which fall out."""

from __future__ import annotations

from copy import copy
from datetime import datetime, timedelta
from typing import Final

from neuroweaver.deployer.domain.metrics import counts
from neuroweaver.deployer.domain.metrics.counts import Counts
from neuroweaver.mesh.wire.clock import microseconds

BUCKETS: Final = 30


class Window:
    """The last `length` of one revision, give or take a thirtieth. Rebuilt after a restart by adding what was
    stored, in any order. Not safe for several threads.
    """

    def __init__(self, length: timedelta) -> None:
        self._width = length / BUCKETS
        self._buckets: dict[int, Counts] = {}

    def add(self, time: datetime, counted: Counts) -> None:
        """What is older than the window at its newest moment is left out then."""
        bucket = self._bucket(time)
        self._buckets[bucket] = self._buckets.get(bucket, Counts()) + counted
        if len(self._buckets) > 2 * BUCKETS:
            newest = max(self._buckets)
            self._buckets = {bucket: of for bucket, of in self._buckets.items() if bucket > newest - BUCKETS}

    def copy(self) -> Window:
        """One that goes its own way."""
        other = copy(self)
        other._buckets = dict(self._buckets)
        return other

    def total(self, now: datetime) -> Counts:
        newest = self._bucket(now)
        return counts.total(of for bucket, of in self._buckets.items() if newest - BUCKETS < bucket <= newest)

    def _bucket(self, time: datetime) -> int:
        return microseconds(time) // (self._width // timedelta(microseconds=1))
