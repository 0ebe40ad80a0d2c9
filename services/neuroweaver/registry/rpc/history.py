"""What happened: the history of a version, the audit log, its proof, and changes as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.handlers import filters
from neuroweaver.mesh.wire.clock import utc_now
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.mesh.wire.signing import SigningKey
from neuroweaver.registry import messages
from neuroweaver.registry.domain.history import Head, SignedHead
from neuroweaver.registry.domain.model import check_model_id
from neuroweaver.registry.domain.versions import parse
from neuroweaver.registry.rpc.changes import changes
from neuroweaver.registry.storage.store import Store
from neuroweaver.v1 import registry_pb2 as pb


class History:
    def __init__(self, store: Store, key: SigningKey) -> None:
        self._store = store
        self._key = key

    async def GetVersionHistory(
        self, request: pb.GetVersionHistoryRequest, context: Any
    ) -> pb.GetVersionHistoryResponse:
        check_model_id("model_id", request.model_id)
        number = parse("version", request.version) if request.version else None
        project = caller_of(context).project
        page = Page.asked(request, project)
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
        page = Page.asked(request, project)
        terms = filters.parse(request.filter, ("actor", "action", "model_id"))
        async with self._store.read(project) as registry:
            events, token = await registry.history(page, terms=terms)
        return pb.ListAuditEventsResponse(
            events=map(messages.from_audit_event, events), next_page_token=token
        )

    async def VerifyAudit(self, request: pb.VerifyAuditRequest, context: Any) -> pb.AuditVerification:
        if bool(request.expected_sequence) != bool(request.expected_hash):
            raise InvalidArgument("expected_hash", "must be given together with expected_sequence")
        expected = Head(request.expected_sequence, request.expected_hash) if request.expected_hash else None
        project = caller_of(context).project
        async with self._store.read(project) as registry:
            verdict = await registry.verified(expected)
        return messages.from_verdict(verdict, SignedHead.of(self._key, project, verdict.head, utc_now()))

    async def WatchModels(self, request: pb.WatchModelsRequest, context: Any) -> AsyncIterator[pb.ModelEvent]:
        if request.model_id:
            check_model_id("model_id", request.model_id)
        project = caller_of(context).project
        watch = changes(self._store, project, request.model_id, request.since_sequence)
        async with aclosing(watch) as events:
            async for event in events:
                yield event
