"""RegistryService over gRPC: requests to operations of the store, model objects to responses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from neuroweaver.mesh import filters
from neuroweaver.mesh.caller import caller_of
from neuroweaver.mesh.clock import utc_now
from neuroweaver.mesh.errors import InvalidArgument, NotFound
from neuroweaver.mesh.pagination import Page
from neuroweaver.mesh.text import check_text
from neuroweaver.registry import feed, messages
from neuroweaver.registry.audit import Head, SignedHead
from neuroweaver.registry.cache import cache_of
from neuroweaver.registry.handler import not_uploaded
from neuroweaver.registry.listing import TAGS
from neuroweaver.registry.model import (
    Artifact,
    Draft,
    check_adapter,
    check_model_id,
    is_adapter_config,
)
from neuroweaver.registry.release_methods import ReleaseMethods
from neuroweaver.registry.versions import DEFAULT_LABEL, Level, parse
from neuroweaver.registry.webhook_methods import WebhookMethods
from neuroweaver.registry.writer import Writer
from neuroweaver.v1 import registry_pb2 as pb
from neuroweaver.v1 import registry_pb2_grpc

NAME: Final = "neuroweaver.v1.RegistryService"

MAX_ADAPTER_CONFIG_BYTES: Final = 1024 * 1024

_UPDATABLE: Final = frozenset({"description", "tags"})


class RegistryServicer(ReleaseMethods, WebhookMethods, registry_pb2_grpc.RegistryServiceServicer):
    async def RegisterModel(self, request: pb.RegisterModelRequest, context: Any) -> pb.Model:
        async def register(registry: Writer) -> pb.Model:
            model = messages.to_model(request.model, registry.now)
            if request.allow_existing:
                try:
                    return messages.from_model(await registry.model(model.model_id))
                except NotFound:
                    pass  # then it is made
            return messages.from_model(await registry.add_model(model))

        return await self._mutate("RegisterModel", request, context, pb.Model, register)

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Any) -> pb.Model:
        check_model_id("model_id", request.model_id)

        async def hide(registry: Writer) -> pb.Model:
            before = await registry.model(request.model_id)
            aliases = [alias.alias for alias in await registry.aliases(before.model_id)]
            deployed = await registry.deployed(before.model_id)
            after = before.hidden(
                registry.now,
                aliases=aliases,
                deployed=str(deployed.version) if deployed else "",
                etag=request.etag,
            )
            return messages.from_model(await registry.save_model("model.deleted", before, after))

        return await self._mutate("DeleteModel", request, context, pb.Model, hide)

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.Model:
        check_model_id("model_id", request.model_id)
        async with self._store.read(caller_of(context).project) as registry:
            return messages.from_model(await registry.model(request.model_id))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        project = caller_of(context).project
        page = Page.of(
            request.page_size,
            request.page_token,
            query=("models", project, request.filter, str(request.show_deleted)),
        )
        terms = filters.parse(request.filter, (TAGS,))
        async with self._store.read(project) as registry:
            models, token = await registry.models(page, terms, show_deleted=request.show_deleted)
        return pb.ListModelsResponse(models=map(messages.from_model, models), next_page_token=token)

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Any) -> pb.Model:
        check_model_id("model.model_id", request.model.model_id)
        paths = set(request.update_mask.paths)
        if not paths or not paths <= _UPDATABLE:
            raise InvalidArgument("update_mask", "names something else than description and tags")
        new = {"description": request.model.description, "tags": dict(request.model.tags)}

        async def change(registry: Writer) -> pb.Model:
            before = await registry.model(request.model.model_id)
            after = before.updated({path: new[path] for path in paths}, request.model.etag)
            return messages.from_model(await registry.save_model("model.updated", before, after))

        return await self._mutate("UpdateModel", request, context, pb.Model, change)

    async def CreateModelVersion(
        self, request: pb.CreateModelVersionRequest, context: Any
    ) -> pb.ModelVersion:
        check_model_id("model_id", request.model_id)
        draft = messages.to_draft(request)
        number = parse("version", request.version) if request.version else None
        parent_number = parse("parent_version", request.parent_version) if request.parent_version else None
        level = messages.LEVELS.get(request.bump, Level.MINOR)
        known = await self._answered("CreateModelVersion", request, context, pb.ModelVersion)
        if known is not None:
            return known
        # Before the transaction: files are looked at, and nothing waits for that.
        await self._require_artifacts(draft)

        async def create(registry: Writer) -> pb.ModelVersion:
            model_id = (await registry.model(request.model_id)).model_id
            parent = await registry.version(model_id, parent_number) if parent_number else None
            version = number or await registry.next_version(
                model_id, level, await registry.latest(model_id), label=DEFAULT_LABEL
            )
            made = draft.made(model_id, version, parent, registry.now)
            await self._hold_files(registry, made)
            return messages.from_version(await registry.add_version(made))

        return await self._mutate("CreateModelVersion", request, context, pb.ModelVersion, create)

    async def GetModelVersion(self, request: pb.GetModelVersionRequest, context: Any) -> pb.ModelVersion:
        check_model_id("model_id", request.model_id)
        project = caller_of(context).project

        async def read() -> pb.ModelVersion:
            async with self._store.read(project) as registry:
                return messages.from_version(await registry.selected(request.model_id, request.version))

        return await cache_of(self._store).answer(project, "GetModelVersion", request, read)

    async def ListModelVersions(
        self, request: pb.ListModelVersionsRequest, context: Any
    ) -> pb.ListModelVersionsResponse:
        check_model_id("model_id", request.model_id)
        project = caller_of(context).project
        order_by = request.order_by or "version desc"
        page = Page.of(
            request.page_size,
            request.page_token,
            query=(
                "versions",
                project,
                request.model_id,
                request.filter,
                order_by,
                str(request.show_deleted),
            ),
        )
        terms = filters.parse(request.filter, ("state", "range", TAGS))
        async with self._store.read(project) as registry:
            await registry.model(request.model_id, show_deleted=request.show_deleted)
            versions, token = await registry.versions(
                request.model_id, page, order_by=order_by, terms=terms, show_deleted=request.show_deleted
            )
        return pb.ListModelVersionsResponse(
            versions=map(messages.from_version, versions), next_page_token=token
        )

    async def BumpModelVersion(self, request: pb.BumpModelVersionRequest, context: Any) -> pb.ModelVersion:
        check_model_id("model_id", request.model_id)
        check_text("description", request.description)
        base_number = parse("from_version", request.from_version) if request.from_version else None
        level = messages.LEVELS[request.level]

        async def bump(registry: Writer) -> pb.ModelVersion:
            model_id = (await registry.model(request.model_id)).model_id
            base = await (
                registry.version(model_id, base_number) if base_number else registry.latest(model_id)
            )
            label = request.prerelease_label or DEFAULT_LABEL
            version = await registry.next_version(model_id, level, base, label=label, build=request.build)
            made = Draft(description=request.description).made(model_id, version, base, registry.now)
            return messages.from_version(await registry.add_version(made))

        return await self._mutate(
            "BumpModelVersion", request, context, pb.ModelVersion, bump, reason=request.description
        )

    async def UpdateVersionState(
        self, request: pb.UpdateVersionStateRequest, context: Any
    ) -> pb.ModelVersion:
        check_model_id("model_id", request.model_id)
        check_text("reason", request.reason)
        number = parse("version", request.version)

        async def move(registry: Writer) -> pb.ModelVersion:
            before = await registry.version(request.model_id, number)
            after = before.moved_to(messages.STATES[request.state], request.etag)
            return messages.from_version(await registry.save_version("version.state_changed", before, after))

        return await self._mutate(
            "UpdateVersionState", request, context, pb.ModelVersion, move, reason=request.reason
        )

    async def DeleteModelVersion(
        self, request: pb.DeleteModelVersionRequest, context: Any
    ) -> pb.ModelVersion:
        check_model_id("model_id", request.model_id)
        number = parse("version", request.version)

        async def hide(registry: Writer) -> pb.ModelVersion:
            before = await registry.version(request.model_id, number)
            after = before.hidden(registry.now, request.etag)
            return messages.from_version(await registry.save_version("version.deleted", before, after))

        return await self._mutate("DeleteModelVersion", request, context, pb.ModelVersion, hide)

    async def UpdateMetrics(self, request: pb.UpdateMetricsRequest, context: Any) -> pb.ModelVersion:
        check_model_id("model_id", request.model_id)
        number = parse("version", request.version)
        metrics = messages.to_metrics(request.metrics)

        async def measure(registry: Writer) -> pb.ModelVersion:
            before = await registry.version(request.model_id, number)
            after = before.measured(metrics)
            return messages.from_version(await registry.save_version("version.measured", before, after))

        return await self._mutate("UpdateMetrics", request, context, pb.ModelVersion, measure)

    async def GetVersionHistory(
        self, request: pb.GetVersionHistoryRequest, context: Any
    ) -> pb.GetVersionHistoryResponse:
        check_model_id("model_id", request.model_id)
        number = parse("version", request.version) if request.version else None
        project = caller_of(context).project
        page = Page.of(
            request.page_size,
            request.page_token,
            query=("history", project, request.model_id, request.version),
        )
        async with self._store.read(project) as registry:
            await registry.model(request.model_id, show_deleted=True)
            version = await registry.version(request.model_id, number, show_deleted=True) if number else None
            events, token = await registry.history(
                page, model_id=request.model_id, version=str(version.version) if version else ""
            )
        return pb.GetVersionHistoryResponse(
            events=map(messages.from_audit_event, events), next_page_token=token
        )

    async def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, context: Any
    ) -> pb.ListAuditEventsResponse:
        project = caller_of(context).project
        page = Page.of(request.page_size, request.page_token, query=("audit", project, request.filter))
        terms = filters.parse(request.filter, ("actor", "action", "model_id"))
        async with self._store.read(project) as registry:
            events, token = await registry.history(page, terms=terms)
        return pb.ListAuditEventsResponse(
            events=map(messages.from_audit_event, events), next_page_token=token
        )

    async def VerifyAudit(self, request: pb.VerifyAuditRequest, context: Any) -> pb.AuditVerification:
        if bool(request.expected_sequence) != bool(request.expected_hash):
            raise InvalidArgument("expected_hash", "and expected_sequence are only given together")
        expected = Head(request.expected_sequence, request.expected_hash) if request.expected_hash else None
        project = caller_of(context).project
        async with self._store.read(project) as registry:
            verdict = await registry.verified(expected)
        return messages.from_verdict(verdict, SignedHead.of(self._key, project, verdict.head, utc_now()))

    async def UploadArtifact(
        self, request_iterator: AsyncIterator[pb.UploadArtifactRequest], context: Any
    ) -> pb.UploadArtifactResponse:
        del context  # a file belongs to whoever knows its digest
        header = await _header(request_iterator)
        # Before the file is looked for: what collects files leaves alone what was asked for just now.
        await self._store.hold_file(header.digest)
        async with self._artifacts.upload(
            header.digest, header.size_bytes, header.path, header.offset_bytes
        ) as upload:
            if not upload.is_deduplicated:
                async for request in request_iterator:
                    if request.WhichOneof("part") != "chunk":
                        raise InvalidArgument("header", "comes again after the first message")
                    await upload.write(request.chunk)
            return messages.from_progress(await upload.finish())

    async def GetUploadStatus(
        self, request: pb.GetUploadStatusRequest, context: Any
    ) -> pb.UploadArtifactResponse:
        del context
        return messages.from_progress(await self._artifacts.progress(request.digest))

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, context: Any
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        check_model_id("model_id", request.model_id)
        check_text("path", request.path)
        async with self._store.read(caller_of(context).project) as registry:
            version = await registry.selected(request.model_id, request.version)
        artifact = version.artifact(request.path)
        if artifact is None:
            raise NotFound("artifact", f"{version.name}/{request.path}")
        async with self._artifacts.download(
            artifact.digest, artifact.size_bytes, request.offset_bytes
        ) as chunks:
            yield pb.DownloadArtifactResponse(artifact=messages.from_artifact(artifact))
            async for chunk in chunks:
                yield pb.DownloadArtifactResponse(chunk=chunk)

    async def WatchModels(self, request: pb.WatchModelsRequest, context: Any) -> AsyncIterator[pb.ModelEvent]:
        if request.model_id:
            check_model_id("model_id", request.model_id)
        project = caller_of(context).project
        async with aclosing(
            feed.changes(self._store, project, request.model_id, request.since_sequence)
        ) as events:
            async for event in events:
                yield messages.from_event(event)

    async def _require_artifacts(self, draft: Draft) -> None:
        """That the files of a version are stored, are what they are said to be, and agree with it."""
        for index, artifact in enumerate(draft.artifacts):
            field = f"artifacts[{index}]"
            if not await self._artifacts.check(field, artifact.digest, artifact.size_bytes, artifact.path):
                raise not_uploaded(field, artifact)
            if is_adapter_config(artifact.path):
                check_adapter(field, await self._adapter_config(field, artifact), draft)

    async def _adapter_config(self, field: str, artifact: Artifact) -> dict[str, Any]:
        text = await self._artifacts.read_small(artifact.digest, MAX_ADAPTER_CONFIG_BYTES)
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(field, f"({artifact.path}) is not JSON") from error
        if not isinstance(parsed, dict):
            raise InvalidArgument(field, f"({artifact.path}) is not an adapter's configuration")
        return parsed


async def _header(requests: AsyncIterator[pb.UploadArtifactRequest]) -> pb.UploadHeader:
    async for request in requests:
        if request.WhichOneof("part") == "header":
            return request.header
        break
    raise InvalidArgument("header", "is not the first message")
