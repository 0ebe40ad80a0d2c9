"""What every service does around an RPC: errors, tracing, access log, metrics, drain, deadline, validation.

Each concern is a layer or a check on `rpc.Stack`; `server_interceptor` puts them in order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final
from weakref import WeakKeyDictionary

import grpc
import protovalidate
from google.protobuf.message import Message
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.mesh import database, telemetry
from neuroweaver.mesh.errors import DeadlineExceeded, Error, Internal, InvalidArgument, Unavailable
from neuroweaver.mesh.ids import new_id
from neuroweaver.mesh.logs import ACCESS
from neuroweaver.mesh.redaction import redacted
from neuroweaver.mesh.rpc import Layer, Method, Proceed, Rpc, Stack

_ERRORS: Final = logging.getLogger("neuroweaver.errors")
_ACCESS: Final = logging.getLogger(ACCESS)

# Asked every few seconds by probes and tools: counted, yet neither traced nor in the access log.
_QUIET: Final = ("grpc.health.", "grpc.reflection.")

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


def server_interceptor(
    drain: Drain, *, deadline_s: float, debug: bool = False, registry: CollectorRegistry = REGISTRY
) -> Stack:
    """The one interceptor of a server."""
    return Stack(
        translate=translate,
        observers=(traced, logged, Metrics.of(registry).counted),
        guards=(drain.ending, deadline(deadline_s)),
        checks=(validated, log_request) if debug else (validated,),
    )


def translate(method: Method, error: Exception) -> Error:
    """What the caller reads. An exception that nobody foresaw is logged whole and not told."""
    if isinstance(error, Error):
        return error
    if isinstance(error, SQLAlchemyError) and (told := database.as_error(error)):
        _ERRORS.warning("database refused", extra={"method": method.full_name, "cause": type(error).__name__})
        return told
    if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.UNAVAILABLE:
        _ERRORS.warning("a needed service is unavailable", exc_info=error, extra={"method": method.full_name})
        return Unavailable("a service that this one needs is unavailable")
    trace_id = telemetry.current_trace_id() or new_id()
    _ERRORS.error(
        "unexpected exception", exc_info=error, extra={"method": method.full_name, "trace_id": trace_id}
    )
    return Internal(trace_id)


async def traced(rpc: Rpc, proceed: Proceed) -> Any:
    """A server span, continuing the caller's trace."""
    if _is_quiet(rpc.method):
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
        level = logging.DEBUG if _is_quiet(rpc.method) else logging.INFO
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


class Drain:
    """Ends open watches when the server stops, so that their clients resume elsewhere.

    A watch is a server stream whose name begins with Watch, or a stream in both directions: resumable by
    contract, and without an end of its own. All other calls get the grace period of the server's stop.
    """

    def __init__(self) -> None:
        self._watches: set[asyncio.Timeout] = set()
        self._begun = False

    def begin(self) -> None:
        self._begun = True
        now = asyncio.get_running_loop().time()
        for watch in self._watches:
            watch.reschedule(now)

    async def ending(self, rpc: Rpc, proceed: Proceed) -> Any:
        if not _is_watch(rpc.method):
            return await proceed(rpc)
        if self._begun:
            raise _stopping()
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._watches.add(scope)
                try:
                    return await proceed(rpc)
                finally:
                    self._watches.discard(scope)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise _stopping() from error


def _is_watch(method: Method) -> bool:
    return method.is_response_stream and (method.is_request_stream or method.name.startswith("Watch"))


def deadline(default_s: float) -> Layer:
    """Stops a call at its deadline. A unary call without one gets `default_s`; a stream stays open."""
    overdue = _Overdue(default_s)

    async def bounded(rpc: Rpc, proceed: Proceed) -> Any:
        given: float | None = rpc.context.time_remaining()
        if given is None and (rpc.method.is_request_stream or rpc.method.is_response_stream):
            return await proceed(rpc)
        scope = asyncio.timeout(given)
        try:
            async with scope:
                if given is not None:
                    return await proceed(rpc)
                with overdue.watching(scope):
                    return await proceed(rpc)
        except TimeoutError as error:
            if not scope.expired():
                raise
            left = default_s if given is None else given
            raise DeadlineExceeded(f"the call was not done in {left:.3g} s") from error

    return bounded


class _Overdue:
    """Ends scopes that are open for too long.

    One look at all of them now and then is cheaper than a timer for each, and the default deadline need not
    hold to the millisecond.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._period_s = min(1.0, after_s / 10)
        # By the time at which they end, since all get as long.
        self._ends: dict[asyncio.Timeout, float] = {}
        self._is_looking = False

    @contextmanager
    def watching(self, scope: asyncio.Timeout) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        self._ends[scope] = loop.time() + self._after_s
        if not self._is_looking:
            self._is_looking = True
            loop.call_later(self._period_s, self._look, loop)
        try:
            yield
        finally:
            self._ends.pop(scope, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for scope, end in list(self._ends.items()):
            if end > now:
                break
            del self._ends[scope]
            scope.reschedule(now)
        self._is_looking = bool(self._ends)
        if self._is_looking:
            loop.call_later(self._period_s, self._look, loop)


_VALIDATOR: Final = protovalidate.Validator()


def validated(_method: Method, message: Message) -> None:
    """Refuses a message that breaks the rules of its .proto file."""
    found = _VALIDATOR.collect_violations(message)
    if found:
        raise InvalidArgument.of(
            (_path(violation.proto.field), violation.proto.message or violation.proto.rule_id)
            for violation in found
        )


def _path(field: Any) -> str:
    """`config.layers[2].rate`, `labels["a"]`; empty for a rule about the message as a whole."""
    path = ""
    for element in field.elements if field else ():
        dot = "." if path else ""
        path += f"{dot}{element.field_name}"
        if element.subscript is not None:
            key = element.subscript.value
            path += f'["{key}"]' if isinstance(key, str) else f"[{key}]"
    return path


def _is_quiet(method: Method) -> bool:
    return method.full_name.startswith(_QUIET)


def _stopping() -> Unavailable:
    return Unavailable("the server is stopping; resume after the last sequence seen", retry_after_s=1.0)
