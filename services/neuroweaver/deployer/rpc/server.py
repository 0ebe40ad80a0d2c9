"""DeployerService over gRPC: requests to operations of the store, model objects to responses."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from neuroweaver.deployer import planning
from neuroweaver.deployer.control.status import with_condition
from neuroweaver.deployer.domain import recovery, specification
from neuroweaver.deployer.domain.backend import Key
from neuroweaver.deployer.domain.model import Deployment, Revision
from neuroweaver.deployer.rpc.handler import asked_key, known_key, occasion
from neuroweaver.deployer.rpc.performance import PerformanceMethods
from neuroweaver.deployer.rpc.watches import WatchMethods
from neuroweaver.deployer.storage.reader import LABELS, Reader
from neuroweaver.deployer.storage.writer import Writer, answer
from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.handlers import filters
from neuroweaver.mesh.wire.errors import Aborted, FailedPrecondition, InvalidArgument
from neuroweaver.v1 import deployer_pb2 as pb
from neuroweaver.v1 import deployer_pb2_grpc

NAME: Final = "neuroweaver.v1.DeployerService"


class DeployerServicer(WatchMethods, PerformanceMethods, deployer_pb2_grpc.DeployerServiceServicer):
    async def PlanDeployment(self, request: pb.PlanDeploymentRequest, context: Any) -> pb.DeploymentPlan:
        key = asked_key(request, context)
        async with self._store.read(key.project) as deployments:
            found = await deployments.find(key)
            await _check_backups(deployments, key, request.spec)
        draft = await self._planner.drafted(
            key,
            request.spec,
            found.deployment if found else None,
            actor=caller_of(context).actor,
            now=self._store.clock(),
        )
        return draft.message()

    async def DeployModel(self, request: pb.DeployModelRequest, context: Any) -> pb.Deployment:
        key, why = asked_key(request, context), occasion(request, context)
        known = await self._answered("DeployModel", request, context, pb.Deployment)
        if known is not None:
            return known
        async with self._store.read(key.project) as deployments:
            found = await deployments.find(key)
        current = found.deployment if found else None
        _check_present(current, request.etag)
        # Before the transaction: other processes are asked, and nothing waits for them.
        draft = await self._planner.drafted(
            key, request.spec, current, actor=why.actor, now=self._store.clock()
        )
        if request.plan_digest and request.plan_digest != draft.digest:
            raise FailedPrecondition(
                "PLAN_CHANGED", "the plan is another one by now: plan again, then deploy what it says"
            )
        draft.require_feasible()

        async def deploy(deployments: Writer) -> pb.Deployment:
            before = await deployments.find(key)
            now_current = before.deployment if before else None
            _check_present(now_current, request.etag)
            planning.check_same_place(now_current, draft.spec)
            await _check_backups(deployments, key, request.spec)
            after = planning.made(
                key,
                now_current,
                draft.asked,
                draft.spec,
                draft.bundle,
                actor=why.actor,
                now=deployments.now,
            )
            if after is not now_current:
                after = replace(after, replacement=draft.plan.replacement)
            return answer(await deployments.save(before, after, why))

        return await self._mutate("DeployModel", request, context, pb.Deployment, deploy)

    async def GetDeployment(self, request: pb.GetDeploymentRequest, context: Any) -> pb.Deployment:
        key = known_key(request, context)
        async with self._store.read(key.project) as deployments:
            return answer(await deployments.kept(key))

    async def ListDeployments(
        self, request: pb.ListDeploymentsRequest, context: Any
    ) -> pb.ListDeploymentsResponse:
        project = caller_of(context).project
        by_time = request.order_by == "create_time desc"
        page = Page.of(
            request.page_size,
            request.page_token,
            query=("deployments", project, request.filter, str(by_time)),
        )
        terms = filters.parse(request.filter, ("state", "model_id", "alias", LABELS))
        async with self._store.read(project) as deployments:
            found, token = await deployments.deployments(page, terms, by_time=by_time)
        return pb.ListDeploymentsResponse(deployments=map(answer, found), next_page_token=token)

    async def UndeployModel(self, request: pb.UndeployModelRequest, context: Any) -> pb.Deployment:
        key, why = known_key(request, context), occasion(request, context)

        async def remove(deployments: Writer) -> pb.Deployment:
            before = await deployments.kept(key, show_gone=True)
            current = before.deployment
            if current.is_being_removed:
                return answer(before)
            current.require(request.etag)
            users = [] if request.force else await deployments.backed_by(key)
            if users:
                named = ", ".join(f"{each.model_id}/{each.name}" for each in users[:5])
                raise FailedPrecondition(
                    "IS_BACKUP", f"it is the backup of {named}; with `force` it is removed all the same"
                )
            after = current.removed(actor=why.actor, now=deployments.now)
            return answer(await deployments.save(before, after, why))

        return await self._mutate("UndeployModel", request, context, pb.Deployment, remove)

    async def ScaleDeployment(self, request: pb.ScaleDeploymentRequest, context: Any) -> pb.Deployment:
        key, why = known_key(request, context), occasion(request, context, cause="REQUEST")
        known = await self._answered("ScaleDeployment", request, context, pb.Deployment)
        if known is not None:
            return known

        def scaled(spec: pb.DeploymentSpec) -> None:
            if request.WhichOneof("scaling") == "replicas":
                spec.replicas = request.replicas
            else:
                spec.autoscaling.CopyFrom(request.autoscaling)

        async with self._store.read(key.project) as deployments:
            current = await deployments.deployment(key)
        _check_present(current, request.etag)
        specification.check_autoscaling("autoscaling", request.autoscaling, current.spec.backend)
        asked, spec = self._changed(current, scaled)
        wanted = current.rescaled(asked, spec, actor=why.actor, now=self._store.clock())
        if wanted is not current:
            (await self._planner.replanned(wanted)).require_feasible()

        async def scale(deployments: Writer) -> pb.Deployment:
            before = await deployments.kept(key)
            _check_present(before.deployment, request.etag)
            asked, spec = self._changed(before.deployment, scaled)
            after = before.deployment.rescaled(asked, spec, actor=why.actor, now=deployments.now)
            return answer(await deployments.save(before, after, why))

        return await self._mutate("ScaleDeployment", request, context, pb.Deployment, scale)

    async def RollbackDeployment(self, request: pb.RollbackDeploymentRequest, context: Any) -> pb.Deployment:
        key, why = known_key(request, context), occasion(request, context)
        known = await self._answered("RollbackDeployment", request, context, pb.Deployment)
        if known is not None:
            return known
        async with self._store.read(key.project) as deployments:
            current = await deployments.deployment(key)
        _check_present(current, request.etag)
        goal = current.way_back(request.revision)
        await self._planner.versions.verify(key.model_id, goal.bundle)

        def gone_back(current: Deployment, to: Revision, now: datetime) -> Deployment:
            asked = specification.changed(
                current.asked, lambda spec: setattr(spec, "version", to.bundle.version)
            )
            spec = specification.completed(asked, key, to.bundle, self._planner.defaults)
            return current.rolled_back(to, asked, spec, actor=why.actor, now=now)

        # Before the transaction, as in a deploy. What only gives up a candidate needs no plan.
        wanted = gone_back(current, goal, self._store.clock())
        mode, finding = wanted.replacement, None
        if wanted.last_revision != current.last_revision:
            mode, finding = await self._planner.way_back(wanted)

        async def roll_back(deployments: Writer) -> pb.Deployment:
            before = await deployments.kept(key)
            current = before.deployment
            _check_present(current, request.etag)
            to = current.way_back(request.revision)
            if to.bundle != goal.bundle:
                raise FailedPrecondition("REVISION_MOVED", "another call changed the deployment; call again")
            after = gone_back(current, to, deployments.now)
            if after.last_revision != current.last_revision:
                after = _replaced(after, mode, finding, deployments.now)
            return answer(await deployments.save(before, after, why))

        return await self._mutate("RollbackDeployment", request, context, pb.Deployment, roll_back)


def _check_present(current: Deployment | None, etag: str) -> None:
    """Raises FailedPrecondition while it is being removed, Aborted if it is not what the caller saw."""
    if current is None or current.is_gone:
        if etag:
            raise Aborted("ETAG_MISMATCH", f"there is no deployment whose etag was {etag}")
        return
    current.require_present()
    current.require(etag)


def _replaced(
    deployment: Deployment,
    mode: pb.ReplacementMode.ValueType,
    finding: pb.PlanFinding | None,
    now: datetime,
) -> Deployment:
    """With the way that was chosen for its target, and what stands against that, until the next look."""
    status = deployment.status
    if finding is not None:
        status = with_condition(
            status, "SCHEDULED", is_true=False, reason=finding.reason, message=finding.message, now=now
        )
    return replace(deployment, replacement=mode, status=status)


async def _check_backups(deployments: Reader, key: Key, spec: pb.DeploymentSpec) -> None:
    """Raises InvalidArgument if the traffic could be sent in a circle."""
    first = at = specification.backup_of(spec, key.project)
    backups: dict[Key, Key] = {}
    while at is not None and at != key and at not in backups:
        found = await deployments.find(at)
        if found is None or found.deployment.is_gone:
            break
        following = specification.backup_of(found.deployment.spec, key.project)
        if following is not None:
            backups[at] = following
        at = following
    if recovery.cycle(key, first, backups):
        raise InvalidArgument("spec.recovery.backup", "leads back to this deployment, or to itself")
