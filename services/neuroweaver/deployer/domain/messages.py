"""Deployments as the contract's messages."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from neuroweaver.deployer.domain.backend import BackendPlan, FieldChange, Key, Replica
from neuroweaver.deployer.domain.metrics.health import Health
from neuroweaver.deployer.domain.model import Condition, Deployment, Revision
from neuroweaver.deployer.domain.rollouts import transitions
from neuroweaver.mesh.wire.clock import timestamp
from neuroweaver.v1 import deployer_pb2 as pb

MAX_REPLICAS: Final = 100
MAX_CHANGES: Final = 100


def from_deployment(deployment: Deployment, last_sequence: int) -> pb.Deployment:
    status = deployment.status
    is_cluster = deployment.spec.backend == pb.DEPLOYMENT_BACKEND_KUBERNETES
    shown = sorted(status.replicas, key=lambda each: (each.phase == pb.REPLICA_PHASE_READY, each.replica_id))
    return pb.Deployment(
        model_id=deployment.key.model_id,
        name=deployment.key.name,
        project=deployment.key.project,
        spec=deployment.spec,
        state=status.state,
        message=status.message,
        conditions=map(from_condition, status.conditions),
        endpoint=status.endpoint,
        resource_name=deployment.resource_name,
        namespace=deployment.spec.kubernetes.namespace if is_cluster else "",
        revisions=(from_revision(deployment, each) for each in deployment.revisions),
        stable_revision=deployment.stable,
        rollout=from_rollout(deployment),
        replicas=pb.ReplicaCounts(
            desired=deployment.replicas,
            current=len(status.replicas),
            ready=status.ready(),
            updated=status.ready(deployment.target),
        ),
        replica_statuses=map(from_replica, shown[:MAX_REPLICAS]),
        drift=() if status.drift_corrected else map(from_change, status.drift[:MAX_CHANGES]),
        switched_to=from_key(deployment.switched_to) if deployment.switched_to else None,
        create_time=timestamp(deployment.create_time),
        update_time=timestamp(deployment.update_time),
        ready_time=timestamp(status.ready_time),
        updated_by=deployment.updated_by,
        generation=deployment.generation,
        observed_generation=status.generation,
        etag=deployment.etag,
        last_sequence=last_sequence,
    )


def from_revision(deployment: Deployment, revision: Revision) -> pb.DeploymentRevision:
    return pb.DeploymentRevision(
        number=revision.number,
        version=revision.bundle.version,
        alias=revision.alias,
        artifacts_digest=revision.bundle.digest,
        weight_percent=deployment.status.weights.get(revision.number, 0),
        ready_replicas=deployment.status.ready(revision.number),
        is_proven=revision.is_proven,
        cause=revision.cause.value,
        created_by=revision.created_by,
        create_time=timestamp(revision.create_time),
    )


def from_condition(condition: Condition) -> pb.DeploymentCondition:
    return pb.DeploymentCondition(
        type=condition.type,
        is_true=condition.is_true,
        reason=condition.reason,
        message=condition.message,
        time=timestamp(condition.time),
    )


def from_replica(replica: Replica) -> pb.ReplicaStatus:
    made = pb.ReplicaStatus(
        replica_id=replica.replica_id,
        revision=replica.revision,
        phase=replica.phase,
        message=replica.message,
        node=replica.node,
        restarts=replica.restarts,
        last_exit_code=replica.last_exit,
        loaded_versions=replica.loaded_versions,
        start_time=timestamp(replica.start_time),
        ready_time=timestamp(replica.ready_time),
        last_token_time=timestamp(replica.last_token_time),
    )
    for phase, length in replica.phases:
        made.phases.add(phase=phase).duration.FromTimedelta(length)
    return made


def from_change(change: FieldChange) -> pb.FieldChange:
    return pb.FieldChange(object=change.object, path=change.path, before=change.before, after=change.after)


def from_key(key: Key) -> pb.BackupModel:
    return pb.BackupModel(model_id=key.model_id, name=key.name)


def from_plan(
    plan: BackendPlan, *, version: str, digest: str, further: Iterable[pb.PlanFinding] = ()
) -> pb.DeploymentPlan:
    findings = [
        *further,
        *(
            pb.PlanFinding(
                reason=each.reason, message=each.message, field=each.field, is_blocking=each.is_blocking
            )
            for each in plan.findings
        ),
    ]
    return pb.DeploymentPlan(
        is_feasible=not any(each.is_blocking for each in findings),
        findings=findings,
        version=version,
        replacement=plan.replacement,
        replacement_reason=plan.replacement_reason,
        objects=(
            pb.PlannedObject(
                api_version=each.api_version,
                kind=each.kind,
                namespace=each.namespace,
                name=each.name,
                action=each.action,
                manifest=each.manifest,
                changes=map(from_change, each.changes),
            )
            for each in plan.objects
        ),
        capacity=(
            pb.CapacityCheck(
                resource=each.resource,
                required=each.required,
                peak_required=each.peak_required,
                available=each.available,
                is_sufficient=each.is_sufficient,
            )
            for each in plan.capacity
        ),
        has_downtime=plan.has_downtime,
        digest=digest,
    )


def from_rollout(deployment: Deployment) -> pb.RolloutStatus | None:
    rollout = deployment.rollout
    return transitions.status(rollout, deployment.spec) if rollout is not None else None


def from_thresholds(health: Health) -> list[pb.ThresholdStatus]:
    return [each.message() for each in health.thresholds]


def from_health(deployment: Deployment, now: datetime) -> pb.ModelHealth:
    """By what was found last."""
    status, key = deployment.status, deployment.key
    serving = deployment.find(deployment.stable or deployment.target)
    ready = status.ready()
    tokens = [each.last_token_time for each in status.replicas if each.last_token_time is not None]
    health = status.health
    return pb.ModelHealth(
        model_id=key.model_id,
        name=key.name,
        state=health.state if health else pb.HEALTH_STATE_UNKNOWN,
        reason=health.reason if health else "Nothing was seen of it yet.",
        version=serving.bundle.version if serving and ready else "",
        thresholds=from_thresholds(health) if health else (),
        ready_replicas=ready,
        desired_replicas=deployment.replicas,
        last_token_time=timestamp(max(tokens)) if tokens else None,
        serving=from_key(deployment.switched_to or key),
        is_switched=deployment.switched_to is not None,
        configured_thresholds=deployment.spec.thresholds,
        etag=deployment.etag,
        time=timestamp(now),
    )
