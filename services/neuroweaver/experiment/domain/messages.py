"""Protobuf messages from experiments, and experiments from what is kept of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf import timestamp_pb2

from neuroweaver.experiment.domain.allocation import BUCKETS, Spans
from neuroweaver.experiment.domain.model import CREATED, RUNNING, Experiment, Phase, Ramp
from neuroweaver.experiment.domain.snapshot import Rejection
from neuroweaver.mesh.wire.clock import timestamp
from neuroweaver.mesh.wire.records import Records
from neuroweaver.statistics import thompson
from neuroweaver.v1 import experiment_pb2 as pb

_RECORDS: Final = Records()


def from_experiment(experiment: Experiment) -> pb.Experiment:
    """As its callers see it."""
    return pb.Experiment(
        test_id=experiment.test_id,
        project=experiment.project,
        spec=_shown_spec(experiment),
        state=experiment.state,
        stop_cause=experiment.stop_cause,
        state_reason=experiment.state_reason,
        phases=map(from_phase, experiment.phases),
        coverage=experiment.coverage,
        ramp_step=experiment.ramp.step if experiment.ramp else 0,
        salt=experiment.salt,
        conclusion=experiment.conclusion,
        created_by=experiment.created_by,
        create_time=timestamp(experiment.create_time),
        start_time=timestamp(experiment.start_time),
        stop_time=timestamp(experiment.stop_time),
        update_time=timestamp(experiment.update_time),
        etag=experiment.etag,
        last_sequence=experiment.last_sequence,
        notices=notices(experiment),
    )


def notices(experiment: Experiment) -> Sequence[pb.ExperimentNotice]:
    if not experiment.spec.HasField("thompson"):
        return []
    return [pb.ExperimentNotice(reason="ADAPTIVE_ALLOCATION", message=thompson.NOTICE)]


def from_phase(phase: Phase) -> pb.AnalysisPhase:
    return pb.AnalysisPhase(
        number=phase.number,
        start_time=timestamp(phase.start_time),
        end_time=timestamp(phase.end_time),
        allocations=[
            pb.VariantAllocation(variant_id=variant, weight=weight, ranges=from_spans(phase.ranges[variant]))
            for variant, weight in phase.weights.items()
        ],
        moved_share=phase.moved_share,
        reason=phase.reason,
    )


def from_rejection(test_id: str, rejection: Rejection) -> pb.RejectedEvents:
    return pb.RejectedEvents(
        test_id=test_id,
        reason=rejection.reason,
        count=rejection.count,
        names=rejection.names,
        event_ids=rejection.event_ids,
    )


def config_of(experiment: Experiment) -> pb.AssignmentConfig:
    """All that is needed to assign its units."""
    weights = experiment.phase.weights if experiment.phase else experiment.weights
    return pb.AssignmentConfig(
        test_id=experiment.test_id,
        state=experiment.state,
        salt=experiment.salt,
        layer_salt=experiment.layer_salt,
        layer_ranges=from_spans(experiment.layer_ranges),
        coverage_buckets=round(experiment.coverage * BUCKETS) if experiment.state == RUNNING else 0,
        targeting=experiment.spec.targeting,
        overrides=experiment.spec.overrides,
        phase=from_phase(experiment.phase) if experiment.phase else None,
        variants=_variants(experiment, weights),
        control_variant_id=experiment.control,
        winner_variant_id=experiment.winner,
    )


def events_of(before: Experiment, after: Experiment, actor: str) -> list[pb.ResultsEvent]:
    """The events of a change, for watches."""
    events = []
    if after.state != before.state:
        changed = pb.ExperimentStateChanged(
            from_state=before.state,
            to_state=after.state,
            stop_cause=after.stop_cause,
            reason=after.state_reason,
            actor=actor,
        )
        events.append(pb.ResultsEvent(state_changed=changed))
    events += [
        pb.ResultsEvent(phase_opened=from_phase(phase)) for phase in after.phases[len(before.phases) :]
    ]
    if after.start_time and after.coverage != before.coverage:
        step = after.ramp.step if after.ramp else 0
        covered = pb.CoverageChanged(ramp_step=step, coverage=after.coverage)
        events.append(pb.ResultsEvent(coverage_changed=covered))
    if after.conclusion and after.conclusion != before.conclusion:
        events.append(pb.ResultsEvent(conclusion=after.conclusion))
    # A stream ends with CONCLUDED, so that comes last.
    return sorted(events, key=lambda event: event.state_changed.to_state == pb.EXPERIMENT_STATE_CONCLUDED)


@dataclass(frozen=True)
class _Hidden:
    """What callers do not see of an experiment. ramp: step, since and held."""

    weights: dict[str, float]
    layer_salt: str
    layer_ranges: Spans
    pinned: dict[str, str]
    baseline: dict[str, str]
    ramp: tuple[int, datetime | None, timedelta] | None


def dump(experiment: Experiment) -> tuple[bytes, str]:
    """What is kept of it: what callers see, and as JSON what they do not."""
    ramp = experiment.ramp
    hidden = _Hidden(
        weights=dict(experiment.weights),
        layer_salt=experiment.layer_salt,
        layer_ranges=experiment.layer_ranges,
        pinned=dict(experiment.pinned),
        baseline=dict(experiment.baseline),
        ramp=(ramp.step, ramp.since, ramp.held) if ramp else None,
    )
    record = from_experiment(experiment)
    record.spec.CopyFrom(experiment.spec)
    return record.SerializeToString(deterministic=True), _RECORDS.dump(hidden)


def load(record: bytes, hidden: str) -> Experiment:
    shown = pb.Experiment.FromString(record)
    own = _RECORDS.load(_Hidden, hidden)
    return Experiment(
        project=shown.project,
        test_id=shown.test_id,
        spec=shown.spec,
        state=shown.state,
        weights=own.weights,
        salt=shown.salt,
        layer_salt=own.layer_salt,
        layer_ranges=own.layer_ranges,
        pinned=own.pinned,
        baseline=own.baseline,
        phases=tuple(map(_phase, shown.phases)),
        ramp=Ramp(*own.ramp) if own.ramp else None,
        stop_cause=shown.stop_cause,
        state_reason=shown.state_reason,
        conclusion=shown.conclusion if shown.HasField("conclusion") else None,
        created_by=shown.created_by,
        create_time=_moment(shown.create_time),
        start_time=_moment(shown.start_time) if shown.HasField("start_time") else None,
        stop_time=_moment(shown.stop_time) if shown.HasField("stop_time") else None,
        update_time=_moment(shown.update_time),
        etag=shown.etag,
        last_sequence=shown.last_sequence,
    )


def _shown_spec(experiment: Experiment) -> pb.ExperimentSpec:
    shown = pb.ExperimentSpec()
    shown.CopyFrom(experiment.spec)
    weights = experiment.weights if experiment.state == CREATED else {}
    for variant in shown.variants:
        variant.weight = weights.get(variant.variant_id, variant.weight)
        if variant.variant_id in experiment.pinned:
            variant.target.version = experiment.pinned[variant.variant_id]
    return shown


def _variants(experiment: Experiment, weights: Mapping[str, float]) -> Sequence[pb.ExperimentVariant]:
    variants = list(_shown_spec(experiment).variants)
    for variant in variants:
        variant.weight = weights[variant.variant_id]
    return variants


def from_spans(spans: Spans) -> list[pb.BucketRange]:
    return [pb.BucketRange(start=start, end=end) for start, end in spans]


def _phase(message: pb.AnalysisPhase) -> Phase:
    return Phase(
        number=message.number,
        start_time=_moment(message.start_time),
        weights={each.variant_id: each.weight for each in message.allocations},
        ranges={
            each.variant_id: tuple((span.start, span.end) for span in each.ranges)
            for each in message.allocations
        },
        moved_share=message.moved_share,
        reason=message.reason,
        end_time=_moment(message.end_time) if message.HasField("end_time") else None,
    )


def _moment(message: timestamp_pb2.Timestamp) -> datetime:
    moment: datetime = message.ToDatetime(tzinfo=UTC)
    return moment
