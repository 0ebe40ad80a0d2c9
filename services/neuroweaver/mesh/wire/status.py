"""The one table that turns an error into a gRPC status with google.rpc details, and back.

The interceptors send statuses; clients read them with `describe` and `violations`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from neuroweaver.mesh.wire.errors import (
    DOMAIN,
    MAX_MESSAGE,
    Aborted,
    AlreadyExists,
    DataLoss,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    Violation,
    one_line,
    shortened,
)

_TABLE: Final[dict[type[Error], grpc.StatusCode]] = {
    InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    Aborted: grpc.StatusCode.ABORTED,
    OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    DataLoss: grpc.StatusCode.DATA_LOSS,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    Internal: grpc.StatusCode.INTERNAL,
}


def code_of(error: Error) -> grpc.StatusCode:
    return _TABLE[type(error)]


def to_status(error: Error) -> grpc.Status:
    """The status that `context.abort_with_status` takes."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    return rpc_status.to_status(
        status_pb2.Status(
            code=code_of(error).value[0],
            message=shortened(error.description, MAX_MESSAGE),
            details=[_packed(detail) for detail in (info, *error.details())],
        )
    )


def violations(error: grpc.RpcError) -> list[Violation]:
    """The fields that a server found wrong; empty where the error is about something else."""
    bad = error_details_pb2.BadRequest()
    return [
        (violation.field, violation.description)
        for detail in _details(error)
        if detail.Unpack(bad)
        for violation in bad.field_violations
    ]


def reason(error: grpc.RpcError) -> str:
    """The stable reason of the error, empty where the server gave none."""
    info = error_details_pb2.ErrorInfo()
    return next((info.reason for detail in _details(error) if detail.Unpack(info)), "")


def metadata(error: grpc.RpcError) -> dict[str, str]:
    """The further facts that the error holds for programs."""
    info = error_details_pb2.ErrorInfo()
    return next((dict(info.metadata) for detail in _details(error) if detail.Unpack(info)), {})


def deleted(error: grpc.RpcError) -> str:
    """What the server says of something that was deleted; empty where the error is about something else."""
    return (error.details() or "") if "delete_time" in metadata(error) else ""


def describe(error: grpc.RpcError) -> str:
    """One line for people: what went wrong and, for an invalid request, with which fields."""
    code = error.code().name.lower().replace("_", " ")
    details = (
        "; ".join(one_line(*each) for each in violations(error)) or error.details() or "no details given"
    )
    return f"{code}: {' '.join(details.split())}"


def _details(error: grpc.RpcError) -> Sequence[any_pb2.Any]:
    try:
        # An RpcError of a call is a Call as well, which its type does not say.
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
    except (ValueError, DecodeError):
        return []  # another server's details, at odds with its own status: the status stands
    return status.details if status else []


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
