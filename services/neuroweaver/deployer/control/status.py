"""The state and the conditions of a deployment, by what its backend sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.deployer.domain.backend import Observed, Replica
from neuroweaver.deployer.domain.metrics.health import Health
from neuroweaver.deployer.domain.model import Deployment, Status
from neuroweaver.v1 import deployer_pb2 as pb

# Why a replica finds no place. Others, such as an autoscaler without figures, keep none from its place.
_UNPLACED: Final = frozenset({"UNSCHEDULABLE", "QUOTA_EXCEEDED", "REPLICA_REFUSED", "NO_ROOM", "DISK_FULL"})
_OUT_OF_REACH: Final = frozenset({Trouble.UNREACHABLE, Trouble.FORBIDDEN, Trouble.NOT_CONFIGURED})

Said = tuple[bool | None, str, str]
"""What a condition says: whether it is true (None: not known), the reason, and a message."""


def with_observed(
    deployment: Deployment,
    observed: Observed | None,
    trouble: BackendError | None,
    now: datetime,
    *,
    generation: int,
) -> Deployment:
    """With what a look saw. observed: None: nothing could be seen, so what was seen before stays.

    generation: of the desired state that was applied before the look.
    """
    if observed is None:
        return deployment
    status = deployment.status
    status = replace(
        status,
        endpoint=observed.endpoint,
        replicas=tuple(replica for replica in observed.replicas if replica.phase != pb.REPLICA_PHASE_GONE),
        draining={
            replica.replica_id: status.draining.get(replica.replica_id, now)
            for replica in observed.replicas
            if replica.phase == pb.REPLICA_PHASE_DRAINING
        },
        desired=dict(observed.desired),
        weights=dict(observed.weights),
        drift=observed.drift,
        drift_corrected=observed.drift_corrected,
        is_idle=observed.is_idle,
        applied_generation=observed.applied_generation,
        generation=generation if trouble is None else status.generation,
    )
    return replace(deployment, status=status)


def with_conditions(
    deployment: Deployment, observed: Observed | None, trouble: BackendError | None, now: datetime
) -> Deployment:
    """With the state and the conditions that follow from a status that holds what was seen."""
    status = deployment.status
    state, message = _state(deployment, trouble)
    if state == pb.DEPLOYMENT_STATE_READY:
        status = replace(status, settled_replicas=status.ready())
        if status.state != state or status.ready_time is None:
            status = replace(status, ready_time=now)
    status = replace(status, state=state, message=message)
    for kind, condition in _conditions(deployment, observed, trouble):
        is_true, reason, text = condition
        status = status.with_condition(kind, is_true=is_true, reason=reason, message=text, now=now)
    return replace(deployment, status=status)


def _state(  # noqa: PLR0911  # the first that holds
    deployment: Deployment, trouble: BackendError | None
) -> tuple[pb.DeploymentState.ValueType, str]:
    status = deployment.status
    ready, wanted = status.ready(), deployment.replicas
    failing = [replica for replica in status.replicas if replica.is_failing]
    if deployment.is_being_removed:
        return pb.DEPLOYMENT_STATE_DELETING, f"Draining; replicas left: {len(status.replicas)}."
    if status.is_idle:
        return pb.DEPLOYMENT_STATE_IDLE, "Scaled to zero; the first request starts a replica."
    if wanted == 0 and not status.replicas:
        return pb.DEPLOYMENT_STATE_IDLE, "Scaled to zero by request."
    if ready == 0 and failing:
        return pb.DEPLOYMENT_STATE_FAILED, _why(failing)
    if ready == 0 and trouble is not None:
        return pb.DEPLOYMENT_STATE_FAILED, str(trouble)
    if deployment.is_rolling:
        return pb.DEPLOYMENT_STATE_PROGRESSING, deployment.rollout.message if deployment.rollout else ""
    if ready >= wanted and status.ready(deployment.target) >= wanted:
        return _served(deployment, failing)
    if status.settled_replicas is not None and wanted <= status.settled_replicas:
        if ready == 0:
            return pb.DEPLOYMENT_STATE_FAILED, "No replica is ready."
        return pb.DEPLOYMENT_STATE_DEGRADED, f"{ready} of {wanted} replicas are ready." + (
            f" {_why(failing)}" if failing else ""
        )
    return pb.DEPLOYMENT_STATE_PROGRESSING, f"{ready} of {wanted} replicas are ready."


def _served(deployment: Deployment, failing: Sequence[Replica]) -> tuple[pb.DeploymentState.ValueType, str]:
    """With as many replicas ready as are wanted, though perhaps not yet such as the spec wants now."""
    status, health = deployment.status, deployment.status.health
    if status.applied_generation < deployment.generation == status.generation:
        if failing:
            return pb.DEPLOYMENT_STATE_DEGRADED, f"The replacement replicas fail: {_why(failing)}"
        return pb.DEPLOYMENT_STATE_PROGRESSING, "Replicas are being replaced to match the current spec."
    if health is not None and health.state in {pb.HEALTH_STATE_DEGRADED, pb.HEALTH_STATE_UNHEALTHY}:
        return pb.DEPLOYMENT_STATE_DEGRADED, health.reason
    return pb.DEPLOYMENT_STATE_READY, f"All {status.ready()} replicas are ready."


def _why(failing: Iterable[Replica]) -> str:
    """In the words of the one that says most."""
    worst = max(
        failing, key=lambda replica: (replica.phase == pb.REPLICA_PHASE_CRASH_LOOP, len(replica.message))
    )
    return worst.message or f"Replica {worst.replica_id} ended with an error."


def _conditions(
    deployment: Deployment, observed: Observed | None, trouble: BackendError | None
) -> Iterator[tuple[str, Said]]:
    """Those that this look can say something about."""
    status = deployment.status
    if trouble is not None and trouble.trouble in _OUT_OF_REACH:
        yield "BACKEND_REACHABLE", (False, trouble.trouble.value, str(trouble))
    elif observed is not None:
        yield "BACKEND_REACHABLE", (True, "REACHED", "The backend answers.")
    if trouble is not None and trouble.trouble == Trouble.ARTIFACTS:
        yield "ARTIFACTS_VERIFIED", (False, "DIGEST_MISMATCH", str(trouble))
    elif observed is not None and (trouble is None or status.condition("ARTIFACTS_VERIFIED") is None):
        yield "ARTIFACTS_VERIFIED", (True, "VERIFIED", "All files are present and match their digests.")
    if observed is not None:
        yield "SCHEDULED", _scheduled(deployment, observed, trouble)
        yield "AVAILABLE", _available(deployment, observed)
        yield "DRIFT_FREE", _drift_free(status)
    yield "ROLLED_OUT", _rolled_out(deployment)
    yield "THRESHOLDS_KEPT", _thresholds_kept(status.health)


def _scheduled(deployment: Deployment, observed: Observed, trouble: BackendError | None) -> Said:
    for reason, message in observed.reasons:
        if _is_unplaced(reason):
            return False, reason, message
    if trouble is not None and trouble.trouble not in _OUT_OF_REACH | {Trouble.ARTIFACTS}:
        return False, trouble.trouble.value, str(trouble)
    waiting = sum(replica.phase == pb.REPLICA_PHASE_SCHEDULING for replica in observed.replicas)
    if waiting:
        return None, "WAITING", f"{waiting} replicas are waiting to be placed."
    if len(observed.replicas) < deployment.replicas:
        return None, "WAITING", f"{len(observed.replicas)} of {deployment.replicas} replicas are placed."
    return True, "PLACED", "Every replica is placed."


def _is_unplaced(reason: str) -> bool:
    return reason in _UNPLACED or reason.startswith("INSUFFICIENT_")


def _available(deployment: Deployment, observed: Observed) -> Said:
    """With what else the backend has to say of how it serves."""
    is_true, reason, message = _serving(deployment)
    others = [
        (code, text) for code, text in observed.reasons if not _is_unplaced(code) and text not in message
    ]
    if is_true and others:  # it serves, though not as was meant
        reason = others[0][0]
    elif reason == "REPLICA_FAILED" and "OOM_KILLED" in dict(observed.reasons):
        reason = "OOM_KILLED"
    return is_true, reason, " ".join([message, *(text for _, text in others)])


def _serving(deployment: Deployment) -> Said:
    status = deployment.status
    ready = status.ready()
    if ready:
        return True, "SERVING", f"{ready} replicas are ready."
    if status.is_idle:
        return True, "IDLE", "The first request starts a replica."
    failing = [replica for replica in status.replicas if replica.is_failing]
    if any(replica.phase == pb.REPLICA_PHASE_CRASH_LOOP for replica in failing):
        return False, "CRASH_LOOP", _why(failing)
    if failing:
        return False, "REPLICA_FAILED", _why(failing)
    if deployment.replicas == 0:
        return False, "STOPPED", "Scaled to zero by request."
    return False, "NOT_READY", "No replica is ready yet."


def _drift_free(status: Status) -> Said:
    if not status.drift:
        return True, "AS_APPLIED", "Everything is as applied."
    changed = ", ".join(sorted({change.object for change in status.drift})[:5])
    if status.drift_corrected:
        return True, "CORRECTED", f"Somebody else changed {changed}; the change was undone."
    return False, "DRIFT", f"Somebody else changed {changed} and owns the changed fields."


def _rolled_out(deployment: Deployment) -> Said:
    if deployment.stable == deployment.target and not deployment.is_rolling:
        return True, "STABLE", f"Revision {deployment.stable} is fully rolled out."
    if not deployment.stable:
        return False, "FIRST_START", f"Revision {deployment.target} is the first and has not served yet."
    rollout = deployment.rollout
    if rollout is None or rollout.is_over:
        words = f"Revision {deployment.target} is replacing revision {deployment.stable}."
        return False, "ROLLING_OUT", words
    return False, pb.RolloutState.Name(rollout.state).removeprefix("ROLLOUT_STATE_"), rollout.message


def _thresholds_kept(health: Health | None) -> Said:
    if health is None or all(threshold.value is None for threshold in health.thresholds):
        return None, "NO_DATA", "Not enough data yet."
    broken = [
        pb.ThresholdKind.Name(threshold.kind).removeprefix("THRESHOLD_KIND_")
        for threshold in health.thresholds
        if threshold.is_breached
    ]
    if broken:
        return False, broken[0], f"Beyond the limit: {', '.join(broken)}."
    return True, "KEPT", "All thresholds with data are met."
