"""Aliases, comparison, rollback, deletion and model cards, through a real server over both databases."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from neuroweaver.mesh.auth.caller import Caller
from neuroweaver.mesh.wire import status
from neuroweaver.registry.rpc import releases
from neuroweaver.v1 import registry_pb2 as pb
from registry.calls import create, digest_of, everything, refusal, register, safetensors, upload

VALIDATED = pb.VERSION_STATE_VALIDATED


@pytest.fixture
async def advisor(registry: Any) -> Any:
    """A server with versions 1.0.0, 1.1.0 and 1.2.0 of one model, each with weights of its own."""
    await register(registry)
    for number in ("1.0.0", "1.1.0", "1.2.0"):
        weights = await upload(registry, safetensors(number.encode()))
        await create(
            registry,
            number,
            artifacts=[weights],
            state=VALIDATED,
            base=pb.BasePin(name="tiny"),
            metrics={"loss": pb.Metric(value=1.0, direction=pb.METRIC_DIRECTION_LOWER_IS_BETTER)},
            tags={"made": number},
        )
    return registry


async def point(registry: Any, version: str, alias: str = "production", **more: Any) -> pb.Alias:
    return await registry.SetAlias(
        pb.SetAliasRequest(model_id="advisor", alias=alias, version=version, **more)
    )


async def resolve(registry: Any, alias: str = "production", at: datetime | None = None) -> str:
    moment = None
    if at is not None:
        moment = Timestamp()
        moment.FromDatetime(at)
    request = pb.ResolveAliasRequest(model_id="advisor", alias=alias, at=moment)
    return (await registry.ResolveAlias(request)).version


async def move(registry: Any, version: str, state: int) -> pb.ModelVersion:
    return await registry.UpdateVersionState(
        pb.UpdateVersionStateRequest(model_id="advisor", version=version, state=state)
    )


def rollback(registry: Any, to: str = "1.0.0", **more: Any) -> Any:
    return registry.RollbackModel(pb.RollbackModelRequest(model_id="advisor", to_version=to, **more))


def spoil(home: Path, digest: str, damage: str) -> None:
    (file,) = home.glob(f"artifacts/**/{digest}")
    if damage == "missing":
        file.unlink()
        return
    file.chmod(0o600)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


async def test_an_alias_points_at_a_version_and_names_it(advisor):
    alias = await point(advisor, "1.1.0", "candidate", reason="try it")

    assert (alias.version, alias.actor, alias.is_protected) == ("1.1.0", "local", False)
    assert await resolve(advisor, "candidate") == "1.1.0"
    found = await advisor.GetModelVersion(pb.GetModelVersionRequest(model_id="advisor", version="@candidate"))
    assert (found.version, list(found.aliases)) == ("1.1.0", ["candidate"])
    await point(advisor, "1.1.0", "beta")
    listed = await advisor.ListModelVersions(pb.ListModelVersionsRequest(model_id="advisor"))
    assert [list(version.aliases) for version in listed.versions] == [[], ["beta", "candidate"], []]
    aliases = await advisor.ListAliases(pb.ListAliasesRequest(model_id="advisor"))
    assert [alias.alias for alias in aliases.aliases] == ["beta", "candidate"]


async def test_an_alias_moves_only_from_where_the_caller_believes_it_to_be(advisor):
    await point(advisor, "1.0.0", expected_version="-")

    for expected in ("-", "1.1.0"):
        error = await refusal(point(advisor, "1.2.0", expected_version=expected))
        assert error.code() == grpc.StatusCode.ABORTED
        assert status.reason(error) == "ALIAS_MOVED"
        assert "points at 1.0.0" in error.details()
    assert (await point(advisor, "1.2.0", expected_version="1.0.0")).version == "1.2.0"


async def test_of_many_who_move_an_alias_from_the_same_place_one_succeeds(advisor):
    await point(advisor, "1.0.0")

    moves = [point(advisor, ("1.1.0", "1.2.0")[n % 2], expected_version="1.0.0") for n in range(12)]
    outcomes = await asyncio.gather(*moves, return_exceptions=True)

    codes = Counter(outcome.code() if isinstance(outcome, grpc.RpcError) else None for outcome in outcomes)
    assert codes == {None: 1, grpc.StatusCode.ABORTED: 11}


def later() -> datetime:
    """Later than all that has happened, earlier than all that will."""
    before = datetime.now(UTC)
    while (now := datetime.now(UTC)) == before:
        pass
    while datetime.now(UTC) == now:
        pass
    return now


async def test_what_was_production_is_known_for_every_moment(advisor):
    marks = [datetime.now(UTC)]
    for number in ("1.0.0", "1.2.0", "1.1.0"):
        await point(advisor, number)
        marks.append(later())
    await advisor.DeleteAlias(pb.DeleteAliasRequest(model_id="advisor", alias="production"))
    gone = later()

    assert [await resolve(advisor, at=mark) for mark in marks[1:]] == ["1.0.0", "1.2.0", "1.1.0"]
    for moment in (None, marks[0], gone):
        error = await refusal(resolve(advisor, at=moment))
        assert error.code() == grpc.StatusCode.NOT_FOUND
    error = await refusal(resolve(advisor, at=datetime.now(UTC) + timedelta(days=1)))
    assert [field for field, _ in status.violations(error)] == ["at"]


async def test_the_past_of_an_alias_outlives_its_version(advisor):
    await point(advisor, "1.0.0")
    then = later()
    await point(advisor, "1.1.0")
    await advisor.DeleteModelVersion(pb.DeleteModelVersionRequest(model_id="advisor", version="1.0.0"))

    assert await resolve(advisor, at=then) == "1.0.0"


async def test_production_takes_only_what_passed_the_quality_gate(advisor):
    weights = await upload(advisor, safetensors(b"untested"))
    await create(advisor, "1.3.0", artifacts=[weights], base=pb.BasePin(name="tiny"))
    before = await everything(advisor)

    error = await refusal(point(advisor, "1.3.0"))

    assert (error.code(), status.reason(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "QUALITY_GATE")
    assert await everything(advisor) == before
    assert (await point(advisor, "1.3.0", "candidate")).version == "1.3.0"
    await move(advisor, "1.3.0", VALIDATED)
    assert (await point(advisor, "1.3.0")).is_protected


async def test_a_protected_alias_needs_the_releasers_permission(advisor, monkeypatch):
    await point(advisor, "1.0.0")
    writer = Caller("default", "eve", frozenset({"models.read", "models.write"}))
    monkeypatch.setattr(releases, "caller_of", lambda _context: writer)
    remove = pb.DeleteAliasRequest(model_id="advisor", alias="production")

    for call in (
        point(advisor, "1.1.0"),
        point(advisor, "1.1.0", is_protected=False),
        point(advisor, "1.1.0", "stable", is_protected=True),
        advisor.DeleteAlias(remove),
    ):
        error = await refusal(call)
        assert error.code() == grpc.StatusCode.PERMISSION_DENIED
        assert "models.release" in error.details()
    assert (await point(advisor, "1.1.0", "candidate")).actor == "eve"
    assert await resolve(advisor) == "1.0.0"


async def test_protection_is_taken_off_by_name(advisor):
    assert (await point(advisor, "1.0.0")).is_protected
    assert not (await point(advisor, "1.0.0", is_protected=False)).is_protected
    history = await advisor.GetVersionHistory(pb.GetVersionHistoryRequest(model_id="advisor"))
    assert [change.path for change in history.events[0].changes] == ["aliases.production.is_protected"]


async def test_an_alias_set_where_it_is_changes_nothing(advisor):
    await point(advisor, "1.0.0")
    before = await everything(advisor)
    await point(advisor, "1.0.0")
    assert await everything(advisor) == before


async def test_moves_of_an_alias_stand_in_the_history_and_in_the_watch(advisor):
    await point(advisor, "1.0.0", reason="first")
    await point(advisor, "1.1.0", reason="better")
    await advisor.DeleteAlias(
        pb.DeleteAliasRequest(model_id="advisor", alias="production", reason="recalled")
    )

    history = await advisor.GetVersionHistory(pb.GetVersionHistoryRequest(model_id="advisor", page_size=3))
    assert [(event.action, event.version, event.reason) for event in history.events] == [
        ("alias.deleted", "1.1.0", "recalled"),
        ("alias.set", "1.1.0", "better"),
        ("alias.set", "1.0.0", "first"),
    ]
    moved = history.events[1].changes[0]
    assert (moved.path, moved.a.string_value, moved.b.string_value) == (
        "aliases.production",
        "1.0.0",
        "1.1.0",
    )
    since = history.events[2].sequence - 1
    watch = advisor.WatchModels(pb.WatchModelsRequest(since_sequence=since))
    seen = [await watch.read() for _ in range(3)]
    watch.cancel()
    assert [(event.action, event.alias.alias, event.alias.version) for event in seen] == [
        ("alias.set", "production", "1.0.0"),
        ("alias.set", "production", "1.1.0"),
        ("alias.deleted", "production", ""),
    ]
    assert (await advisor.VerifyAudit(pb.VerifyAuditRequest())).is_intact


async def test_a_version_in_use_is_not_deleted(advisor):
    await point(advisor, "1.0.0", "candidate")
    await move(advisor, "1.1.0", pb.VERSION_STATE_DEPLOYED)
    before = await everything(advisor)

    for request, reason in (
        (pb.DeleteModelVersionRequest(model_id="advisor", version="1.0.0"), "ALIAS_POINTS_HERE"),
        (pb.DeleteModelVersionRequest(model_id="advisor", version="1.1.0"), "DEPLOYED"),
    ):
        error = await refusal(advisor.DeleteModelVersion(request))
        assert (error.code(), status.reason(error)) == (grpc.StatusCode.FAILED_PRECONDITION, reason)
    for reason in ("ALIAS_POINTS_HERE", "DEPLOYED"):
        error = await refusal(advisor.DeleteModel(pb.DeleteModelRequest(model_id="advisor")))
        assert (error.code(), status.reason(error)) == (grpc.StatusCode.FAILED_PRECONDITION, reason)
        if reason == "ALIAS_POINTS_HERE":
            assert await everything(advisor) == before
            await advisor.DeleteAlias(pb.DeleteAliasRequest(model_id="advisor", alias="candidate"))


async def test_an_archived_version_has_no_alias(advisor):
    await point(advisor, "1.0.0", "candidate")
    error = await refusal(move(advisor, "1.0.0", pb.VERSION_STATE_ARCHIVED))
    assert status.reason(error) == "ALIAS_POINTS_HERE"


async def test_a_deleted_version_is_hidden_and_its_number_stays_taken(advisor):
    deleted = await advisor.DeleteModelVersion(
        pb.DeleteModelVersionRequest(model_id="advisor", version="1.2.0", request_id="once")
    )
    assert deleted.HasField("delete_time")

    again = await advisor.DeleteModelVersion(
        pb.DeleteModelVersionRequest(model_id="advisor", version="1.2.0", request_id="once")
    )
    assert again == deleted
    assert (await advisor.GetModel(pb.GetModelRequest(model_id="advisor"))).latest_version == "1.1.0"
    listing = pb.ListModelVersionsRequest(model_id="advisor", show_deleted=True)
    shown = await advisor.ListModelVersions(listing)
    assert [version.version for version in shown.versions] == ["1.2.0", "1.1.0", "1.0.0"]
    assert (await refusal(create(advisor, "1.2.0"))).code() == grpc.StatusCode.ALREADY_EXISTS
    for call in (point(advisor, "1.2.0", "candidate"), rollback(advisor, "1.2.0"), move(advisor, "1.2.0", 5)):
        assert (await refusal(call)).code() == grpc.StatusCode.NOT_FOUND
    bumped = await advisor.BumpModelVersion(
        pb.BumpModelVersionRequest(model_id="advisor", level=pb.BUMP_LEVEL_MINOR)
    )
    assert bumped.version == "1.3.0"


async def test_a_deleted_model_is_hidden_with_all_it_holds(advisor):
    await advisor.DeleteModel(pb.DeleteModelRequest(model_id="advisor"))

    metrics = {"loss": pb.Metric(value=1.0)}
    for call in (
        advisor.GetModel(pb.GetModelRequest(model_id="advisor")),
        advisor.GetModelVersion(pb.GetModelVersionRequest(model_id="advisor", version="1.0.0")),
        advisor.UpdateMetrics(pb.UpdateMetricsRequest(model_id="advisor", version="1.0.0", metrics=metrics)),
        advisor.ListAliases(pb.ListAliasesRequest(model_id="advisor")),
        advisor.DeleteModel(pb.DeleteModelRequest(model_id="advisor")),
        point(advisor, "1.0.0", "candidate"),
        rollback(advisor),
    ):
        assert (await refusal(call)).code() == grpc.StatusCode.NOT_FOUND
    assert not (await advisor.ListModels(pb.ListModelsRequest())).models
    history = await advisor.GetVersionHistory(pb.GetVersionHistoryRequest(model_id="advisor"))
    assert history.events[0].action == "model.deleted"


def clear_away(home: Path, digest: str) -> None:
    (file,) = home.rglob(digest)
    file.unlink()


def undelete(registry: Any, version: str = "", **fields: Any) -> Any:
    if version:
        request = pb.UndeleteModelVersionRequest(model_id="advisor", version=version, **fields)
        return registry.UndeleteModelVersion(request)
    return registry.UndeleteModel(pb.UndeleteModelRequest(model_id="advisor", **fields))


async def test_a_deleted_name_is_said_to_be_deleted_by_whoever_reads_or_takes_it(advisor):
    await advisor.DeleteModelVersion(pb.DeleteModelVersionRequest(model_id="advisor", version="1.2.0"))
    of_version = (
        advisor.GetModelVersion(pb.GetModelVersionRequest(model_id="advisor", version="1.2.0")),
        create(advisor, "1.2.0"),
    )
    for call in of_version:
        details = (await refusal(call)).details()
        assert re.fullmatch(
            r'model version "advisor@1\.2\.0" was deleted on \d{4}-\d\d-\d\d, and its name stays taken; '
            r"UndeleteModelVersion or `neuroweaver model undelete advisor@1\.2\.0` brings it back",
            details,
        )

    await advisor.DeleteModel(pb.DeleteModelRequest(model_id="advisor"))
    for call, code in (
        (advisor.GetModel(pb.GetModelRequest(model_id="advisor")), grpc.StatusCode.NOT_FOUND),
        (register(advisor), grpc.StatusCode.ALREADY_EXISTS),
        (register(advisor, allow_existing=True), grpc.StatusCode.ALREADY_EXISTS),
        (create(advisor), grpc.StatusCode.NOT_FOUND),
        (undelete(advisor, "1.2.0"), grpc.StatusCode.NOT_FOUND),
    ):
        error = await refusal(call)
        assert error.code() == code
        assert datetime.fromisoformat(status.metadata(error)["delete_time"]).tzinfo
        assert 'model "advisor" was deleted on ' in error.details()
        assert "UndeleteModel or `neuroweaver model undelete advisor`" in error.details()


async def test_a_version_that_differs_in_build_metadata_alone_is_named_as_it_is(advisor):
    await create(advisor, "2.0.0+one")
    assert (await refusal(create(advisor, "2.0.0+two"))).details() == (
        'model version "advisor@2.0.0+one" already exists'
    )


async def test_an_undeleted_version_is_as_it_was(advisor):
    before = await advisor.GetModelVersion(pb.GetModelVersionRequest(model_id="advisor", version="1.2.0"))
    await advisor.DeleteModelVersion(pb.DeleteModelVersionRequest(model_id="advisor", version="1.2.0"))

    undeleted = await undelete(advisor, "1.2.0", request_id="once")

    assert not undeleted.HasField("delete_time")
    before.update_time.CopyFrom(undeleted.update_time)
    before.etag = undeleted.etag
    assert undeleted == before
    assert await undelete(advisor, "1.2.0", request_id="once") == undeleted
    assert await undelete(advisor, "1.2.0") == undeleted
    assert (await advisor.GetModel(pb.GetModelRequest(model_id="advisor"))).latest_version == "1.2.0"
    history = await advisor.GetVersionHistory(
        pb.GetVersionHistoryRequest(model_id="advisor", version="1.2.0")
    )
    assert [event.action for event in history.events[:2]] == ["version.undeleted", "version.deleted"]
    assert (await refusal(undelete(advisor, "7.0.0"))).code() == grpc.StatusCode.NOT_FOUND
    assert status.reason(await refusal(undelete(advisor, "1.2.0", etag="1"))) == "ETAG_MISMATCH"


async def test_an_undeleted_model_is_back_with_its_versions(advisor):
    await advisor.DeleteModelVersion(pb.DeleteModelVersionRequest(model_id="advisor", version="1.1.0"))
    await advisor.DeleteModel(pb.DeleteModelRequest(model_id="advisor"))

    undeleted = await undelete(advisor)

    assert (undeleted.HasField("delete_time"), undeleted.latest_version) == (False, "1.2.0")
    assert await advisor.GetModel(pb.GetModelRequest(model_id="advisor")) == undeleted
    versions = await advisor.ListModelVersions(pb.ListModelVersionsRequest(model_id="advisor"))
    assert [version.version for version in versions.versions] == ["1.2.0", "1.0.0"]
    assert await undelete(advisor) == undeleted
    nobody = advisor.UndeleteModel(pb.UndeleteModelRequest(model_id="nobody"))
    assert (await refusal(nobody)).code() == grpc.StatusCode.NOT_FOUND


async def test_a_version_whose_files_were_cleared_away_comes_back_once_they_are_uploaded_again(
    advisor, tmp_path: Path
):
    gone = digest_of(safetensors(b"1.2.0"))
    await advisor.DeleteModelVersion(pb.DeleteModelVersionRequest(model_id="advisor", version="1.2.0"))
    clear_away(tmp_path, gone)

    error = await refusal(undelete(advisor, "1.2.0"))

    assert (error.code(), status.reason(error)) == (
        grpc.StatusCode.FAILED_PRECONDITION, "FILES_CLEARED_AWAY",
    )  # fmt: skip
    assert gone in error.details()
    await upload(advisor, safetensors(b"1.2.0"))
    assert (await undelete(advisor, "1.2.0")).version == "1.2.0"


async def test_an_undeleted_model_leaves_deleted_the_versions_whose_files_were_cleared_away(
    advisor, tmp_path: Path
):
    await advisor.DeleteModel(pb.DeleteModelRequest(model_id="advisor"))
    clear_away(tmp_path, digest_of(safetensors(b"1.2.0")))

    assert (await undelete(advisor)).latest_version == "1.1.0"

    versions = await advisor.ListModelVersions(pb.ListModelVersionsRequest(model_id="advisor"))
    assert [version.version for version in versions.versions] == ["1.1.0", "1.0.0"]
    history = await advisor.GetVersionHistory(pb.GetVersionHistoryRequest(model_id="advisor"))
    assert [event.action for event in history.events[:2]] == ["version.deleted", "model.undeleted"]


async def test_a_stale_etag_deletes_nothing(advisor):
    error = await refusal(
        advisor.DeleteModelVersion(
            pb.DeleteModelVersionRequest(model_id="advisor", version="1.0.0", etag="1")
        )
    )
    assert status.reason(error) == "ETAG_MISMATCH"


async def test_a_rollback_makes_a_new_version_with_the_old_content(advisor):
    old = await advisor.GetModelVersion(pb.GetModelVersionRequest(model_id="advisor", version="1.0.0"))

    done = await rollback(advisor, reason="1.2.0 is rude", request_id="back")

    made = done.version
    assert (made.version, made.parent_version) == ("1.2.1", "1.0.0")
    assert made.description == "rollback to 1.0.0: 1.2.0 is rude"
    assert (made.artifacts, made.metrics, made.tags, made.base) == (
        old.artifacts, old.metrics, old.tags, old.base,
    )  # fmt: skip
    assert {difference.path for difference in done.comparison.differences} >= {"tags.made"}
    assert (done.comparison.a.version, done.comparison.b.version) == ("1.2.0", "1.2.1")
    assert await rollback(advisor, reason="1.2.0 is rude", request_id="back") == done
    listed = await advisor.ListModelVersions(pb.ListModelVersionsRequest(model_id="advisor"))
    assert [version.version for version in listed.versions] == ["1.2.1", "1.2.0", "1.1.0", "1.0.0"]
    history = await advisor.GetVersionHistory(pb.GetVersionHistoryRequest(model_id="advisor", page_size=1))
    assert (history.events[0].action, history.events[0].reason) == ("version.rolled_back", "1.2.0 is rude")


async def test_a_dry_run_shows_the_difference_and_changes_nothing(advisor):
    before = await everything(advisor)
    shown = await rollback(advisor, dry_run=True)
    assert not shown.HasField("version")
    assert shown.comparison.b.version == "1.2.1"
    assert await everything(advisor) == before


async def test_a_rollback_to_the_latest_version_is_refused(advisor):
    error = await refusal(rollback(advisor, "1.2.0"))
    assert status.reason(error) == "ALREADY_LATEST"


@pytest.mark.parametrize("damage", ["missing", "corrupt"])
@pytest.mark.parametrize("dry_run", [True, False])
async def test_a_rollback_to_damaged_files_is_refused(advisor, tmp_path: Path, damage: str, dry_run: bool):
    old = await advisor.GetModelVersion(pb.GetModelVersionRequest(model_id="advisor", version="1.0.0"))
    digest = old.artifacts[0].digest
    spoil(tmp_path, digest, damage)
    before = await everything(advisor)

    error = await refusal(rollback(advisor, dry_run=dry_run))

    assert (error.code(), status.reason(error)) == (
        grpc.StatusCode.FAILED_PRECONDITION, f"ARTIFACT_{damage.upper()}",
    )  # fmt: skip
    assert "adapter/adapter_model.safetensors" in error.details()
    assert await everything(advisor) == before


async def test_a_rollback_from_a_candidate_stays_a_candidate(advisor):
    await create(advisor, "1.3.0-beta.4")
    assert (await rollback(advisor)).version.version == "1.3.0-beta.5"


async def test_versions_are_compared_by_any_name_they_have(advisor):
    await point(advisor, "1.0.0")
    compared = await advisor.CompareModels(
        pb.CompareModelsRequest(
            a=pb.VersionReference(model_id="advisor", version="@production"),
            b=pb.VersionReference(model_id="advisor", version="latest"),
        )
    )
    assert (compared.a.version, compared.b.version) == ("1.0.0", "1.2.0")
    assert compared.verdict
    assert compared.recommended_bump == pb.BUMP_LEVEL_PATCH
    difference = {each.path: (each.a.string_value, each.b.string_value) for each in compared.differences}
    assert difference["tags.made"] == ("1.0.0", "1.2.0")
    assert [(each.name, each.difference) for each in compared.metrics] == [("loss", 0.0)]


async def test_a_comparison_carries_intervals_and_significance(advisor):
    measured = {
        "1.0.0": pb.Metric(value=0.5, samples=[0.4, 0.5, 0.6, 0.5] * 5, direction=1),
        "1.1.0": pb.Metric(value=0.8, samples=[0.7, 0.8, 0.9, 0.8] * 5, direction=1),
    }
    for version, metric in measured.items():
        await advisor.UpdateMetrics(
            pb.UpdateMetricsRequest(model_id="advisor", version=version, metrics={"win_rate": metric})
        )
    a, b = (pb.VersionReference(model_id="advisor", version=version) for version in measured)
    compared = await advisor.CompareModels(pb.CompareModelsRequest(a=a, b=b, confidence=0.9))
    found = next(each for each in compared.metrics if each.name == "win_rate")
    assert found.difference == pytest.approx(0.3)
    assert found.interval.lower < 0.3 < found.interval.upper
    assert found.interval.confidence == 0.9
    assert 0 < found.p_value < 1e-6
    assert found.is_better


async def test_a_card_tells_what_a_version_is(advisor):
    request = pb.GetModelCardRequest(model_id="advisor", version="1.1.0")
    card = (await advisor.GetModelCard(request)).markdown
    assert card.startswith("---\n")
    assert "advisor" in card
    assert "1.1.0" in card
    assert (await advisor.GetModelCard(request)).markdown == card


async def test_an_adapter_needs_a_base_that_it_was_made_for(registry):
    await register(registry)
    config = await upload(
        registry,
        b'{"r": 16, "base_model_name_or_path": "Hub/Tiny-Llama"}',
        "adapter/adapter_config.json",
    )
    before = await everything(registry)

    async def fields_of(**fields: Any) -> list[str]:
        error = await refusal(create(registry, "1.0.0", artifacts=[config], **fields))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        return [field for field, _ in status.violations(error)]

    assert await fields_of() == ["base"]
    assert await fields_of(base=pb.BasePin(name="Hub/Other")) == ["base.name"]
    request = pb.CreateModelVersionRequest(
        model_id="advisor", artifacts=[config], base=pb.BasePin(name="/srv/tiny-llama/")
    )
    request.config.update({"lora_r": 8})
    error = await refusal(registry.CreateModelVersion(request))
    assert [field for field, _ in status.violations(error)] == ["config.lora_r"]
    assert await everything(registry) == before
    request.config.update({"lora_r": 16})
    assert (await registry.CreateModelVersion(request)).base.name == "/srv/tiny-llama/"


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda registry: point(registry, "1.0"), "version"),
        (lambda registry: point(registry, "01.2.3"), "version"),
        (lambda registry: point(registry, "1.0.0", "latest"), "alias"),
        (lambda registry: point(registry, "1.0.0", "Produc\u0442ion"), "alias"),
        (lambda registry: point(registry, "1.0.0", "a/b"), "alias"),
        (lambda registry: point(registry, "1.0.0", expected_version="one"), "expected_version"),
        (lambda registry: rollback(registry, "^1"), "to_version"),
        (lambda registry: rollback(registry, reason="a\0b"), "reason"),
        (
            lambda registry: registry.ResolveAlias(
                pb.ResolveAliasRequest(model_id="advisor", alias="production", at=Timestamp(seconds=10**15))
            ),
            "at",
        ),
        (
            lambda registry: registry.CompareModels(
                pb.CompareModelsRequest(
                    a=pb.VersionReference(model_id="advisor", version="1.0.0"),
                    b=pb.VersionReference(model_id="Advisor", version="1.0.0"),
                )
            ),
            "b.model_id",
        ),
        (
            lambda registry: registry.CompareModels(
                pb.CompareModelsRequest(
                    a=pb.VersionReference(model_id="advisor", version="1.0.0"),
                    b=pb.VersionReference(model_id="advisor", version="1.0.0"),
                    confidence=1.0,
                )
            ),
            "confidence",
        ),
    ],
)
async def test_bad_input_is_refused_by_name_and_leaves_nothing(advisor, call, field):
    before = await everything(advisor)
    error = await refusal(call(advisor))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert [name for name, _ in status.violations(error)] == [field]
    assert await everything(advisor) == before
