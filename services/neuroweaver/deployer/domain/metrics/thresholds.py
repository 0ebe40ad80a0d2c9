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

from neuroweaver.deployer.domain.metrics.counts import Counts, Sum
from neuroweaver.v1 import deployer_pb2 as pb

PERCENTILE: Final = 0.95


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


@dataclass(frozen=True)
class _Threshold:
    field: str
    is_least: bool
    value: Callable[[Counts], tuple[float | None, float]]
    name: str
    shown: Callable[[float], str]
    when: str = ""


def _outside(reported: Sum, counted: Sum) -> tuple[float | None, float]:
    """A mean and its weight: as reported if it was, since a router also sees what never reached a replica."""
    used = reported if reported.weight else counted
    return used.mean, used.weight


def _latency(counts: Counts) -> tuple[float | None, float]:
    used = counts.reported_latency_ms if counts.reported_latency_ms.weight else counts.latency_ms
    return used.quantile(PERCENTILE), used.weight


def _throughput(counts: Counts) -> tuple[float | None, float]:
    """Under load alone."""
    if counts.reported_throughput.weight:
        return counts.reported_throughput.mean, counts.reported_throughput.weight
    return counts.loaded.mean, counts.loaded.total


_THRESHOLDS: Final[Mapping[pb.ThresholdKind.ValueType, _Threshold]] = {
    pb.THRESHOLD_KIND_ACCURACY: _Threshold(
        "min_accuracy",
        True,
        lambda counts: (counts.accuracy.mean, counts.accuracy.weight),
        "accuracy",
        lambda value: f"{value:.3f}",
    ),
    pb.THRESHOLD_KIND_LATENCY: _Threshold(
        "max_latency_ms", False, _latency, "p95 latency", lambda value: f"{value:.0f} ms"
    ),
    pb.THRESHOLD_KIND_THROUGHPUT: _Threshold(
        "min_throughput_rps",
        True,
        _throughput,
        "throughput",
        lambda value: f"{value:.3g} requests a second",
        " under load",
    ),
    pb.THRESHOLD_KIND_COST: _Threshold(
        "max_cost_per_request",
        False,
        lambda counts: _outside(counts.reported_cost, counts.cost),
        "cost per request",
        lambda value: f"{value:.6g} USD",
    ),
    pb.THRESHOLD_KIND_ERROR_RATE: _Threshold(
        "max_error_rate",
        False,
        lambda counts: _outside(counts.reported_errors, counts.errors),
        "error rate",
        lambda value: f"{100 * value:.2f} %",
    ),
}


def evaluated(
    before: Sequence[ThresholdState], policy: pb.ModelThresholds, counts: Counts, now: datetime
) -> tuple[ThresholdState, ...]:
    """Every threshold now. counts: of the policy's window. before: as they stood at the last look."""
    earlier = {state.kind: state for state in before}
    patience = policy.window.ToTimedelta() / 4
    return tuple(
        _evaluated(kind, threshold, earlier.get(kind), policy, counts, patience, now)
        for kind, threshold in _THRESHOLDS.items()
    )


def described(state: ThresholdState) -> str:
    """In words, such as for a reason: what it is, and what it should be."""
    threshold = _THRESHOLDS[state.kind]
    word = "at least" if threshold.is_least else "at most"
    limit = f"{word} {threshold.shown(state.limit)}"
    if state.value is None:
        return f"the {threshold.name}, {limit}, was broken recently"
    return f"{threshold.name} of {threshold.shown(state.value)}{threshold.when}, not {limit}"


def _evaluated(
    kind: pb.ThresholdKind.ValueType,
    threshold: _Threshold,
    before: ThresholdState | None,
    policy: pb.ModelThresholds,
    counts: Counts,
    patience: timedelta,
    now: datetime,
) -> ThresholdState:
    limit = getattr(policy, threshold.field)
    value, requests = threshold.value(counts)
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
