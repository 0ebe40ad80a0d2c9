from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from semver import Version

from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.registry.domain import history, records
from neuroweaver.registry.domain.aliases import Alias
from neuroweaver.registry.domain.history import GENESIS, AuditEvent, Head
from neuroweaver.registry.domain.model import (
    Artifact,
    BasePin,
    Direction,
    Interval,
    Lineage,
    Metric,
    Model,
    ModelVersion,
    State,
)
from neuroweaver.registry.domain.records import FieldDifference

NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
ORIGIN = ChangeOrigin("default", "ada", "because", "0" * 32)

VERSION = ModelVersion(
    model_id="advisor",
    version=Version.parse("1.2.0-rc.1+build.5"),
    state=State.TRAINED,
    description="größer",
    config={"lora_r": 16, "deep": {"a": [1, 2.5, None, "x"]}, "off": False, "none": 0},
    metrics={
        "loss": Metric(
            value=0.1,
            direction=Direction.LOWER_IS_BETTER,
            interval=Interval(0.05, 0.2, 0.95),
            samples=(0.1, 0.2),
        )
    },
    tags={"team": "service"},
    base=BasePin(name="smollm2", model_digest="a" * 64, context_length=2048),
    lineage=Lineage(training_job_id="job"),
    artifacts=(Artifact(path="a.json", digest="b" * 64, size_bytes=3, media_type="application/json"),),
    parent_version="1.1.0",
    create_time=NOW,
    update_time=NOW,
    delete_time=None,
    etag="4",
)
MODEL = Model(
    model_id="advisor", description="d", tags={"a": "b"}, create_time=NOW, update_time=NOW, etag="1"
)

ALIAS = Alias(
    model_id="advisor",
    alias="production",
    version=Version(1, 2, 0),
    is_protected=True,
    actor="ada",
    update_time=NOW,
)


def chain(length: int) -> list[AuditEvent]:
    events: list[AuditEvent] = []
    head = Head()
    for number in range(length):
        event = history.next_event(
            head,
            ORIGIN,
            time=NOW,
            action="version.created",
            model_id="advisor",
            version=f"1.{number}.0",
            changes=[FieldDifference("state", None, "DRAFT")],
        )
        events.append(event)
        head = Head(event.sequence, event.hash)
    return events


def head_of(events: list[AuditEvent]) -> Head:
    return Head(events[-1].sequence, events[-1].hash)


async def verified(events: list[AuditEvent], recorded: Head, expected: Head | None = None) -> history.Verdict:
    async def read() -> AsyncIterator[AuditEvent]:
        for event in events:
            yield event

    return await history.verify(read(), recorded, expected)


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        (VERSION, """{"aliases":[],"artifacts":[{"digest":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","media_type":"application/json","path":"a.json","size_bytes":3}],"base":{"chat_template_digest":"","context_length":2048,"model_digest":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","name":"smollm2","tokenizer_digest":""},"config":{"deep":{"a":[1,2.5,null,"x"]},"lora_r":16,"none":0,"off":false},"create_time":1893553445678901,"delete_time":null,"description":"größer","etag":"4","lineage":{"dataset_digest":"","dataset_path":"","software_version":"","trace_id":"","training_job_id":"job"},"metrics":{"loss":{"direction":"lower","interval":{"confidence":0.95,"lower":0.05,"upper":0.2},"samples":[0.1,0.2],"unit":"","value":0.1}},"model_id":"advisor","parent_version":"1.1.0","state":"TRAINED","tags":{"team":"service"},"update_time":1893553445678901,"version":"1.2.0-rc.1+build.5"}"""),
        (MODEL, """{"create_time":1893553445678901,"delete_time":null,"description":"d","etag":"1","latest_version":"","model_id":"advisor","tags":{"a":"b"},"update_time":1893553445678901}"""),
        (ALIAS, """{"actor":"ada","alias":"production","is_protected":true,"model_id":"advisor","update_time":1893553445678901,"version":"1.2.0"}"""),
    ],
    ids=["version", "model", "alias"],
)  # fmt: skip
def test_a_record_is_written_and_read_as_the_databases_have_it(
    subject: Model | ModelVersion | Alias, text: str
):
    assert records.dump(subject) == text
    assert records.load(type(subject), text) == subject


def test_the_hash_is_what_the_format_says():
    """The canonical text, written out by hand: another program can check a chain by it."""
    event = chain(1)[0]
    text = (
        '{"action":"version.created","actor":"ada","changes":"[[\\"state\\",null,\\"DRAFT\\"]]",'
        '"model_id":"advisor","previous_hash":"' + GENESIS + '","project":"default","reason":"because",'
        '"sequence":1,"time":"2030-01-02T03:04:05.678901+00:00","trace_id":"'
        + "0" * 32
        + '","version":"1.0.0"}'
    )

    assert event.hash == hashlib.sha256(text.encode()).hexdigest()


async def test_a_whole_chain_is_intact():
    events = chain(5)

    verdict = await verified(events, head_of(events), expected=head_of(events[:3]))

    assert (verdict.first_bad_sequence, verdict.events, verdict.head) == (0, 5, head_of(events))


async def test_an_empty_chain_is_intact():
    assert (await verified([], Head())).first_bad_sequence == 0


@pytest.mark.parametrize(
    "edit",
    [
        {"actor": "eve"}, {"action": "x"}, {"model_id": "x"}, {"version": "9.9.9"}, {"reason": ""}, {"changes": "[]"},
        {"trace_id": ""}, {"time": datetime(2030, 1, 2, tzinfo=UTC)}, {"project": "other"}, {"hash": "0" * 64},
    ],
)  # fmt: skip
async def test_an_edited_event_is_found(edit: dict[str, object]):
    events = chain(5)
    whole = head_of(events)
    events[2] = replace(events[2], **edit)

    assert (await verified(events, whole)).first_bad_sequence == 3


async def test_an_edited_event_with_a_new_hash_is_found_at_the_next_one():
    events = chain(5)
    whole = head_of(events)
    events[2] = replace(events[2], actor="eve").sealed()

    verdict = await verified(events, whole)

    assert verdict.first_bad_sequence == 4
    assert "does not follow" in verdict.explanation


async def test_a_removed_event_is_found():
    events = chain(5)
    whole = head_of(events)
    del events[1]

    verdict = await verified(events, whole)

    assert (verdict.first_bad_sequence, verdict.explanation) == (2, "event 2 is missing")


async def test_swapped_events_are_found():
    events = chain(5)
    whole = head_of(events)
    events[1], events[2] = events[2], events[1]

    assert (await verified(events, whole)).first_bad_sequence == 2


async def test_a_cut_end_is_found():
    events = chain(5)

    verdict = await verified(events[:3], head_of(events))

    assert verdict.first_bad_sequence == 4
    assert "are missing" in verdict.explanation


async def test_a_chain_rewritten_as_a_whole_is_found_by_a_head_that_was_noted():
    noted = head_of(chain(3))
    forged: list[AuditEvent] = []
    head = Head()
    for event in chain(5):
        forged.append(replace(event, actor="eve", previous_hash=head.hash).sealed())
        head = head_of(forged)

    assert (await verified(forged, head)).first_bad_sequence == 0
    assert (await verified(forged, head, expected=noted)).first_bad_sequence == 3


async def test_a_noted_head_beyond_the_end_is_missed():
    events = chain(5)

    assert (await verified(events[:3], head_of(events[:3]), expected=head_of(events))).first_bad_sequence == 4


def test_a_creation_lists_what_there_is_now():
    listed = {change.path: change.b for change in records.changes(None, VERSION)}

    assert listed["config.lora_r"] == 16
    assert listed["config.off"] is False
    assert listed["config.none"] == 0
    assert listed["artifacts.a.json"] == "b" * 64
    assert listed["tags.team"] == "service"
    assert listed["version"] == "1.2.0-rc.1+build.5"
    assert "etag" not in listed
    assert "update_time" not in listed


def test_samples_are_listed_by_their_digest():
    listed = {change.path: change.b for change in records.changes(None, VERSION)}

    assert listed["metrics.loss"]["value"] == 0.1
    assert listed["metrics.loss"]["samples"] == {
        "count": 2,
        "sha256": hashlib.sha256(b"[0.1,0.2]").hexdigest(),
    }


def test_a_change_lists_what_was_and_what_is():
    after = replace(
        VERSION, state=State.VALIDATED, tags={}, config=VERSION.config | {"lora_r": 8, "new": 1}, etag="5"
    )

    assert records.changes(VERSION, after) == [
        FieldDifference("config.lora_r", 16, 8),
        FieldDifference("config.new", None, 1),
        FieldDifference("state", "TRAINED", "VALIDATED"),
        FieldDifference("tags.team", "service", None),
    ]
