"""What Prometheus reads of a router. No prompts, no answers, no conversations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from neuroweaver.deployer.routing.counts import Counts, Histogram

_PREFIX: Final = "neuroweaver_router"

WAITING: Final = f"{_PREFIX}_requests_waiting"
"""Requests for a deployment that sleeps: what wakes it."""


class Metrics(Collector):
    """counts: by revision. waiting: how many requests wait. Both are read anew for every page."""

    def __init__(self, counts: Mapping[int, Counts], waiting: Callable[[], int]) -> None:
        self._counts = counts
        self._waiting = waiting
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(self)

    def page(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from families(
            ("revision",), [((str(revision),), counts) for revision, counts in sorted(self._counts.items())]
        )
        yield GaugeMetricFamily(
            WAITING, "Requests that wait for a replica of a deployment without any.", value=self._waiting()
        )


def families(labels: Sequence[str], counted: Iterable[tuple[Sequence[str], Counts]]) -> Iterator[Metric]:
    """What was counted, each with the values of the labels."""
    requests = CounterMetricFamily(f"{_PREFIX}_requests", "Requests that ended, by revision.", labels=labels)
    errors = CounterMetricFamily(
        f"{_PREFIX}_errors", "Requests that failed by the revision's fault.", labels=labels
    )
    turned_away = CounterMetricFamily(
        f"{_PREFIX}_turned_away",
        "Requests that the revision had no room for (429), which are not among the others.",
        labels=labels,
    )
    duration = HistogramMetricFamily(
        f"{_PREFIX}_request_duration_seconds", "To the end of an answer.", labels=labels
    )
    first_token = HistogramMetricFamily(
        f"{_PREFIX}_first_token_seconds", "To the first token of a stream.", labels=labels
    )
    for values, counts in counted:
        requests.add_metric(values, counts.requests)
        errors.add_metric(values, counts.errors)
        turned_away.add_metric(values, counts.turned_away)
        duration.add_metric(values, _buckets(counts.latency), counts.latency.sum_ms / 1000)
        first_token.add_metric(values, _buckets(counts.first_token), counts.first_token.sum_ms / 1000)
    yield from (requests, errors, turned_away, duration, first_token)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    return [
        ("+Inf" if math.isinf(bound) else f"{bound / 1000:g}", float(count))
        for bound, count in histogram.cumulative().items()
    ]
