"""Deployments as the contract's messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Final

from neuroweaver.deployer.domain.backend import BackendPlan, Planned, Replica
from neuroweaver.deployer.domain.metrics import measurement
from neuroweaver.deployer.domain.metrics.counts import Sample
from neuroweaver.deployer.domain.metrics.health import Health
from neuroweaver.deployer.domain.metrics.measurement import Measurements, Tally
from neuroweaver.deployer.domain.model import Deployment, Revision
from neuroweaver.deployer.domain.rollouts.rollout import Rollout, bake_end
from neuroweaver.mesh.wire.clock import timestamp
from neuroweaver.mesh.wire.messages import message_of
from neuroweaver.v1 import deployer_pb2 as pb

MAX_REPLICAS: Final = 100
MAX_CHANGES: Final = 100

from_change = partial(message_of, pb.FieldChange)
from_condition = partial(message_of, pb.DeploymentCondition)
from_key = partial(message_of, pb.BackupModel)
from_threshold = partial(message_of, pb.ThresholdStatus)


def from_deployment(deployment: Deployment, last_sequence: int) -> pb.Deployment:
    status = deployment.status
    is_cluster = deployment.spec.backend == pb.DEPLOYMENT_BACKEND_KUBERNETES
    shown = sorted(status.replicas, key=lambda replica: (replica.is_ready, replica.replica_id))
    return message_of(
        pb.Deployment,
        deployment,
        model_id=deployment.key.model_id,
        name=deployment.key.name,
        project=deployment.key.project,
        state=status.state,
        message=status.message,
        conditions=map(from_condition, status.conditions),
        endpoint=status.endpoint,
        namespace=deployment.spec.kubernetes.namespace if is_cluster else "",
        revisions=(from_revision(deployment, revision) for revision in deployment.revisions),
        stable_revision=deployment.stable,
        rollout=from_rollout(deployment.rollout, deployment.spec),
        replicas=pb.ReplicaCounts(
            desired=deployment.replicas,
            current=len(status.replicas),
            ready=status.ready(),
            updated=status.ready(deployment.target),
        ),
        replica_statuses=map(from_replica, shown[:MAX_REPLICAS]),
        drift=() if status.drift_corrected else map(from_change, status.drift[:MAX_CHANGES]),
        switched_to=from_key(deployment.switched_to) if deployment.switched_to else None,
        ready_time=status.ready_time,
        observed_generation=status.generation,
        last_sequence=last_sequence,
    )


def from_revision(deployment: Deployment, revision: Revision) -> pb.DeploymentRevision:
    return message_of(
        pb.DeploymentRevision,
        revision,
        version=revision.bundle.version,
        artifacts_digest=revision.bundle.digest,
        weight_percent=deployment.status.weights.get(revision.number, 0),
        ready_replicas=deployment.status.ready(revision.number),
    )


def from_replica(replica: Replica) -> pb.ReplicaStatus:
    phases = [{"phase": phase, "duration": length} for phase, length in replica.phases]
    return message_of(pb.ReplicaStatus, replica, last_exit_code=replica.last_exit, phases=phases)


def from_object(planned: Planned) -> pb.PlannedObject:
    return message_of(pb.PlannedObject, planned, changes=map(from_change, planned.changes))


def from_plan(
    plan: BackendPlan, *, version: str, digest: str, further: Iterable[pb.PlanFinding] = ()
) -> pb.DeploymentPlan:
    findings = [*further, *(message_of(pb.PlanFinding, finding) for finding in plan.findings)]
    return message_of(
        pb.DeploymentPlan,
        plan,
        is_feasible=not any(finding.is_blocking for finding in findings),
        findings=findings,
        version=version,
        objects=map(from_object, plan.objects),
        capacity=(message_of(pb.CapacityCheck, capacity) for capacity in plan.capacity),
        digest=digest,
    )


def from_rollout(rollout: Rollout | None, spec: pb.DeploymentSpec) -> pb.RolloutStatus | None:
    if rollout is None:
        return None
    return message_of(
        pb.RolloutStatus,
        rollout,
        stable_revision=rollout.stable,
        candidate_revision=rollout.candidate,
        total_steps=len(spec.rollout.canary.steps) if rollout.is_canary else 0,
        candidate_weight_percent=rollout.candidate_weight,
        bake_end_time=bake_end(rollout, spec, rollout.step_start) if rollout.step_start else None,
    )


def from_health(deployment: Deployment, now: datetime) -> pb.ModelHealth:
    """By what was found last."""
    status, key = deployment.status, deployment.key
    serving = deployment.find(deployment.stable or deployment.target)
    ready = status.ready()
    tokens = [replica.last_token_time for replica in status.replicas if replica.last_token_time is not None]
    health = status.health or Health(pb.HEALTH_STATE_UNKNOWN, "It has not been looked at yet.")
    return message_of(
        pb.ModelHealth,
        health,
        model_id=key.model_id,
        name=key.name,
        version=serving.bundle.version if serving and ready else "",
        thresholds=map(from_threshold, health.thresholds),
        ready_replicas=ready,
        desired_replicas=deployment.replicas,
        last_token_time=max(tokens, default=None),
        serving=from_key(deployment.switched_to or key),
        is_switched=deployment.switched_to is not None,
        configured_thresholds=deployment.spec.thresholds,
        etag=deployment.etag,
        time=now,
    )


def from_metrics(
    deployment: Deployment,
    tallies: Sequence[Tally],
    samples: Sequence[Sample],
    start: datetime,
    end: datetime,
) -> pb.DeploymentMetrics:
    """tallies: in order of time."""
    versions = {revision.number: revision.bundle.version for revision in deployment.revisions}
    windows = measurement.windows(tallies, samples, deployment.served_by)
    whole = measurement.total(windows.values())
    return pb.DeploymentMetrics(
        start_time=timestamp(start),
        end_time=timestamp(end),
        total=from_window(whole, deployment.replica_hour_usd),
        revisions=[
            pb.RevisionMetrics(
                revision=number,
                version=versions.get(number, ""),
                metrics=from_window(window, deployment.replica_hour_usd),
            )
            for number, window in sorted(windows.items(), reverse=True)
        ],
        missing_replicas=whole.missing_replicas,
    )


def from_window(window: Measurements, replica_hour_usd: float | None) -> pb.ServingMetrics:
    """What was not measured stays unset."""
    latency, first_token, last = window.latency_ms, window.first_token_ms, window.last
    used = [measured.gpu_utilization for measured in last if measured.gpu_utilization is not None]
    return pb.ServingMetrics(
        requests=window.requests,
        errors=window.errors,
        throughput_rps=window.requests / window.seconds if window.seconds > 0 else None,
        tokens_per_second=window.tokens / window.seconds if window.seconds > 0 else None,
        error_rate=min(1.0, window.errors / window.requests) if window.requests else None,
        latency_p50_ms=latency.quantile(0.5),
        latency_p95_ms=latency.quantile(0.95),
        latency_p99_ms=latency.quantile(0.99),
        first_token_p50_ms=first_token.quantile(0.5),
        first_token_p95_ms=first_token.quantile(0.95),
        running_requests=measurement.known_sum(measured.running for measured in last),
        waiting_requests=measurement.known_sum(measured.waiting for measured in last),
        cpu_cores=measurement.known_sum(measured.cpu_cores for measured in last),
        memory_bytes=measurement.known_sum(measured.memory_bytes for measured in last),
        gpu_memory_bytes=measurement.known_sum(measured.gpu_memory_bytes for measured in last),
        gpu_utilization=sum(used) / len(used) if used else None,
        cost_per_request=window.cost_per_request(replica_hour_usd),
        accuracy=window.mean("accuracy"),
        judged_quality=window.mean("judged_quality"),
    )
