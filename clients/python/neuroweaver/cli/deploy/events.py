"""A deployment as its events change it, and the events in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from neuroweaver.cli.terminal.names import spoken, word
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


def add(deployment: pb.Deployment, event: pb.DeploymentEvent) -> None:
    """Changes the deployment as the event says; what the event does not mention stays."""
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
            kept = [
                condition for condition in deployment.conditions if condition.type != event.condition.type
            ]
            del deployment.conditions[:]
            deployment.conditions.extend([*kept, event.condition])


def in_words(event: pb.DeploymentEvent) -> str:
    """What happened, in one line; empty for nothing of interest."""
    kind = event.WhichOneof("event") or ""
    described = _IN_WORDS[kind](getattr(event, kind)) if kind in _IN_WORDS else ""
    return plain(" ".join(described.split()))


def serving_version(deployment: pb.Deployment) -> str:
    """Of the stable revision; empty before there is one."""
    stable = revision(deployment, deployment.stable_revision)
    return stable.version if stable else ""


def revision(deployment: pb.Deployment, number: int) -> pb.DeploymentRevision | None:
    return next((entry for entry in deployment.revisions if entry.number == number), None)


def newest_revision(deployment: pb.Deployment | None) -> int:
    """0 where there is none."""
    return max((entry.number for entry in deployment.revisions), default=0) if deployment else 0


def way_back(deployment: pb.Deployment) -> pb.DeploymentRevision | None:
    """Where a rollback goes by default: during a rollout the stable one, else the last proven before it."""
    if deployment.rollout.state in UNDER_WAY:
        return revision(deployment, deployment.stable_revision)
    earlier = (entry for entry in deployment.revisions if entry.number < deployment.stable_revision)
    return max((entry for entry in earlier if entry.is_proven), key=lambda entry: entry.number, default=None)


def is_settled(deployment: pb.Deployment) -> bool:
    """Whether the controller has processed the last spec and has nothing more to do for it."""
    if deployment.state == pb.DEPLOYMENT_STATE_DELETED:
        return True
    return (
        deployment.observed_generation >= deployment.generation
        and deployment.rollout.state not in UNDER_WAY
        and deployment.state
        in {pb.DEPLOYMENT_STATE_READY, pb.DEPLOYMENT_STATE_IDLE, pb.DEPLOYMENT_STATE_FAILED}
    )


def unmet(deployment: pb.Deployment, kind: str = "") -> pb.DeploymentCondition | None:
    """The first condition that does not hold, of this type or of any."""
    candidates = (condition for condition in deployment.conditions if kind in {"", condition.type})
    return next(
        (condition for condition in candidates if condition.HasField("is_true") and not condition.is_true),
        None,
    )


def seconds_in(replica: pb.ReplicaStatus) -> dict[int, float]:
    """How long each phase took, by phase."""
    return {entry.phase: entry.duration.ToTimedelta().total_seconds() for entry in replica.phases}


def _add_replica(deployment: pb.Deployment, replica: pb.ReplicaStatus) -> None:
    others = [status for status in deployment.replica_statuses if status.replica_id != replica.replica_id]
    if replica.phase != pb.REPLICA_PHASE_GONE:
        others.append(replica)
    statuses = sorted(others, key=lambda status: (status.revision, status.replica_id))
    del deployment.replica_statuses[:]
    deployment.replica_statuses.extend(statuses)
    ready = [status.revision for status in statuses if status.phase == pb.REPLICA_PHASE_READY]
    deployment.replicas.current, deployment.replicas.ready = len(statuses), len(ready)
    for entry in deployment.revisions:
        entry.ready_replicas = ready.count(entry.number)


def _switch(deployment: pb.Deployment, to: pb.BackupModel) -> None:
    if (to.model_id, to.name or "default") == (deployment.model_id, deployment.name or "default"):
        deployment.ClearField("switched_to")
    else:
        deployment.switched_to.CopyFrom(to)


def _with(message: str, words: str) -> str:
    return f"{words}: {message}" if message else words


def _spec(changed: pb.DeploymentSpecChanged) -> str:
    revision_made = f", revision {changed.revision}" if changed.revision else ""
    return _with(changed.reason, f"generation {changed.generation}{revision_made}")


def _replica(changed: pb.ReplicaChanged) -> str:
    replica = changed.replica
    words = f"{replica.replica_id} {word(replica, 'phase')}"
    if replica.phase == pb.REPLICA_PHASE_READY:
        total = sum(seconds_in(replica).values())
        words += f" after {duration(total)}" if total else ""
    if changed.HasField("restart_delay"):
        words += f", retrying in {duration(changed.restart_delay.ToTimedelta().total_seconds())}"
    return _with(replica.message, words)


def _rollout(rollout: pb.RolloutStatus) -> str:
    words = f"rollout {rollout.stable_revision} → {rollout.candidate_revision} {word(rollout, 'state')}"
    if rollout.total_steps:
        words += (
            f" step {rollout.step}/{rollout.total_steps}, {rollout.candidate_weight_percent} % of traffic"
        )
    return _with(rollout.message, words)


def _threshold(crossed: pb.ThresholdCrossed) -> str:
    threshold = crossed.threshold
    value = f" {threshold.value:g}" if threshold.HasField("value") else ""
    outcome = "broken" if crossed.is_breached else "met again"
    return f"threshold {spoken(threshold, 'kind')} {outcome}:{value} (limit {threshold.limit:g})"


def _switched(switched: pb.ModelSwitched) -> str:
    to = title(switched.to_model.model_id, switched.to_model.name)
    return f"traffic goes to {to}{' automatically' if switched.is_automatic else ''}: {switched.reason}"


def _drift(drift: pb.DriftFound) -> str:
    where = ", ".join(f"{change.object} {change.path}" for change in drift.changes[:3])
    more = f" and {len(drift.changes) - 3} more" if len(drift.changes) > 3 else ""
    return f"drift {'corrected' if drift.is_corrected else 'found'}: {where}{more}"


def _condition(condition: pb.DeploymentCondition) -> str:
    if not condition.HasField("is_true"):
        return f"{condition.type} unknown: {condition.message}"
    return f"{condition.type} {'yes' if condition.is_true else 'no'} {condition.reason}: {condition.message}"


_IN_WORDS: Final[Mapping[str, Callable[[Any], str]]] = {
    "state_changed": lambda changed: _with(changed.message, word(changed, "to_state")),
    "spec_changed": _spec,
    "replica_changed": _replica,
    "scaled": lambda scaled: f"replicas {scaled.from_replicas} → {scaled.to_replicas} ({scaled.cause})",
    "alias_followed": lambda alias: f"{alias.alias}: {alias.from_version or 'nothing'} → {alias.to_version}",
    "rollout": _rollout,
    "threshold_crossed": _threshold,
    "model_switched": _switched,
    "drift_found": _drift,
    "condition": _condition,
}
