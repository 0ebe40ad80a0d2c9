"""Why a cluster, or whatever else runs deployments, could not do something."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Trouble(StrEnum):
    """Why a backend could not do something. A stable word for programs."""

    UNREACHABLE = "UNREACHABLE"
    """No cluster, no network: tried again."""
    FORBIDDEN = "FORBIDDEN"
    """The credentials lack a right; the message names verb and resource."""
    NOT_CONFIGURED = "NOT_CONFIGURED"
    """There is no such backend here, such as no kubeconfig."""
    REFUSED = "REFUSED"
    """The API server calls an object invalid; tried again only with another desired state."""
    NO_ROOM = "NO_ROOM"
    ARTIFACTS = "ARTIFACTS"
    """A file is missing or has another digest."""
    CONFLICT = "CONFLICT"
    """Another manager owns a field."""


class ConnectionLost(ConnectionError):
    """No answer, or not all of it."""


class NotTrusted(ConnectionLost):
    """The certificate is not one to trust, now or later."""


LOST: Final = (ConnectionError, TimeoutError)


class BackendError(Exception):
    """field: of the spec, where one is at fault."""

    def __init__(
        self, trouble: Trouble, message: str, *, field: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.trouble = trouble
        self.field = field
        self.retry_after_s = retry_after_s
