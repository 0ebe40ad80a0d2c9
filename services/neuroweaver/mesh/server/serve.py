"""Runs a service: its gRPC server with health, reflection and metrics, from a free port to a graceful end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import grpc
import uvloop
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY, CollectorRegistry
from sqlalchemy.exc import DBAPIError

from neuroweaver.mesh.database.migrations import MigrationError
from neuroweaver.mesh.handlers.loop import Outage, repeat
from neuroweaver.mesh.machine import files
from neuroweaver.mesh.server import logs
from neuroweaver.mesh.server.drain import Drain
from neuroweaver.mesh.server.interceptors import server_interceptor
from neuroweaver.mesh.server.metrics_page import metrics_page
from neuroweaver.mesh.server.validation import prepare
from neuroweaver.mesh.wire import telemetry
from neuroweaver.mesh.wire.channel import MAX_MESSAGE_BYTES
from neuroweaver.mesh.wire.environment import SettingsError
from neuroweaver.mesh.wire.settings import Settings

_LOG: Final = logging.getLogger("neuroweaver.serve")

S = TypeVar("S", bound=Settings)

_REFLECTION_V1: Final = "grpc.reflection.v1.ServerReflection"

ALIVE: Final = "alive"
"""A name in the health service that says only that the process answers, for liveness probes: a restart of the
process does not bring its database back."""

_CHECK_S: Final = 1.0
# Before a background task that ended by itself is started again.
_RESTART_S: Final = 1.0

# Between NOT_SERVING and the end of open watches: balancers that watch our health hear of it first.
_NOTICE_S: Final = 0.1

_MOST_PENDING: Final = 16_384
_MAX_SHOWN: Final = 5

MIN_PING_MS: Final = 5_000
"""How often a client may ask at most whether the server is there, while nothing is sent to it."""

_OPTIONS: Final[Sequence[tuple[str, Any]]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Linux would let a second process share the port, and each would get half of the calls.
    ("grpc.so_reuseport", 0),
    # A peer that vanished is noticed on a quiet stream too, and a client may ask for the same: one that asks
    # sooner loses its connection (GOAWAY, too_many_pings). gRPC's default is 5 minutes; grpc-go's clients
    # ask every 10 s at most.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    # After a restart all watches come again at once. What exceeds gRPC's own limits, 1,000 and 3,000, would
    # end as CANCELLED, which no client tries again.
    ("grpc.server.max_pending_requests", _MOST_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", _MOST_PENDING),
)


class StartError(Exception):
    """The service cannot start. The message is one line for the person who started it."""


async def _nothing() -> None:
    return


@dataclass(frozen=True, kw_only=True)
class Service:
    """What `serve` runs.

    names: full names of the gRPC services (`neuroweaver.v1.RegistryService`), for health and reflection.
    add: registers the servicers. socket: a Unix socket for processes of the same user, beside the port.
    background: run beside the server, and started again if one ends. check: raises while the service cannot
    serve, such as without its database. close: after the last call has ended.
    """

    names: Sequence[str]
    add: Callable[[grpc.aio.Server], object]
    socket: Path | None = None
    background: Sequence[Callable[[], Awaitable[None]]] = ()
    check: Callable[[], Awaitable[None]] = _nothing
    close: Callable[[], Awaitable[None]] = _nothing


@dataclass(frozen=True)
class Running:
    address: str


def run(service: str, kind: type[S], main: Callable[[S], Awaitable[None]]) -> None:
    """Runs a service's `main` with its settings, logs and traces; what prevents it is told in one line."""
    try:
        settings = kind.from_environment(service=service)
    except SettingsError as error:
        _exit(service, error)
    logs.configure(service, debug=settings.debug, log_format=settings.log_format)
    _keep_private(settings.home)
    provider = telemetry.start(service, settings.otlp_endpoint)
    try:
        uvloop.run(_await(main(settings)))
    except (SettingsError, StartError, MigrationError) as error:
        _exit(service, error)
    except DBAPIError as error:
        _exit(service, f"the database: {error.orig}")
    except OSError as error:
        _exit(service, error)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:  # noqa: BLE001  # the last one to see it logs it whole
        _LOG.exception("failed")
        sys.exit(1)
    finally:
        provider.shutdown()


def _keep_private(home: Path) -> None:
    """What this process and its children write is for their user alone, and what lies in the home already."""
    os.umask(0o077)
    if refused := files.keep_private(home):
        shown = [str(path) for path in refused[:_MAX_SHOWN]]
        _LOG.warning("open to other users", extra={"paths": shown, "count": len(refused)})


async def serve(service: Service, settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then drains. A second signal ends the process at once.

    Raises StartError if a port is taken.
    """
    stop = asyncio.Event()
    with _signals(stop):
        async with running(service, settings):
            # Modules and descriptors stay; a full collection over them would hold up every call, 80 ms here.
            gc.collect()
            gc.freeze()
            await stop.wait()


@asynccontextmanager
async def running(
    service: Service, settings: Settings, *, registry: CollectorRegistry = REGISTRY
) -> AsyncIterator[Running]:
    """A server that takes calls inside the block and drains at its end."""
    drain = Drain()
    interceptor = server_interceptor(
        drain,
        deadline_s=settings.deadline_s,
        silence_s=settings.silence_s,
        streams_per_caller=settings.streams_per_caller,
        debug=settings.debug,
        registry=registry,
    )
    server = grpc.aio.server(interceptors=[interceptor], options=_OPTIONS)
    service.add(server)
    statuses = _add_health(server)
    _add_reflection(server, service.names)
    try:
        async with _metrics(settings, registry) as metrics_port:
            port = _bind(server, settings)
            if service.socket:
                _bind_socket(server, service.socket)
            await server.start()
            await _set_health(statuses, service, is_serving=True)
            await statuses.set(ALIVE, health_pb2.HealthCheckResponse.SERVING)
            background = asyncio.create_task(_run_all(service, statuses))
            _LOG.info("serving", extra={"host": settings.host, "port": port, "metrics_port": metrics_port})
            try:
                yield Running(f"{settings.host}:{port}")
            finally:
                await _stop(server, statuses, drain, settings.drain_s)
                background.cancel()
                await asyncio.wait({background})
    finally:
        await service.close()


async def _stop(
    server: grpc.aio.Server, statuses: health.aio.HealthServicer, drain: Drain, grace_s: float
) -> None:
    _LOG.info("draining", extra={"grace_s": grace_s})
    await statuses.enter_graceful_shutdown()
    await asyncio.sleep(min(_NOTICE_S, grace_s))
    drain.begin()
    await server.stop(grace_s)
    _LOG.info("stopped")


async def _run_all(service: Service, statuses: health.aio.HealthServicer) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_follow_health(service, statuses))
        group.create_task(asyncio.to_thread(prepare, service.names))
        for task in service.background:
            group.create_task(repeat("background", task, _RESTART_S))


async def _follow_health(service: Service, statuses: health.aio.HealthServicer) -> None:
    """Tells balancers to go elsewhere while the service cannot serve."""
    was_serving = True

    async def tell(*, is_serving: bool) -> None:
        nonlocal was_serving
        if is_serving != was_serving:
            await _set_health(statuses, service, is_serving=is_serving)
            was_serving = is_serving

    async def check() -> None:
        try:
            await service.check()
        except Exception:
            await tell(is_serving=False)
            raise
        await tell(is_serving=True)

    await repeat("health", check, _CHECK_S, outage=Outage("health", max_backoff_s=_CHECK_S))


async def _set_health(statuses: health.aio.HealthServicer, service: Service, *, is_serving: bool) -> None:
    status = health_pb2.HealthCheckResponse
    for name in ("", *service.names):
        await statuses.set(name, status.SERVING if is_serving else status.NOT_SERVING)


def _bind(server: grpc.aio.Server, settings: Settings) -> int:
    host, family = settings.host, socket.AF_INET
    if ":" in host:
        host, family = f"[{host}]", socket.AF_INET6
    try:
        # Tried first with a plain socket, which says why it cannot; gRPC would only log that.
        socket.create_server((settings.host, settings.port), family=family).close()
        return server.add_insecure_port(f"{host}:{settings.port}")
    except (OSError, RuntimeError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise StartError(
            f"cannot listen on {host}:{settings.port}: {cause} "
            f"(NEUROWEAVER_HOST, NEUROWEAVER_{settings.service.upper()}_PORT)"
        ) from error


def _bind_socket(server: grpc.aio.Server, path: Path) -> None:
    """The folder keeps other users out; a socket left by a process that was killed is replaced."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise StartError(
            f"cannot listen on {path}: another file is there, or the path has more than 107 bytes "
            "(NEUROWEAVER_HOME)"
        ) from error


@asynccontextmanager
async def _metrics(settings: Settings, registry: CollectorRegistry) -> AsyncIterator[int]:
    async with AsyncExitStack() as stack:
        try:
            page = metrics_page(settings.host, settings.metrics_port, registry)
            port = await stack.enter_async_context(page)
        except OSError as error:
            raise StartError(
                f"cannot serve metrics on {settings.host}:{settings.metrics_port}: {error.strerror} "
                f"(NEUROWEAVER_{settings.service.upper()}_METRICS_PORT)"
            ) from error
        yield port


def _add_health(server: grpc.aio.Server) -> health.aio.HealthServicer:
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return servicer


class _Descriptors:
    """This process's descriptors, for reflection: the pool itself finds no file by the name of a method."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802  # the pool's own name
        """Raises KeyError."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            file: FileDescriptor = self._pool.FindMethodByName(symbol).containing_service.file
            return file


def _add_reflection(server: grpc.aio.Server, names: Sequence[str]) -> None:
    """Under both names: the package serves only v1alpha, and v1's messages are the same on the wire."""
    # v1 is served but not listed: no package holds its descriptor, and tools resolve every name in the list.
    everything = (*names, health.SERVICE_NAME, reflection.SERVICE_NAME)
    servicer = reflection.aio.ReflectionServicer(everything, pool=_Descriptors())
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_REFLECTION_V1, {"ServerReflectionInfo": handler}),)
    )


@contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def restore() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)

    def received() -> None:
        stop.set()
        restore()

    for number in numbers:
        loop.add_signal_handler(number, received)
    try:
        yield
    finally:
        restore()


async def _await(awaitable: Awaitable[None]) -> None:
    await awaitable


def _exit(service: str, reason: object) -> NoReturn:
    line = " ".join(str(reason).split())
    sys.exit(f"neuroweaver {service}: {line}")
