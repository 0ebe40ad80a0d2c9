"""What was measured over a time: differences of counters, and what routers reported."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from typing import TypeVar

from neuroweaver.deployer.domain.backend import Measured
from neuroweaver.deployer.domain.metrics.counts import Histogram, Sample

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Tally:
    """What a revision's replicas had counted at a moment. replicas: how many there were to tell."""

    time: datetime
    measured: Measured
    replicas: int = 0


@dataclass(frozen=True)
class Measurements:
    """What was measured over a time, of one revision or of all. seconds: of it, those that were measured."""

    seconds: float = 0.0
    replica_seconds: float = 0.0
    requests: int = 0
    errors: int = 0
    tokens: int = 0
    latency_ms: Histogram = field(default_factory=Histogram)
    first_token_ms: Histogram = field(default_factory=Histogram)
    last: tuple[Measured, ...] = ()
    samples: tuple[Sample, ...] = ()

    @property
    def missing_replicas(self) -> tuple[str, ...]:
        return tuple(
            sorted({replica_id for measured in self.last for replica_id in measured.missing_replicas})
        )

    def mean(self, name: str, *, of_whole: bool = False) -> float | None:
        """Of what was reported, weighted by requests. of_whole: only by those who measured all requests."""
        reports = [
            (getattr(sample, name), sample.requests)
            for sample in self.samples
            if sample.covers_deployment or not of_whole
        ]
        known = [(value, requests) for value, requests in reports if value is not None]
        total = sum(requests for _, requests in known)
        return sum(value * requests for value, requests in known) / total if total else None

    def cost_per_request(self, replica_hour_usd: float | None) -> float | None:
        """From the price of a replica's hour, else as reported: by those who measured all, if any did."""
        if replica_hour_usd is not None and self.requests:
            return replica_hour_usd * self.replica_seconds / 3600 / self.requests
        whole = self.mean("cost_per_request", of_whole=True)
        return self.mean("cost_per_request") if whole is None else whole


def windows(
    tallies: Sequence[Tally], samples: Sequence[Sample], served_by: Callable[[str], int]
) -> dict[int, Measurements]:
    """By revision. tallies: in order of time. served_by: the revision of a version; 0: of none."""
    by_revision: dict[int, list[Tally]] = defaultdict(list)
    for tally in tallies:
        by_revision[tally.measured.revision].append(tally)
    counted = {revision: _counted(own) for revision, own in by_revision.items()}
    reported: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        if revision := served_by(sample.version):
            reported[revision].append(sample)
    return counted | {
        revision: replace(counted.get(revision, Measurements()), samples=tuple(own))
        for revision, own in reported.items()
    }


def total(parts: Iterable[Measurements]) -> Measurements:
    """Over all revisions."""
    parts = list(parts)
    return Measurements(
        seconds=max((part.seconds for part in parts), default=0.0),
        replica_seconds=sum(part.replica_seconds for part in parts),
        requests=sum(part.requests for part in parts),
        errors=sum(part.errors for part in parts),
        tokens=sum(part.tokens for part in parts),
        latency_ms=sum((part.latency_ms for part in parts), Histogram()),
        first_token_ms=sum((part.first_token_ms for part in parts), Histogram()),
        last=tuple(measured for part in parts for measured in part.last),
        samples=tuple(sample for part in parts for sample in part.samples),
    )


def _counted(tallies: Sequence[Tally]) -> Measurements:
    window = Measurements(last=(tallies[-1].measured,))
    latency: dict[float, int] = defaultdict(int)
    first_token: dict[float, int] = defaultdict(int)
    for before, after in pairwise(tallies):
        old, new = before.measured, after.measured
        seconds = (after.time - before.time).total_seconds()
        # A sum that fell lost a replica's counts: what the others did in between cannot be told from it.
        if new.requests < old.requests or new.errors < old.errors or new.tokens < old.tokens:
            continue
        _add(latency, old.latency_ms, new.latency_ms)
        _add(first_token, old.first_token_ms, new.first_token_ms)
        window = replace(
            window,
            seconds=window.seconds + seconds,
            replica_seconds=window.replica_seconds + seconds * after.replicas,
            requests=window.requests + new.requests - old.requests,
            errors=window.errors + new.errors - old.errors,
            tokens=window.tokens + new.tokens - old.tokens,
        )
    return replace(
        window,
        latency_ms=Histogram.of_cumulative(latency),
        first_token_ms=Histogram.of_cumulative(first_token),
    )


def _add(into: dict[float, int], old: Mapping[float, int], new: Mapping[float, int]) -> None:
    for bound, count in new.items():
        into[bound] += max(0, count - old.get(bound, 0))


def known_sum(values: Iterable[N | None]) -> N | None:
    """None if none is known."""
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if known else None
