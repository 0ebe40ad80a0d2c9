"""What can go wrong. Services raise these; `status` turns them into gRPC statuses, by one table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2

DOMAIN: Final = "neuroweaver"
_WORD: Final = re.compile(r"(?<!^)(?=[A-Z])")

# A status travels in the trailing metadata, which peers bound at 8 KB. The message is in it twice, percent-
# encoded and in the details, and these in base64: with the most below, about 7 KB.
MAX_MESSAGE: Final = 1000
_MAX_DESCRIPTION: Final = 200
_MAX_FIELD: Final = 100
_MAX_VIOLATIONS: Final = 10

Violation = tuple[str, str]
"""A field's path (`config.learning_rate`, empty for the message as a whole) and what is wrong with it."""


class Error(Exception):
    """What a caller is told. The message goes out as it is, so it holds no secret and no path of the server.

    reason: UPPER_SNAKE, stable, what a program branches on; by default the error's own name.
    metadata: further facts for programs.
    """

    def __init__(
        self, description: str, *, reason: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(description)
        self.description = description
        self.reason = reason or _WORD.sub("_", type(self).__name__).upper()
        self.metadata = dict(metadata or {})

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
        Error.__init__(self, "; ".join(one_line(*each) for each in violations))

    def details(self) -> list[Message]:
        listed = [
            error_details_pb2.BadRequest.FieldViolation(
                field=shortened(field, _MAX_FIELD), description=shortened(text)
            )
            for field, text in self.violations[:_MAX_VIOLATIONS]
        ]
        return [error_details_pb2.BadRequest(field_violations=listed)]


class _AboutResource(Error):
    """verdict: what is to be said of it, where there is more to say than usual."""

    _usual: str

    def __init__(
        self, resource: str, name: str, verdict: str = "", *, metadata: Mapping[str, str] | None = None
    ) -> None:
        self.verdict = verdict or self._usual
        super().__init__(f'{resource} "{shortened(name)}" {self.verdict}', metadata=metadata)
        self.resource = resource
        self.name = name

    def details(self) -> list[Message]:
        return [
            error_details_pb2.ResourceInfo(
                resource_type=self.resource,
                resource_name=shortened(self.name),
                description=shortened(self.verdict),
            )
        ]


class NotFound(_AboutResource):
    _usual = "does not exist"


class AlreadyExists(_AboutResource):
    _usual = "already exists"


class FailedPrecondition(Error):
    """The system is not in the state that the call needs; the same call fails again until that changes."""

    def __init__(self, reason: str, description: str, subject: str = "") -> None:
        super().__init__(description, reason=reason)
        self.subject = subject

    def details(self) -> list[Message]:
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=self.reason, subject=shortened(self.subject), description=shortened(self.description)
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


def one_line(field: str, description: str) -> str:
    return f"{field}: {description}" if field else description


def shortened(text: str, limit: int = _MAX_DESCRIPTION) -> str:
    """The beginning of `text` that takes `limit` bytes on the wire, where UTF-8 is percent-encoded.

    Halves of characters, which JSON and file names can hold and a status cannot, are shown as `?`.
    """
    text, size = text.encode(errors="replace").decode(), 0
    for index, character in enumerate(text):
        size += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if size > limit:
            return text[:index] + "…"
    return text
