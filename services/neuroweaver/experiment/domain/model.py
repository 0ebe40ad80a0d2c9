"""Experiments and what may become of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from neuroweaver.experiment.domain import specification
from neuroweaver.experiment.domain.allocation import BUCKETS, Spans, allocate, moved_share, size
from neuroweaver.mesh.wire.errors import Aborted, FailedPrecondition, InvalidArgument
from neuroweaver.v1 import experiment_pb2 as pb

CREATED: Final = pb.EXPERIMENT_STATE_CREATED
RUNNING: Final = pb.EXPERIMENT_STATE_RUNNING
PAUSED: Final = pb.EXPERIMENT_STATE_PAUSED
STOPPED: Final = pb.EXPERIMENT_STATE_STOPPED
CONCLUDING: Final = pb.EXPERIMENT_STATE_CONCLUDING
CONCLUDED: Final = pb.EXPERIMENT_STATE_CONCLUDED

SYSTEM: Final = "system"
"""The actor of changes that no caller asks for."""

_DECIDED: Final = frozenset({CONCLUDING, CONCLUDED})


def name_of(state: pb.ExperimentState.ValueType) -> str:
    return pb.ExperimentState.Name(state).removeprefix("EXPERIMENT_STATE_")


@dataclass(frozen=True)
class Phase:
    """A stretch of time with the same weights."""

    number: int
    start_time: datetime
    weights: Mapping[str, float]
    ranges: Mapping[str, Spans]
    moved_share: float = 0.0
    reason: str = ""
    end_time: datetime | None = None


@dataclass(frozen=True)
class Ramp:
    """How far the coverage has been raised. step: from 1. held: how long it ran before the last pause."""

    step: int
    since: datetime | None
    held: timedelta = timedelta()

    def spent(self, now: datetime) -> timedelta:
        """How long the step has lasted, pauses left out."""
        return self.held + (max(now - self.since, timedelta()) if self.since else timedelta())


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """spec: complete, never changed. weights: those in force, or to be in force once it starts.

    pinned: the version behind each variant that names a model, from the start on. baseline: what the alias
    of each model named then, empty if nothing.
    """

    project: str
    test_id: str
    spec: pb.ExperimentSpec
    state: pb.ExperimentState.ValueType = CREATED
    weights: Mapping[str, float]
    salt: str
    layer_salt: str = ""
    layer_ranges: Spans = ()
    pinned: Mapping[str, str]
    baseline: Mapping[str, str]
    phases: tuple[Phase, ...] = ()
    ramp: Ramp | None = None
    stop_cause: pb.StopCause.ValueType = pb.STOP_CAUSE_UNSPECIFIED
    state_reason: str = ""
    conclusion: pb.ExperimentConclusion | None = None
    created_by: str
    create_time: datetime
    start_time: datetime | None = None
    stop_time: datetime | None = None
    update_time: datetime
    etag: str = ""
    last_sequence: int = 0

    @property
    def control(self) -> str:
        return self.spec.control_variant_id

    @property
    def treatments(self) -> Sequence[str]:
        return [variant.variant_id for variant in self.spec.variants if variant.variant_id != self.control]

    @property
    def phase(self) -> Phase | None:
        return self.phases[-1] if self.phases else None

    @property
    def coverage(self) -> float:
        """Share of the targeted units that take part."""
        return self.spec.ramp[self.ramp.step - 1].coverage if self.ramp else self.spec.coverage or 1.0

    @property
    def winner(self) -> str:
        return self.conclusion.winner_variant_id if self.conclusion else ""

    def metric(self, metric_id: str) -> pb.ExperimentMetric | None:
        return next((metric for metric in self.spec.metrics if metric.metric_id == metric_id), None)

    def check_etag(self, etag: str) -> None:
        """Raises Aborted if it is given and stale."""
        if etag and etag != self.etag:
            raise Aborted(
                "ETAG_MISMATCH", f"experiment {self.test_id} was changed by another call; read it again"
            )

    def started(self, now: datetime, pinned: Mapping[str, str], baseline: Mapping[str, str]) -> Experiment:
        """Running, for the first time or again. Raises FailedPrecondition."""
        if self.state == RUNNING:
            return self
        if self.state not in {CREATED, PAUSED}:
            raise self._refusal("NOT_STARTABLE", "only a created or paused experiment can be started")
        end = self.end_time
        if end and end <= now:
            raise self._refusal("ENDED", f"its end_time {end:%Y-%m-%d %H:%M} UTC has passed")
        if self.state == PAUSED:
            ramp = replace(self.ramp, since=now) if self.ramp else None
            return replace(self, state=RUNNING, state_reason="", ramp=ramp)
        return replace(
            self,
            state=RUNNING,
            state_reason="",
            start_time=now,
            pinned=pinned,
            baseline=baseline,
            phases=(self._opened(self.weights, now, "start"),),
            ramp=Ramp(1, now) if self.spec.ramp else None,
        )

    def paused(self, now: datetime, reason: str) -> Experiment:
        """Raises FailedPrecondition."""
        if self.state == PAUSED:
            return self
        if self.state != RUNNING:
            raise self._refusal("NOT_RUNNING", "only a running experiment can be paused")
        ramp = replace(self.ramp, since=None, held=self.ramp.spent(now)) if self.ramp else None
        return replace(self, state=PAUSED, state_reason=reason, ramp=ramp)

    def stopped(self, now: datetime, cause: pb.StopCause.ValueType, reason: str) -> Experiment:
        """For good. Raises FailedPrecondition if it was concluded."""
        if self.state == STOPPED:
            return self
        if self.state in _DECIDED:
            raise self._refusal("CONCLUDED", "it is already decided")
        ramp = replace(self.ramp, since=None, held=self.ramp.spent(now)) if self.ramp else None
        return replace(
            self,
            state=STOPPED,
            stop_cause=cause,
            state_reason=reason,
            stop_time=now,
            phases=self._closed(now),
            layer_ranges=(),
            ramp=ramp,
        )

    def reweighted(self, weights: Mapping[str, float], now: datetime, reason: str) -> Experiment:
        """With other weights. Raises InvalidArgument, FailedPrecondition."""
        variants = {variant.variant_id for variant in self.spec.variants}
        if weights.keys() != variants:
            odd = min(weights.keys() ^ variants)
            raise InvalidArgument("weights", f"{odd} is {'missing' if odd in variants else 'not a variant'}")
        specification.check_weights("weights", weights, self.control)
        if self.state not in {CREATED, RUNNING, PAUSED}:
            raise self._refusal("STOPPED", "the weights of an experiment that has ended cannot change")
        if dict(weights) == dict(self.weights):
            return self
        if self.state == CREATED:
            return replace(self, weights=weights)
        opened = self._opened(weights, now, reason or "new weights")
        return replace(self, weights=weights, phases=(*self._closed(now), opened))

    def reweighted_by_hand(self, weights: Mapping[str, float], now: datetime, reason: str) -> Experiment:
        """As `reweighted`. Raises FailedPrecondition if the weights follow the outcomes."""
        if self.spec.HasField("thompson"):
            raise FailedPrecondition(
                "ADAPTIVE", "the weights of this experiment follow its outcomes", self.test_id
            )
        return self.reweighted(weights, now, reason)

    def ramped(self, now: datetime) -> Experiment:
        """One step further, where the present one has lasted long enough; else as it is."""
        if self.state != RUNNING or self.ramp is None or self.ramp.step >= len(self.spec.ramp):
            return self
        hold = specification.length(self.spec.ramp[self.ramp.step - 1].hold)
        return replace(self, ramp=Ramp(self.ramp.step + 1, now)) if self.ramp.spent(now) >= hold else self

    def decided(self, conclusion: pb.ExperimentConclusion, now: datetime) -> Experiment:
        """As the conclusion says; true on both sides at once if nothing is to be moved.

        Raises FailedPrecondition if it never ran, or was decided otherwise.
        """
        if self.state == CREATED or self.start_time is None:
            raise self._refusal("NEVER_STARTED", "an experiment that never ran cannot be concluded")
        if self.state in _DECIDED and self.winner != conclusion.winner_variant_id:
            raise self._refusal("CONCLUDED", f"it was decided for {self.winner}")
        if self.state == CONCLUDED:
            return self
        ended = self
        if self.state in {RUNNING, PAUSED}:
            ended = self.stopped(now, pb.STOP_CAUSE_CONCLUDED, conclusion.reason)
        is_done = conclusion.state in {pb.CONCLUSION_STATE_NOTHING_TO_MOVE, pb.CONCLUSION_STATE_APPLIED}
        return replace(
            ended,
            state=CONCLUDED if is_done else CONCLUDING,
            conclusion=conclusion,
            state_reason=conclusion.reason,
        )

    @property
    def end_time(self) -> datetime | None:
        if not self.spec.HasField("end_time"):
            return None
        return self.spec.end_time.ToDatetime(tzinfo=UTC)

    def _opened(self, weights: Mapping[str, float], now: datetime, reason: str) -> Phase:
        ranges = allocate(weights, [phase.ranges for phase in self.phases])
        moved = moved_share(self.phase.ranges, ranges) if self.phase else 0.0
        return Phase(len(self.phases) + 1, now, dict(weights), ranges, moved, reason)

    def _closed(self, now: datetime) -> tuple[Phase, ...]:
        if not self.phases or self.phases[-1].end_time:
            return self.phases
        return (*self.phases[:-1], replace(self.phases[-1], end_time=now))

    def _refusal(self, reason: str, text: str) -> FailedPrecondition:
        return FailedPrecondition(reason, f"{self.test_id} is {name_of(self.state)}: {text}", self.test_id)


def free_share(taken: Sequence[tuple[int, int]]) -> float:
    """Of a layer whose buckets are taken so far."""
    return (BUCKETS - size(taken)) / BUCKETS
