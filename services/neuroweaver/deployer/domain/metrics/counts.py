"""What was counted of one revision over some time: sums and histograms that add up.

Three sources are kept apart, since all count the same requests: what the replicas counted; what was reported
by a router that sees every request of the deployment; and what was reported by a caller that sees a part of
them. Such a router also sees what never reached a replica, so its values come first. A part stands for the
whole only where nothing else was measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Final

from neuroweaver.deployer.domain.backend import Measured

# Reported latencies fall into buckets each of whose bounds is 2**(1/8) of the one before: within 5 %.
_BUCKETS_PER_OCTAVE: Final = 8
_LEAST_MS: Final = 0.125


@dataclass(frozen=True)
class Sample:
    """What a router measured: means over so many requests. None: not measured.

    version: of the model; empty: the stable one's. covers_deployment: whether it measured all requests.
    """

    time: datetime
    version: str
    requests: int
    accuracy: float | None = None
    latency_ms: float | None = None
    throughput_rps: float | None = None
    error_rate: float | None = None
    cost_per_request: float | None = None
    judged_quality: float | None = None
    covers_deployment: bool = False


MEASURES: Final = tuple(column.name for column in fields(Sample))[3:-1]
"""What a report may have measured."""


@dataclass(frozen=True)
class Sum:
    """Of a value over requests; weight: how many these are."""

    total: float = 0.0
    weight: float = 0.0

    def __add__(self, other: Sum) -> Sum:
        return Sum(self.total + other.total, self.weight + other.weight)

    @property
    def mean(self) -> float | None:
        return self.total / self.weight if self.weight else None


@dataclass(frozen=True)
class Histogram:
    """Rising upper bounds, and how many values lie in each bucket; the first one begins at 0."""

    buckets: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(cls, counts: Mapping[float, float]) -> Histogram:
        """Empty buckets are left out but where they say at what value a full one begins."""
        ordered = sorted(counts.items())
        following = [*(count for _, count in ordered), 0.0][1:]
        return cls(
            tuple(
                (bound, count)
                for (bound, count), after in zip(ordered, following, strict=True)
                if count or after
            )
        )

    @classmethod
    def of_cumulative(cls, cumulative: Mapping[float, int]) -> Histogram:
        """As Prometheus counts: every bucket holds those before it."""
        counts, below = {}, 0
        for bound, count in sorted(cumulative.items()):
            counts[bound] = float(max(0, count - below))
            below = max(below, count)
        return cls.of(counts)

    @classmethod
    def of_value(cls, value: float, weight: float) -> Histogram:
        """Of values that are all about the same."""
        octaves = math.ceil(_BUCKETS_PER_OCTAVE * math.log2(max(value, _LEAST_MS) / _LEAST_MS) - 1e-9)
        lower, upper = (
            _LEAST_MS * 2 ** (step / _BUCKETS_PER_OCTAVE) for step in (max(octaves, 1) - 1, max(octaves, 1))
        )
        return cls(((lower, 0.0), (upper, weight)))

    def __add__(self, other: Histogram) -> Histogram:
        if not self.buckets or not other.buckets:
            return self if self.buckets else other
        counts: Counter[float] = Counter()
        for bound, count in (*self.buckets, *other.buckets):
            counts[bound] += count  # type: ignore[assignment]  # a Counter of floats adds floats
        return Histogram.of(counts)

    @property
    def weight(self) -> float:
        return sum(count for _, count in self.buckets)

    def quantile(self, share: float) -> float | None:
        """None if it is empty; beyond the last finite bound, that bound, as Prometheus has it."""
        return self.limit(share, beyond_last=None) if self.weight else None

    def limit(self, share: float, *, beyond_last: float | None) -> float:
        """The value that this share of the values lies below; within a bucket as if they lay evenly in it.

        beyond_last: where the value is in the bucket without an upper bound; None: where that bucket begins.
        """
        rank, lower, below = share * self.weight, 0.0, 0.0
        for bound, count in self.buckets:
            if count and below + count >= rank:
                if math.isinf(bound):
                    return lower if beyond_last is None else beyond_last
                return lower + (bound - lower) * max(0.0, rank - below) / count
            below += count
            lower = lower if math.isinf(bound) else bound
        return lower

    def below(self, value: float) -> float:
        """How many values lie below."""
        lower, weight = 0.0, 0.0
        for bound, count in self.buckets:
            if value >= bound:
                weight += count
            elif value > lower and not math.isinf(bound):
                weight += count * (value - lower) / (bound - lower)
            lower = bound
        return weight


@dataclass(frozen=True)
class Counts:
    """errors: weighted by requests. loaded: requests that ended while others waited, and the seconds of it.

    cost: in USD. reported_…: of the whole deployment. partial_…: of a part. reported_throughput: while
    requests waited, in requests a second.
    """

    errors: Sum = Sum()
    cost: Sum = Sum()
    latency_ms: Histogram = field(default_factory=Histogram)
    loaded: Sum = Sum()
    reported_errors: Sum = Sum()
    reported_cost: Sum = Sum()
    reported_latency_ms: Histogram = field(default_factory=Histogram)
    reported_throughput: Sum = Sum()
    accuracy: Sum = Sum()
    quality: Sum = Sum()
    partial_errors: Sum = Sum()
    partial_cost: Sum = Sum()
    partial_latency_ms: Histogram = field(default_factory=Histogram)

    def __add__(self, other: Counts) -> Counts:
        if _NONE in {self, other}:
            return other if self == _NONE else self
        return Counts(
            *(getattr(self, column.name) + getattr(other, column.name) for column in fields(Counts))
        )

    @property
    def requests(self) -> float:
        """By the source that has more."""
        sources = (self.errors, self.reported_errors, self.partial_errors, self.quality, self.accuracy)
        return max(source.weight for source in sources)


_NONE: Final = Counts()


def total(parts: Iterable[Counts]) -> Counts:
    return sum(parts, Counts())


def between(
    before: Measured,
    after: Measured,
    elapsed: timedelta,
    *,
    replicas: int = 0,
    replica_hour_usd: float | None = None,
) -> Counts:
    """What one revision's replicas counted between two looks; replicas: how many there were in between.

    Nothing where that is unknown: a counter fell, since a replica was started again or is gone; or another
    set of replicas answered, whose older requests would seem new.
    """
    old, new = (
        (
            measured.requests,
            measured.errors,
            measured.tokens,
            *(measured.latency_ms.get(bound, 0) for bound in sorted(after.latency_ms)),
        )
        for measured in (before, after)
    )
    if before.missing_replicas != after.missing_replicas or any(a > b for a, b in zip(old, new, strict=True)):
        return Counts()
    requests = after.requests - before.requests
    hours = elapsed / timedelta(hours=1)
    is_loaded = bool(before.waiting) and bool(after.waiting)
    latency = {bound: count - before.latency_ms.get(bound, 0) for bound, count in after.latency_ms.items()}
    return Counts(
        errors=Sum(min(after.errors - before.errors, requests), requests),
        cost=Sum(hours * replicas * replica_hour_usd, requests) if replica_hour_usd is not None else Sum(),
        latency_ms=Histogram.of_cumulative(latency),
        loaded=Sum(requests, elapsed.total_seconds()) if is_loaded else Sum(),
    )


def reported(sample: Sample, *, is_loaded: bool = False) -> Counts:
    """is_loaded: whether requests waited at the time, so that a low throughput means something; that of a
    part never does.

    A mean latency of several requests counts as that of each of them, which hides their tail: a router that
    wants its 95th percentile to be true reports requests one by one.
    """
    requests = sample.requests

    def of(value: float | None) -> Sum:
        return Sum() if value is None else Sum(value * requests, requests)

    accuracy, quality = of(sample.accuracy), of(sample.judged_quality)
    errors, cost = of(sample.error_rate), of(sample.cost_per_request)
    latency = Histogram() if sample.latency_ms is None else Histogram.of_value(sample.latency_ms, requests)
    if not sample.covers_deployment:
        return Counts(
            accuracy=accuracy,
            quality=quality,
            partial_errors=errors,
            partial_cost=cost,
            partial_latency_ms=latency,
        )
    return Counts(
        accuracy=accuracy,
        quality=quality,
        reported_errors=errors,
        reported_cost=cost,
        reported_latency_ms=latency,
        reported_throughput=of(sample.throughput_rps) if is_loaded else Sum(),
    )
