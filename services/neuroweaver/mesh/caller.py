"""Who calls. Until there are credentials, everyone on this machine is one user of one project."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Caller:
    """project: the tenant whose records the call sees. actor: who is written into the history."""

    project: str
    actor: str


_LOCAL: Final = Caller(project="default", actor="local")


def caller_of(context: Any) -> Caller:
    """The caller of an RPC, from its servicer context."""
    del context  # the one place to read credentials from once there are any
    return _LOCAL
