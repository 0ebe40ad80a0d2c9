"""Who calls. Until there are credentials, everyone on this machine is one user of one project."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from neuroweaver.mesh.wire.errors import PermissionDenied


@dataclass(frozen=True)
class Caller:
    """project: the tenant whose records the call sees. actor: who is written into the history.

    permissions: as the contract's `authz` options name them; None: every one.
    """

    project: str
    actor: str
    permissions: frozenset[str] | None = None

    def require(self, permission: str, what: str) -> None:
        """Raises PermissionDenied, saying that `what` needs the permission."""
        if self.permissions is not None and permission not in self.permissions:
            raise PermissionDenied(f"{what} needs the permission {permission}")


_LOCAL: Final = Caller(project="default", actor="local")


def caller_of(context: Any) -> Caller:
    """The caller of an RPC, from its servicer context."""
    del context  # the one place to read credentials from once there are any
    return _LOCAL
