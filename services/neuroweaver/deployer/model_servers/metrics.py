"""What the model servers' `/metrics` pages count, summed over a revision's pods. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from neuroweaver.deployer.domain.backend import Measured
from neuroweaver.deployer.domain.metrics.measurement import known_sum

_MS: Final = 1000.0


@dataclass(frozen=True)
class Names:
    """What a model server calls its metrics. errors: empty where `requests` counts successes alone, and
    failures are counted by the status of HTTP_REQUESTS.
    """

    requests: str
    errors: str
    tokens: str
    running: str
    waiting: str
    latency: str
    first_token: str


OWN: Final = Names(
    requests="neuroweaver_serving_requests_total",
    errors="neuroweaver_serving_errors_total",
    tokens="neuroweaver_serving_tokens_total",
    running="neuroweaver_serving_requests_running",
    waiting="neuroweaver_serving_requests_waiting",
    latency="neuroweaver_serving_request_duration_seconds",
    first_token="neuroweaver_serving_first_token_seconds",
)
VLLM: Final = Names(
    requests="vllm:request_success_total",
    errors="",
    tokens="vllm:generation_tokens_total",
    running="vllm:num_requests_running",
    waiting="vllm:num_requests_waiting",
    latency="vllm:e2e_request_latency_seconds",
    first_token="vllm:time_to_first_token_seconds",
)
HTTP_REQUESTS: Final = "http_requests_total"
_MEMORY: Final = "process_resident_memory_bytes"


class NoMetrics(ValueError):
    """The page is not a model server's."""


@dataclass(frozen=True)
class Page:
    """One replica's metrics: by name, over all labels; histograms by upper bound in milliseconds."""

    requests: int
    errors: int
    tokens: int
    running: float
    waiting: float
    latency_ms: Mapping[float, int]
    first_token_ms: Mapping[float, int]
    memory_bytes: int | None


def page(text: str) -> Page:
    """Raises NoMetrics."""
    sums: dict[str, float] = {}
    buckets: dict[str, dict[float, float]] = {}
    failed = 0.0
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
                if sample.name.endswith("_bucket") and "le" in sample.labels:
                    bound = float(sample.labels["le"])
                    of = buckets.setdefault(sample.name, {})
                    of[bound] = of.get(bound, 0.0) + sample.value
                if sample.name == HTTP_REQUESTS and sample.labels.get("status", "").startswith("5"):
                    failed += sample.value
    except ValueError as error:
        raise NoMetrics(str(error)) from error
    for names in (OWN, VLLM):
        if names.running in sums or names.requests in sums:
            errors = sums.get(names.errors, 0.0) if names.errors else failed
            succeeded = sums.get(names.requests, 0.0)
            memory = sums.get(_MEMORY)
            return Page(
                # vLLM counts successes by themselves.
                requests=round(succeeded if names.errors else succeeded + errors),
                errors=round(errors),
                tokens=round(sums.get(names.tokens, 0.0)),
                running=sums.get(names.running, 0.0),
                waiting=sums.get(names.waiting, 0.0),
                latency_ms=_milliseconds(buckets.get(f"{names.latency}_bucket", {})),
                first_token_ms=_milliseconds(buckets.get(f"{names.first_token}_bucket", {})),
                memory_bytes=None if memory is None else round(memory),
            )
    raise NoMetrics("it counts no requests")


def measured(
    revision: int,
    pages: Iterable[Page],
    missing: Iterable[str],
    cpu_cores: float | None = None,
    memory_bytes: int | None = None,
) -> Measured:
    """cpu_cores, memory_bytes: from the cluster's own measurements, where it has them."""
    known = list(pages)
    return Measured(
        revision=revision,
        requests=sum(page.requests for page in known),
        errors=sum(page.errors for page in known),
        tokens=sum(page.tokens for page in known),
        running=known_sum(page.running for page in known),
        waiting=known_sum(page.waiting for page in known),
        latency_ms=_summed(page.latency_ms for page in known),
        first_token_ms=_summed(page.first_token_ms for page in known),
        cpu_cores=cpu_cores,
        memory_bytes=known_sum(page.memory_bytes for page in known) if memory_bytes is None else memory_bytes,
        missing_replicas=tuple(sorted(missing)),
    )


def _milliseconds(buckets: Mapping[float, float]) -> dict[float, int]:
    return {
        (bound if math.isinf(bound) else round(bound * _MS, 6)): round(count)
        for bound, count in sorted(buckets.items())
    }


def _summed(histograms: Iterable[Mapping[float, int]]) -> dict[float, int]:
    """Where pods have other bounds, only those that all have: a sum over some would not be cumulative."""
    known = [each for each in histograms if each]
    if not known:
        return {}
    common = set.intersection(*(set(each) for each in known))
    return {bound: sum(each[bound] for each in known) for bound in sorted(common)}
