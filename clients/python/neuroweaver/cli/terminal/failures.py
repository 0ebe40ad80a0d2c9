"""How a command ends when it cannot do what was asked: an exit code for scripts and one line for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from neuroweaver.mesh.wire.environment import SettingsError

if TYPE_CHECKING:
    import grpc

    from neuroweaver.client.connection import Client
    from neuroweaver.mesh.wire.errors import Violation


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    BAD_INPUT = 2
    NOT_FOUND = 3
    UNAVAILABLE = 4
    CONFLICT = 5
    TIMED_OUT = 124
    """As `timeout` of coreutils has it."""
    INTERRUPTED = 130


EPILOG: Final = (
    "Exit codes: 0 success; 1 failure, such as a watched job that ended FAILED or CANCELLED; 2 bad input; "
    "3 not found; 4 a service is unavailable; 5 conflict: a precondition does not hold or someone else was "
    "faster; 124 --timeout ran out, and what was watched continues; 130 interrupted. "
    "With --json, results are JSON on stdout and errors JSON on stderr."
)

_EXITS: Final = {
    "INVALID_ARGUMENT": Exit.BAD_INPUT,
    "OUT_OF_RANGE": Exit.BAD_INPUT,
    "NOT_FOUND": Exit.NOT_FOUND,
    "UNAVAILABLE": Exit.UNAVAILABLE,
    "DEADLINE_EXCEEDED": Exit.UNAVAILABLE,
    "FAILED_PRECONDITION": Exit.CONFLICT,
    "ALREADY_EXISTS": Exit.CONFLICT,
    "ABORTED": Exit.CONFLICT,
}
"""By the name of a gRPC status; every other one is FAILED."""


class Failure(Exception):
    """Ends the command. code: the name of a gRPC status, or a word of that kind."""

    def __init__(
        self,
        exit_code: Exit,
        message: str,
        *,
        code: str = "",
        reason: str = "",
        violations: list[Violation] | None = None,
    ) -> None:
        from neuroweaver.client.text import plain  # noqa: PLC0415  --help needs none of its imports

        super().__init__(message)
        self.exit_code = exit_code
        self.message = plain(" ".join(message.split()))
        self.code = code or exit_code.name
        self.reason = reason
        self.violations = violations or []

    def to_json(self) -> dict[str, Any]:
        return {
            "error": {
                "code": self.code,
                "exit_code": int(self.exit_code),
                "reason": self.reason,
                "message": self.message,
                "violations": [
                    {"field": path, "description": description} for path, description in self.violations
                ],
            }
        }


class BadInput(Failure):
    """field: the option or the config's field that is wrong; empty if it is something else."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(
            Exit.BAD_INPUT,
            f"{field}: {message}" if field else message,
            code="INVALID_ARGUMENT",
            violations=[(field, message)] if field else [],
        )


@contextmanager
def talking_to(service: str) -> Iterator[Client]:
    """A client whose errors become failures that name `service`. gRPC is imported here, not for `--help`."""
    import grpc  # noqa: PLC0415

    from neuroweaver.client.connection import Client  # noqa: PLC0415

    with Client() as client:
        try:
            yield client
        except grpc.RpcError as error:
            raise _of_rpc(error, service, client.address(service)) from error
        except SettingsError as error:
            raise BadInput(str(error)) from error


def _of_rpc(error: grpc.RpcError, service: str, address: str) -> Failure:
    from neuroweaver.mesh.wire import status  # noqa: PLC0415

    code, reason, message = error.code().name, status.reason(error), status.describe(error)
    if code == "UNAVAILABLE" and not reason:
        # No reason: the words are those of the transport, not of a server that answered.
        message = (
            f"the {service} cannot be reached at {address}. Start it with `neuroweaver up`, or set "
            f"NEUROWEAVER_{service.upper()}_ADDRESS=host:port"
        )
    exit_code, violations = _EXITS.get(code, Exit.FAILED), status.violations(error)
    return Failure(exit_code, message, code=code, reason=reason, violations=violations)
