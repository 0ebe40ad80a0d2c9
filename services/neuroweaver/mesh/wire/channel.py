"""Channels to the services: bounded retries, keepalive, the servers' message limit, and the caller's trace.

One channel serves a whole process:

    async with channel("127.0.0.1:50051") as registry:
        stub = RegistryServiceStub(registry)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import grpc

from neuroweaver.mesh.wire import telemetry

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024

KEEPALIVE_MS: Final = 20_000

SERVICE_CONFIG: Final = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                # gRPC allows no more than 5. UNAVAILABLE may come after the work was done; a repeat is
                # harmless, since every mutation carries a request_id.
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    # When most calls fail, retries would only add to what brought the server down.
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}

_OPTIONS: Final[Sequence[tuple[str, Any]]] = (
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Half a minute until a watch notices that the server's machine is gone. Servers allow pings every 5 s.
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)


def channel(address: str) -> grpc.aio.Channel:
    """For asyncio. Nothing is connected until the first call."""
    return grpc.aio.insecure_channel(address, options=_OPTIONS, interceptors=_AIO_INTERCEPTORS)


def sync_channel(address: str) -> grpc.Channel:
    """For programs without an event loop, a command line or a job's worker."""
    return grpc.intercept_channel(grpc.insecure_channel(address, options=_OPTIONS), _Sync())


# grpc.aio sorts interceptors into the four kinds of RPC and takes each for one kind only.


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(_traced(client_call_details), request)


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(_traced(client_call_details), request)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(_traced(client_call_details), request_iterator)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(_traced(client_call_details), request_iterator)


class _Sync(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(_traced(client_call_details), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(_traced(client_call_details), request)

    def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return continuation(_traced(client_call_details), request_iterator)

    def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return continuation(_traced(client_call_details), request_iterator)


_AIO_INTERCEPTORS: Final = (_UnaryUnary(), _UnaryStream(), _StreamUnary(), _StreamStream())


def _traced(details: Any) -> Any:
    """The call's details with the current trace context; both of gRPC's stacks hold them in a named tuple."""
    added = telemetry.to_metadata()
    if not added:
        return details
    metadata = grpc.aio.Metadata(*(details.metadata or ()), *added)
    return details._replace(metadata=metadata)
