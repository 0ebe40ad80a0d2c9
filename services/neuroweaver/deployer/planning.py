"""What a spec would lead to, before anything is done about it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.deployer.artifacts.versions import Versions
from neuroweaver.deployer.domain import desired, messages, model, naming, specification
from neuroweaver.deployer.domain.backend import Backend, BackendPlan, Bundle, Key
from neuroweaver.deployer.domain.model import Deployment, Revision, SpecChange
from neuroweaver.deployer.domain.specification import Defaults
from neuroweaver.mesh.wire.errors import (
    Error,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    Unavailable,
)
from neuroweaver.v1 import deployer_pb2 as pb

_LOG: Final = logging.getLogger("neuroweaver.deployer")

Backends = Mapping[int, Backend]


@dataclass(frozen=True)
class Draft:
    """What is asked for, completed. plan: what its backend would do about it."""

    asked: pb.DeploymentSpec
    spec: pb.DeploymentSpec
    bundle: Bundle
    plan: BackendPlan
    findings: tuple[pb.PlanFinding, ...] = ()

    @property
    def digest(self) -> str:
        """Over version, spec and live objects: what a plan was agreed to for."""
        agreed = pb.DeploymentPlan(
            version=self.bundle.version,
            digest=self.bundle.digest,
            replacement=self.plan.replacement,
            objects=map(messages.from_object, self.plan.objects),
            findings=(
                pb.PlanFinding(reason=finding.reason, field=finding.field)
                for finding in self.plan.findings
                if finding.is_blocking
            ),
        )
        spec = hashlib.sha256(self.spec.SerializeToString(deterministic=True))
        return hashlib.sha256(spec.digest() + agreed.SerializeToString(deterministic=True)).hexdigest()

    def message(self) -> pb.DeploymentPlan:
        return messages.from_plan(
            self.plan, version=self.bundle.version, digest=self.digest, further=self.findings
        )

    def blocking(self) -> Iterator[pb.PlanFinding]:
        """What stands against it."""
        return (finding for finding in self.message().findings if finding.is_blocking)

    def require_feasible(self) -> None:
        """Raises FailedPrecondition with the first of what stands against it."""
        for finding in self.blocking():
            raise FailedPrecondition(finding.reason, finding.message, subject=finding.field)


class Planner:
    def __init__(self, backends: Backends, versions: Versions, defaults: Defaults) -> None:
        self.versions = versions
        self.defaults = defaults
        self._backends = backends

    def backend(self, spec: pb.DeploymentSpec) -> Backend:
        """Raises Unavailable if there is none of its kind here."""
        backend = self._backends.get(spec.backend)
        if backend is None:
            name = pb.DeploymentBackend.Name(spec.backend).removeprefix("DEPLOYMENT_BACKEND_").lower()
            raise Unavailable(f"this deployer has no {name} backend", retry_after_s=60.0)
        return backend

    async def drafted(
        self, key: Key, asked: pb.DeploymentSpec, current: Deployment | None, *, actor: str, now: datetime
    ) -> Draft:
        """Raises InvalidArgument naming the field, NotFound, FailedPrecondition, Unavailable, or
        PermissionDenied.

        current: None if there is none. Files that are missing or corrupt are a finding.
        """
        asked = specification.sourced(asked)
        # What needs no version comes first: a wrong field is named even if the Registry is away.
        specification.completed(asked, key, Bundle("", (), ""), self.defaults)
        bundle = await self.versions.of(key.model_id, asked)
        spec = specification.completed(asked, key, bundle, self.defaults)
        check_same_place(current, spec)
        after = respecified(key, current, SpecChange(asked, spec, actor, now), bundle)
        return replace(await self.planned(after), asked=asked)

    def rescaled(
        self, current: Deployment, change: Callable[[pb.DeploymentSpec], object], *, actor: str, now: datetime
    ) -> Deployment:
        """With a change of its spec, and the same version. Raises InvalidArgument."""
        asked = specification.changed(current.asked, change)
        bundle = current.revision(current.target).bundle
        spec = specification.completed(asked, current.key, bundle, self.defaults)
        return current.rescaled(SpecChange(asked, spec, actor, now))

    def rolled_back(self, current: Deployment, to: Revision, *, actor: str, now: datetime) -> Deployment:
        """On its way to an earlier revision, by a spec that names that version."""
        asked = specification.changed(current.asked, lambda spec: setattr(spec, "version", to.bundle.version))
        spec = specification.completed(asked, current.key, to.bundle, self.defaults)
        return current.rolled_back(to, SpecChange(asked, spec, actor, now))

    async def planned(self, after: Deployment, *, is_verified: bool = False) -> Draft:
        """Of a deployment as it would be. is_verified: its files are known to be good."""
        bundle = after.revision(after.target).bundle
        findings = () if is_verified else await self._artifacts(after.key, bundle)
        try:
            plan = await self.backend(after.spec).plan(desired.goal(after))
        except BackendError as error:
            raise error_of(error) from error
        return Draft(after.asked, after.spec, bundle, plan, findings)

    async def way_back(self, after: Deployment) -> tuple[pb.ReplacementMode.ValueType, pb.PlanFinding | None]:
        """How the target of a rollback takes its place, and what stands against that. It is gone back all the
        same: what serves now may be worse than a wait for room.
        """
        try:
            draft = await self.planned(after, is_verified=True)
        except Error as error:
            _LOG.warning("rollback not planned", extra={"cause": error.description})
            return after.replacement, None
        return draft.plan.replacement, next(draft.blocking(), None)

    async def _artifacts(self, key: Key, bundle: Bundle) -> tuple[pb.PlanFinding, ...]:
        try:
            await self.versions.verify(key.model_id, bundle)
        except FailedPrecondition as error:
            return (pb.PlanFinding(reason=error.reason, message=error.description, is_blocking=True),)
        return ()


def respecified(key: Key, current: Deployment | None, change: SpecChange, bundle: Bundle) -> Deployment:
    """The deployment with a spec; itself if that is nothing new."""
    if current is None or current.is_gone:
        generation = current.generation + 1 if current else 1
        return model.created(key, naming.resource_name(key), change, bundle, generation=generation)
    return current.respecified(change, bundle)


def check_same_place(current: Deployment | None, spec: pb.DeploymentSpec) -> None:
    """Raises InvalidArgument for a spec that would leave objects behind where they were."""
    if current is None or current.is_gone:
        return
    if current.spec.backend != spec.backend:
        raise InvalidArgument("spec.backend", "cannot change; undeploy, then deploy there")
    if current.spec.kubernetes.namespace != spec.kubernetes.namespace:
        raise InvalidArgument("spec.kubernetes.namespace", "cannot change; undeploy, then deploy there")


def error_of(error: BackendError) -> Error:
    """How a caller reads a backend's trouble."""
    text = str(error)
    match error.trouble:
        case Trouble.UNREACHABLE | Trouble.NOT_CONFIGURED:
            return Unavailable(text, retry_after_s=error.retry_after_s or 1.0)
        case Trouble.FORBIDDEN:
            return PermissionDenied(text)
        case Trouble.REFUSED if error.field:
            return InvalidArgument(f"spec.{error.field.removeprefix('spec.')}", text)
    return FailedPrecondition(error.trouble.value, text, subject=error.field)
