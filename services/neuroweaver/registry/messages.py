"""Protobuf messages from model objects, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf import json_format, struct_pb2, timestamp_pb2
from google.protobuf.json_format import SerializeToJsonError

from neuroweaver.mesh.wire.clock import timestamp
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.registry.artifacts.store import Progress
from neuroweaver.registry.comparison.compare import Comparison, MetricDifference
from neuroweaver.registry.domain import history
from neuroweaver.registry.domain.aliases import Alias
from neuroweaver.registry.domain.event import Event
from neuroweaver.registry.domain.model import (
    Artifact,
    BasePin,
    Direction,
    Draft,
    Lineage,
    Metric,
    Model,
    ModelVersion,
    State,
)
from neuroweaver.registry.domain.paths import media_type_of
from neuroweaver.registry.domain.versions import Level
from neuroweaver.statistics.estimate import Interval
from neuroweaver.v1 import common_pb2, registry_pb2

LEVELS: Final = {
    registry_pb2.BUMP_LEVEL_MAJOR: Level.MAJOR,
    registry_pb2.BUMP_LEVEL_MINOR: Level.MINOR,
    registry_pb2.BUMP_LEVEL_PATCH: Level.PATCH,
    registry_pb2.BUMP_LEVEL_PRERELEASE: Level.PRERELEASE,
}
_LEVEL_NUMBERS: Final = {level: number for number, level in LEVELS.items()} | {
    None: registry_pb2.BUMP_LEVEL_UNSPECIFIED
}
STATES: Final = {
    registry_pb2.VERSION_STATE_DRAFT: State.DRAFT,
    registry_pb2.VERSION_STATE_TRAINED: State.TRAINED,
    registry_pb2.VERSION_STATE_VALIDATED: State.VALIDATED,
    registry_pb2.VERSION_STATE_DEPLOYED: State.DEPLOYED,
    registry_pb2.VERSION_STATE_DEPRECATED: State.DEPRECATED,
    registry_pb2.VERSION_STATE_ARCHIVED: State.ARCHIVED,
}
_STATE_NUMBERS: Final = {state: number for number, state in STATES.items()}
_DIRECTIONS: Final = {
    registry_pb2.METRIC_DIRECTION_UNSPECIFIED: Direction.UNKNOWN,
    registry_pb2.METRIC_DIRECTION_HIGHER_IS_BETTER: Direction.HIGHER_IS_BETTER,
    registry_pb2.METRIC_DIRECTION_LOWER_IS_BETTER: Direction.LOWER_IS_BETTER,
}
_DIRECTION_NUMBERS: Final = {direction: number for number, direction in _DIRECTIONS.items()}


def from_model(model: Model) -> registry_pb2.Model:
    return registry_pb2.Model(
        model_id=model.model_id,
        description=model.description,
        tags=model.tags,
        latest_version=model.latest_version,
        create_time=timestamp(model.create_time),
        update_time=timestamp(model.update_time),
        delete_time=timestamp(model.delete_time),
        etag=model.etag,
    )


def to_model(message: registry_pb2.Model, now: datetime) -> Model:
    """A new model. Raises InvalidArgument."""
    model = Model(
        model_id=message.model_id,
        description=message.description,
        tags=dict(message.tags),
        create_time=now,
        update_time=now,
    )
    model.check()
    return model


def from_version(version: ModelVersion) -> registry_pb2.ModelVersion:
    return registry_pb2.ModelVersion(
        model_id=version.model_id,
        version=str(version.version),
        state=_STATE_NUMBERS[version.state],
        description=version.description,
        config=json_format.ParseDict(dict(version.config), struct_pb2.Struct()) if version.config else None,
        metrics={name: _from_metric(metric) for name, metric in version.metrics.items()},
        tags=version.tags,
        base=registry_pb2.BasePin(**vars(version.base)) if version.base else None,
        lineage=registry_pb2.Lineage(**vars(version.lineage)) if version.lineage else None,
        artifacts=[from_artifact(artifact) for artifact in version.artifacts],
        parent_version=version.parent_version,
        create_time=timestamp(version.create_time),
        update_time=timestamp(version.update_time),
        delete_time=timestamp(version.delete_time),
        etag=version.etag,
        aliases=version.aliases,
    )


def from_alias(alias: Alias) -> registry_pb2.Alias:
    return registry_pb2.Alias(
        model_id=alias.model_id,
        alias=alias.alias,
        version=str(alias.version or ""),
        update_time=timestamp(alias.update_time),
        actor=alias.actor,
        is_protected=alias.is_protected,
    )


def from_comparison(comparison: Comparison) -> registry_pb2.ModelComparison:
    return registry_pb2.ModelComparison(
        a=from_version(_without_samples(comparison.a)),
        b=from_version(_without_samples(comparison.b)),
        differences=[
            registry_pb2.FieldDifference(path=each.path, a=_value(each.a), b=_value(each.b))
            for each in comparison.differences
        ],
        metrics=map(_from_metric_difference, comparison.metrics),
        compatibility=[
            registry_pb2.CompatibilityFinding(**vars(finding)) for finding in comparison.compatibility
        ],
        recommended_bump=_LEVEL_NUMBERS[comparison.recommended_bump],
        recommendation_reason=comparison.recommendation_reason,
        verdict=comparison.verdict,
    )


def to_moment(field: str, message: timestamp_pb2.Timestamp) -> datetime:
    """Raises InvalidArgument naming `field` for a moment that no calendar has."""
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(field, "is not a moment between the years 1 and 9999") from error


def to_draft(request: registry_pb2.CreateModelVersionRequest) -> Draft:
    """Raises InvalidArgument."""
    draft = Draft(
        description=request.description,
        config=_to_config(request.config),
        metrics=to_metrics(request.metrics),
        tags=dict(request.tags),
        base=_to_base(request.base) if request.HasField("base") else None,
        lineage=_to_lineage(request.lineage) if request.HasField("lineage") else None,
        artifacts=[_to_artifact(artifact) for artifact in request.artifacts],
        state=STATES.get(request.state),
    )
    draft.check()
    return draft


def to_metrics(metrics: Mapping[str, registry_pb2.Metric]) -> dict[str, Metric]:
    return {
        name: Metric(
            value=metric.value,
            direction=_DIRECTIONS[metric.direction],
            interval=_to_interval(metric.interval) if metric.HasField("interval") else None,
            samples=tuple(metric.samples),
            unit=metric.unit,
        )
        for name, metric in metrics.items()
    }


def from_artifact(artifact: Artifact) -> registry_pb2.Artifact:
    return registry_pb2.Artifact(**vars(artifact))


def from_progress(progress: Progress) -> registry_pb2.UploadArtifactResponse:
    return registry_pb2.UploadArtifactResponse(**vars(progress))


def from_audit_event(event: history.AuditEvent) -> registry_pb2.AuditEvent:
    return registry_pb2.AuditEvent(
        sequence=event.sequence,
        time=timestamp(event.time),
        actor=event.actor,
        action=event.action,
        model_id=event.model_id,
        version=event.version,
        reason=event.reason,
        changes=[
            registry_pb2.FieldDifference(path=change.path, a=_value(change.before), b=_value(change.after))
            for change in event.listed_changes()
        ],
        trace_id=event.trace_id,
        previous_hash=event.previous_hash,
        hash=event.hash,
    )


def from_verdict(verdict: history.Verdict, signed: history.SignedHead) -> registry_pb2.AuditVerification:
    return registry_pb2.AuditVerification(
        is_intact=not verdict.first_bad_sequence,
        events=verdict.events,
        first_bad_sequence=verdict.first_bad_sequence,
        explanation=verdict.explanation,
        head=registry_pb2.AuditHead(
            project=signed.project,
            sequence=signed.head.sequence,
            hash=signed.head.hash,
            time=timestamp(signed.time),
            signature=signed.signature,
            key_id=signed.key_id,
            public_key=signed.public_key,
        ),
    )


def from_event(event: Event) -> registry_pb2.ModelEvent:
    message = registry_pb2.ModelEvent(
        sequence=event.sequence, time=timestamp(event.time), action=event.action
    )
    match event.subject:
        case Model():
            message.model.CopyFrom(from_model(event.subject))
        case ModelVersion():
            message.version.CopyFrom(from_version(event.subject))
        case Alias():
            message.alias.CopyFrom(from_alias(event.subject))
        case None:
            message.heartbeat.CopyFrom(common_pb2.Heartbeat(sequence=event.sequence))
    return message


def _from_metric(metric: Metric) -> registry_pb2.Metric:
    interval = metric.interval
    return registry_pb2.Metric(
        value=metric.value,
        direction=_DIRECTION_NUMBERS[metric.direction],
        interval=common_pb2.Interval(**vars(interval)) if interval else None,
        samples=metric.samples,
        unit=metric.unit,
    )


def _without_samples(version: ModelVersion) -> ModelVersion:
    """Two versions with all their samples would not fit into one message."""
    metrics = {name: replace(metric, samples=()) for name, metric in version.metrics.items()}
    return replace(version, metrics=metrics)


def _from_metric_difference(metric: MetricDifference) -> registry_pb2.MetricDifference:
    interval = metric.interval
    return registry_pb2.MetricDifference(
        name=metric.name,
        a=metric.a,
        b=metric.b,
        difference=metric.difference,
        interval=common_pb2.Interval(**vars(interval)) if interval else None,
        p_value=metric.p_value,
        direction=_DIRECTION_NUMBERS[metric.direction],
        is_better=metric.is_better,
        corrected_p_value=metric.corrected_p_value,
        unit=metric.unit,
        caveat=metric.caveat,
    )


def _to_interval(interval: common_pb2.Interval) -> Interval:
    return Interval(interval.lower, interval.upper, interval.confidence)


def _to_config(config: struct_pb2.Struct) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json_format.MessageToDict(config)
    except (SerializeToJsonError, ValueError) as error:
        raise InvalidArgument("config", "holds a number that is not finite, or a value of no kind") from error
    return plain


def _to_base(base: registry_pb2.BasePin) -> BasePin:
    return BasePin(
        name=base.name,
        model_digest=base.model_digest,
        tokenizer_digest=base.tokenizer_digest,
        chat_template_digest=base.chat_template_digest,
        context_length=base.context_length,
    )


def _to_lineage(lineage: registry_pb2.Lineage) -> Lineage:
    return Lineage(
        training_job_id=lineage.training_job_id,
        dataset_digest=lineage.dataset_digest,
        dataset_path=lineage.dataset_path,
        software_version=lineage.software_version,
        trace_id=lineage.trace_id,
    )


def _to_artifact(artifact: registry_pb2.Artifact) -> Artifact:
    return Artifact(
        path=artifact.path,
        digest=artifact.digest,
        size_bytes=artifact.size_bytes,
        media_type=artifact.media_type or media_type_of(artifact.path),
    )


def _value(plain: Any) -> struct_pb2.Value | None:
    return None if plain is None else json_format.ParseDict(plain, struct_pb2.Value())
