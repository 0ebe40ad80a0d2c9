"""What happened to a deployment, told by the difference of before and after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from neuroweaver.deployer.domain import messages
from neuroweaver.deployer.domain.backend import Replica, Scaling
from neuroweaver.deployer.domain.model import SYSTEM, Condition, Deployment
from neuroweaver.v1 import deployer_pb2 as pb


@dataclass(frozen=True)
class Occasion:
    """Who made a change and why. cause: as `DeploymentScaled.cause`. scalings: what a backend told of."""

    actor: str = SYSTEM
    reason: str = ""
    cause: str = "SPEC"
    is_automatic: bool = False
    scalings: tuple[Scaling, ...] = ()


def events_of(
    before: Deployment | None, after: Deployment, why: Occasion, now: datetime
) -> list[pb.DeploymentEvent]:
    """In the order in which they are told: the wish first, its consequences after, the end last."""
    found = [
        *_wish(before, after, why),
        *_course(before, after, why),
        *_replicas(before, after, now),
        *_found(before, after),
        *_state(before, after),
    ]
    for event in found:
        event.actor = why.actor
    return found


def _wish(before: Deployment | None, after: Deployment, why: Occasion) -> Iterator[pb.DeploymentEvent]:
    if before is None or before.generation != after.generation:
        is_new = before is None or before.last_revision != after.last_revision
        yield pb.DeploymentEvent(
            spec_changed=pb.DeploymentSpecChanged(
                generation=after.generation,
                revision=after.last_revision if is_new else 0,
                reason=why.reason,
            )
        )
    known = before.followed if before is not None and before.alias == after.alias else ""
    if after.alias and after.followed != known:
        yield pb.DeploymentEvent(
            alias_followed=pb.AliasFollowed(alias=after.alias, from_version=known, to_version=after.followed)
        )


def _course(before: Deployment | None, after: Deployment, why: Occasion) -> Iterator[pb.DeploymentEvent]:
    wanted = before.replicas if before is not None else 0
    if wanted != after.replicas and not after.is_being_removed:
        told = [each.cause for each in why.scalings if each.to_replicas != each.from_replicas]
        yield pb.DeploymentEvent(
            scaled=pb.DeploymentScaled(
                from_replicas=wanted, to_replicas=after.replicas, cause=told[-1] if told else why.cause
            )
        )
    old = messages.from_rollout(before) if before is not None else None
    new = messages.from_rollout(after)
    if new is not None and new != old:
        yield pb.DeploymentEvent(rollout=new)
    was = before.switched_to if before is not None else None
    if was != after.switched_to and not after.is_gone:
        yield pb.DeploymentEvent(
            model_switched=pb.ModelSwitched(
                from_model=messages.from_key(was or after.key),
                to_model=messages.from_key(after.switched_to or after.key),
                is_automatic=why.is_automatic,
                reason=why.reason,
            )
        )


def _replicas(before: Deployment | None, after: Deployment, now: datetime) -> Iterator[pb.DeploymentEvent]:
    known = {each.replica_id: each for each in before.status.replicas} if before is not None else {}
    there = {each.replica_id for each in after.status.replicas}
    for replica in after.status.replicas:
        if _told(known.get(replica.replica_id)) != _told(replica):
            event = pb.ReplicaChanged(replica=messages.from_replica(replica))
            if replica.restart_at is not None:
                event.restart_delay.FromTimedelta(max(replica.restart_at - now, timedelta()))
            yield pb.DeploymentEvent(replica_changed=event)
    for replica_id, replica in known.items():
        if replica_id not in there:
            gone = messages.from_replica(replica)
            gone.phase, gone.message = pb.REPLICA_PHASE_GONE, "It is gone."
            yield pb.DeploymentEvent(replica_changed=pb.ReplicaChanged(replica=gone))


def _told(replica: Replica | None) -> tuple[object, ...]:
    """What makes a difference worth an event; lengths of phases and last tokens change all the time."""
    if replica is None:
        return ()
    return replica.revision, replica.phase, replica.restarts, replica.loaded_versions


def _found(before: Deployment | None, after: Deployment) -> Iterator[pb.DeploymentEvent]:
    was = before.status if before is not None else None
    status = after.status
    old = {each.kind: each for each in messages.from_thresholds(was.health)} if was and was.health else {}
    for threshold in messages.from_thresholds(status.health) if status.health else ():
        known = old.get(threshold.kind)
        if threshold.is_breached != (known is not None and known.is_breached):
            yield pb.DeploymentEvent(
                threshold_crossed=pb.ThresholdCrossed(threshold=threshold, is_breached=threshold.is_breached)
            )
    if status.drift and (was is None or status.drift != was.drift):
        yield pb.DeploymentEvent(
            drift_found=pb.DriftFound(
                changes=map(messages.from_change, status.drift[: messages.MAX_CHANGES]),
                is_corrected=status.drift_corrected,
            )
        )
    for condition in status.conditions:
        known_condition = was.condition(condition.type) if was else None
        if known_condition is None or _said(known_condition) != _said(condition):
            yield pb.DeploymentEvent(condition=messages.from_condition(condition))


def _said(condition: Condition) -> tuple[object, ...]:
    return condition.is_true, condition.reason


def _state(before: Deployment | None, after: Deployment) -> Iterator[pb.DeploymentEvent]:
    was = before.status.state if before is not None else pb.DEPLOYMENT_STATE_UNSPECIFIED
    if was != after.status.state:
        yield pb.DeploymentEvent(
            state_changed=pb.DeploymentStateChanged(
                from_state=was, to_state=after.status.state, message=after.status.message
            )
        )
