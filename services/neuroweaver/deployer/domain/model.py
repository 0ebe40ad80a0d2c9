"""Deployments, their revisions, and what may be done with them.

The spec (what was asked for) and the status (what the reconcile loop saw last) are kept apart: people and
aliases change the first, the loop the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from neuroweaver.deployer.domain.backend import Bundle, FieldChange, Key, Replica
from neuroweaver.deployer.domain.metrics.health import Health
from neuroweaver.deployer.domain.recovery import Watch
from neuroweaver.deployer.domain.rollouts.rollout import Rollout
from neuroweaver.mesh.wire.errors import Aborted, FailedPrecondition, NotFound
from neuroweaver.v1 import deployer_pb2 as pb

MAX_REVISIONS: Final = 20
SYSTEM: Final = "system"


class Cause(StrEnum):
    """Why a revision was made."""

    DEPLOY = "DEPLOY"
    ALIAS_MOVED = "ALIAS_MOVED"
    ROLLBACK = "ROLLBACK"


@dataclass(frozen=True)
class SpecChange:
    """A spec as it was given and with every default, who gave it, and when."""

    asked: pb.DeploymentSpec
    spec: pb.DeploymentSpec
    actor: str
    now: datetime


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A version as it was deployed once. is_proven: it served all traffic healthily."""

    number: int
    bundle: Bundle
    alias: str = ""
    cause: Cause
    created_by: str
    create_time: datetime
    is_proven: bool = False


@dataclass(frozen=True, kw_only=True)
class Condition:
    """is_true: None: not known. time: since when."""

    type: str
    is_true: bool | None
    reason: str
    message: str
    time: datetime


@dataclass(frozen=True, kw_only=True)
class Status:
    """What the last look saw. generation: of the spec that was looked at. applied_generation: of the last
    spec that was carried out as a whole.

    settled_replicas: how many there were when all were ready, since the spec last changed; None before that.
    desired, weights: by revision. draining: since when a replica was seen to drain, by its id.
    """

    state: pb.DeploymentState.ValueType = pb.DEPLOYMENT_STATE_PENDING
    message: str = "Accepted; nothing has started yet."
    conditions: tuple[Condition, ...] = ()
    endpoint: str = ""
    replicas: tuple[Replica, ...] = ()
    draining: Mapping[str, datetime] = field(default_factory=dict)
    desired: Mapping[int, int] = field(default_factory=dict)
    weights: Mapping[int, int] = field(default_factory=dict)
    drift: tuple[FieldChange, ...] = ()
    drift_corrected: bool = False
    is_idle: bool = False
    generation: int = 0
    applied_generation: int = 0
    settled_replicas: int | None = None
    ready_time: datetime | None = None
    health: Health | None = None
    watch: Watch = field(default_factory=Watch)

    def ready(self, revision: int | None = None) -> int:
        """Ready replicas, of one revision or of all."""
        return sum(replica.is_ready and revision in {None, replica.revision} for replica in self.replicas)

    def condition(self, kind: str) -> Condition | None:
        return next((condition for condition in self.conditions if condition.type == kind), None)

    def with_condition(
        self, kind: str, *, is_true: bool | None, reason: str, message: str, now: datetime
    ) -> Status:
        """With one condition as it is now; its time stays while it says the same."""
        before = self.condition(kind)
        since = before.time if before and (before.is_true, before.reason) == (is_true, reason) else now
        new = Condition(type=kind, is_true=is_true, reason=reason, message=message, time=since)
        conditions = {condition.type: condition for condition in self.conditions} | {kind: new}
        return replace(self, conditions=tuple(conditions.values()))


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """asked: the spec as it was given; spec: with every default.

    revisions: newest first. target: the one that shall serve in the end. stable: the one that serves, or is
    gone back to; 0 before the first is ready. replacement: how the target's replicas take others' place.
    followed: the version that the alias named when it was last acted on. switched_to: who gets the traffic.
    first_line: the sequence of the first line of its logs; those before it are of one of the same name that
    was removed.
    """

    key: Key
    resource_name: str
    asked: pb.DeploymentSpec
    spec: pb.DeploymentSpec
    generation: int
    create_time: datetime
    update_time: datetime
    updated_by: str
    revisions: tuple[Revision, ...]
    last_revision: int
    target: int
    stable: int = 0
    rollout: Rollout | None = None
    followed: str = ""
    switched_to: Key | None = None
    replacement: pb.ReplacementMode.ValueType = pb.REPLACEMENT_MODE_UNSPECIFIED
    first_line: int = 1
    is_being_removed: bool = False
    is_gone: bool = False
    status: Status = field(default_factory=Status)

    @property
    def etag(self) -> str:
        return str(self.generation)

    @property
    def alias(self) -> str:
        """The alias that is followed; empty for a fixed version."""
        return self.spec.alias if self.spec.WhichOneof("source") == "alias" else ""

    @property
    def candidate(self) -> int:
        """The revision that comes while a rollout is under way; else 0."""
        return self.target if self.target != self.stable and self.stable else 0

    @property
    def is_rolling(self) -> bool:
        """Whether a rollout is under way, or its way back."""
        return bool(self.candidate) or (self.rollout is not None and not self.rollout.is_over)

    @property
    def replicas(self) -> int:
        """How many are wanted now: by the spec, or by the last look at what autoscaling aims at."""
        if self.is_being_removed or self.is_gone:
            return 0
        if self.spec.WhichOneof("scaling") == "replicas":
            return self.spec.replicas
        return sum(self.status.desired.values()) or self.spec.autoscaling.min_replicas

    @property
    def replica_hour_usd(self) -> float | None:
        """The price of a replica's hour; None if it is not given."""
        engine = self.spec.engine
        return engine.replica_hour_usd if engine.HasField("replica_hour_usd") else None

    def find(self, number: int) -> Revision | None:
        return next((revision for revision in self.revisions if revision.number == number), None)

    def revision(self, number: int) -> Revision:
        """Raises NotFound for one that never was or is no longer kept."""
        revision = self.find(number)
        if revision is None:
            raise NotFound("revision", f"{self.key}#{number}")
        return revision

    def with_health(self, health: Health) -> Deployment:
        return replace(self, status=replace(self.status, health=health))

    def served_by(self, version: str) -> int:
        """The number of the newest revision with a version; empty: the stable one. 0 if there is none."""
        if not version:
            return self.stable
        return next((revision.number for revision in self.revisions if revision.bundle.version == version), 0)

    def require(self, etag: str) -> None:
        """Raises Aborted if the deployment is no longer the one that the caller saw."""
        if etag and etag != self.etag:
            raise Aborted("ETAG_MISMATCH", f"the deployment changed: its etag is {self.etag} now, not {etag}")

    def respecified(self, change: SpecChange, bundle: Bundle) -> Deployment:
        """As the spec says from now on; itself if that is nothing new."""
        target = self.find(self.target)
        is_same_version = target is not None and _is_same(target.bundle, bundle)
        if change.spec == self.spec and is_same_version:
            return self
        after = replace(self._changed(change), followed=_followed(change.spec, bundle))
        return after if is_same_version else after._aimed(bundle, Cause.DEPLOY, change.actor, change.now)

    def rescaled(self, change: SpecChange) -> Deployment:
        """With another spec and the same version: no rollout begins. Itself if nothing is new."""
        return self if change.spec == self.spec else self._changed(change)

    def followed_to(self, bundle: Bundle, spec: pb.DeploymentSpec, *, now: datetime) -> Deployment:
        """After the alias moved. Where it names again what serves, nothing but that is noted."""
        target = self.find(self.target)
        after = replace(self, followed=bundle.version, spec=spec)
        if target is not None and _is_same(target.bundle, bundle):
            return after
        return after._aimed(bundle, Cause.ALIAS_MOVED, SYSTEM, now)

    def way_back(self, number: int) -> Revision:
        """The revision that a rollback goes to.

        number: 0: the stable one in a rollout, on its way back too; else the last proven.

        Raises NotFound, FailedPrecondition.
        """
        if number:
            if number == self.target:
                raise FailedPrecondition("NOTHING_TO_ROLL_BACK", f"revision {number} is already rolled out")
            return self.revision(number)
        if self.stable and self.is_rolling:
            return self.revision(self.stable)
        current = self.revision(self.target).bundle
        for revision in self.revisions:
            if (
                revision.is_proven
                and revision.number < self.target
                and not _is_same(revision.bundle, current)
            ):
                return revision
        raise FailedPrecondition("NOTHING_TO_ROLL_BACK", "no earlier revision has served yet")

    def rolled_back(self, to: Revision, change: SpecChange) -> Deployment:
        """On its way to an earlier revision, and following no alias; in a rollout, back to the stable one."""
        after = replace(self._changed(change), followed="")
        if self.is_rolling and to.number == self.stable:
            return replace(after, target=self.stable)
        return after._aimed(to.bundle, Cause.ROLLBACK, change.actor, change.now, is_proven=to.is_proven)

    def switched(self, to: Key | None) -> Deployment:
        """With its traffic at another deployment, because it was asked for; itself if it is there already.

        None: at its own model.
        """
        target = None if to == self.key else to
        if target == self.switched_to:
            return self
        watch = replace(self.status.watch, is_automatic=False)
        return replace(self, switched_to=target, status=replace(self.status, watch=watch))

    def removed(self, *, actor: str, now: datetime) -> Deployment:
        """On its way out; itself if it is already."""
        if self.is_being_removed:
            return self
        return replace(
            self,
            is_being_removed=True,
            update_time=now,
            updated_by=actor,
            status=replace(self.status, state=pb.DEPLOYMENT_STATE_DELETING, message="Draining."),
        )

    def gone(self) -> Deployment:
        """When nothing is left of it."""
        return replace(
            self,
            is_gone=True,
            switched_to=None,
            status=replace(
                self.status,
                state=pb.DEPLOYMENT_STATE_DELETED,
                message="Removed.",
                endpoint="",
                replicas=(),
                draining={},
                desired={},
                weights={},
                is_idle=False,
            ),
        )

    def settled(self, stable: int) -> Deployment:
        """With a revision that serves all traffic healthily: it can be gone back to."""
        revisions = tuple(
            replace(revision, is_proven=True) if revision.number == stable else revision
            for revision in self.revisions
        )
        return replace(self, stable=stable, target=stable, revisions=_kept(revisions, {stable}))

    def _changed(self, change: SpecChange) -> Deployment:
        return replace(
            self,
            asked=change.asked,
            spec=change.spec,
            generation=self.generation + 1,
            update_time=change.now,
            updated_by=change.actor,
            status=replace(self.status, settled_replicas=None),
        )

    def _aimed(
        self, bundle: Bundle, cause: Cause, actor: str, now: datetime, *, is_proven: bool = False
    ) -> Deployment:
        """With a new revision as its target."""
        number = self.last_revision + 1
        revision = Revision(
            number=number,
            bundle=bundle,
            alias="" if cause == Cause.ROLLBACK else self.alias,
            cause=cause,
            created_by=actor,
            create_time=now,
            is_proven=is_proven,
        )
        return replace(
            self,
            revisions=_kept((revision, *self.revisions), {self.stable, number}),
            last_revision=number,
            target=number,
            status=replace(self.status, settled_replicas=None),
        )


def require_current(deployment: Deployment | None, etag: str) -> None:
    """Raises FailedPrecondition while it is being removed, Aborted if it is not what the caller saw."""
    if deployment is None or deployment.is_gone:
        if etag:
            raise Aborted("ETAG_MISMATCH", f"the deployment no longer exists; its etag was {etag}")
        return
    if deployment.is_being_removed:
        words = "the deployment is being removed; try again once it is gone"
        raise FailedPrecondition("BEING_REMOVED", words)
    deployment.require(etag)


def created(
    key: Key, resource_name: str, change: SpecChange, bundle: Bundle, *, generation: int = 1
) -> Deployment:
    """A new one. generation: goes on where it was if a deployment of this name was removed before."""
    empty = Deployment(
        key=key,
        resource_name=resource_name,
        asked=change.asked,
        spec=change.spec,
        generation=generation,
        create_time=change.now,
        update_time=change.now,
        updated_by=change.actor,
        revisions=(),
        last_revision=0,
        target=0,
        followed=_followed(change.spec, bundle),
    )
    return empty._aimed(bundle, Cause.DEPLOY, change.actor, change.now)


def _followed(spec: pb.DeploymentSpec, bundle: Bundle) -> str:
    return bundle.version if spec.WhichOneof("source") == "alias" else ""


def _is_same(one: Bundle, other: Bundle) -> bool:
    return (one.version, one.digest) == (other.version, other.digest)


def _kept(revisions: tuple[Revision, ...], needed: set[int]) -> tuple[Revision, ...]:
    """The newest, and those that are in use."""
    newest = {revision.number for revision in revisions[:MAX_REVISIONS]} | needed
    return tuple(revision for revision in revisions if revision.number in newest)
