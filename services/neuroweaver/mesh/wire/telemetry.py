"""Traces and metrics: where spans go, and how a trace crosses to another process.

The context is W3C's `traceparent` and `tracestate`: in the metadata of a call, and in the environment of a
process that is started for a job (as TRACEPARENT and TRACESTATE).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

_FIELDS: Final = ("traceparent", "tracestate")
_PROPAGATOR: Final = TraceContextTextMapPropagator()

tracer: Final = trace.get_tracer("neuroweaver")
"""Makes spans through whichever provider `start` sets; before that, spans that go nowhere."""


def start(service: str, otlp_endpoint: str = "", processors: Sequence[SpanProcessor] = ()) -> TracerProvider:
    """Sets the process's tracer provider and gives it; `shutdown()` of it sends what is left.

    otlp_endpoint: where OTLP over gRPC is received; empty: nothing is exported, ids are made all the same. A
    trace that begins where nobody looks at spans is marked as not sampled, and one that comes in goes on as
    its caller marked it.
    """
    # A client that starts no traces needs no SDK, and whoever sends none needs no exporter.
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_NAMESPACE, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased  # noqa: PLC0415

    is_looked_at = bool(otlp_endpoint) or bool(processors)
    provider = TracerProvider(
        sampler=None if is_looked_at else ParentBased(ALWAYS_OFF),
        resource=Resource.create({SERVICE_NAME: service, SERVICE_NAMESPACE: "neuroweaver"}),
    )
    if otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=otlp_endpoint)))
    for processor in processors:
        provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    return provider


def current_trace_id() -> str:
    """32 hexadecimal digits; empty outside a trace."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def to_metadata() -> list[tuple[str, str]]:
    """The current context as gRPC metadata; empty outside a trace."""
    return list(_carrier().items())


def from_metadata(metadata: Iterable[tuple[str, Any]] | None) -> Context:
    """The context that a caller sent; an empty one if there was none or it was malformed."""
    return _PROPAGATOR.extract({key: value for key, value in metadata or () if key in _FIELDS}, Context())


def to_environment() -> dict[str, str]:
    """The current context as variables for a process that is about to be started."""
    return {key.upper(): value for key, value in _carrier().items()}


@contextmanager
def continued(environ: Mapping[str, str]) -> Iterator[None]:
    """What happens inside belongs to the trace of the process that started this one."""
    carrier = {field: environ[field.upper()] for field in _FIELDS if field.upper() in environ}
    token = otel_context.attach(_PROPAGATOR.extract(carrier))
    try:
        yield
    finally:
        otel_context.detach(token)


def _carrier() -> MutableMapping[str, str]:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier
