"""What Prometheus reads. No prompts, no answers."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120, 300)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = self._counter(
            "requests", "Requests for an answer that ended, by HTTP status.", "code"
        )
        self.errors = self._counter("errors", "Requests that failed by a fault of this server.")
        self.tokens = self._counter("tokens", "Tokens generated.")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of the prompts taken in.")
        self.duration = self._histogram(
            "request_duration_seconds", "From a request to the end of its answer."
        )
        self.first_token = self._histogram("first_token_seconds", "From a request to its first token.")

    def watch(
        self,
        running: Callable[[], float],
        waiting: Callable[[], float],
        last_token_time: Callable[[], float | None],
    ) -> None:
        """Gauges that are read when they are asked for."""
        self._gauge("requests_running", "Requests that are computed now.", running)
        self._gauge("requests_waiting", "Requests that wait for a place in the batch.", waiting)
        self._gauge(
            "last_token_timestamp_seconds",
            "When the last token was made, in Unix time; 0 before the first.",
            lambda: last_token_time() or 0,
        )

    def page(self) -> bytes:
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"neuroweaver_serving_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"neuroweaver_serving_{name}", text, buckets=_SECONDS, registry=self.registry)

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        Gauge(f"neuroweaver_serving_{name}", text, registry=self.registry).set_function(read)
