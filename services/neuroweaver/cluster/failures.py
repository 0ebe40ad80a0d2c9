"""What the API server answers when it does not do what it was asked, as the backend's errors."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.cluster.exchange import Answer

_DENIED: Final = re.compile(
    r'cannot (?P<verb>[a-z]+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
)
_OTHER_MANAGER: Final = "FieldManagerConflict"


@dataclass(frozen=True)
class Cause:
    """field: as the API server writes it, such as `.spec.replicas`."""

    reason: str
    field: str
    message: str


@dataclass(eq=False)
class Refusal(Exception):
    """An answer that is no success. what: what was asked, for people."""

    status: int
    reason: str
    message: str
    what: str
    causes: tuple[Cause, ...] = ()
    retry_after_s: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.what}: {self.message}"

    @property
    def is_missing(self) -> bool:
        return self.status == HTTPStatus.NOT_FOUND

    @property
    def is_expired(self) -> bool:
        """A list or a watch from a moment that the API server remembers no longer."""
        return self.status == HTTPStatus.GONE

    @property
    def is_conflict_of_managers(self) -> bool:
        return any(cause.reason == _OTHER_MANAGER for cause in self.causes)

    @property
    def is_worth_another_try(self) -> bool:
        if self.status == HTTPStatus.CONFLICT:
            return not self.is_conflict_of_managers
        return self.status in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS} or self.status >= 500


def refusal(answer: Answer, what: str) -> Refusal:
    """From an answer, which is a `Status` object where it comes from an API server."""
    try:
        told = json.loads(answer.body)
    except ValueError:
        told = {}
    if not isinstance(told, dict) or told.get("kind") != "Status":
        text = answer.body[:200].decode(errors="replace").strip()
        told = {"message": text or f"status {answer.status}, no details given"}
    details = told.get("details") or {}
    causes = tuple(
        Cause(cause.get("reason", ""), cause.get("field", ""), cause.get("message", ""))
        for cause in details.get("causes") or ()
    )
    wait = answer.headers.get("Retry-After") or details.get("retryAfterSeconds")
    return Refusal(
        status=answer.status,
        reason=told.get("reason", ""),
        message=told.get("message", ""),
        what=what,
        causes=causes,
        retry_after_s=float(wait) if wait is not None and re.fullmatch(r"[0-9.]{1,9}", str(wait)) else None,
        details=details,
    )


def to_backend_error(error: Refusal) -> BackendError:
    """One clear error for each way to fail."""
    match error.status:
        case HTTPStatus.UNAUTHORIZED:
            return BackendError(
                Trouble.NOT_CONFIGURED, f"the cluster does not accept the credentials ({error})"
            )
        case HTTPStatus.FORBIDDEN:
            return _forbidden(error)
        case HTTPStatus.NOT_FOUND if error.details.get("kind") == "namespaces":
            return missing_namespace(error.details.get("name", ""))
        case HTTPStatus.CONFLICT if error.is_conflict_of_managers:
            owners = "; ".join(f"{cause.field}: {cause.message}" for cause in error.causes)
            return BackendError(Trouble.CONFLICT, f"{error.what}: {owners}")
        case HTTPStatus.BAD_REQUEST | HTTPStatus.UNPROCESSABLE_ENTITY | HTTPStatus.NOT_FOUND:
            return BackendError(Trouble.REFUSED, str(error))
    trouble = Trouble.UNREACHABLE if error.is_worth_another_try else Trouble.REFUSED
    return BackendError(trouble, str(error), retry_after_s=error.retry_after_s)


def missing_namespace(name: str) -> BackendError:
    return BackendError(
        Trouble.REFUSED, f"namespace {name} does not exist in the cluster", field="spec.kubernetes.namespace"
    )


def forbidden(verb: str, resource: str, namespace: str) -> BackendError:
    where = f" in namespace {namespace}" if namespace else " in the whole cluster"
    return BackendError(Trouble.FORBIDDEN, f"the cluster denies {verb} of {resource}{where}")


def _forbidden(error: Refusal) -> BackendError:
    denied = _DENIED.search(error.message)
    if denied:
        resource = f"{denied['resource']}.{denied['group']}" if denied["group"] else denied["resource"]
        namespace = re.search(r'in the namespace "([^"]+)"', error.message)
        return forbidden(denied["verb"], resource, namespace[1] if namespace else "")
    if any(cause.reason == "NamespaceTerminating" for cause in error.causes):
        return BackendError(
            Trouble.REFUSED,
            f"{error.what}: the namespace is being deleted",
            field="spec.kubernetes.namespace",
        )
    # Quotas and admission answer 403 too.
    if "exceeded quota" in error.message:
        return BackendError(Trouble.NO_ROOM, str(error))
    return BackendError(Trouble.FORBIDDEN, str(error))
