"""What follows from a look at a deployment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from neuroweaver.cluster.errors import BackendError
from neuroweaver.deployer.control import status
from neuroweaver.deployer.control.health import Breaches, judged
from neuroweaver.deployer.control.recent import Recent
from neuroweaver.deployer.domain import recovery, specification
from neuroweaver.deployer.domain.backend import Measured, Observed, Replica
from neuroweaver.deployer.domain.metrics import counts
from neuroweaver.deployer.domain.metrics.counts import Sample
from neuroweaver.deployer.domain.metrics.health import Health
from neuroweaver.deployer.domain.model import Deployment
from neuroweaver.deployer.domain.recovery import Move
from neuroweaver.deployer.domain.rollouts import transitions
from neuroweaver.deployer.domain.rollouts.rollout import RevisionSeen, Rollout, Seen, counted
from neuroweaver.deployer.storage.reader import Reader
from neuroweaver.v1 import deployer_pb2 as pb


@dataclass(frozen=True)
class Look:
    """What a look at the backend found. generation: of the desired state that was applied before it.

    observed: None: nothing could be seen. measured: what the replicas counted, by revision; empty where they
    were not asked.
    """

    generation: int
    observed: Observed | None
    trouble: BackendError | None
    measured: Mapping[int, Measured] = field(default_factory=dict)


@dataclass(frozen=True)
class Background:
    """What the database adds. breaches: by revision. reports: those that the rollout has not seen; cursor: of
    the last one. backup: the deployment that could take over; None: there is none.
    """

    health: Health
    breaches: Mapping[int, Breaches]
    reports: Sequence[Sample] = ()
    cursor: int = 0
    backup: Deployment | None = None


@dataclass(frozen=True)
class Outcome:
    """reason: in words, of a move of the traffic. cause: as `DeploymentScaled.cause`."""

    deployment: Deployment
    reason: str = ""
    cause: str = "SPEC"


async def background(
    deployments: Reader, deployment: Deployment, look: Look, recent: Recent, now: datetime
) -> Background:
    replicas = look.observed.replicas if look.observed else deployment.status.replicas
    health, breaches = judged(deployment, replicas, recent, now)
    key = specification.backup_of(deployment.spec, deployment.key.project)
    kept = await deployments.find(key) if key else None
    other = kept.deployment if kept else None
    backup = other if other and not other.is_being_removed and other.switched_to is None else None
    rollout = deployment.rollout
    reports: Sequence[Sample] = ()
    if rollout is not None and not rollout.is_over:
        reports = await deployments.samples_after(deployment.key, rollout.cursor)
    return Background(health, breaches, reports, recent.cursor, backup)


def advanced(deployment: Deployment, look: Look, background: Background, now: datetime) -> Outcome:
    """What a look leads to."""
    observed = look.observed
    deployment = status.with_observed(
        deployment.with_health(background.health), observed, look.trouble, now, generation=look.generation
    )
    reason, causes = "", ["SPEC"]
    if observed is not None:
        causes += [
            scaling.cause for scaling in observed.scalings if scaling.to_replicas != scaling.from_replicas
        ]
        if not deployment.is_being_removed:
            deployment = _further(deployment, look, background, now)
            deployment, reason = _recovered(deployment, background, now)
    return Outcome(status.with_conditions(deployment, observed, look.trouble, now), reason, causes[-1])


def _recovered(deployment: Deployment, background: Background, now: datetime) -> tuple[Deployment, str]:
    """With its traffic at the backup if the model is unfit, or back; and why."""
    backup = background.backup
    decision = recovery.decide(
        deployment.status.watch,
        deployment.spec.recovery,
        background.health,
        backup.status.health if backup is not None else None,
        now,
        backup_ready=backup.status.ready() if backup is not None else 0,
        is_switched=deployment.switched_to is not None,
    )
    deployment = replace(deployment, status=replace(deployment.status, watch=decision.watch))
    if decision.move == Move.STAY:
        return deployment, ""
    to = backup.key if backup is not None and decision.move == Move.TO_BACKUP else None
    return replace(deployment, switched_to=to), decision.reason


def _further(deployment: Deployment, look: Look, background: Background, now: datetime) -> Deployment:
    if not deployment.stable:
        return _first_start(deployment)
    target = deployment.find(deployment.target)
    rollout = transitions.aimed(
        deployment.rollout,
        deployment.stable,
        deployment.target,
        deployment.spec,
        deployment.replacement,
        now,
        serving=deployment.status.desired.get(deployment.stable, 1),
        is_proven=target is not None and target.is_proven,
        cursor=background.cursor,
    )
    if rollout is None or rollout.is_over:
        return replace(deployment, rollout=rollout)
    # The candidate of a rollout that another one replaced may have taken over already.
    deployment = replace(deployment, stable=rollout.stable)
    rollout = transitions.step(
        rollout, deployment.spec, _seen(deployment, rollout, look, background, now), now
    )
    return _with_rollout(deployment, rollout)


def _first_start(deployment: Deployment) -> Deployment:
    """There is nothing to go back to yet; once all replicas are ready there is."""
    ready = deployment.status.ready(deployment.target)
    if ready and ready >= deployment.replicas:
        return deployment.settled(deployment.target)
    return deployment


def _with_rollout(deployment: Deployment, rollout: Rollout) -> Deployment:
    deployment = replace(deployment, rollout=rollout)
    if rollout.state == pb.ROLLOUT_STATE_PROMOTED:
        return deployment.settled(rollout.candidate)
    if rollout.state in {pb.ROLLOUT_STATE_ROLLING_BACK, pb.ROLLOUT_STATE_ROLLED_BACK}:
        return replace(deployment, target=rollout.stable)
    return deployment


def _seen(
    deployment: Deployment, rollout: Rollout, look: Look, background: Background, now: datetime
) -> Seen:
    replicas = counted(deployment.status.replicas, deployment.status.draining, deployment.spec, now)
    return Seen(
        stable=_revision_seen(deployment, rollout.stable, replicas, look, background),
        candidate=_revision_seen(deployment, rollout.candidate, replicas, look, background),
        others=sum(replica.revision not in {rollout.stable, rollout.candidate} for replica in replicas),
        cursor=background.cursor,
    )


def _revision_seen(
    deployment: Deployment, number: int, replicas: Sequence[Replica], look: Look, background: Background
) -> RevisionSeen:
    measured = look.measured.get(number)
    is_loaded = bool(measured and measured.waiting)
    reported = counts.total(
        counts.reported(sample, is_loaded=is_loaded)
        for sample in background.reports
        if deployment.served_by(sample.version) == number
    )
    own = [replica for replica in replicas if replica.revision == number]
    reasons = [replica.message for replica in own if not replica.is_ready]
    return RevisionSeen(
        phases=tuple(replica.phase for replica in own),
        reason=next(filter(None, reasons), ""),
        breaches=background.breaches.get(number, {}),
        measured=measured,
        reported=reported,
    )
