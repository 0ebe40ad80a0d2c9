"""Versions: created, bumped, measured, moved from state to state, listed, deleted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.handlers import filters
from neuroweaver.mesh.handlers.mutations import Mutations
from neuroweaver.mesh.handlers.read_cache import ReadCache
from neuroweaver.mesh.wire.errors import FailedPrecondition, InvalidArgument
from neuroweaver.mesh.wire.json_values import Broken, parsed
from neuroweaver.mesh.wire.threads import in_thread
from neuroweaver.registry import messages
from neuroweaver.registry.artifacts.store import ArtifactStore
from neuroweaver.registry.domain.model import (
    Artifact,
    Draft,
    check_adapter,
    check_model_id,
    is_adapter_config,
)
from neuroweaver.registry.domain.versions import DEFAULT_LABEL, Level, parse
from neuroweaver.registry.rpc.files import hold_files, missing_files, not_uploaded
from neuroweaver.registry.storage.listing import TAGS
from neuroweaver.registry.storage.store import Store
from neuroweaver.registry.storage.writer import Writer
from neuroweaver.v1 import registry_pb2 as pb

MAX_ADAPTER_CONFIG_BYTES: Final = 1024 * 1024


async def create(
    registry: Writer, artifacts: ArtifactStore, request: pb.CreateModelVersionRequest, draft: Draft
) -> pb.ModelVersion:
    model_id = (await registry.model(request.model_id)).model_id
    parent = None
    if request.parent_version:
        parent = await registry.version(model_id, parse("parent_version", request.parent_version))
    if request.version:
        version = parse("version", request.version)
    else:
        level = messages.LEVELS.get(request.bump, Level.MINOR)
        latest = await registry.latest(model_id)
        version = await registry.next_version(model_id, level, latest, label=DEFAULT_LABEL)
    created = await in_thread(draft.as_version, model_id, version, parent, registry.now)
    await hold_files(registry, artifacts, created)
    return await in_thread(messages.from_version, await registry.add_version(created))


async def bump(registry: Writer, request: pb.BumpModelVersionRequest) -> pb.ModelVersion:
    model_id = (await registry.model(request.model_id)).model_id
    base = await (
        registry.version(model_id, parse("from_version", request.from_version))
        if request.from_version
        else registry.latest(model_id)
    )
    level, label = messages.LEVELS[request.level], request.prerelease_label or DEFAULT_LABEL
    version = await registry.next_version(model_id, level, base, label=label, build=request.build)
    created = Draft(description=request.description).as_version(model_id, version, base, registry.now)
    return messages.from_version(await registry.add_version(created))


async def update_state(registry: Writer, request: pb.UpdateVersionStateRequest) -> pb.ModelVersion:
    before = await registry.version(request.model_id, parse("version", request.version))
    after = before.moved_to(messages.STATES[request.state], request.etag)
    return messages.from_version(await registry.save_version("version.state_changed", before, after))


async def update_metrics(registry: Writer, request: pb.UpdateMetricsRequest) -> pb.ModelVersion:
    before = await registry.version(request.model_id, parse("version", request.version))
    after = before.measured(messages.to_metrics(request.metrics))
    return messages.from_version(await registry.save_version("version.measured", before, after))


async def delete(registry: Writer, request: pb.DeleteModelVersionRequest) -> pb.ModelVersion:
    before = await registry.version(request.model_id, parse("version", request.version))
    after = before.hidden(registry.now, request.etag)
    return messages.from_version(await registry.save_version("version.deleted", before, after))


async def undelete(
    registry: Writer, artifacts: ArtifactStore, request: pb.UndeleteModelVersionRequest
) -> pb.ModelVersion:
    await registry.model(request.model_id)
    version = parse("version", request.version)
    before = await registry.version(request.model_id, version, show_deleted=True)
    after = before.undeleted(request.etag)
    if after == before:
        return messages.from_version(before)
    for artifact in await missing_files(registry, artifacts, before):
        raise FailedPrecondition(
            "FILES_CLEARED_AWAY",
            f"{artifact.path} was cleared away after {before.name} was deleted: upload it again "
            f"(SHA-256 {artifact.digest}), then undelete the version",
            subject=artifact.digest,
        )
    return messages.from_version(await registry.save_version("version.undeleted", before, after))


class Versions:
    def __init__(
        self, store: Store, mutations: Mutations[Writer], artifacts: ArtifactStore, answers: ReadCache
    ) -> None:
        self._store = store
        self._mutations = mutations
        self._artifacts = artifacts
        self._answers = answers

    async def CreateModelVersion(
        self, request: pb.CreateModelVersionRequest, context: Any
    ) -> pb.ModelVersion:
        _check(request, optional=("version", "parent_version"))
        # With a thousand files, or a large configuration, it takes long.
        draft = await in_thread(messages.to_draft, request)
        answered: pb.ModelVersion | None = await self._mutations.answered(request, context)
        if answered is not None:
            return answered
        # Before the transaction: files are looked at, and nothing waits for that.
        await self._require_artifacts(draft)
        return await self._mutations.run(
            request, context, lambda registry: create(registry, self._artifacts, request, draft)
        )

    async def BumpModelVersion(self, request: pb.BumpModelVersionRequest, context: Any) -> pb.ModelVersion:
        _check(request, optional=("from_version",))
        return await self._mutations.run(
            request, context, lambda registry: bump(registry, request), reason_field="description"
        )

    async def UpdateVersionState(
        self, request: pb.UpdateVersionStateRequest, context: Any
    ) -> pb.ModelVersion:
        _check(request, required=("version",))
        return await self._mutations.run(request, context, lambda registry: update_state(registry, request))

    async def UpdateMetrics(self, request: pb.UpdateMetricsRequest, context: Any) -> pb.ModelVersion:
        _check(request, required=("version",))
        return await self._mutations.run(request, context, lambda registry: update_metrics(registry, request))

    async def DeleteModelVersion(
        self, request: pb.DeleteModelVersionRequest, context: Any
    ) -> pb.ModelVersion:
        _check(request, required=("version",))
        return await self._mutations.run(request, context, lambda registry: delete(registry, request))

    async def UndeleteModelVersion(
        self, request: pb.UndeleteModelVersionRequest, context: Any
    ) -> pb.ModelVersion:
        _check(request, required=("version",))
        return await self._mutations.run(
            request, context, lambda registry: undelete(registry, self._artifacts, request)
        )

    async def GetModelVersion(self, request: pb.GetModelVersionRequest, context: Any) -> pb.ModelVersion:
        _check(request)
        project = caller_of(context).project

        async def read() -> pb.ModelVersion:
            async with self._store.read(project) as registry:
                version = await registry.selected(request.model_id, request.version)
            return await in_thread(messages.from_version, version)

        return await self._answers.answer(project, "GetModelVersion", request, read)

    async def ListModelVersions(
        self, request: pb.ListModelVersionsRequest, context: Any
    ) -> pb.ListModelVersionsResponse:
        _check(request)
        project = caller_of(context).project
        page = Page.asked(request, project)
        terms = filters.parse(request.filter, ("state", "range", TAGS))
        async with self._store.read(project) as registry:
            await registry.model(request.model_id, show_deleted=request.show_deleted)
            versions, token = await registry.versions(
                request.model_id,
                page,
                order_by=request.order_by or "version desc",
                terms=terms,
                show_deleted=request.show_deleted,
            )
        return await in_thread(
            lambda: pb.ListModelVersionsResponse(
                versions=map(messages.from_version, versions), next_page_token=token
            )
        )

    async def _require_artifacts(self, draft: Draft) -> None:
        """That the files of a version are stored, are what they are said to be, and agree with it."""
        missing = await self._artifacts.first_missing(draft.artifacts)
        if missing is not None:
            raise not_uploaded(f"artifacts[{missing}]", draft.artifacts[missing])
        for index, artifact in enumerate(draft.artifacts):
            if is_adapter_config(artifact.path):
                field = f"artifacts[{index}]"
                check_adapter(field, await self._adapter_config(field, artifact), draft)

    async def _adapter_config(self, field: str, artifact: Artifact) -> dict[str, Any]:
        text = await self._artifacts.read_small(artifact.digest, MAX_ADAPTER_CONFIG_BYTES)
        try:
            config = parsed(text)
        except Broken as error:
            where = f"({artifact.path}) {error.path}".rstrip()
            raise InvalidArgument(field, f"{where} {error}") from error
        if not isinstance(config, dict):
            raise InvalidArgument(field, f"({artifact.path}) is not an adapter's configuration")
        return config


def _check(request: Any, *, required: Sequence[str] = (), optional: Sequence[str] = ()) -> None:
    """Raises InvalidArgument for a model id or a version that can be none, before anything is looked up."""
    check_model_id("model_id", request.model_id)
    for field in (*required, *(name for name in optional if getattr(request, name))):
        parse(field, getattr(request, field))
