from __future__ import annotations

import asyncio
import math
import pickle
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from neuroweaver.mesh.wire import status as statuses
from neuroweaver.v1 import common_pb2
from neuroweaver.v1 import registry_pb2 as pb
from registry.calls import create, digest_of, download, everything, refusal, register, safetensors, upload

A = "a" * 64


async def test_from_registration_to_download(registry):
    weights = safetensors(b"w" * 3_000_000)
    model = await registry.RegisterModel(
        pb.RegisterModelRequest(
            model=pb.Model(model_id="advisor", description="Advises.", tags={"team": "x"})
        )
    )
    artifact = await upload(registry, weights)
    config = await upload(registry, b'{"r": 16}', "adapter/adapter_config.json")
    request = pb.CreateModelVersionRequest(
        model_id="advisor",
        description="first",
        metrics={
            "win_rate": pb.Metric(
                value=0.6, interval=common_pb2.Interval(lower=0.5, upper=0.7, confidence=0.95)
            )
        },
        tags={"site": "1"},
        base=pb.BasePin(name="smollm2", model_digest=A, context_length=2048),
        lineage=pb.Lineage(training_job_id="job-1", dataset_digest=A),
        artifacts=[artifact, config],
    )
    request.config.update({"lora_r": 16, "deep": {"list": [1, "two", None, True]}})
    created = await registry.CreateModelVersion(request)

    assert model.etag
    assert (created.version, created.state) == ("1.0.0", pb.VERSION_STATE_TRAINED)
    assert created.config == request.config
    assert created.metrics == request.metrics
    assert (created.base, created.lineage, created.tags) == (request.base, request.lineage, request.tags)
    assert {file.path: file.media_type for file in created.artifacts} == {
        "adapter/adapter_config.json": "application/json",
        "adapter/adapter_model.safetensors": "application/vnd.safetensors",
    }

    listed = await registry.ListModelVersions(pb.ListModelVersionsRequest(model_id="advisor"))
    assert list(listed.versions) == [created]
    for selector in ("1.0.0", "latest", "^1"):
        got = await registry.GetModelVersion(pb.GetModelVersionRequest(model_id="advisor", version=selector))
        assert got == created
    assert (await registry.GetModel(pb.GetModelRequest(model_id="advisor"))).latest_version == "1.0.0"

    described, content = await download(registry, "adapter/adapter_model.safetensors")
    assert described.digest == artifact.digest
    assert content == weights
    assert (await download(registry, "adapter/adapter_model.safetensors", offset_bytes=2_999_000))[
        1
    ] == weights[2_999_000:]


async def test_a_retry_reads_the_first_answer(registry):
    first = await register(registry, request_id="r1")
    assert await register(registry, request_id="r1") == first

    bumps = [
        await registry.BumpModelVersion(
            pb.BumpModelVersionRequest(model_id="advisor", level=pb.BUMP_LEVEL_PATCH, request_id="r2")
        )
        for _ in range(3)
    ]
    assert bumps[0] == bumps[1] == bumps[2]
    assert await everything(registry) == (1, 2)

    other = await refusal(register(registry, "other", request_id="r1"))
    assert statuses.violations(other)[0][0] == "request_id"


async def test_an_existing_model_is_given_back_if_that_is_wanted(registry):
    first = await register(registry)

    assert await register(registry, allow_existing=True) == first
    error = await refusal(register(registry))
    assert (error.code(), statuses.reason(error)) == (grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")


async def test_a_model_is_updated_where_the_mask_says(registry):
    first = await registry.RegisterModel(
        pb.RegisterModelRequest(model=pb.Model(model_id="advisor", description="old", tags={"a": "1"}))
    )
    changed = pb.Model(model_id="advisor", description="new", tags={"b": "2"}, etag=first.etag)

    updated = await registry.UpdateModel(
        pb.UpdateModelRequest(model=changed, update_mask=FieldMask(paths=["description"]))
    )
    assert (updated.description, dict(updated.tags)) == ("new", {"a": "1"})

    stale = await refusal(
        registry.UpdateModel(pb.UpdateModelRequest(model=changed, update_mask=FieldMask(paths=["tags"])))
    )
    assert (stale.code(), statuses.reason(stale)) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    unknown = await refusal(
        registry.UpdateModel(
            pb.UpdateModelRequest(model=changed, update_mask=FieldMask(paths=["create_time"]))
        )
    )
    assert statuses.violations(unknown)[0][0] == "update_mask"


async def test_a_version_inherits_and_is_raised(registry):
    await register(registry)
    request = pb.CreateModelVersionRequest(
        model_id="advisor", tags={"a": "1"}, base=pb.BasePin(model_digest=A)
    )
    request.config.update({"lora_r": 16, "seed": 1})
    await registry.CreateModelVersion(request)

    child = pb.CreateModelVersionRequest(model_id="advisor", parent_version="1.0.0", bump=pb.BUMP_LEVEL_MAJOR)
    child.config.update({"seed": 2})
    created = await registry.CreateModelVersion(child)
    bumped = await registry.BumpModelVersion(
        pb.BumpModelVersionRequest(
            model_id="advisor",
            level=pb.BUMP_LEVEL_PRERELEASE,
            prerelease_label="beta",
            build="c0ffee",
            description="why",
        )
    )

    assert (created.version, created.parent_version) == ("2.0.0", "1.0.0")
    assert dict(created.config) == {"lora_r": 16, "seed": 2}
    assert (bumped.version, bumped.parent_version) == ("2.0.1-beta.1+c0ffee", "2.0.0")
    assert (dict(bumped.config), dict(bumped.tags)) == (dict(created.config), {"a": "1"})
    assert bumped.base.model_digest == A
    assert bumped.state == pb.VERSION_STATE_DRAFT

    odds = await refusal(create(registry, parent_version="1.0.0", base=pb.BasePin(model_digest="b" * 64)))
    assert (odds.code(), statuses.reason(odds)) == (grpc.StatusCode.FAILED_PRECONDITION, "BASE_MISMATCH")


async def test_a_version_needs_its_artifacts_uploaded(registry):
    await register(registry)
    missing = pb.Artifact(path="a.json", digest=A, size_bytes=1)

    error = await refusal(create(registry, artifacts=[missing]))

    assert (error.code(), statuses.reason(error)) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "ARTIFACT_NOT_UPLOADED",
    )
    assert await everything(registry) == (1, 1)


async def test_metrics_are_added_and_states_moved(registry):
    await register(registry)
    await create(registry, artifacts=[await upload(registry, safetensors())])

    measured = await registry.UpdateMetrics(
        pb.UpdateMetricsRequest(model_id="advisor", version="1.0.0", metrics={"loss": pb.Metric(value=0.5)})
    )
    moved = await registry.UpdateVersionState(
        pb.UpdateVersionStateRequest(
            model_id="advisor",
            version="1.0.0",
            state=pb.VERSION_STATE_VALIDATED,
            reason="gate",
            etag=measured.etag,
        )
    )

    assert moved.metrics["loss"].value == 0.5
    assert moved.state == pb.VERSION_STATE_VALIDATED
    refused = await refusal(
        registry.UpdateVersionState(
            pb.UpdateVersionStateRequest(model_id="advisor", version="1.0.0", state=pb.VERSION_STATE_DRAFT)
        )
    )
    assert refused.code() == grpc.StatusCode.FAILED_PRECONDITION

    history = await registry.GetVersionHistory(
        pb.GetVersionHistoryRequest(model_id="advisor", version="1.0.0")
    )
    assert [event.action for event in history.events] == [
        "version.state_changed", "version.measured", "version.created",
    ]  # fmt: skip
    change = history.events[0]
    assert (change.reason, change.actor, len(change.trace_id)) == ("gate", "local", 32)
    assert [(diff.path, diff.a.string_value, diff.b.string_value) for diff in change.changes] == [
        ("state", "TRAINED", "VALIDATED")
    ]


async def test_the_audit_chain_is_listed_and_verified(registry):
    await register(registry)
    await create(registry)

    events = (await registry.ListAuditEvents(pb.ListAuditEventsRequest())).events
    assert [event.sequence for event in events] == [1, 2]
    assert events[1].previous_hash == events[0].hash
    filtered = await registry.ListAuditEvents(
        pb.ListAuditEventsRequest(filter="action=version.created AND actor=local")
    )
    assert list(filtered.events) == [events[1]]

    verdict = await registry.VerifyAudit(
        pb.VerifyAuditRequest(expected_sequence=1, expected_hash=events[0].hash)
    )
    assert (verdict.is_intact, verdict.events, verdict.head.hash) == (True, 2, events[1].hash)


async def test_lists_go_on_page_by_page(registry):
    await register(registry)
    for _ in range(5):
        await create(registry)

    found: list[str] = []
    request = pb.ListModelVersionsRequest(model_id="advisor", page_size=2)
    while True:
        page = await registry.ListModelVersions(request)
        found += [version.version for version in page.versions]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert found == ["1.4.0", "1.3.0", "1.2.0", "1.1.0", "1.0.0"]

    foreign = await refusal(registry.ListModels(pb.ListModelsRequest(page_token=request.page_token)))
    assert statuses.violations(foreign)[0][0] == "page_token"
    request.filter = "state=DRAFT"
    assert statuses.violations(await refusal(registry.ListModelVersions(request)))[0][0] == "page_token"


async def test_a_watch_resumes_after_the_sequence_seen_last(registry):
    await register(registry)
    await create(registry)

    watching = registry.WatchModels(pb.WatchModelsRequest(since_sequence=1))
    event = await watching.read()
    assert (event.sequence, event.action, event.version.version) == (2, "version.created", "1.0.0")
    coming = asyncio.ensure_future(watching.read())
    await create(registry)
    assert (await coming).version.version == "1.1.0"
    watching.cancel()

    beyond = registry.WatchModels(pb.WatchModelsRequest(since_sequence=99))
    assert (await refusal(beyond.read())).code() == grpc.StatusCode.OUT_OF_RANGE


async def test_an_upload_is_resumed_and_deduplicated(registry):
    content = safetensors(b"x" * 2_000_000)

    async def half() -> AsyncIterator[pb.UploadArtifactRequest]:
        header = pb.UploadHeader(digest=digest_of(content), size_bytes=len(content), path="m.safetensors")
        yield pb.UploadArtifactRequest(header=header)
        yield pb.UploadArtifactRequest(chunk=content[:1_000_000])

    assert (await refusal(registry.UploadArtifact(half()))).code() == grpc.StatusCode.INVALID_ARGUMENT
    status = await registry.GetUploadStatus(pb.GetUploadStatusRequest(digest=digest_of(content)))
    assert (status.committed_bytes, status.is_complete) == (1_000_000, False)

    async def rest() -> AsyncIterator[pb.UploadArtifactRequest]:
        header = pb.UploadHeader(
            digest=digest_of(content),
            size_bytes=len(content),
            path="m.safetensors",
            offset_bytes=status.committed_bytes,
        )
        yield pb.UploadArtifactRequest(header=header)
        yield pb.UploadArtifactRequest(chunk=content[status.committed_bytes :])

    assert (await registry.UploadArtifact(rest())).is_complete
    again = await registry.UploadArtifact(half())
    assert (again.is_complete, again.is_deduplicated) == (True, True)


async def test_a_damaged_file_is_data_loss(registry, tmp_path: Path):
    content = safetensors(b"x" * 2_000_000)
    await register(registry)
    await create(registry, artifacts=[await upload(registry, content, "m.safetensors")])
    file = tmp_path / "artifacts" / "sha256" / digest_of(content)[:2] / digest_of(content)
    file.chmod(0o600)
    file.write_bytes(content[:-1] + b"y")

    error = await refusal(download(registry, "m.safetensors"))

    assert (error.code(), statuses.reason(error)) == (grpc.StatusCode.DATA_LOSS, "DATA_LOSS")


async def test_a_file_that_a_version_does_not_have_is_not_found(registry):
    await register(registry)
    await create(registry)

    for path in ("a.json", "../../../etc/passwd", "/etc/passwd"):
        assert (await refusal(download(registry, path))).code() == grpc.StatusCode.NOT_FOUND


def metrics(**fields: Any) -> Callable[[Any], Any]:
    return lambda registry: registry.UpdateMetrics(
        pb.UpdateMetricsRequest(model_id="advisor", version="1.0.0", metrics={"loss": pb.Metric(**fields)})
    )


def config(number: float) -> Callable[[Any], Any]:
    request = pb.CreateModelVersionRequest(model_id="advisor")
    request.config.update({"learning_rate": number})
    return lambda registry: registry.CreateModelVersion(request)


def creating(**fields: Any) -> Callable[[Any], Any]:
    return lambda registry: create(registry, **fields)


def reading(model_id: str = "advisor", version: str = "1.0.0") -> Callable[[Any], Any]:
    return lambda registry: registry.GetModelVersion(
        pb.GetModelVersionRequest(model_id=model_id, version=version)
    )


def uploading(content: bytes, path: str = "m.safetensors", **header: Any) -> Callable[[Any], Any]:
    return lambda registry: upload(registry, content, path, **header)


def artifact(path: str) -> pb.Artifact:
    return pb.Artifact(path=path, digest=A, size_bytes=1)


BAD = {
    "id with a slash": (lambda registry: register(registry, "a/b"), "model.model_id"),
    "id with NUL": (lambda registry: register(registry, "a\0b"), "model.model_id"),
    "id with bidi": (lambda registry: register(registry, "a\u202eb"), "model.model_id"),
    "look-alike id": (lambda registry: register(registry, "\u0430dvisor"), "model.model_id"),
    "no id": (lambda registry: register(registry, ""), "model.model_id"),
    "no model": (lambda registry: registry.RegisterModel(pb.RegisterModelRequest()), "model"),
    "read id with NUL": (reading("a\0b"), "model_id"),
    "read id with a slash": (reading("a/../b"), "model_id"),
    "two parts": (creating(version="1.2"), "version"),
    "four parts": (creating(version="1.2.3.4"), "version"),
    "leading zero": (creating(version="01.2.3"), "version"),
    "huge part": (creating(version="1" + "0" * 400 + ".0.0"), "version"),
    "large part": (creating(version="1" + "0" * 40 + ".0.0"), "version"),
    "version with NUL": (creating(version="1.2.3\0"), "version"),
    "read two parts": (reading(version="1.2"), "version"),
    "read no range": (reading(version="^x"), "version"),
    "parent": (creating(parent_version="latest"), "parent_version"),
    "unknown state": (creating(state=77), "state"),
    "deployed at birth": (creating(state=pb.VERSION_STATE_DEPLOYED), "state"),
    "description with NUL": (creating(description="a\0"), "description"),
    "tag with NUL": (creating(tags={"a": "\0"}), 'tags["a"]'),
    "request id with NUL": (creating(request_id="\0"), "request_id"),
    "metric NaN": (metrics(value=math.nan), 'metrics["loss"].value'),
    "metric inf": (metrics(value=-math.inf), 'metrics["loss"].value'),
    "sample NaN": (metrics(value=0, samples=[math.nan]), 'metrics["loss"].samples[0]'),
    "interval NaN": (metrics(value=0, interval=common_pb2.Interval(lower=math.nan, upper=1, confidence=0.9)), 'metrics["loss"].interval'),
    "config NaN": (config(math.nan), "config"),
    "path ..": (creating(artifacts=[artifact("../a.json")]), "artifacts[0].path"),
    "path .. inside": (creating(artifacts=[artifact("a/../b.json")]), "artifacts[0].path"),
    "absolute path": (creating(artifacts=[artifact("/etc/a.json")]), "artifacts[0].path"),
    "path with NUL": (creating(artifacts=[artifact("a\0.json")]), "artifacts[0].path"),
    "path of a pickle": (creating(artifacts=[artifact("a.bin")]), "artifacts[0].path"),
    "digest": (creating(artifacts=[pb.Artifact(path="a.json", digest="x")]), "artifacts[0].digest"),
    "bump without a level": (lambda registry: registry.BumpModelVersion(pb.BumpModelVersionRequest(model_id="advisor")), "level"),
    "bump label": (lambda registry: registry.BumpModelVersion(pb.BumpModelVersionRequest(model_id="advisor", level=4, prerelease_label="r/c")), "prerelease_label"),
    "filter": (lambda registry: registry.ListModels(pb.ListModelsRequest(filter="owner=x")), "filter"),
    "filter range": (lambda registry: registry.ListModelVersions(pb.ListModelVersionsRequest(model_id="advisor", filter="range=1.2")), "filter"),
    "filter state": (lambda registry: registry.ListModelVersions(pb.ListModelVersionsRequest(model_id="advisor", filter="state=BEST")), "filter"),
    "order": (lambda registry: registry.ListModels(pb.ListModelsRequest(order_by="size")), "order_by"),
    "page token": (lambda registry: registry.ListModels(pb.ListModelsRequest(page_token="!")), "page_token"),
    "page size": (lambda registry: registry.ListModels(pb.ListModelsRequest(page_size=-1)), "page_size"),
    "half a head": (lambda registry: registry.VerifyAudit(pb.VerifyAuditRequest(expected_sequence=1)), "expected_hash"),
    "upload path ..": (uploading(safetensors(), "../m.safetensors"), "header.path"),
    "upload name": (uploading(b"x", "model.bin"), "header.path"),
    "upload digest": (uploading(safetensors(), digest="x"), "header.digest"),
    "upload of other bytes": (uploading(safetensors(), digest=A), "header.digest"),
    "upload too long": (uploading(safetensors(), size_bytes=3), "header.size_bytes"),
    "upload too short": (uploading(safetensors(), size_bytes=10**6), "chunk"),
    "upload negative": (uploading(safetensors(), size_bytes=-1), "header.size_bytes"),
    "upload of a pickle": (uploading(pickle.dumps({"a": 1})), "chunk"),
    "upload of a zip": (uploading(b"PK\x03\x04" + bytes(100)), "chunk"),
    "upload of a large header": (uploading(struct.pack("<Q", 2**25) + b"{}", size_bytes=2**26), "chunk"),
    "upload without a header": (lambda registry: registry.UploadArtifact(iter([pb.UploadArtifactRequest(chunk=b"x")])), "header"),
    "upload of nothing": (lambda registry: registry.UploadArtifact(iter([])), "header"),
    "download with NUL": (lambda registry: download(registry, "a\0.json"), "path"),
}  # fmt: skip


async def test_bad_input_is_refused_by_name_and_leaves_nothing(registry, tmp_path: Path):
    await register(registry)
    await create(registry)
    before = await everything(registry)

    wrong = {}
    for name, (call, field) in BAD.items():
        error = await refusal(call(registry))
        found = (error.code(), [violation for violation, _ in statuses.violations(error)])
        if found != (grpc.StatusCode.INVALID_ARGUMENT, [field]):
            wrong[name] = found
    assert wrong == {}
    assert await everything(registry) == before
    kept = [path.name for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]
    # The only upload that can go on is the one that was cut short.
    assert kept == [f"{digest_of(safetensors())}.part"]


async def test_a_header_in_the_middle_of_an_upload_is_refused(registry):
    header = pb.UploadHeader(digest=A, size_bytes=10, path="a.txt")
    parts = [pb.UploadArtifactRequest(header=header), pb.UploadArtifactRequest(header=header)]

    assert statuses.violations(await refusal(registry.UploadArtifact(iter(parts))))[0][0] == "header"


async def test_an_oversize_chunk_is_refused(registry):
    header = pb.UploadHeader(digest=A, size_bytes=10**7, path="a.txt")
    parts = [
        pb.UploadArtifactRequest(header=header),
        pb.UploadArtifactRequest(chunk=bytes(2 * 1024 * 1024 + 1)),
    ]

    assert statuses.violations(await refusal(registry.UploadArtifact(iter(parts))))[0][0] == "chunk"


async def test_what_does_not_exist_is_not_found(registry):
    await register(registry)
    for call in (
        registry.GetModel(pb.GetModelRequest(model_id="nobody")),
        registry.ListModelVersions(pb.ListModelVersionsRequest(model_id="nobody")),
        registry.GetVersionHistory(pb.GetVersionHistoryRequest(model_id="nobody")),
        reading(version="9.9.9")(registry),
        reading(version="latest")(registry),
        create(registry, parent_version="9.9.9"),
        registry.CreateModelVersion(pb.CreateModelVersionRequest(model_id="nobody")),
        registry.BumpModelVersion(pb.BumpModelVersionRequest(model_id="nobody", level=pb.BUMP_LEVEL_MINOR)),
        registry.BumpModelVersion(
            pb.BumpModelVersionRequest(model_id="advisor", level=pb.BUMP_LEVEL_MINOR, from_version="9.9.9")
        ),
        metrics(value=1.0)(registry),
    ):
        assert (await refusal(call)).code() == grpc.StatusCode.NOT_FOUND
