"""The RPCs by which versions are released and taken back: comparison, rollback, aliases and model cards."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any, Final

from neuroweaver.mesh.caller import caller_of
from neuroweaver.mesh.clock import utc_now
from neuroweaver.mesh.errors import FailedPrecondition, InvalidArgument, NotFound
from neuroweaver.mesh.text import check_text
from neuroweaver.registry import messages
from neuroweaver.registry.aliases import Alias, check_alias, check_expected, check_gate, protects
from neuroweaver.registry.cache import cache_of
from neuroweaver.registry.card import card
from neuroweaver.registry.comparison import Comparison, compare
from neuroweaver.registry.handler import Handler
from neuroweaver.registry.model import ModelVersion, check_model_id
from neuroweaver.registry.reader import Reader
from neuroweaver.registry.versions import DEFAULT_LABEL, Level, parse
from neuroweaver.registry.writer import Writer
from neuroweaver.v1 import registry_pb2 as pb

RELEASE: Final = "models.release"

DEFAULT_CONFIDENCE: Final = 0.95

# A caller's clock may be ahead of ours; what it calls now is now.
_CLOCK_SKEW: Final = timedelta(minutes=1)


class ReleaseMethods(Handler):
    async def CompareModels(self, request: pb.CompareModelsRequest, context: Any) -> pb.ModelComparison:
        for name, reference in (("a", request.a), ("b", request.b)):
            check_model_id(f"{name}.model_id", reference.model_id)
        confidence = request.confidence if request.HasField("confidence") else DEFAULT_CONFIDENCE
        async with self._store.read(caller_of(context).project) as registry:
            a = await registry.selected(request.a.model_id, request.a.version, "a.version")
            b = await registry.selected(request.b.model_id, request.b.version, "b.version")
        return messages.from_comparison(await asyncio.to_thread(compare, a, b, confidence))

    async def RollbackModel(self, request: pb.RollbackModelRequest, context: Any) -> pb.RollbackModelResponse:
        check_model_id("model_id", request.model_id)
        check_text("reason", request.reason)
        number = parse("to_version", request.to_version)
        if not request.dry_run:
            known = await self._answered("RollbackModel", request, context, pb.RollbackModelResponse)
            if known is not None:
                return known
        async with self._store.read(caller_of(context).project) as registry:
            target = await registry.version(request.model_id, number)
            planned = await _rolled_back(registry, target, request.reason, utc_now())
        # Before the transaction: every byte is read, and nobody waits for that.
        await self._require_whole(target)
        if request.dry_run:
            return pb.RollbackModelResponse(comparison=messages.from_comparison(planned))

        async def roll_back(registry: Writer) -> pb.RollbackModelResponse:
            wanted = await registry.version(request.model_id, number)
            comparison = await _rolled_back(registry, wanted, request.reason, registry.now)
            await self._hold_files(registry, comparison.b)
            made = await registry.add_rollback(comparison.b)
            return pb.RollbackModelResponse(
                version=messages.from_version(made), comparison=messages.from_comparison(comparison)
            )

        return await self._mutate(
            "RollbackModel", request, context, pb.RollbackModelResponse, roll_back, reason=request.reason
        )

    async def SetAlias(self, request: pb.SetAliasRequest, context: Any) -> pb.Alias:
        check_model_id("model_id", request.model_id)
        check_text("reason", request.reason)
        check_alias("alias", request.alias)
        number = parse("version", request.version)
        caller = caller_of(context)

        async def point(registry: Writer) -> pb.Alias:
            version = await registry.version(request.model_id, number)
            current = await registry.alias(request.model_id, request.alias)
            name = f"{request.model_id}@{request.alias}"
            check_expected("expected_version", name, current, request.expected_version)
            protected = protects(current, request.alias)
            wanted = request.is_protected if request.HasField("is_protected") else protected
            if protected or wanted:
                caller.require(RELEASE, f"moving the protected alias {name}")
            if wanted:
                check_gate(version, name)
            if current and current.version == version.version and current.is_protected == wanted:
                return messages.from_alias(current)
            after = Alias(
                model_id=request.model_id,
                alias=request.alias,
                version=version.version,
                is_protected=wanted,
                actor=caller.actor,
                update_time=registry.now,
            )
            return messages.from_alias(await registry.point(current, after))

        return await self._mutate("SetAlias", request, context, pb.Alias, point, reason=request.reason)

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Any) -> pb.Alias:
        check_model_id("model_id", request.model_id)
        check_text("reason", request.reason)
        caller = caller_of(context)

        async def remove(registry: Writer) -> pb.Alias:
            await registry.model(request.model_id)
            current = await registry.alias(request.model_id, request.alias)
            name = f"{request.model_id}@{request.alias}"
            if current is None:
                raise NotFound("alias", name)
            check_expected("expected_version", name, current, request.expected_version)
            if current.is_protected:
                caller.require(RELEASE, f"removing the protected alias {name}")
            await registry.point(current, current.removed(caller.actor, registry.now))
            return messages.from_alias(current)

        return await self._mutate("DeleteAlias", request, context, pb.Alias, remove, reason=request.reason)

    async def ResolveAlias(self, request: pb.ResolveAliasRequest, context: Any) -> pb.ModelVersion:
        check_model_id("model_id", request.model_id)
        at = messages.to_moment("at", request.at) if request.HasField("at") else None
        now = utc_now()
        if at and at > now + _CLOCK_SKEW:
            raise InvalidArgument("at", "lies in the future, of which nothing is known")
        if at and at >= now:
            at = None
        project = caller_of(context).project

        async def read() -> pb.ModelVersion:
            async with self._store.read(project) as registry:
                await registry.model(request.model_id, show_deleted=at is not None)
                return messages.from_version(await registry.pointed_at(request.model_id, request.alias, at))

        # The same moment is now at first and in the past later on, which are two questions.
        question = "ResolveAlias" if at is None else "ResolveAlias in the past"
        return await cache_of(self._store).answer(project, question, request, read)

    async def ListAliases(self, request: pb.ListAliasesRequest, context: Any) -> pb.ListAliasesResponse:
        check_model_id("model_id", request.model_id)
        async with self._store.read(caller_of(context).project) as registry:
            await registry.model(request.model_id)
            aliases = await registry.aliases(request.model_id)
        return pb.ListAliasesResponse(aliases=map(messages.from_alias, aliases))

    async def GetModelCard(self, request: pb.GetModelCardRequest, context: Any) -> pb.ModelCard:
        check_model_id("model_id", request.model_id)
        async with self._store.read(caller_of(context).project) as registry:
            version = await registry.selected(request.model_id, request.version)
            model = await registry.model(request.model_id)
            parent = await registry.parent(version)
        return pb.ModelCard(markdown=await asyncio.to_thread(card, version, model=model, parent=parent))

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
        level = (await asyncio.to_thread(compare, latest, target)).recommended_bump
    label = (latest.version.prerelease or DEFAULT_LABEL).partition(".")[0]
    version = await registry.next_version(target.model_id, level or Level.PATCH, latest, label=label)
    return await asyncio.to_thread(compare, latest, target.restored(version, now, reason))
