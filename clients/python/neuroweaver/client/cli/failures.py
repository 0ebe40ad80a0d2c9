"""How a command ends when it cannot do what was asked: an exit code for scripts and one line for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, Final

import grpc

from neuroweaver.client.connection import Client
from neuroweaver.client.text import plain
from neuroweaver.mesh import errors
from neuroweaver.mesh.settings import SettingsError


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
    "Exit codes: 0 done; 1 failed, such as a watched job that ended FAILED or CANCELLED; 2 bad input; "
    "3 not found; 4 a service is unavailable; 5 a precondition does not hold or another call was faster; "
    "124 the time of --timeout was over, and what was watched goes on; 130 interrupted. "
    "With --json, results are JSON on stdout and errors JSON on stderr."
)

_EXITS: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: Exit.BAD_INPUT,
    grpc.StatusCode.OUT_OF_RANGE: Exit.BAD_INPUT,
    grpc.StatusCode.NOT_FOUND: Exit.NOT_FOUND,
    grpc.StatusCode.UNAVAILABLE: Exit.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Exit.UNAVAILABLE,
    grpc.StatusCode.FAILED_PRECONDITION: Exit.CONFLICT,
    grpc.StatusCode.ALREADY_EXISTS: Exit.CONFLICT,
    grpc.StatusCode.ABORTED: Exit.CONFLICT,
}


class Failure(Exception):
    """Ends the command. code: the name of a gRPC status, or a word of that kind."""

    def __init__(
        self,
        exit_code: Exit,
        message: str,
        *,
        code: str = "",
        reason: str = "",
        violations: list[errors.Violation] | None = None,
    ) -> None:
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
        told = f"{field}: {message}" if field else message
        super().__init__(
            Exit.BAD_INPUT, told, code="INVALID_ARGUMENT", violations=[(field, message)] if field else []
        )


@contextmanager
def talking_to(service: str) -> Iterator[Client]:
    """A client whose errors become failures that name `service`."""
    with Client() as client:
        try:
            yield client
        except grpc.RpcError as error:
            raise _of_rpc(error, service, client.address(service)) from error
        except SettingsError as error:
            raise BadInput(str(error)) from error


def _of_rpc(error: grpc.RpcError, service: str, address: str) -> Failure:
    code = error.code()
    message = errors.describe(error)
    if code is grpc.StatusCode.UNAVAILABLE and not errors.reason(error):
        # No reason: the words are those of the transport, not of a server that answered.
        message = (
            f"the {service} cannot be reached at {address}. Start it with `neuroweaver up`, or say "
            f"where it is with NEUROWEAVER_{service.upper()}_ADDRESS=host:port"
        )
    return Failure(
        _EXITS.get(code, Exit.FAILED),
        message,
        code=code.name,
        reason=errors.reason(error),
        violations=errors.violations(error),
    )
