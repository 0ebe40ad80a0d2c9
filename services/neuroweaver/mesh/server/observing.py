"""How an RPC went: a span, a line in the access log, metrics."""

from __future__ import annotations

import logging
import time
from typing import Any, ClassVar, Final
from weakref import WeakKeyDictionary

import grpc
from google.protobuf.message import Message
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from neuroweaver.mesh.server.logs import ACCESS
from neuroweaver.mesh.server.redaction import redacted
from neuroweaver.mesh.server.stack import Method, Proceed, Rpc
from neuroweaver.mesh.wire import telemetry

_ACCESS: Final = logging.getLogger(ACCESS)


# The codes that say the server is at fault, by OpenTelemetry's conventions for server spans.
_SERVER_FAULTS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


async def traced(rpc: Rpc, proceed: Proceed) -> Any:
    """A server span, continuing the caller's trace."""
    if rpc.method.is_probe:
        return await proceed(rpc)
    span = telemetry.tracer.start_span(
        rpc.method.full_name,
        context=telemetry.from_metadata(rpc.context.invocation_metadata()),
        kind=trace.SpanKind.SERVER,
        attributes={"rpc.system.name": "grpc", "rpc.method": rpc.method.full_name},
    )
    token = otel_context.attach(trace.set_span_in_context(span))
    try:
        return await proceed(rpc)
    finally:
        if span.is_recording():
            span.set_attribute("rpc.response.status_code", rpc.code.name)
            if rpc.code in _SERVER_FAULTS:
                span.set_attribute(ERROR_TYPE, rpc.code.name)
                span.set_status(trace.StatusCode.ERROR, rpc.refusal.description if rpc.refusal else None)
        span.end()
        otel_context.detach(token)


async def logged(rpc: Rpc, proceed: Proceed) -> Any:
    """One line an RPC, when it has ended."""
    started = time.perf_counter()
    try:
        return await proceed(rpc)
    finally:
        level = logging.DEBUG if rpc.method.is_probe else logging.INFO
        if _ACCESS.isEnabledFor(level):
            fields: dict[str, Any] = {
                "method": rpc.method.full_name,
                "code": rpc.code.name,
                "duration_ms": round((time.perf_counter() - started) * 1000, 3),
                "peer": rpc.context.peer(),
            }
            if rpc.refusal:
                fields["reason"] = rpc.refusal.reason
            _ACCESS.log(level, "rpc", extra=fields)


def log_request(method: Method, message: Message) -> None:
    """The request itself, for debugging; without what looks like a secret."""
    _ACCESS.debug("request", extra={"method": method.full_name, "request": redacted(message)})


class Metrics:
    """How many RPCs, how long they took (a stream: how long it was open), how many are under way."""

    _by_registry: ClassVar[WeakKeyDictionary[CollectorRegistry, Metrics]] = WeakKeyDictionary()

    @classmethod
    def of(cls, registry: CollectorRegistry) -> Metrics:
        """The registry's own: two servers of one process count together."""
        if registry not in cls._by_registry:
            cls._by_registry[registry] = cls(registry)
        return cls._by_registry[registry]

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("method", "code")
        self._handled = Counter("neuroweaver_rpcs", "RPCs that have ended.", labels, registry=registry)
        self._duration = Histogram(
            "neuroweaver_rpc_duration_seconds",
            "Time from an RPC's first byte to its status.",
            ("method",),
            registry=registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600),
        )
        self._in_flight = Gauge(
            "neuroweaver_rpcs_in_flight", "RPCs under way.", ("method",), registry=registry
        )

        # Looking a series up by its labels costs more than counting in it.
        self._series: dict[str, tuple[Gauge, Histogram]] = {}
        self._ended: dict[tuple[str, grpc.StatusCode], Counter] = {}

    async def counted(self, rpc: Rpc, proceed: Proceed) -> Any:
        name = rpc.method.full_name
        series = self._series.get(name)
        if series is None:
            series = self._series[name] = self._in_flight.labels(name), self._duration.labels(name)
        in_flight, duration = series
        in_flight.inc()
        started = time.perf_counter()
        try:
            return await proceed(rpc)
        finally:
            duration.observe(time.perf_counter() - started)
            ended = self._ended.get((name, rpc.code))
            if ended is None:
                ended = self._ended[name, rpc.code] = self._handled.labels(name, rpc.code.name)
            ended.inc()
            in_flight.dec()
