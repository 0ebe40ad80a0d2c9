"""What a wish would lead to, before anything is done about it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.deployer.artifacts.versions import Versions
from neuroweaver.deployer.domain import desired, messages, model, naming, specification
from neuroweaver.deployer.domain.backend import Backend, BackendPlan, Bundle, Key
from neuroweaver.deployer.domain.model import Deployment
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
    """A wish with all that is known of it. deployment: as it would be; plan: what its backend would do."""

    asked: pb.DeploymentSpec
    spec: pb.DeploymentSpec
    bundle: Bundle
    deployment: Deployment
    plan: BackendPlan
    findings: tuple[pb.PlanFinding, ...] = ()

    @property
    def digest(self) -> str:
        """Over version, spec and live objects: what a plan was agreed to for."""
        seen = hashlib.sha256()
        plan = self.plan
        parts = [
            self.bundle.version,
            self.bundle.digest,
            self.spec.SerializeToString(deterministic=True).hex(),
            str(plan.replacement),
        ]
        for each in plan.objects:
            parts += [each.api_version, each.kind, each.namespace, each.name, str(each.action), each.manifest]
            parts += [
                f"{change.object} {change.path} {change.before} {change.after}" for change in each.changes
            ]
        parts += [f"{each.reason} {each.field}" for each in plan.findings if each.is_blocking]
        for part in parts:
            seen.update(hashlib.sha256(part.encode()).digest())
        return seen.hexdigest()

    def message(self) -> pb.DeploymentPlan:
        return messages.from_plan(
            self.plan, version=self.bundle.version, digest=self.digest, further=self.findings
        )

    def require_feasible(self) -> None:
        """Raises FailedPrecondition with the reason of what stands against it."""
        for finding in self.message().findings:
            if finding.is_blocking:
                raise FailedPrecondition(finding.reason, finding.message, subject=finding.field)


class Planner:
    def __init__(self, backends: Backends, versions: Versions, defaults: Defaults) -> None:
        self.versions = versions
        self.defaults = defaults
        self._backends = backends

    def backend(self, spec: pb.DeploymentSpec) -> Backend:
        """Raises Unavailable if there is none of its kind here."""
        found = self._backends.get(spec.backend)
        if found is None:
            name = pb.DeploymentBackend.Name(spec.backend).removeprefix("DEPLOYMENT_BACKEND_").lower()
            raise Unavailable(f"this deployer has no {name} backend", retry_after_s=60.0)
        return found

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
        after = made(key, current, asked, spec, bundle, actor=actor, now=now)
        return await self.planned(asked, spec, bundle, after)

    async def planned(
        self, asked: pb.DeploymentSpec, spec: pb.DeploymentSpec, bundle: Bundle, after: Deployment
    ) -> Draft:
        """Of a deployment as it would be."""
        return await self._planned(asked, spec, bundle, after, await self._artifacts(after.key, bundle))

    async def replanned(self, after: Deployment) -> Draft:
        """Of a deployment whose files are known already. Whatever loads them verifies them again."""
        bundle = after.revision(after.target).bundle
        return await self._planned(after.asked, after.spec, bundle, after, ())

    async def way_back(self, after: Deployment) -> tuple[pb.ReplacementMode.ValueType, pb.PlanFinding | None]:
        """How the target of a rollback takes its place, and what stands against that. It is gone back all the
        same: what serves now may be worse than a wait for room.
        """
        try:
            draft = await self.replanned(after)
        except Error as error:
            _LOG.warning("rollback not planned", extra={"cause": error.description})
            return after.replacement, None
        blocking = [each for each in draft.message().findings if each.is_blocking]
        return draft.plan.replacement, blocking[0] if blocking else None

    async def _planned(
        self,
        asked: pb.DeploymentSpec,
        spec: pb.DeploymentSpec,
        bundle: Bundle,
        after: Deployment,
        findings: tuple[pb.PlanFinding, ...],
    ) -> Draft:
        try:
            plan = await self.backend(spec).plan(desired.goal(after))
        except BackendError as error:
            raise told(error) from error
        after = replace(after, replacement=plan.replacement)
        return Draft(asked, spec, bundle, after, plan, findings)

    async def _artifacts(self, key: Key, bundle: Bundle) -> tuple[pb.PlanFinding, ...]:
        try:
            await self.versions.verify(key.model_id, bundle)
        except FailedPrecondition as error:
            found = pb.PlanFinding(reason=error.reason, message=error.description, is_blocking=True)
            return (found,)
        return ()


def made(
    key: Key,
    current: Deployment | None,
    asked: pb.DeploymentSpec,
    spec: pb.DeploymentSpec,
    bundle: Bundle,
    *,
    actor: str,
    now: datetime,
) -> Deployment:
    """The deployment with a spec; itself if that is nothing new."""
    if current is None or current.is_gone:
        generation = current.generation + 1 if current else 1
        return model.created(
            key, naming.resource_name(key), asked, spec, bundle, actor=actor, now=now, generation=generation
        )
    return current.respecified(asked, spec, bundle, actor=actor, now=now)


def check_same_place(current: Deployment | None, spec: pb.DeploymentSpec) -> None:
    """Raises InvalidArgument for a spec that would leave objects behind where they were."""
    if current is None or current.is_gone:
        return
    if current.spec.backend != spec.backend:
        raise InvalidArgument("spec.backend", "cannot change: undeploy it, then deploy it there")
    if current.spec.kubernetes.namespace != spec.kubernetes.namespace:
        raise InvalidArgument("spec.kubernetes.namespace", "cannot change: undeploy it, then deploy it there")


def told(error: BackendError) -> Error:
    """What a caller is told of a backend's trouble."""
    text = str(error)
    match error.trouble:
        case Trouble.UNREACHABLE | Trouble.NOT_CONFIGURED:
            return Unavailable(text, retry_after_s=error.retry_after_s or 1.0)
        case Trouble.FORBIDDEN:
            return PermissionDenied(text)
        case Trouble.REFUSED if error.field:
            return InvalidArgument(f"spec.{error.field.removeprefix('spec.')}", text)
    return FailedPrecondition(error.trouble.value, text, subject=error.field)
