"""A deployment as its events change it, and what they tell in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from neuroweaver.client.names import short_name
from neuroweaver.client.text import duration, plain
from neuroweaver.v1 import deployer_pb2 as pb

UNDER_WAY: Final = frozenset(
    {
        pb.ROLLOUT_STATE_STARTING,
        pb.ROLLOUT_STATE_BAKING,
        pb.ROLLOUT_STATE_HELD,
        pb.ROLLOUT_STATE_PROMOTING,
        pb.ROLLOUT_STATE_ROLLING_BACK,
    }
)
"""The states of a rollout that has not ended."""

COLD_START: Final = (
    pb.REPLICA_PHASE_SCHEDULING,
    pb.REPLICA_PHASE_PULLING,
    pb.REPLICA_PHASE_LOADING,
    pb.REPLICA_PHASE_WARMING,
)
"""The phases of a replica until it serves, in order."""


def title(model_id: str, name: str) -> str:
    """`advisor`, or `advisor/staging` for another name than `default`."""
    return plain(f"{model_id}/{name}" if name and name != "default" else model_id)


def state_name(state: int) -> str:
    return short_name(pb.DeploymentState.DESCRIPTOR, state)


def phase_name(phase: int) -> str:
    return short_name(pb.ReplicaPhase.DESCRIPTOR, phase)


def rollout_name(state: int) -> str:
    return short_name(pb.RolloutState.DESCRIPTOR, state)


def add(deployment: pb.Deployment, event: pb.DeploymentEvent) -> None:
    """Changes the deployment as the event says; what an event does not hold stays as it was."""
    deployment.last_sequence = max(deployment.last_sequence, event.sequence)
    match event.WhichOneof("event"):
        case "state_changed":
            deployment.state = event.state_changed.to_state
            deployment.message = event.state_changed.message
        case "spec_changed":
            deployment.generation = event.spec_changed.generation
        case "replica_changed":
            _add_replica(deployment, event.replica_changed.replica)
        case "scaled":
            deployment.replicas.desired = event.scaled.to_replicas
        case "rollout":
            deployment.rollout.CopyFrom(event.rollout)
        case "model_switched":
            _switch(deployment, event.model_switched.to_model)
        case "condition":
            kept = [each for each in deployment.conditions if each.type != event.condition.type]
            del deployment.conditions[:]
            deployment.conditions.extend([*kept, event.condition])


def told(event: pb.DeploymentEvent) -> str:
    """What happened, in one line; empty for nothing of interest."""
    kind = event.WhichOneof("event")
    tell = _TELLERS.get(kind or "")
    return plain(" ".join(tell(getattr(event, kind)).split())) if kind and tell else ""


def serving_version(deployment: pb.Deployment) -> str:
    """Of the stable revision; empty before there is one."""
    found = revision(deployment, deployment.stable_revision)
    return found.version if found else ""


def revision(deployment: pb.Deployment, number: int) -> pb.DeploymentRevision | None:
    return next((each for each in deployment.revisions if each.number == number), None)


def way_back(deployment: pb.Deployment) -> pb.DeploymentRevision | None:
    """Where a rollback goes by itself: during a rollout the stable one, else the last proven before it."""
    if deployment.rollout.state in UNDER_WAY:
        return revision(deployment, deployment.stable_revision)
    earlier = (each for each in deployment.revisions if each.number < deployment.stable_revision)
    return max((each for each in earlier if each.is_proven), key=lambda each: each.number, default=None)


def is_settled(deployment: pb.Deployment) -> bool:
    """Whether the loop has come to the last spec and has nothing more to do for it."""
    if deployment.state == pb.DEPLOYMENT_STATE_DELETED:
        return True
    is_behind = deployment.observed_generation < deployment.generation
    return (
        not is_behind
        and deployment.rollout.state not in UNDER_WAY
        and deployment.state
        in {pb.DEPLOYMENT_STATE_READY, pb.DEPLOYMENT_STATE_IDLE, pb.DEPLOYMENT_STATE_FAILED}
    )


def _add_replica(deployment: pb.Deployment, replica: pb.ReplicaStatus) -> None:
    others = [each for each in deployment.replica_statuses if each.replica_id != replica.replica_id]
    if replica.phase != pb.REPLICA_PHASE_GONE:
        others.append(replica)
    statuses = sorted(others, key=lambda each: (each.revision, each.replica_id))
    del deployment.replica_statuses[:]
    deployment.replica_statuses.extend(statuses)
    deployment.replicas.current = len(statuses)
    deployment.replicas.ready = sum(each.phase == pb.REPLICA_PHASE_READY for each in statuses)
    for each in deployment.revisions:
        each.ready_replicas = sum(
            one.phase == pb.REPLICA_PHASE_READY and one.revision == each.number for one in statuses
        )


def _switch(deployment: pb.Deployment, to: pb.BackupModel) -> None:
    if (to.model_id, to.name or "default") == (deployment.model_id, deployment.name or "default"):
        deployment.ClearField("switched_to")
    else:
        deployment.switched_to.CopyFrom(to)


def _told_replica(changed: pb.ReplicaChanged) -> str:
    replica = changed.replica
    words = f"{replica.replica_id} {phase_name(replica.phase)}"
    if replica.phase == pb.REPLICA_PHASE_READY:
        total = sum(each.duration.ToTimedelta().total_seconds() for each in replica.phases)
        words += f" after {duration(total)}" if total else ""
    if changed.HasField("restart_delay"):
        wait = changed.restart_delay.ToTimedelta().total_seconds()
        words += f", again in {duration(wait)}"
    return f"{words}: {replica.message}" if replica.message else words


def _told_rollout(rollout: pb.RolloutStatus) -> str:
    words = f"rollout {rollout.stable_revision} → {rollout.candidate_revision} {rollout_name(rollout.state)}"
    if rollout.total_steps:
        words += (
            f" step {rollout.step}/{rollout.total_steps}, {rollout.candidate_weight_percent} % of traffic"
        )
    return f"{words}: {rollout.message}" if rollout.message else words


def _told_threshold(crossed: pb.ThresholdCrossed) -> str:
    found = crossed.threshold
    kind = short_name(pb.ThresholdKind.DESCRIPTOR, found.kind).lower()
    value = f" {found.value:g}" if found.HasField("value") else ""
    limit = f" (limit {found.limit:g})"
    return f"threshold {kind} {'broken' if crossed.is_breached else 'kept again'}:{value}{limit}"


def _told_switch(switched: pb.ModelSwitched) -> str:
    by = " by itself" if switched.is_automatic else ""
    to = title(switched.to_model.model_id, switched.to_model.name)
    return f"traffic goes to {to}{by}: {switched.reason}"


def _told_drift(drift: pb.DriftFound) -> str:
    where = ", ".join(f"{each.object} {each.path}" for each in drift.changes[:3])
    more = f" and {len(drift.changes) - 3} more" if len(drift.changes) > 3 else ""
    return f"drift {'set back' if drift.is_corrected else 'found'}: {where}{more}"


def _told_condition(condition: pb.DeploymentCondition) -> str:
    if not condition.HasField("is_true"):
        return f"{condition.type} not known: {condition.message}"
    return f"{condition.type} {'yes' if condition.is_true else 'no'} {condition.reason}: {condition.message}"


_TELLERS: Final[Mapping[str, Callable[[Any], str]]] = {
    "state_changed": lambda each: f"{state_name(each.to_state)}: {each.message}".removesuffix(": "),
    "spec_changed": lambda each: (
        f"generation {each.generation}"
        + (f", revision {each.revision}" if each.revision else "")
        + (f": {each.reason}" if each.reason else "")
    ),
    "replica_changed": _told_replica,
    "scaled": lambda each: f"replicas {each.from_replicas} → {each.to_replicas} ({each.cause})",
    "alias_followed": lambda each: f"{each.alias}: {each.from_version or 'nothing'} → {each.to_version}",
    "rollout": _told_rollout,
    "threshold_crossed": _told_threshold,
    "model_switched": _told_switch,
    "drift_found": _told_drift,
    "condition": _told_condition,
}


def seconds_in(replica: pb.ReplicaStatus) -> Mapping[int, float]:
    """How long each phase took, by phase."""
    return {each.phase: each.duration.ToTimedelta().total_seconds() for each in replica.phases}


def blocking(plan: pb.DeploymentPlan) -> Iterable[pb.PlanFinding]:
    """What stands against the plan."""
    return (each for each in plan.findings if each.is_blocking)
