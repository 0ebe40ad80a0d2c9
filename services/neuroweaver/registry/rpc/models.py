"""Models: registered, changed, listed, deleted."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.handlers import filters
from neuroweaver.mesh.handlers.mutations import Mutations
from neuroweaver.mesh.wire.errors import InvalidArgument, NotFound
from neuroweaver.registry import messages
from neuroweaver.registry.artifacts.store import ArtifactStore
from neuroweaver.registry.domain.model import check_model_id
from neuroweaver.registry.rpc.files import missing_files
from neuroweaver.registry.storage.listing import TAGS
from neuroweaver.registry.storage.store import Store
from neuroweaver.registry.storage.writer import Writer
from neuroweaver.v1 import registry_pb2 as pb

_UPDATABLE: Final = frozenset({"description", "tags"})


async def register(registry: Writer, request: pb.RegisterModelRequest) -> pb.Model:
    model = messages.to_model(request.model, registry.now)
    if request.allow_existing:
        with suppress(NotFound):
            return messages.from_model(await registry.model(model.model_id))
    return messages.from_model(await registry.add_model(model))


async def update(registry: Writer, request: pb.UpdateModelRequest) -> pb.Model:
    new = {"description": request.model.description, "tags": dict(request.model.tags)}
    before = await registry.model(request.model.model_id)
    after = before.updated({path: new[path] for path in request.update_mask.paths}, request.model.etag)
    return messages.from_model(await registry.save_model("model.updated", before, after))


async def delete(registry: Writer, request: pb.DeleteModelRequest) -> pb.Model:
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


async def undelete(registry: Writer, artifacts: ArtifactStore, request: pb.UndeleteModelRequest) -> pb.Model:
    before = await registry.model(request.model_id, show_deleted=True)
    after = before.undeleted(request.etag)
    if after != before:
        await registry.save_model("model.undeleted", before, after)
        for version in await registry.all_versions(after.model_id):
            if await missing_files(registry, artifacts, version):
                await registry.save_version("version.deleted", version, version.hidden(registry.now))
    return messages.from_model(await registry.model(after.model_id))


class Models:
    def __init__(self, store: Store, mutations: Mutations[Writer], artifacts: ArtifactStore) -> None:
        self._store = store
        self._mutations = mutations
        self._artifacts = artifacts

    async def RegisterModel(self, request: pb.RegisterModelRequest, context: Any) -> pb.Model:
        return await self._mutations.run(request, context, lambda registry: register(registry, request))

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Any) -> pb.Model:
        check_model_id("model.model_id", request.model.model_id)
        paths = set(request.update_mask.paths)
        if not paths or not paths <= _UPDATABLE:
            raise InvalidArgument("update_mask", "must name description, tags or both")
        return await self._mutations.run(request, context, lambda registry: update(registry, request))

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Any) -> pb.Model:
        check_model_id("model_id", request.model_id)
        return await self._mutations.run(request, context, lambda registry: delete(registry, request))

    async def UndeleteModel(self, request: pb.UndeleteModelRequest, context: Any) -> pb.Model:
        check_model_id("model_id", request.model_id)
        return await self._mutations.run(
            request, context, lambda registry: undelete(registry, self._artifacts, request)
        )

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.Model:
        check_model_id("model_id", request.model_id)
        async with self._store.read(caller_of(context).project) as registry:
            return messages.from_model(await registry.model(request.model_id))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        project = caller_of(context).project
        page = Page.asked(request, project)
        terms = filters.parse(request.filter, (TAGS,))
        async with self._store.read(project) as registry:
            models, token = await registry.models(page, terms, show_deleted=request.show_deleted)
        return pb.ListModelsResponse(models=map(messages.from_model, models), next_page_token=token)
