"""What the Registry's RPCs have in common: a change is made once, by somebody, for a reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from google.protobuf.message import Message

from neuroweaver.mesh import telemetry
from neuroweaver.mesh.caller import caller_of
from neuroweaver.mesh.errors import FailedPrecondition
from neuroweaver.mesh.mutations import Answering, mutated
from neuroweaver.mesh.signing import SigningKey
from neuroweaver.registry.artifacts import ArtifactStore
from neuroweaver.registry.audit import Origin
from neuroweaver.registry.model import Artifact, ModelVersion
from neuroweaver.registry.store import Store
from neuroweaver.registry.writer import Writer

M = TypeVar("M", bound=Message)


class Handler(Answering[Store]):
    def __init__(self, store: Store, artifacts: ArtifactStore, key: SigningKey) -> None:
        super().__init__(store)
        self._artifacts = artifacts
        self._key = key

    async def _mutate(
        self,
        method: str,
        request: Any,
        context: Any,
        response_type: type[M],
        operation: Callable[[Writer], Awaitable[M]],
        *,
        reason: str = "",
    ) -> M:
        """The operation's answer, once; a retry reads the first one. reason: checked by the caller."""
        caller = caller_of(context)
        origin = Origin(caller.project, caller.actor, reason, telemetry.current_trace_id())
        transact = partial(self._store.transact, origin)
        return await mutated(transact, method, request, response_type, operation)

    async def _hold_files(self, registry: Writer, version: ModelVersion) -> None:
        """Raises FailedPrecondition for a file that is not there; no other is collected from here on."""
        digests = [artifact.digest for artifact in version.artifacts]
        await registry.hold(digests)
        missing = set(await self._artifacts.missing(digests))
        for index, artifact in enumerate(version.artifacts):
            if artifact.digest in missing:
                raise not_uploaded(f"artifacts[{index}]", artifact)


def not_uploaded(field: str, artifact: Artifact) -> FailedPrecondition:
    return FailedPrecondition(
        "ARTIFACT_NOT_UPLOADED",
        f"{field} ({artifact.path}) was never uploaded: upload it, then create the version",
        subject=artifact.digest,
    )
