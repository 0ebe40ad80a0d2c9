from __future__ import annotations

import os
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import grpc
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from neuroweaver.mesh.wire import telemetry

SOURCES = os.pathsep.join(str(Path(__file__).parents[3] / part) for part in ("services", "gen/python"))


def test_outside_a_trace_there_is_nothing_to_pass_on():
    assert telemetry.current_trace_id() == ""
    assert telemetry.to_metadata() == []
    assert telemetry.to_environment() == {}


def test_a_trace_crosses_a_calls_metadata():
    with telemetry.tracer.start_as_current_span("caller") as span:
        context = telemetry.from_metadata(telemetry.to_metadata())

    assert trace.get_current_span(context).get_span_context().span_id == span.get_span_context().span_id


def test_malformed_metadata_begins_a_new_trace():
    context = telemetry.from_metadata([("traceparent", "00-nonsense"), ("other-bin", b"\x00")])

    assert not trace.get_current_span(context).get_span_context().is_valid


def test_a_trace_goes_on_in_a_process_of_its_own():
    program = (
        "import os; from neuroweaver.mesh.wire import telemetry\n"
        "with telemetry.continued(os.environ): print(telemetry.current_trace_id())"
    )
    with telemetry.tracer.start_as_current_span("job"):
        expected = telemetry.current_trace_id()
        environ = {**os.environ, **telemetry.to_environment(), "PYTHONPATH": SOURCES}
        told = subprocess.run(
            [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
        )

    assert told.stdout.strip() == expected
    assert set(telemetry.to_environment()) <= {"TRACEPARENT", "TRACESTATE"}


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.received = []

    def Export(self, request, context):  # noqa: N802
        self.received.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


def test_spans_reach_an_otlp_collector():
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    program = (
        "from neuroweaver.mesh.wire import telemetry\n"
        f"provider = telemetry.start('registry', 'http://127.0.0.1:{port}')\n"
        "with telemetry.tracer.start_as_current_span('work'): pass\n"
        "provider.shutdown()"
    )
    subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": SOURCES}, check=True, timeout=60
    )
    server.stop(None)

    (exported,) = collector.received[0].resource_spans
    assert {pair.key: pair.value.string_value for pair in exported.resource.attributes}[
        "service.name"
    ] == "registry"
    assert exported.scope_spans[0].spans[0].name == "work"
