"""Which thresholds a deployment breaks, and since when.

A threshold breaks as soon as the values of the window, of enough requests, are beyond it. It is kept again
once they were not beyond it, or too few to say, for a quarter of the window without a break: so neither a
value that hovers at its limit nor traffic that hovers at the least number of requests makes it flap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from neuroweaver.deployer.domain.metrics.counts import Counts, Histogram, Sum
from neuroweaver.v1 import deployer_pb2 as pb

PERCENTILE: Final = 0.95
DEFAULT_WINDOW: Final = timedelta(minutes=5)
DEFAULT_MIN_REQUESTS: Final = 30


@dataclass(frozen=True)
class ThresholdState:
    """value: over the window; None without enough data. requests: that it rests on.

    kept_since: of one that is still called broken: since when it is not beyond the limit any more.
    """

    kind: pb.ThresholdKind.ValueType
    limit: float
    value: float | None = None
    is_breached: bool = False
    breach_time: datetime | None = None
    requests: int = 0
    kept_since: datetime | None = None

    def message(self) -> pb.ThresholdStatus:
        found = pb.ThresholdStatus(
            kind=self.kind,
            limit=self.limit,
            value=self.value,
            is_breached=self.is_breached,
            requests=self.requests,
        )
        if self.breach_time is not None:
            found.breach_time.FromDatetime(self.breach_time)
        return found


@dataclass(frozen=True)
class _Threshold:
    field: str
    default: float
    is_least: bool
    value: Callable[[Counts], tuple[float | None, float]]
    told: Callable[[float], str]


def _outside(reported: Sum, counted: Sum) -> tuple[float | None, float]:
    """A mean and its weight: as reported if it was, since a router also sees what never reached a replica."""
    used = reported if reported.weight else counted
    return used.mean, used.weight


def _latency(found: Counts) -> tuple[float | None, float]:
    used: Histogram = found.reported_latency_ms if found.reported_latency_ms.weight else found.latency_ms
    return used.quantile(PERCENTILE), used.weight


def _throughput(found: Counts) -> tuple[float | None, float]:
    """Under load alone."""
    if found.reported_throughput.weight:
        return found.reported_throughput.mean, found.reported_throughput.weight
    return found.loaded.mean, found.loaded.total


_THRESHOLDS: Final[Mapping[pb.ThresholdKind.ValueType, _Threshold]] = {
    pb.THRESHOLD_KIND_ACCURACY: _Threshold(
        "min_accuracy",
        0.85,
        True,
        lambda found: (found.accuracy.mean, found.accuracy.weight),
        lambda value: f"accuracy of {value:.3f}",
    ),
    pb.THRESHOLD_KIND_LATENCY: _Threshold(
        "max_latency_ms", 2000.0, False, _latency, lambda value: f"p95 latency of {value:.0f} ms"
    ),
    pb.THRESHOLD_KIND_THROUGHPUT: _Threshold(
        "min_throughput_rps",
        10.0,
        True,
        _throughput,
        lambda value: f"throughput of {value:.3g} requests a second under load",
    ),
    pb.THRESHOLD_KIND_COST: _Threshold(
        "max_cost_per_request",
        0.01,
        False,
        lambda found: _outside(found.reported_cost, found.cost),
        lambda value: f"cost per request of {value:.6g} USD",
    ),
    pb.THRESHOLD_KIND_ERROR_RATE: _Threshold(
        "max_error_rate",
        0.05,
        False,
        lambda found: _outside(found.reported_errors, found.errors),
        lambda value: f"error rate of {100 * value:.2f} %",
    ),
}


def completed(policy: pb.ModelThresholds) -> pb.ModelThresholds:
    """With every default filled in."""
    found = pb.ModelThresholds()
    found.CopyFrom(policy)
    for threshold in _THRESHOLDS.values():
        if not _has(policy, threshold.field):
            setattr(found, threshold.field, threshold.default)
    if not policy.HasField("window"):
        found.window.FromTimedelta(DEFAULT_WINDOW)
    if not policy.HasField("min_requests"):
        found.min_requests = DEFAULT_MIN_REQUESTS
    return found


def evaluated(
    before: Sequence[ThresholdState], policy: pb.ModelThresholds, found: Counts, now: datetime
) -> tuple[ThresholdState, ...]:
    """Every threshold as it stands. found: of the policy's window. before: as they stood at the last look."""
    policy = completed(policy)
    known = {each.kind: each for each in before}
    patience = policy.window.ToTimedelta() / 4
    return tuple(
        _evaluated(kind, threshold, known.get(kind), policy, found, patience, now)
        for kind, threshold in _THRESHOLDS.items()
    )


def told(state: ThresholdState) -> str:
    """In words, such as for a reason: what it is, and what it should be."""
    threshold = _THRESHOLDS[state.kind]
    word = "at least" if threshold.is_least else "at most"
    limit = threshold.told(state.limit).split(" of ", 1)[1].removesuffix(" under load")
    if state.value is None:
        return (
            f"the {threshold.told(state.limit).split(' of ', 1)[0]}, {word} {limit}, was broken a while ago"
        )
    return f"{threshold.told(state.value)}, not {word} {limit}"


def _evaluated(
    kind: pb.ThresholdKind.ValueType,
    threshold: _Threshold,
    before: ThresholdState | None,
    policy: pb.ModelThresholds,
    found: Counts,
    patience: timedelta,
    now: datetime,
) -> ThresholdState:
    limit = getattr(policy, threshold.field)
    value, requests = threshold.value(found)
    state = ThresholdState(
        kind, limit, value if requests >= policy.min_requests else None, requests=round(requests)
    )
    since = before.breach_time if before is not None and before.limit == limit else None
    if state.value is not None and (state.value < limit if threshold.is_least else state.value > limit):
        return replace(state, is_breached=True, breach_time=since or now)
    if since is None or before is None:
        return state
    kept_since = before.kept_since or now
    if now - kept_since >= patience:
        return state
    return replace(state, is_breached=True, breach_time=since, kept_since=kept_since)


def _has(policy: pb.ModelThresholds, field: str) -> bool:
    return any(descriptor.name == field for descriptor, _ in policy.ListFields())
