"""What follows from a look at a deployment: the next point of its course."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from neuroweaver.cluster.errors import BackendError
from neuroweaver.deployer.control import status
from neuroweaver.deployer.control.recent import Recent
from neuroweaver.deployer.control.vitals import Vitals, vitals
from neuroweaver.deployer.domain import recovery, specification
from neuroweaver.deployer.domain.backend import Measured, Observed, Replica
from neuroweaver.deployer.domain.history import Occasion
from neuroweaver.deployer.domain.metrics import counts
from neuroweaver.deployer.domain.metrics.measurement import Sample
from neuroweaver.deployer.domain.model import Deployment
from neuroweaver.deployer.domain.recovery import Move
from neuroweaver.deployer.domain.rollouts import transitions
from neuroweaver.deployer.domain.rollouts.rollout import RevisionSeen, Rollout, Seen, counted
from neuroweaver.deployer.storage.reader import Reader
from neuroweaver.v1 import deployer_pb2 as pb

BY_ITSELF: Final = Occasion()


@dataclass(frozen=True)
class Look:
    """What a look found. generation: of the wish that was applied before it.

    observed: None: nothing could be seen. measured: what the replicas counted, by revision; empty where they
    were not asked.
    """

    generation: int
    observed: Observed | None
    trouble: BackendError | None
    measured: Mapping[int, Measured] = field(default_factory=dict)


@dataclass(frozen=True)
class Known:
    """What the database adds. reports: those that the rollout has not seen; cursor: of the last one.

    backup: the deployment that could take over; None: there is none.
    """

    vitals: Vitals
    reports: Sequence[Sample] = ()
    cursor: int = 0
    backup: Deployment | None = None


async def gather(
    deployments: Reader, deployment: Deployment, look: Look, recent: Recent, now: datetime
) -> Known:
    replicas = look.observed.replicas if look.observed else deployment.status.replicas
    found = vitals(deployment, replicas, recent, now)
    key = specification.backup_of(deployment.spec, deployment.key.project)
    kept = await deployments.find(key) if key else None
    backup = kept.deployment if kept and not kept.deployment.is_being_removed else None
    rollout = deployment.rollout
    if rollout is None or rollout.is_over:
        return Known(found, (), recent.cursor, backup)
    reports = await deployments.samples_after(deployment.key, rollout.cursor)
    return Known(found, reports, recent.cursor, backup)


def advanced(deployment: Deployment, look: Look, known: Known, now: datetime) -> tuple[Deployment, Occasion]:
    """The deployment after a look, and what led there."""
    observed, health = look.observed, known.vitals.health
    deployment = replace(
        deployment,
        status=status.seen(
            deployment.status, observed, look.trouble, health, now, generation=look.generation
        ),
    )
    why = Occasion(scalings=observed.scalings if observed else ())
    if observed is not None and not deployment.is_being_removed:
        deployment = _further(deployment, look, known, now)
        deployment, why = _recovered(deployment, known, why, now)
    return replace(deployment, status=status.told(deployment, observed, look.trouble, now)), why


def _recovered(
    deployment: Deployment, known: Known, why: Occasion, now: datetime
) -> tuple[Deployment, Occasion]:
    """With its traffic at the backup if the model is unfit, or back."""
    backup = known.backup
    is_able = backup is not None and backup.switched_to is None
    decision = recovery.decide(
        deployment.status.watch,
        deployment.spec.recovery,
        known.vitals.health,
        backup.status.health if backup is not None and is_able else None,
        now,
        backup_ready=backup.status.ready() if backup is not None and is_able else 0,
        is_switched=deployment.switched_to is not None,
    )
    deployment = replace(deployment, status=replace(deployment.status, watch=decision.watch))
    if decision.move == Move.STAY:
        return deployment, why
    to = backup.key if backup is not None and decision.move == Move.TO_BACKUP else None
    why = replace(why, reason=decision.reason, is_automatic=True)
    return replace(deployment, switched_to=to), why


def _further(deployment: Deployment, look: Look, known: Known, now: datetime) -> Deployment:
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
        cursor=known.cursor,
    )
    if rollout is None or rollout.is_over:
        return replace(deployment, rollout=rollout)
    # The candidate of a rollout that another one replaced may have taken over already.
    deployment = replace(deployment, stable=rollout.stable)
    rollout = transitions.step(rollout, deployment.spec, _seen(deployment, rollout, look, known, now), now)
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


def _seen(deployment: Deployment, rollout: Rollout, look: Look, known: Known, now: datetime) -> Seen:
    shown = deployment.status
    replicas = counted(shown.replicas, shown.draining, deployment.spec, now)
    return Seen(
        stable=_revision_seen(deployment, rollout.stable, replicas, look, known),
        candidate=_revision_seen(deployment, rollout.candidate, replicas, look, known),
        others=sum(each.revision not in {rollout.stable, rollout.candidate} for each in replicas),
        cursor=known.cursor,
    )


def _revision_seen(
    deployment: Deployment, number: int, replicas: Sequence[Replica], look: Look, known: Known
) -> RevisionSeen:
    measured = look.measured.get(number)
    is_loaded = bool(measured and measured.waiting)
    reported = counts.total(
        counts.reported(sample, is_loaded=is_loaded)
        for sample in known.reports
        if deployment.served_by(sample.version) == number
    )
    return RevisionSeen.of(
        number,
        replicas,
        breaches=known.vitals.breaches.get(number),
        measured=measured,
        reported=reported,
    )
