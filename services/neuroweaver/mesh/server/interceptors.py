"""What every service does around an RPC: errors, tracing, access log, metrics, drain, deadline, validation.

Each concern is a layer or a check on `stack.Stack`; `server_interceptor` puts them in order.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping
from typing import Final

import grpc
from prometheus_client import REGISTRY, CollectorRegistry
from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.mesh.database.refusals import as_error
from neuroweaver.mesh.server.deadlines import deadline, silence
from neuroweaver.mesh.server.drain import Drain
from neuroweaver.mesh.server.observing import Metrics, log_request, logged, traced
from neuroweaver.mesh.server.sharing import Streams, in_turn
from neuroweaver.mesh.server.stack import Method, Stack
from neuroweaver.mesh.server.validation import validated
from neuroweaver.mesh.wire import telemetry
from neuroweaver.mesh.wire.errors import (
    DataLoss,
    Error,
    FailedPrecondition,
    Internal,
    ResourceExhausted,
    Unavailable,
)
from neuroweaver.mesh.wire.ids import new_id

_ERRORS: Final = logging.getLogger("neuroweaver.errors")


def _full() -> Error:
    return ResourceExhausted("the server's disk is full")


def _closed() -> Error:
    return FailedPrecondition("STORAGE_NOT_WRITABLE", "the server may not write where it keeps its files")


# By the state of the server's disk, which is no fault of ours; the log has the path.
_STORAGE: Final[Mapping[int, Callable[[], Error]]] = {
    errno.ENOSPC: _full,
    errno.EDQUOT: _full,
    errno.EROFS: _closed,
    errno.EACCES: _closed,
    errno.EPERM: _closed,
    errno.ENOENT: lambda: DataLoss("a file of the server is gone"),
    errno.EIO: lambda: Unavailable("the server's disk gives errors"),
    errno.EMFILE: lambda: Unavailable("the server has too many open files"),
}


def server_interceptor(
    drain: Drain,
    *,
    deadline_s: float,
    silence_s: float,
    streams_per_caller: int,
    debug: bool = False,
    registry: CollectorRegistry = REGISTRY,
) -> Stack:
    """The one interceptor of a server."""
    return Stack(
        translate=translate,
        observers=(traced, logged, Metrics.of(registry).counted),
        guards=(
            in_turn,
            Streams(streams_per_caller).bounded,
            drain.ending,
            deadline(deadline_s),
            silence(silence_s),
        ),
        checks=(validated, log_request) if debug else (validated,),
    )


def translate(method: Method, error: Exception) -> Error:
    """What the caller reads. An exception that nobody foresaw is logged whole and not told."""
    if isinstance(error, Error):
        return error
    if isinstance(error, SQLAlchemyError) and (refusal := as_error(error)):
        _ERRORS.warning("database refused", extra={"method": method.full_name, "cause": type(error).__name__})
        return refusal
    if isinstance(error, OSError) and (refusal := _of_files(error)):
        _ERRORS.warning("a file was refused", exc_info=error, extra={"method": method.full_name})
        return refusal
    if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.UNAVAILABLE:
        _ERRORS.warning("a needed service is unavailable", exc_info=error, extra={"method": method.full_name})
        return Unavailable("a service that this one needs is unavailable")
    if isinstance(error, OSError) and (refused := _STORAGE.get(error.errno or 0)):
        _ERRORS.error("storage refused", exc_info=error, extra={"method": method.full_name})
        return refused()
    trace_id = telemetry.current_trace_id() or new_id()
    _ERRORS.error(
        "unexpected exception", exc_info=error, extra={"method": method.full_name, "trace_id": trace_id}
    )
    return Internal(trace_id)


def _of_files(error: OSError) -> Error | None:
    """What a caller is told of the server's own files, without their paths; None for a fault of ours."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return ResourceExhausted("the server's disk is full")
        case errno.EMFILE | errno.ENFILE:
            return Unavailable("the server has too many files open")
        case errno.EIO | errno.ESTALE:
            return Unavailable("the server's files cannot be read or written")
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return FailedPrecondition("FILES_DENIED", "the server may not read or write files of its own")
        case errno.ENOENT:
            return DataLoss("a file of the server is missing", reason="FILE_MISSING")
    return None
