"""The RPCs by which versions are released and taken back: comparison, rollback, aliases and model cards."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from neuroweaver.mesh.auth.caller import Caller, caller_of
from neuroweaver.mesh.handlers.mutations import Mutations
from neuroweaver.mesh.handlers.read_cache import ReadCache
from neuroweaver.mesh.wire.clock import SKEW, utc_now
from neuroweaver.mesh.wire.errors import FailedPrecondition, InvalidArgument, NotFound
from neuroweaver.mesh.wire.text import check_text
from neuroweaver.mesh.wire.threads import in_thread
from neuroweaver.registry import messages
from neuroweaver.registry.artifacts.store import ArtifactStore
from neuroweaver.registry.cards.card import card
from neuroweaver.registry.comparison.compare import Comparison, compare
from neuroweaver.registry.domain import aliases
from neuroweaver.registry.domain.model import ModelVersion, check_model_id
from neuroweaver.registry.domain.versions import DEFAULT_LABEL, Level, parse
from neuroweaver.registry.rpc.files import hold_files
from neuroweaver.registry.storage.reader import Reader
from neuroweaver.registry.storage.store import Store
from neuroweaver.registry.storage.writer import Writer
from neuroweaver.v1 import registry_pb2 as pb

DEFAULT_CONFIDENCE: Final = 0.95


async def set_alias(registry: Writer, request: pb.SetAliasRequest, caller: Caller) -> pb.Alias:
    version = await registry.version(request.model_id, parse("version", request.version))
    current = await registry.alias(request.model_id, request.alias)
    after = aliases.moved(
        current,
        request.alias,
        version,
        expected=request.expected_version,
        protected=request.is_protected if request.HasField("is_protected") else None,
        caller=caller,
        now=registry.now,
    )
    return messages.from_alias(after if after is current else await registry.point(current, after))


async def delete_alias(registry: Writer, request: pb.DeleteAliasRequest, caller: Caller) -> pb.Alias:
    await registry.model(request.model_id)
    current = await registry.alias(request.model_id, request.alias)
    if current is None:
        raise NotFound("alias", f"{request.model_id}@{request.alias}")
    removed = aliases.removed(current, expected=request.expected_version, caller=caller, now=registry.now)
    await registry.point(current, removed)
    return messages.from_alias(current)


async def roll_back(
    registry: Writer, artifacts: ArtifactStore, request: pb.RollbackModelRequest
) -> pb.RollbackModelResponse:
    target = await registry.version(request.model_id, parse("to_version", request.to_version))
    comparison = await _rolled_back(registry, target, request.reason, registry.now)
    await hold_files(registry, artifacts, comparison.b)
    created = await registry.add_version(comparison.b, "version.rolled_back")
    return pb.RollbackModelResponse(
        version=messages.from_version(created), comparison=messages.from_comparison(comparison)
    )


class Releases:
    def __init__(
        self, store: Store, mutations: Mutations[Writer], artifacts: ArtifactStore, answers: ReadCache
    ) -> None:
        self._store = store
        self._mutations = mutations
        self._artifacts = artifacts
        self._answers = answers

    async def CompareModels(self, request: pb.CompareModelsRequest, context: Any) -> pb.ModelComparison:
        for name, reference in (("a", request.a), ("b", request.b)):
            check_model_id(f"{name}.model_id", reference.model_id)
        confidence = request.confidence if request.HasField("confidence") else DEFAULT_CONFIDENCE
        async with self._store.read(caller_of(context).project) as registry:
            a = await registry.selected(request.a.model_id, request.a.version, "a.version")
            b = await registry.selected(request.b.model_id, request.b.version, "b.version")
        return messages.from_comparison(await in_thread(compare, a, b, confidence))

    async def RollbackModel(self, request: pb.RollbackModelRequest, context: Any) -> pb.RollbackModelResponse:
        check_model_id("model_id", request.model_id)
        check_text("reason", request.reason)
        number = parse("to_version", request.to_version)
        if not request.dry_run:
            answered: pb.RollbackModelResponse | None = await self._mutations.answered(request, context)
            if answered is not None:
                return answered
        async with self._store.read(caller_of(context).project) as registry:
            target = await registry.version(request.model_id, number)
            planned = await _rolled_back(registry, target, request.reason, utc_now())
        # Before the transaction: every byte is read, and nobody waits for that.
        await self._require_whole(target)
        if request.dry_run:
            return pb.RollbackModelResponse(comparison=messages.from_comparison(planned))
        return await self._mutations.run(
            request, context, lambda registry: roll_back(registry, self._artifacts, request)
        )

    async def SetAlias(self, request: pb.SetAliasRequest, context: Any) -> pb.Alias:
        check_model_id("model_id", request.model_id)
        aliases.check_alias("alias", request.alias)
        parse("version", request.version)
        caller = caller_of(context)
        return await self._mutations.run(
            request, context, lambda registry: set_alias(registry, request, caller)
        )

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Any) -> pb.Alias:
        check_model_id("model_id", request.model_id)
        caller = caller_of(context)
        return await self._mutations.run(
            request, context, lambda registry: delete_alias(registry, request, caller)
        )

    async def ResolveAlias(self, request: pb.ResolveAliasRequest, context: Any) -> pb.ModelVersion:
        check_model_id("model_id", request.model_id)
        at = request.at.ToDatetime(tzinfo=UTC) if request.HasField("at") else None
        now = utc_now()
        # A caller's clock may be ahead of ours; what it calls now is now.
        if at and at > now + SKEW:
            raise InvalidArgument("at", "is in the future")
        if at and at >= now:
            at = None
        project = caller_of(context).project

        async def read() -> pb.ModelVersion:
            async with self._store.read(project) as registry:
                await registry.model(request.model_id, show_deleted=at is not None)
                version = await registry.pointed_at(request.model_id, request.alias, at)
            return await in_thread(messages.from_version, version)

        # The same moment is now at first and in the past later on, which are two questions.
        question = "ResolveAlias" if at is None else "ResolveAlias in the past"
        return await self._answers.answer(project, question, request, read)

    async def ListAliases(self, request: pb.ListAliasesRequest, context: Any) -> pb.ListAliasesResponse:
        check_model_id("model_id", request.model_id)
        async with self._store.read(caller_of(context).project) as registry:
            await registry.model(request.model_id)
            listed = await registry.aliases(request.model_id)
        return pb.ListAliasesResponse(aliases=map(messages.from_alias, listed))

    async def GetModelCard(self, request: pb.GetModelCardRequest, context: Any) -> pb.ModelCard:
        check_model_id("model_id", request.model_id)
        async with self._store.read(caller_of(context).project) as registry:
            version = await registry.selected(request.model_id, request.version)
            model = await registry.model(request.model_id)
            parent = await registry.parent(version)
        return pb.ModelCard(markdown=await in_thread(card, version, model=model, parent=parent))

    async def _require_whole(self, version: ModelVersion) -> None:
        """Raises FailedPrecondition for a file that is missing or is no longer what was stored."""
        for artifact in version.artifacts:
            fault = await self._artifacts.fault(artifact.digest, artifact.size_bytes)
            if fault:
                raise FailedPrecondition(
                    f"ARTIFACT_{fault.upper()}",
                    f"{artifact.path} of {version.name} is {fault}: upload it again, then roll back",
                    subject=artifact.digest,
                )


async def _rolled_back(registry: Reader, target: ModelVersion, reason: str, now: datetime) -> Comparison:
    """From the latest version to a new one with the content of `target`. Raises FailedPrecondition."""
    latest = await registry.latest(target.model_id) or target
    if latest.version == target.version:
        raise FailedPrecondition("ALREADY_LATEST", f"{target.version} is the latest version", target.name)
    level: Level | None = Level.PRERELEASE
    if not latest.version.prerelease:
        level = (await in_thread(compare, latest, target)).recommended_bump
    label = (latest.version.prerelease or DEFAULT_LABEL).partition(".")[0]
    version = await registry.next_version(target.model_id, level or Level.PATCH, latest, label=label)
    return await in_thread(compare, latest, target.restored(version, now, reason))
