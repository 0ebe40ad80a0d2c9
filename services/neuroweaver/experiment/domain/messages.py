"""Protobuf messages from experiments, and experiments from what is kept of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from google.protobuf import timestamp_pb2
from google.protobuf.message import Message

from neuroweaver.experiment.domain.allocation import BUCKETS, Spans
from neuroweaver.experiment.domain.model import CREATED, RUNNING, Experiment, Phase, Ramp
from neuroweaver.mesh.wire.messages import message_of
from neuroweaver.mesh.wire.records import Records
from neuroweaver.statistics import thompson
from neuroweaver.v1 import experiment_pb2 as pb

_RECORDS: Final = Records()

T = TypeVar("T")


def from_experiment(experiment: Experiment) -> pb.Experiment:
    """As its callers see it."""
    return message_of(
        pb.Experiment,
        experiment,
        spec=_shown_spec(experiment),
        phases=map(from_phase, experiment.phases),
        ramp_step=experiment.ramp.step if experiment.ramp else 0,
        notices=notices(experiment),
    )


def notices(experiment: Experiment) -> Sequence[pb.ExperimentNotice]:
    if not experiment.spec.HasField("thompson"):
        return []
    return [pb.ExperimentNotice(reason="ADAPTIVE_ALLOCATION", message=thompson.NOTICE)]


def from_phase(phase: Phase) -> pb.AnalysisPhase:
    allocations = [
        pb.VariantAllocation(variant_id=variant, weight=weight, ranges=from_spans(phase.ranges[variant]))
        for variant, weight in phase.weights.items()
    ]
    return message_of(pb.AnalysisPhase, phase, allocations=allocations)


def config_of(experiment: Experiment) -> pb.AssignmentConfig:
    """All that is needed to assign its units."""
    weights = experiment.phase.weights if experiment.phase else experiment.weights
    return message_of(
        pb.AssignmentConfig,
        experiment,
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


_HIDDEN: Final = ("weights", "layer_salt", "layer_ranges", "pinned", "baseline")


def dump(experiment: Experiment) -> tuple[bytes, str]:
    """What is kept of it: what callers see, and as JSON what they do not."""
    ramp = experiment.ramp
    others = {name: getattr(experiment, name) for name in _HIDDEN}
    hidden = _Hidden(**others, ramp=(ramp.step, ramp.since, ramp.held) if ramp else None)
    record = from_experiment(experiment)
    record.spec.CopyFrom(experiment.spec)
    return record.SerializeToString(deterministic=True), _RECORDS.dump(hidden)


def load(record: bytes, hidden: str) -> Experiment:
    shown, own = pb.Experiment.FromString(record), _RECORDS.load(_Hidden, hidden)
    others = {name: getattr(own, name) for name in _HIDDEN}
    ramp = Ramp(*own.ramp) if own.ramp else None
    return _record_of(Experiment, shown, **others, phases=tuple(map(_phase, shown.phases)), ramp=ramp)


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
    ranges = {
        allocation.variant_id: tuple((span.start, span.end) for span in allocation.ranges)
        for allocation in message.allocations
    }
    weights = {allocation.variant_id: allocation.weight for allocation in message.allocations}
    return _record_of(Phase, message, weights=weights, ranges=ranges)


def _record_of(kind: type[T], message: Message, **given: Any) -> T:
    """A record with a message's values in the fields of their names; None for a message that is unset."""
    names = {field.name for field in fields(kind)} - given.keys()  # type: ignore[arg-type]
    shared = (field for field in message.DESCRIPTOR.fields if field.name in names)
    return kind(**{field.name: _value(message, field) for field in shared}, **given)


def _value(message: Message, field: Any) -> Any:
    if field.message_type is not None and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    return value.ToDatetime(tzinfo=UTC) if isinstance(value, timestamp_pb2.Timestamp) else value
