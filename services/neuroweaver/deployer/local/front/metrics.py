"""What Prometheus reads, on the deployer's page, of the router of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import REGISTRY
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from neuroweaver.deployer.local.routes import Report
from neuroweaver.deployer.routing.metrics import families


class _RouterMetrics(Collector):
    def __init__(self, reports: Callable[[], Mapping[str, Report]]) -> None:
        self._reports = reports

    def describe(self) -> list[Metric]:
        return []  # asked for at once otherwise, when there is no router yet

    def collect(self) -> Iterator[Metric]:
        counted = [
            ((name, str(revision)), counts)
            for name, report in sorted(self._reports().items())
            for revision, counts in sorted(report.counts.items())
        ]
        yield from families(("deployment", "revision"), counted)


@contextmanager
def shown(reports: Callable[[], Mapping[str, Report]]) -> Iterator[None]:
    """reports: by resource name, read anew for every page."""
    collector = _RouterMetrics(reports)
    REGISTRY.register(collector)
    try:
        yield
    finally:
        REGISTRY.unregister(collector)
