"""Protobuf messages from model objects, and back.

A message's fields have the names of the object's: `filled` and `read` copy them. What is written out below is
what differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from enum import Enum
from functools import cache, partial
from typing import Any, Final, TypeVar, cast

from google.protobuf import json_format, struct_pb2, timestamp_pb2
from google.protobuf.json_format import SerializeToJsonError
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from neuroweaver.mesh.wire.clock import timestamp
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.registry.artifacts.store import Progress
from neuroweaver.registry.comparison.compare import Comparison
from neuroweaver.registry.domain import history, webhook
from neuroweaver.registry.domain.aliases import Alias
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
from neuroweaver.registry.domain.records import Event
from neuroweaver.registry.domain.versions import Level
from neuroweaver.registry.domain.webhook import Delivery, Webhook, WebhookStatus
from neuroweaver.statistics.estimate import Interval
from neuroweaver.v1 import common_pb2
from neuroweaver.v1 import registry_pb2 as pb

M = TypeVar("M", bound=Message)
E = TypeVar("E", bound=Enum)
T = TypeVar("T")


def _members(numbers: Any, kind: type[E]) -> dict[int, E]:
    """An enum's numbers by the names that the two have in common: BUMP_LEVEL_MAJOR is Level.MAJOR."""
    return {
        number: member
        for name, number in numbers.items()
        for member in kind
        if name.endswith(f"_{member.name}")
    }


LEVELS: Final = _members(pb.BumpLevel, Level)
STATES: Final = _members(pb.VersionState, State)
DELIVERY_STATES: Final = _members(pb.DeliveryState, webhook.State)
_DIRECTIONS: Final = {0: Direction.UNKNOWN} | _members(pb.MetricDirection, Direction)
_NUMBERS: Final = {
    numbers.DESCRIPTOR.name: {member: number for number, member in members.items()}
    for numbers, members in (
        (pb.BumpLevel, LEVELS),
        (pb.VersionState, STATES),
        (pb.DeliveryState, DELIVERY_STATES),
        (pb.MetricDirection, _DIRECTIONS),
    )
}


def filled(kind: type[M], record: object, **differing: Any) -> M:
    """A message with the record's values in the fields of their names; None leaves a field unset."""
    written = {
        name: write(value)
        for name, write in _writers(kind.DESCRIPTOR)
        if name not in differing and (value := getattr(record, name, None)) is not None
    }
    return kind(**written, **differing)


@cache
def _writers(message: Any) -> list[tuple[str, Callable[[Any], Any]]]:
    return [(field.name, _writer(field)) for field in message.fields]


def _writer(field: Any) -> Callable[[Any], Any]:
    """How a record's value becomes one of the field."""
    kind = field.message_type
    write: Callable[[Any], Any]
    if field.enum_type is not None:
        write = _NUMBERS[field.enum_type.name].__getitem__
    elif kind is None:
        return str if field.type == field.TYPE_STRING and not field.is_repeated else lambda value: value
    elif kind is timestamp_pb2.Timestamp.DESCRIPTOR:
        write = timestamp
    elif kind is struct_pb2.Value.DESCRIPTOR:
        write = _value
    elif kind is struct_pb2.Struct.DESCRIPTOR:
        write = _struct
    elif kind.GetOptions().map_entry:
        write_item = _writer(kind.fields_by_name["value"])
        return lambda mapping: {key: write_item(item) for key, item in mapping.items()}
    else:
        write = partial(filled, GetMessageClass(kind))
    return (lambda values: list(map(write, values))) if field.is_repeated else write


def _value(plain: Any) -> struct_pb2.Value:
    return json_format.ParseDict(plain, struct_pb2.Value())


def _struct(plain: Mapping[str, Any]) -> struct_pb2.Struct:
    """As `ParseDict` makes it, in a third of the time."""
    struct = struct_pb2.Struct()
    struct.update(plain)
    return struct


def read(kind: type[T], message: Message, **differing: Any) -> T:
    """A record with a message's values in the fields of their names."""
    shared = _shared(cast("Any", kind), message.DESCRIPTOR)
    return kind(**{name: getattr(message, name) for name in shared if name not in differing}, **differing)


@cache
def _shared(kind: Any, message: Any) -> frozenset[str]:
    return frozenset(message.fields_by_name).intersection(field.name for field in dataclasses.fields(kind))


def from_model(model: Model) -> pb.Model:
    return filled(pb.Model, model)


def from_version(version: ModelVersion) -> pb.ModelVersion:
    unset = {} if version.config else {"config": None}
    return filled(pb.ModelVersion, version, **unset)


def from_alias(alias: Alias) -> pb.Alias:
    return filled(pb.Alias, alias)


def from_comparison(comparison: Comparison) -> pb.ModelComparison:
    a, b = (from_version(_without_samples(version)) for version in (comparison.a, comparison.b))
    return filled(pb.ModelComparison, comparison, a=a, b=b)


def from_artifact(artifact: Artifact) -> pb.Artifact:
    return filled(pb.Artifact, artifact)


def from_progress(progress: Progress) -> pb.UploadArtifactResponse:
    return filled(pb.UploadArtifactResponse, progress)


def from_audit_event(event: history.AuditEvent) -> pb.AuditEvent:
    return filled(
        pb.AuditEvent,
        event,
        changes=[filled(pb.FieldDifference, change) for change in event.listed_changes()],
    )


def from_verdict(verdict: history.Verdict, signed: history.SignedHead) -> pb.AuditVerification:
    head = filled(pb.AuditHead, signed, sequence=signed.head.sequence, hash=signed.head.hash)
    is_intact = not verdict.first_bad_sequence
    return filled(pb.AuditVerification, verdict, is_intact=is_intact, head=head)


def from_event(event: Event) -> pb.ModelEvent:
    message = filled(pb.ModelEvent, event)
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


def from_webhook(status: WebhookStatus) -> pb.Webhook:
    counts = {"pending": status.pending, "dead": status.dead, "last_error": status.last_error}
    return filled(pb.Webhook, status.webhook, **counts)


def from_delivery(delivery: Delivery) -> pb.WebhookDelivery:
    return filled(pb.WebhookDelivery, delivery)


def to_model(message: pb.Model, now: datetime) -> Model:
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


def to_draft(request: pb.CreateModelVersionRequest) -> Draft:
    """Raises InvalidArgument."""
    draft = Draft(
        description=request.description,
        config=_to_config(request.config),
        metrics=to_metrics(request.metrics),
        tags=dict(request.tags),
        base=read(BasePin, request.base) if request.HasField("base") else None,
        lineage=read(Lineage, request.lineage) if request.HasField("lineage") else None,
        artifacts=tuple(
            read(Artifact, file, media_type=file.media_type or media_type_of(file.path))
            for file in request.artifacts
        ),
        state=STATES.get(request.state),
    )
    draft.check()
    return draft


def to_metrics(metrics: Mapping[str, pb.Metric]) -> dict[str, Metric]:
    return {
        name: read(
            Metric,
            metric,
            direction=_DIRECTIONS[metric.direction],
            interval=read(Interval, metric.interval) if metric.HasField("interval") else None,
            samples=tuple(metric.samples),
        )
        for name, metric in metrics.items()
    }


def to_webhook(message: pb.Webhook, now: datetime) -> Webhook:
    """A new webhook. Raises InvalidArgument."""
    created = read(Webhook, message, actions=tuple(message.actions), create_time=now)
    created.check()
    return created


def _without_samples(version: ModelVersion) -> ModelVersion:
    """Two versions with all their samples would not fit into one message."""
    metrics = {name: replace(metric, samples=()) for name, metric in version.metrics.items()}
    return replace(version, metrics=metrics)


def _to_config(config: struct_pb2.Struct) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json_format.MessageToDict(config)
    except (SerializeToJsonError, ValueError) as error:
        raise InvalidArgument("config", "contains a number that is not finite, or an unset value") from error
    return plain
