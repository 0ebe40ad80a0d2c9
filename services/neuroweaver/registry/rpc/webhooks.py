"""The RPCs of webhooks: requests to operations of the store, webhooks and deliveries to responses."""

from __future__ import annotations

from typing import Any

from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.handlers.mutations import Mutations
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.registry import messages
from neuroweaver.registry.domain.records import FieldDifference
from neuroweaver.registry.domain.webhook import Webhook, WebhookStatus, check_webhook_id, new_secret
from neuroweaver.registry.storage import deliveries
from neuroweaver.registry.storage.store import Store
from neuroweaver.registry.storage.writer import Writer
from neuroweaver.v1 import registry_pb2 as pb


class Webhooks:
    def __init__(self, store: Store, mutations: Mutations[Writer]) -> None:
        self._store = store
        self._mutations = mutations

    async def CreateWebhook(self, request: pb.CreateWebhookRequest, context: Any) -> pb.Webhook:
        if request.webhook.secret:
            raise InvalidArgument("webhook.secret", "is made by the server; leave it empty")
        secret = new_secret()
        made: list[pb.Webhook] = []

        async def create(registry: Writer) -> pb.Webhook:
            webhook = messages.to_webhook(request.webhook, registry.now)
            await deliveries.add(registry.connection, registry.project, webhook, secret)
            await registry.record("webhook.created", model_id=webhook.model_id, changes=_changes(webhook))
            made.append(messages.from_webhook(WebhookStatus(webhook)))
            return made[-1]

        answer = await self._mutations.run(request, context, create)
        # Shown here alone: the answer kept for a retry is without it, and a retry reads another object than
        # the one just made.
        if made and answer is made[-1]:
            answer.secret = secret
        return answer

    async def ListWebhooks(self, request: pb.ListWebhooksRequest, context: Any) -> pb.ListWebhooksResponse:
        del request
        async with self._store.read(caller_of(context).project) as registry:
            found = await deliveries.webhooks(registry.connection, registry.project)
        return pb.ListWebhooksResponse(webhooks=map(messages.from_webhook, found))

    async def DeleteWebhook(self, request: pb.DeleteWebhookRequest, context: Any) -> pb.Webhook:
        check_webhook_id("webhook_id", request.webhook_id)

        async def drop(registry: Writer) -> pb.Webhook:
            dropped = await deliveries.remove(registry.connection, registry.project, request.webhook_id)
            webhook = dropped.webhook
            changes = [FieldDifference(change.path, change.b, None) for change in _changes(webhook)]
            await registry.record("webhook.deleted", model_id=webhook.model_id, changes=changes)
            return messages.from_webhook(dropped)

        return await self._mutations.run(request, context, drop)

    async def ListWebhookDeliveries(
        self, request: pb.ListWebhookDeliveriesRequest, context: Any
    ) -> pb.ListWebhookDeliveriesResponse:
        check_webhook_id("webhook_id", request.webhook_id)
        project = caller_of(context).project
        page = Page.asked(request, project)
        async with self._store.read(project) as registry:
            listed, token = await deliveries.page(
                registry.connection,
                project,
                request.webhook_id,
                page,
                messages.DELIVERY_STATES.get(request.state),
            )
        return pb.ListWebhookDeliveriesResponse(
            deliveries=map(messages.from_delivery, listed), next_page_token=token
        )

    async def RedeliverWebhook(
        self, request: pb.RedeliverWebhookRequest, context: Any
    ) -> pb.RedeliverWebhookResponse:
        check_webhook_id("webhook_id", request.webhook_id)

        async def revive(registry: Writer) -> pb.RedeliverWebhookResponse:
            number = await deliveries.redeliver(
                registry.connection, registry.project, request.webhook_id, request.sequence, registry.now
            )
            return pb.RedeliverWebhookResponse(redelivered=number)

        return await self._mutations.run(request, context, revive)


def _changes(webhook: Webhook) -> list[FieldDifference]:
    """What the history says of a new webhook: never the secret, nor what may be one in the URL."""
    told = {
        "actions": list(webhook.actions),
        "model_id": webhook.model_id,
        "url": webhook.shown_url,
        "webhook_id": webhook.webhook_id,
    }
    return [FieldDifference(path, None, value) for path, value in told.items() if value]
