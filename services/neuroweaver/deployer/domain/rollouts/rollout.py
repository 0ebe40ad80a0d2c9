"""A rollout: what is stored of it, what is seen of it, and its policy with the defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from neuroweaver.deployer.domain.backend import Measured, Replica
from neuroweaver.deployer.domain.metrics.counts import Counts
from neuroweaver.deployer.domain.rollouts.evidence import Evidence
from neuroweaver.v1 import deployer_pb2 as pb

WHOLE: Final = 100
# What a replica may take to end beyond its drain timeout. One of a node that is lost drains for ever.
DRAIN_GRACE: Final = timedelta(minutes=1)

_ENDED: Final = frozenset({pb.ROLLOUT_STATE_PROMOTED, pb.ROLLOUT_STATE_ROLLED_BACK})
_ON_THE_WAY: Final = (
    pb.REPLICA_PHASE_SCHEDULING,
    pb.REPLICA_PHASE_PULLING,
    pb.REPLICA_PHASE_LOADING,
    pb.REPLICA_PHASE_WARMING,
    pb.REPLICA_PHASE_READY,
)


@dataclass(frozen=True, kw_only=True)
class RevisionSeen:
    """What is there of a revision now. phases: of its replicas, but those that are gone.

    reason: why it does not come further, in words. breaches: the thresholds that it breaks by itself, in
    words. measured: what its replicas counted since they started. reported: what routers told since the last
    `step`.
    """

    phases: tuple[pb.ReplicaPhase.ValueType, ...] = ()
    reason: str = ""
    breaches: Mapping[pb.ThresholdKind.ValueType, str] = field(default_factory=dict)
    measured: Measured | None = None
    reported: Counts = field(default_factory=Counts)

    @property
    def current(self) -> int:
        return len(self.phases)

    @property
    def ready(self) -> int:
        return self.phases.count(pb.REPLICA_PHASE_READY)

    @property
    def is_in_crash_loop(self) -> bool:
        return pb.REPLICA_PHASE_CRASH_LOOP in self.phases

    @property
    def progress(self) -> int:
        """How far its replicas have come on their way to the first token, in all."""
        return sum(_ON_THE_WAY.index(phase) + 1 for phase in self.phases if phase in _ON_THE_WAY)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """others: replicas of revisions that take no part any more. cursor: of the last report that is in."""

    stable: RevisionSeen = field(default_factory=RevisionSeen)
    candidate: RevisionSeen = field(default_factory=RevisionSeen)
    others: int = 0
    cursor: int = 0


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What the replicas of both revisions had counted at a moment."""

    time: datetime
    stable: Measured | None
    candidate: Measured | None


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """stable: 0 for the first revision of all, which has nothing to go back to.

    candidate_weight: its share of the traffic now, in percent. size: replicas of a whole revision. step: from
    1; 0 before the first. step_start: when the step's weight was set; None while its replicas are missing.
    progress, progress_time: the farthest that the candidate came, and when. down_since: of the stable
    revision without a ready replica. cursor: of the last report that is in the evidence.
    """

    state: pb.RolloutState.ValueType
    stable: int
    candidate: int
    start_time: datetime
    replacement: pb.ReplacementMode.ValueType = pb.REPLACEMENT_MODE_SURGE
    is_canary: bool = False
    size: int = 1
    step: int = 0
    step_start: datetime | None = None
    candidate_weight: int = 0
    stable_replicas: int = 0
    candidate_replicas: int = 0
    progress: int = 0
    progress_time: datetime
    down_since: datetime | None = None
    look_time: datetime | None = None
    evidence: Evidence = field(default_factory=Evidence)
    counted: Counted | None = None
    cursor: int = 0
    analysis: pb.RolloutAnalysis | None = None
    message: str = ""
    end_time: datetime | None = None

    @property
    def is_over(self) -> bool:
        return self.state in _ENDED

    @property
    def has_taken_over(self) -> bool:
        """The candidate is on its way to be stable and serves everything."""
        return self.state == pb.ROLLOUT_STATE_PROMOTING and self.candidate_weight == WHOLE


def counted(
    replicas: Iterable[Replica], draining: Mapping[str, datetime], spec: pb.DeploymentSpec, now: datetime
) -> list[Replica]:
    """The replicas that a rollout waits for, or leaves room for. draining: since when each of them drains.

    Neither those that are gone nor those that were told to end and should have long ago: whatever keeps
    these, nothing that a rollout does ends them.
    """
    overdue = now - spec.drain_timeout.ToTimedelta() - DRAIN_GRACE
    return [
        replica
        for replica in replicas
        if replica.phase != pb.REPLICA_PHASE_GONE and draining.get(replica.replica_id, now) > overdue
    ]


def step_weight(spec: pb.DeploymentSpec, number: int) -> int:
    """In percent; number: from 1; 0 has none."""
    return spec.rollout.canary.steps[number - 1].weight_percent if number else 0


def bake_end(rollout: Rollout, spec: pb.DeploymentSpec, begins: datetime) -> datetime:
    """Of the step that the rollout is at."""
    return begins + spec.rollout.canary.steps[rollout.step - 1].bake_time.ToTimedelta()
