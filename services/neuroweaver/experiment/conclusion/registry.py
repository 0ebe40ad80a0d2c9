"""The Registry, as an experiment uses it: which version a variant serves, and moving an alias."""

from __future__ import annotations

from typing import Final

import grpc

from neuroweaver.mesh.wire import errors, status
from neuroweaver.mesh.wire.errors import FailedPrecondition, NotFound, PermissionDenied, Unavailable
from neuroweaver.v1 import experiment_pb2 as pb
from neuroweaver.v1 import registry_pb2, registry_pb2_grpc

TIMEOUT_S: Final = 10.0

NOWHERE: Final = "-"
"""What SetAlias expects of an alias that is not there."""

_FOR_GOOD: Final = frozenset({
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
})  # fmt: skip


class Refused(Exception):
    """The Registry will not move the alias, however often it is asked. The message says why."""


class Releases:
    def __init__(self, registry: registry_pb2_grpc.RegistryServiceAsyncStub) -> None:
        self._registry = registry

    async def version_of(self, field: str, target: pb.VariantTarget) -> str:
        """The exact version that a variant names. Raises NotFound, Unavailable."""
        selector = f"@{target.alias}" if target.HasField("alias") else target.version
        request = registry_pb2.GetModelVersionRequest(model_id=target.model_id, version=selector)
        try:
            return (await self._registry.GetModelVersion(request, timeout=TIMEOUT_S)).version
        except grpc.RpcError as error:
            if error.code() in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}:
                deleted = status.deleted(error)
                raise NotFound(
                    f"{field}: model version",
                    f"{target.model_id}@{selector}",
                    f"is gone: {deleted}" if deleted else "",
                ) from error
            raise _unavailable(error) from error

    async def behind(self, model_id: str, alias: str) -> str:
        """The version that an alias names now; empty if it is not there. Raises Unavailable."""
        request = registry_pb2.ResolveAliasRequest(model_id=model_id, alias=alias)
        try:
            return (await self._registry.ResolveAlias(request, timeout=TIMEOUT_S)).version
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return ""
            raise _unavailable(error) from error

    async def move(self, conclusion: pb.ExperimentConclusion, request_id: str) -> str:
        """Makes the alias name the winner. Returns the sequence of the Registry's audit event.

        A repeat under the same id moves nothing twice. Raises Refused, Unavailable.
        """
        request = registry_pb2.SetAliasRequest(
            model_id=conclusion.model_id,
            alias=conclusion.alias,
            version=conclusion.version,
            expected_version=conclusion.previous_version or NOWHERE,
            reason=conclusion.reason,
            request_id=request_id,
        )
        try:
            await self._registry.SetAlias(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            if status.reason(error) == "ALIAS_MOVED":
                # An answer to this very request may have been forgotten since; then it did what was wanted.
                if await self.behind(conclusion.model_id, conclusion.alias) != conclusion.version:
                    raise Refused(error.details()) from error
            elif error.code() in _FOR_GOOD:
                raise Refused(error.details()) from error
            else:
                raise _unavailable(error) from error
        return await self._audit_event(conclusion)

    async def _audit_event(self, conclusion: pb.ExperimentConclusion) -> str:
        request = registry_pb2.GetVersionHistoryRequest(
            model_id=conclusion.model_id, version=conclusion.version, page_size=100
        )
        try:
            history = await self._registry.GetVersionHistory(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise _unavailable(error) from error
        path = f"aliases.{conclusion.alias}"
        return next(
            (
                str(event.sequence)
                for event in history.events
                if event.action == "alias.set" and any(change.path == path for change in event.changes)
            ),
            "",
        )


def _unavailable(error: grpc.RpcError) -> errors.Error:
    """The Registry's failure, as our callers read it."""
    if error.code() == grpc.StatusCode.PERMISSION_DENIED:
        return PermissionDenied(f"the Registry says: {error.details()}")
    if error.code() in _FOR_GOOD:
        return FailedPrecondition("REGISTRY_REFUSED", f"the Registry says: {error.details()}")
    return Unavailable("the Registry cannot be reached; it says which version a variant serves")
