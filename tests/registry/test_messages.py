from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from semver import Version

from neuroweaver.registry import messages
from neuroweaver.registry.artifacts.store import Progress
from neuroweaver.registry.domain.aliases import Alias
from neuroweaver.registry.domain.history import AuditEvent
from neuroweaver.registry.domain.model import (
    Artifact,
    BasePin,
    Direction,
    Lineage,
    Metric,
    Model,
    ModelVersion,
    State,
)
from neuroweaver.registry.domain.webhook import Delivery, Webhook, WebhookStatus
from neuroweaver.registry.domain.webhook import State as DeliveryState
from neuroweaver.statistics.estimate import Interval
from neuroweaver.v1 import registry_pb2 as pb

NOW = datetime(2030, 1, 2, tzinfo=UTC)
TIMES: dict[str, Any] = {"create_time": NOW, "update_time": NOW, "delete_time": NOW}
ARTIFACT = Artifact(path="a.json", digest="a" * 64, size_bytes=1, media_type="application/json")
VERSION = ModelVersion(
    model_id="m",
    version=Version(1, 2, 3),
    state=State.VALIDATED,
    description="d",
    config={"lora_r": 16.0},
    metrics={
        "loss": Metric(
            value=1.0,
            direction=Direction.LOWER_IS_BETTER,
            interval=Interval(0.5, 1.5, 0.95),
            samples=(1.0,),
            unit="nats",
        )
    },
    tags={"team": "x"},
    base=BasePin(
        name="b", model_digest="1", tokenizer_digest="2", chat_template_digest="3", context_length=4
    ),
    lineage=Lineage(
        training_job_id="j", dataset_digest="5", dataset_path="p", software_version="6", trace_id="7"
    ),
    artifacts=(ARTIFACT,),
    parent_version="1.0.0",
    etag="8",
    aliases=("production",),
    **TIMES,
)
WEBHOOK = Webhook(webhook_id="h", url="https://h", actions=("model.*",), model_id="m", create_time=NOW)


def complete(message: Any, *unset: str) -> None:
    every = {field.name for field in message.DESCRIPTOR.fields}
    assert {field.name for field, _ in message.ListFields()} == every - {*unset}


@pytest.mark.parametrize(
    "message",
    [
        messages.from_model(Model(model_id="m", description="d", tags={"a": "b"}, etag="1", latest_version="1.0.0", **TIMES)),
        messages.from_version(VERSION),
        messages.from_version(VERSION).metrics["loss"],
        messages.from_version(VERSION).metrics["loss"].interval,
        messages.from_version(VERSION).base,
        messages.from_version(VERSION).lineage,
        messages.from_version(VERSION).artifacts[0],
        messages.from_alias(Alias(model_id="m", alias="a", version=Version(1, 0, 0), is_protected=True, actor="ada", update_time=NOW)),
        messages.from_progress(Progress("d", 1, is_complete=True, is_deduplicated=True)),
        messages.from_audit_event(
            AuditEvent(project="p", sequence=1, time=NOW, actor="ada", action="a", model_id="m", version="1.0.0", reason="r", changes='[["x",1,2]]', trace_id="t", previous_hash="0", hash="1")
        ),
        messages.from_delivery(
            Delivery(project="p", webhook_id="h", sequence=1, action="a", create_time=NOW, state=DeliveryState.DEAD, attempts=1, next_attempt_time=NOW, last_attempt_time=NOW, last_status=500, last_error="e")
        ),
    ],
    ids=lambda message: message.DESCRIPTOR.name,
)  # fmt: skip
def test_a_record_fills_every_field_of_its_message(message: Any):
    complete(message)


def test_a_webhook_is_shown_without_its_secret():
    complete(messages.from_webhook(WebhookStatus(WEBHOOK, 1, 2, "e")), "secret")


def test_a_version_without_configuration_has_none_in_its_message():
    bare = ModelVersion(
        model_id="m", version=Version(1, 0, 0), state=State.DRAFT, create_time=NOW, update_time=NOW
    )

    assert not messages.from_version(bare).HasField("config")


def test_what_a_caller_says_comes_back():
    sent = messages.from_version(VERSION)
    request = pb.CreateModelVersionRequest(
        config=sent.config,
        metrics=sent.metrics,
        base=sent.base,
        lineage=sent.lineage,
        artifacts=sent.artifacts,
        state=sent.state,
    )

    draft = messages.to_draft(request)

    for part in ("config", "metrics", "base", "lineage", "artifacts", "state"):
        assert getattr(draft, part) == getattr(VERSION, part)
