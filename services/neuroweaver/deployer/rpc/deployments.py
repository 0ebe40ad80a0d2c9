"""Deployments: planned, deployed, scaled, rolled back, removed, read and listed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from neuroweaver.deployer import planning
from neuroweaver.deployer.domain import messages, recovery, specification
from neuroweaver.deployer.domain.backend import Key
from neuroweaver.deployer.domain.model import Deployment, Revision, SpecChange, require_current
from neuroweaver.deployer.planning import Draft, Planner
from neuroweaver.deployer.rpc.keys import existing_key, new_key
from neuroweaver.deployer.storage.reader import LABELS, Kept, Reader
from neuroweaver.deployer.storage.store import Store
from neuroweaver.deployer.storage.writer import Writer
from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.handlers import filters
from neuroweaver.mesh.handlers.mutations import Mutations, origin_of
from neuroweaver.mesh.wire.errors import FailedPrecondition, InvalidArgument
from neuroweaver.v1 import deployer_pb2 as pb


async def deploy(deployments: Writer, key: Key, draft: Draft, etag: str) -> pb.Deployment:
    before = await deployments.find(key)
    current = before.deployment if before else None
    require_current(current, etag)
    planning.check_same_place(current, draft.spec)
    await check_backups(deployments, key, draft.spec)
    change = SpecChange(draft.asked, draft.spec, deployments.actor, deployments.now)
    after = planning.respecified(key, current, change, draft.bundle)
    if after is not current:
        after = replace(after, replacement=draft.plan.replacement)
    return answer(await deployments.save(before, after))


async def undeploy(deployments: Writer, key: Key, request: pb.UndeployModelRequest) -> pb.Deployment:
    before = await deployments.kept(key, show_gone=True)
    current = before.deployment
    if current.is_being_removed:
        return answer(before)
    current.require(request.etag)
    users = [] if request.force else await deployments.backed_by(key)
    if users:
        raise FailedPrecondition(
            "IS_BACKUP",
            f"it is the backup of {', '.join(map(str, users[:5]))}; to remove it anyway, set `force`",
        )
    after = current.removed(actor=deployments.actor, now=deployments.now)
    return answer(await deployments.save(before, after))


async def scale(
    deployments: Writer, key: Key, request: pb.ScaleDeploymentRequest, planner: Planner
) -> pb.Deployment:
    before = await deployments.kept(key)
    require_current(before.deployment, request.etag)
    after = planner.rescaled(
        before.deployment, scaling(request), actor=deployments.actor, now=deployments.now
    )
    return answer(await deployments.save(before, after, cause="REQUEST"))


def scaling(request: pb.ScaleDeploymentRequest) -> Callable[[pb.DeploymentSpec], None]:
    """The change of a spec that is asked for."""

    def change(spec: pb.DeploymentSpec) -> None:
        if request.WhichOneof("scaling") == "replicas":
            spec.replicas = request.replicas
        else:
            spec.autoscaling.CopyFrom(request.autoscaling)

    return change


@dataclass(frozen=True)
class WayBack:
    """What was found out about a rollback before its transaction."""

    revision: Revision
    replacement: pb.ReplacementMode.ValueType
    finding: pb.PlanFinding | None = None


async def roll_back(
    deployments: Writer, key: Key, request: pb.RollbackDeploymentRequest, way: WayBack, planner: Planner
) -> pb.Deployment:
    before = await deployments.kept(key)
    current = before.deployment
    require_current(current, request.etag)
    to = current.way_back(request.revision)
    if to.bundle != way.revision.bundle:
        raise FailedPrecondition("REVISION_MOVED", "another call changed the deployment; call again")
    after = planner.rolled_back(current, to, actor=deployments.actor, now=deployments.now)
    if after.last_revision != current.last_revision:
        after = _replaced(after, way, deployments.now)
    return answer(await deployments.save(before, after))


def _replaced(deployment: Deployment, way: WayBack, now: datetime) -> Deployment:
    """With the way that was chosen for its target, and what stands against that, until the next look."""
    status, finding = deployment.status, way.finding
    if finding is not None:
        status = status.with_condition(
            "SCHEDULED", is_true=False, reason=finding.reason, message=finding.message, now=now
        )
    return replace(deployment, replacement=way.replacement, status=status)


async def check_backups(deployments: Reader, key: Key, spec: pb.DeploymentSpec) -> None:
    """Raises InvalidArgument if the traffic could be sent in a circle."""
    backup = specification.backup_of(spec, key.project)
    if recovery.cycle(key, backup, await deployments.backups_from(backup)):
        raise InvalidArgument(
            "spec.recovery.backup", "leads back to this deployment, or into a circle; name another backup"
        )


def answer(kept: Kept) -> pb.Deployment:
    return messages.from_deployment(kept.deployment, kept.last_sequence)


class Deployments:
    def __init__(self, store: Store, mutations: Mutations[Writer], planner: Planner) -> None:
        self._store = store
        self._mutations = mutations
        self._planner = planner

    async def PlanDeployment(self, request: pb.PlanDeploymentRequest, context: Any) -> pb.DeploymentPlan:
        key = new_key(request, context)
        async with self._store.read(key.project) as deployments:
            kept = await deployments.find(key)
            await check_backups(deployments, key, request.spec)
        current = kept.deployment if kept else None
        return (await self._drafted(key, request.spec, current, caller_of(context).actor)).message()

    async def DeployModel(self, request: pb.DeployModelRequest, context: Any) -> pb.Deployment:
        key, origin = new_key(request, context), origin_of(request, context)
        if (answered := await self._answered(request, context)) is not None:
            return answered
        async with self._store.read(key.project) as deployments:
            kept = await deployments.find(key)
        current = kept.deployment if kept else None
        require_current(current, request.etag)
        # Before the transaction: other processes are asked, and nothing waits for them.
        draft = await self._drafted(key, request.spec, current, origin.actor)
        if request.plan_digest and request.plan_digest != draft.digest:
            raise FailedPrecondition(
                "PLAN_CHANGED", "the plan has changed since; plan again, and deploy with the new plan_digest"
            )
        draft.require_feasible()
        return await self._mutations.run(
            request, context, lambda deployments: deploy(deployments, key, draft, request.etag)
        )

    async def GetDeployment(self, request: pb.GetDeploymentRequest, context: Any) -> pb.Deployment:
        key = existing_key(request, context)
        async with self._store.read(key.project) as deployments:
            return answer(await deployments.kept(key))

    async def ListDeployments(
        self, request: pb.ListDeploymentsRequest, context: Any
    ) -> pb.ListDeploymentsResponse:
        project = caller_of(context).project
        page = Page.asked(request, project)
        terms = filters.parse(request.filter, ("state", "model_id", "alias", LABELS))
        by_time = request.order_by == "create_time desc"
        async with self._store.read(project) as deployments:
            shown, token = await deployments.deployments(page, terms, by_time=by_time)
        return pb.ListDeploymentsResponse(deployments=map(answer, shown), next_page_token=token)

    async def UndeployModel(self, request: pb.UndeployModelRequest, context: Any) -> pb.Deployment:
        key = existing_key(request, context)
        return await self._mutations.run(
            request, context, lambda deployments: undeploy(deployments, key, request)
        )

    async def ScaleDeployment(self, request: pb.ScaleDeploymentRequest, context: Any) -> pb.Deployment:
        key, origin = existing_key(request, context), origin_of(request, context)
        if (answered := await self._answered(request, context)) is not None:
            return answered
        current = await self._current(key, request.etag)
        specification.check_autoscaling("autoscaling", request.autoscaling, current.spec.backend)
        scaled = self._planner.rescaled(
            current, scaling(request), actor=origin.actor, now=self._store.clock()
        )
        if scaled is not current:
            (await self._planner.planned(scaled, is_verified=True)).require_feasible()
        return await self._mutations.run(
            request, context, lambda deployments: scale(deployments, key, request, self._planner)
        )

    async def RollbackDeployment(self, request: pb.RollbackDeploymentRequest, context: Any) -> pb.Deployment:
        key, origin = existing_key(request, context), origin_of(request, context)
        if (answered := await self._answered(request, context)) is not None:
            return answered
        current = await self._current(key, request.etag)
        revision = current.way_back(request.revision)
        await self._planner.versions.verify(key.model_id, revision.bundle)
        # Before the transaction, as in a deploy. What only gives up a candidate needs no plan.
        after = self._planner.rolled_back(current, revision, actor=origin.actor, now=self._store.clock())
        way = WayBack(revision, after.replacement)
        if after.last_revision != current.last_revision:
            way = WayBack(revision, *await self._planner.way_back(after))
        return await self._mutations.run(
            request, context, lambda deployments: roll_back(deployments, key, request, way, self._planner)
        )

    async def _drafted(
        self, key: Key, spec: pb.DeploymentSpec, current: Deployment | None, actor: str
    ) -> Draft:
        return await self._planner.drafted(key, spec, current, actor=actor, now=self._store.clock())

    async def _answered(self, request: Any, context: Any) -> pb.Deployment | None:
        answered: pb.Deployment | None = await self._mutations.answered(request, context)
        return answered

    async def _current(self, key: Key, etag: str) -> Deployment:
        async with self._store.read(key.project) as deployments:
            current = await deployments.deployment(key)
        require_current(current, etag)
        return current
