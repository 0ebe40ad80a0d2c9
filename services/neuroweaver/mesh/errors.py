"""What can go wrong, and the one table that turns it into a gRPC status with google.rpc details.

Services raise these; the interceptors send them; clients read them back with `describe` and `violations`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN: Final = "neuroweaver"

# A status travels in the trailing metadata, which peers bound at 8 KB. The message is in it twice, percent-
# encoded and in the details, and these in base64: with the most below, about 7 KB.
_MAX_MESSAGE: Final = 1000
_MAX_DESCRIPTION: Final = 200
_MAX_FIELD: Final = 100
_MAX_VIOLATIONS: Final = 10

Violation = tuple[str, str]
"""A field's path (`config.learning_rate`, empty for the message as a whole) and what is wrong with it."""


class Error(Exception):
    """What a caller is told. The message goes out as it is, so it holds no secret and no path of the server.

    reason: UPPER_SNAKE, stable, what a program branches on. metadata: further facts for programs.
    """

    def __init__(
        self, description: str, *, reason: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(description)
        self.description = description
        self.reason = reason or _TABLE[type(self)][1]
        self.metadata = dict(metadata or {})

    @property
    def code(self) -> grpc.StatusCode:
        return _TABLE[type(self)][0]

    def details(self) -> list[Message]:
        """The google.rpc details beyond ErrorInfo, which every error has."""
        return []


class InvalidArgument(Error):
    def __init__(self, field: str, description: str) -> None:
        self._hold([(field, description)])

    @classmethod
    def of(cls, violations: Iterable[Violation]) -> InvalidArgument:
        """One error for several fields. Raises ValueError if there are none."""
        found = list(violations)
        if not found:
            raise ValueError("an invalid argument needs at least one violation")
        error = cls.__new__(cls)
        error._hold(found)
        return error

    def _hold(self, violations: Sequence[Violation]) -> None:
        self.violations = violations
        Error.__init__(self, "; ".join(_line(*each) for each in violations))

    def details(self) -> list[Message]:
        listed = [
            error_details_pb2.BadRequest.FieldViolation(
                field=_short(field, _MAX_FIELD), description=_short(text)
            )
            for field, text in self.violations[:_MAX_VIOLATIONS]
        ]
        return [error_details_pb2.BadRequest(field_violations=listed)]


class _AboutResource(Error):
    _verdict: str

    def __init__(self, resource: str, name: str) -> None:
        super().__init__(f'{resource} "{_short(name)}" {self._verdict}')
        self.resource = resource
        self.name = name

    def details(self) -> list[Message]:
        return [
            error_details_pb2.ResourceInfo(
                resource_type=self.resource, resource_name=_short(self.name), description=self._verdict
            )
        ]


class NotFound(_AboutResource):
    _verdict = "does not exist"


class AlreadyExists(_AboutResource):
    _verdict = "already exists"


class FailedPrecondition(Error):
    """The system is not in the state that the call needs; the same call fails again until that changes."""

    def __init__(self, reason: str, description: str, subject: str = "") -> None:
        super().__init__(description, reason=reason)
        self.subject = subject

    def details(self) -> list[Message]:
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=self.reason, subject=self.subject, description=_short(self.description)
        )
        return [error_details_pb2.PreconditionFailure(violations=[violation])]


class Aborted(Error):
    """Another caller was faster: read again, decide again, call again."""

    def __init__(self, reason: str, description: str) -> None:
        super().__init__(description, reason=reason)


class OutOfRange(Error):
    pass


class ResourceExhausted(Error):
    pass


class Unavailable(Error):
    """Not now: the same call may succeed after `retry_after_s` seconds."""

    def __init__(self, description: str, retry_after_s: float = 1.0) -> None:
        super().__init__(description)
        self.retry_after_s = retry_after_s

    def details(self) -> list[Message]:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(self.retry_after_s * 1000))
        return [error_details_pb2.RetryInfo(retry_delay=delay)]


class DataLoss(Error):
    """What was stored is no longer there, or no longer what it was."""


class DeadlineExceeded(Error):
    pass


class PermissionDenied(Error):
    pass


class Unimplemented(Error):
    pass


class Internal(Error):
    """What a caller reads of a fault of ours: nothing but the trace id under which the log tells all."""

    def __init__(self, trace_id: str) -> None:
        super().__init__(f"internal error (trace {trace_id})", metadata={"trace_id": trace_id})


_TABLE: Final[dict[type[Error], tuple[grpc.StatusCode, str]]] = {
    InvalidArgument: (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
    NotFound: (grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
    AlreadyExists: (grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS"),
    FailedPrecondition: (grpc.StatusCode.FAILED_PRECONDITION, "FAILED_PRECONDITION"),
    Aborted: (grpc.StatusCode.ABORTED, "ABORTED"),
    OutOfRange: (grpc.StatusCode.OUT_OF_RANGE, "OUT_OF_RANGE"),
    ResourceExhausted: (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"),
    Unavailable: (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE"),
    DataLoss: (grpc.StatusCode.DATA_LOSS, "DATA_LOSS"),
    DeadlineExceeded: (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    PermissionDenied: (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
    Unimplemented: (grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED"),
    Internal: (grpc.StatusCode.INTERNAL, "INTERNAL"),
}


def to_status(error: Error) -> grpc.Status:
    """The status that `context.abort_with_status` takes."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    return rpc_status.to_status(
        status_pb2.Status(
            code=error.code.value[0],
            message=_short(error.description, _MAX_MESSAGE),
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


def describe(error: grpc.RpcError) -> str:
    """One line for people: what went wrong and, for an invalid request, with which fields."""
    code = error.code().name.lower().replace("_", " ")
    told = "; ".join(_line(*each) for each in violations(error)) or error.details() or "no further word"
    return f"{code}: {' '.join(told.split())}"


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


def _line(field: str, description: str) -> str:
    return f"{field}: {description}" if field else description


def _short(text: str, limit: int = _MAX_DESCRIPTION) -> str:
    """The beginning of `text` that takes `limit` bytes on the wire, where UTF-8 is percent-encoded."""
    size = 0
    for index, character in enumerate(text):
        size += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if size > limit:
            return text[:index] + "…"
    return text
