"""What happened to a deployment, by the difference of before and after."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from neuroweaver.deployer.domain import messages
from neuroweaver.deployer.domain.backend import Replica
from neuroweaver.deployer.domain.model import SYSTEM, Deployment, Status
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.v1 import deployer_pb2 as pb


def events_of(
    before: Deployment | None, after: Deployment, origin: ChangeOrigin, now: datetime, cause: str = "SPEC"
) -> list[pb.DeploymentEvent]:
    """In order: what is asked for first, its consequences after, the end last.

    cause: of another number of replicas, as `DeploymentScaled.cause`.
    """
    was = before.status if before is not None else Status(state=pb.DEPLOYMENT_STATE_UNSPECIFIED)
    events = [
        *_asked(before, after, origin.reason),
        *_progress(before, after, origin, cause),
        *_replicas(was, after.status, now),
        *_seen(was, after.status),
        *_state(was, after.status),
    ]
    for event in events:
        event.actor = origin.actor
    return events


def _asked(before: Deployment | None, after: Deployment, reason: str) -> Iterator[pb.DeploymentEvent]:
    if before is None or before.generation != after.generation:
        is_new = before is None or before.last_revision != after.last_revision
        yield pb.DeploymentEvent(
            spec_changed=pb.DeploymentSpecChanged(
                generation=after.generation, revision=after.last_revision if is_new else 0, reason=reason
            )
        )
    old = before.followed if before is not None and before.alias == after.alias else ""
    if after.alias and after.followed != old:
        yield pb.DeploymentEvent(
            alias_followed=pb.AliasFollowed(alias=after.alias, from_version=old, to_version=after.followed)
        )


def _progress(
    before: Deployment | None, after: Deployment, origin: ChangeOrigin, cause: str
) -> Iterator[pb.DeploymentEvent]:
    replicas = before.replicas if before is not None else 0
    if replicas != after.replicas and not after.is_being_removed:
        yield pb.DeploymentEvent(
            scaled=pb.DeploymentScaled(from_replicas=replicas, to_replicas=after.replicas, cause=cause)
        )
    old = messages.from_rollout(before.rollout, before.spec) if before is not None else None
    new = messages.from_rollout(after.rollout, after.spec)
    if new is not None and new != old:
        yield pb.DeploymentEvent(rollout=new)
    was = before.switched_to if before is not None else None
    if was != after.switched_to and not after.is_gone:
        yield pb.DeploymentEvent(
            model_switched=pb.ModelSwitched(
                from_model=messages.from_key(was or after.key),
                to_model=messages.from_key(after.switched_to or after.key),
                is_automatic=origin.actor == SYSTEM,
                reason=origin.reason,
            )
        )


def _replicas(was: Status, status: Status, now: datetime) -> Iterator[pb.DeploymentEvent]:
    old = {replica.replica_id: replica for replica in was.replicas}
    there = {replica.replica_id for replica in status.replicas}
    for replica in status.replicas:
        if _shown(old.get(replica.replica_id)) != _shown(replica):
            event = pb.ReplicaChanged(replica=messages.from_replica(replica))
            if replica.restart_at is not None:
                event.restart_delay.FromTimedelta(max(replica.restart_at - now, timedelta()))
            yield pb.DeploymentEvent(replica_changed=event)
    for replica_id, replica in old.items():
        if replica_id not in there:
            gone = messages.from_replica(replica)
            gone.phase, gone.message = pb.REPLICA_PHASE_GONE, "It is gone."
            yield pb.DeploymentEvent(replica_changed=pb.ReplicaChanged(replica=gone))


def _shown(replica: Replica | None) -> tuple[object, ...]:
    """What makes a difference worth an event; lengths of phases and last tokens change all the time."""
    if replica is None:
        return ()
    return replica.revision, replica.phase, replica.restarts, replica.loaded_versions


def _seen(was: Status, status: Status) -> Iterator[pb.DeploymentEvent]:
    broken = {state.kind for state in (was.health.thresholds if was.health else ()) if state.is_breached}
    for state in status.health.thresholds if status.health else ():
        if state.is_breached != (state.kind in broken):
            crossed = pb.ThresholdCrossed(
                threshold=messages.from_threshold(state), is_breached=state.is_breached
            )
            yield pb.DeploymentEvent(threshold_crossed=crossed)
    if status.drift and status.drift != was.drift:
        yield pb.DeploymentEvent(
            drift_found=pb.DriftFound(
                changes=map(messages.from_change, status.drift[: messages.MAX_CHANGES]),
                is_corrected=status.drift_corrected,
            )
        )
    for condition in status.conditions:
        former = was.condition(condition.type)
        if former is None or (former.is_true, former.reason) != (condition.is_true, condition.reason):
            yield pb.DeploymentEvent(condition=messages.from_condition(condition))


def _state(was: Status, status: Status) -> Iterator[pb.DeploymentEvent]:
    if was.state != status.state:
        changed = pb.DeploymentStateChanged(
            from_state=was.state, to_state=status.state, message=status.message
        )
        yield pb.DeploymentEvent(state_changed=changed)
