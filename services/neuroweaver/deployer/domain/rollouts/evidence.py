"""What a step of a rollout has shown so far, in slices of time that candidate and stable revision share.

Requests of one moment fail and slow down together, so single requests say less than they seem to. So
slices of time are the units of the analysis: their scatter holds whatever goes on within them. Beyond
`MOST_SLICES` neighbours are merged; slices grow with the step, and with them the time over which requests may
depend on each other (batch means).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from neuroweaver.deployer.domain.metrics.counts import Counts

MOST_SLICES: Final = 64


@dataclass(frozen=True)
class Slice:
    stable: Counts = field(default_factory=Counts)
    candidate: Counts = field(default_factory=Counts)

    def __add__(self, other: Slice) -> Slice:
        return Slice(self.stable + other.stable, self.candidate + other.candidate)


@dataclass(frozen=True)
class Evidence:
    """slices: all but the last are complete. slice_end: when the last one is; None before the first."""

    slices: tuple[Slice, ...] = ()
    slice_end: datetime | None = None
    merges: int = 0

    def with_counts(self, stable: Counts, candidate: Counts, now: datetime, length: timedelta) -> Evidence:
        """length: that of a slice before any were merged."""
        new = Slice(stable, candidate)
        if new == Slice():
            return self
        if self.slices and self.slice_end is not None and now <= self.slice_end:
            return replace(self, slices=(*self.slices[:-1], self.slices[-1] + new))
        slices, merges = (*self.slices, new), self.merges
        if len(slices) > MOST_SLICES:
            pairs = [slices[i : i + 2] for i in range(0, len(slices), 2)]
            slices = tuple(pair[0] + pair[1] if len(pair) > 1 else pair[0] for pair in pairs)
            merges += 1
        return Evidence(slices, now + length * 2**merges, merges)
