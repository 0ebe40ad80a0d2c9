from __future__ import annotations

import asyncio
import base64
import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import text

from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.migrations import migrate
from neuroweaver.mesh.handlers.mutations import Mutations
from neuroweaver.mesh.server.serve import running
from neuroweaver.mesh.wire import status
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.registry.__main__ import service
from neuroweaver.registry.domain.sealing import Seal
from neuroweaver.registry.rpc.server import SERVICE
from neuroweaver.registry.rpc.webhooks import Webhooks
from neuroweaver.registry.settings import RegistrySettings
from neuroweaver.registry.storage import tables
from neuroweaver.registry.storage.store import Store
from neuroweaver.v1 import registry_pb2 as pb
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub
from registry.calls import refusal, register
from registry.receiver import answer, receiving

URL = "https://receiver.example/hook?token=hunter2"


async def make(registry: Any, webhook_id: str = "hook", request_id: str = "", **fields: Any) -> pb.Webhook:
    webhook = pb.Webhook(**{"webhook_id": webhook_id, "url": URL} | fields)
    return await registry.CreateWebhook(pb.CreateWebhookRequest(webhook=webhook, request_id=request_id))


async def listed(registry: Any) -> list[pb.Webhook]:
    return list((await registry.ListWebhooks(pb.ListWebhooksRequest())).webhooks)


async def listed_deliveries(registry: Any, **query: Any) -> list[pb.WebhookDelivery]:
    request = pb.ListWebhookDeliveriesRequest(webhook_id="hook", **query)
    return list((await registry.ListWebhookDeliveries(request)).deliveries)


async def some(registry: Any, state: pb.DeliveryState) -> list[pb.WebhookDelivery]:
    """As soon as there are any."""
    async with asyncio.timeout(60):
        while True:
            if found := await listed_deliveries(registry, state=state):
                return found


async def history(registry: Any) -> list[pb.AuditEvent]:
    return list((await registry.ListAuditEvents(pb.ListAuditEventsRequest())).events)


async def tables_with(database_url: str, wanted: str) -> set[str]:
    """Where in the whole database a text stands, also as bytes."""
    database = Database(database_url, schema="registry")
    found = set()
    try:
        async with database.read() as connection:
            for table in tables.METADATA.tables:
                rows = (await connection.execute(text(f"SELECT * FROM {table}"))).all()
                for value in (value for row in rows for value in row):
                    held = bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()
                    if wanted.encode() in held:
                        found.add(table)
    finally:
        await database.close()
    return found


async def test_a_secret_is_shown_once(registry):
    made = await make(registry, actions=["version.*"], model_id="advisor")

    assert len(base64.b64decode(made.secret.removeprefix("whsec_"))) == 32
    (found,) = await listed(registry)
    assert found.secret == ""
    assert (found.webhook_id, found.url, list(found.actions), found.model_id) == (
        "hook",
        URL,
        ["version.*"],
        "advisor",
    )
    assert found.create_time.seconds
    found.secret = made.secret
    assert found == made


async def test_a_call_that_another_one_overtook_shows_no_secret(store: Store):
    """Its transaction ran and was undone; the answer is that of the other call."""

    class Overtaken:
        async def run(self, request, context, operation):
            await store.transact(ChangeOrigin("default", "ada"), operation)
            return pb.Webhook(webhook_id="hook")

    request = pb.CreateWebhookRequest(webhook=pb.Webhook(webhook_id="hook", url=URL))

    assert not (await Webhooks(store, Overtaken(), Seal(b"k" * 64)).CreateWebhook(request, None)).secret


async def test_a_retry_gets_the_first_answer_without_the_secret(registry):
    made = await make(registry, request_id="r1")

    again = await make(registry, request_id="r1")

    assert made.secret
    assert again.secret == ""
    again.secret = made.secret
    assert again == made
    assert len(await listed(registry)) == 1
    assert status.reason(await refusal(make(registry, "other", request_id="r1"))) == "INVALID_ARGUMENT"


async def test_the_database_holds_no_secret(registry, database_url):
    made = await make(registry, request_id="r1")
    await make(registry, request_id="r1")
    await register(registry)
    await listed_deliveries(registry)

    bare = made.secret.removeprefix("whsec_")
    assert await tables_with(database_url, bare) == set()
    assert await tables_with(database_url, base64.b64decode(bare).hex()) == set()
    assert "audit_events" in await tables_with(database_url, "hook")


async def test_no_log_holds_a_secret(database_url, tmp_path: Path, caplog):
    settings = RegistrySettings(
        home=tmp_path,
        port=0,
        metrics_port=0,
        database_url=database_url,
        drain_s=1.0,
        debug=True,
    )
    database = Database(settings.database_url, schema="registry")
    await migrate(database, "neuroweaver.registry")
    with caplog.at_level(logging.DEBUG, logger="neuroweaver"):
        async with (
            running(service(database, settings), settings, registry=CollectorRegistry()) as server,
            channel(server.address) as client,
        ):
            registry = RegistryServiceStub(client)
            made = await make(registry)
            refused = await refusal(make(registry, "other", secret="whsec_of_a_caller"))
    written = "\n".join(str(vars(record)) for record in caplog.records)

    assert "CreateWebhook" in written
    assert made.secret not in written
    assert "whsec_of_a_caller" not in written
    assert "whsec_of_a_caller" not in status.describe(refused)


async def test_making_and_deleting_a_webhook_is_in_the_history(registry):
    made = await make(registry, actions=["alias.set"], model_id="advisor")
    deleted = await registry.DeleteWebhook(pb.DeleteWebhookRequest(webhook_id="hook"))

    created, removed = await history(registry)
    assert (created.action, created.model_id, created.actor) == ("webhook.created", "advisor", "local")
    assert (removed.action, removed.model_id) == ("webhook.deleted", "advisor")
    told = {change.path: change.b for change in created.changes}
    assert told["url"].string_value == "https://receiver.example/hook"
    assert told["webhook_id"].string_value == "hook"
    assert [value.string_value for value in told["actions"].list_value.values] == ["alias.set"]
    assert {change.path: change.a for change in removed.changes} == told
    assert made.secret not in str([created, removed])
    assert "hunter2" not in str([created, removed])
    assert deleted.secret == ""
    assert await listed(registry) == []
    assert (await registry.VerifyAudit(pb.VerifyAuditRequest())).is_intact


async def test_webhooks_do_not_disturb_a_watch(registry):
    await register(registry, "a")
    await make(registry)
    await register(registry, "b")

    watch = registry.WatchModels(pb.WatchModelsRequest())
    seen = [await watch.read() for _ in range(2)]
    watch.cancel()

    assert [(event.sequence, event.model.model_id) for event in seen] == [(1, "a"), (3, "b")]


async def test_a_webhook_is_not_told_of_webhooks(registry):
    await make(registry)
    await make(registry, "other")
    await register(registry)

    assert [delivery.sequence for delivery in await listed_deliveries(registry)] == [3]


async def test_a_webhook_to_this_machine_needs_the_setting(store: Store):
    webhooks = Webhooks(store, Mutations(store, SERVICE), Seal(b"k" * 64))
    request = pb.CreateWebhookRequest(webhook=pb.Webhook(webhook_id="hook", url="http://127.0.0.1:1/"))

    with pytest.raises(InvalidArgument, match="NEUROWEAVER_WEBHOOK_PRIVATE"):
        await webhooks.CreateWebhook(request, None)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"url": "http://receiver.example/"}, "webhook.url"),
        ({"url": "https://user:hunter2@receiver.example/"}, "webhook.url"),
        ({"url": "https://receiver.example/#x"}, "webhook.url"),
        ({"url": ""}, "webhook.url"),
        ({"url": "https://receiver.example/" + "a" * 2048}, "webhook.url"),
        ({"secret": "whsec_mine"}, "webhook.secret"),
        ({"webhook_id": "A"}, "webhook.webhook_id"),
        ({"webhook_id": ""}, "webhook.webhook_id"),
        ({"model_id": "A"}, "webhook.model_id"),
        ({"actions": ["everything"]}, "webhook.actions[0]"),
        ({"actions": ["*"]}, "webhook.actions[0]"),
    ],
)
async def test_a_webhook_that_cannot_be_is_refused(registry, fields, field):
    error = await refusal(make(registry, **fields))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in [violated for violated, _ in status.violations(error)]
    assert await listed(registry) == []
    assert await history(registry) == []


async def test_an_id_is_taken_once(registry):
    await make(registry)

    assert (await refusal(make(registry))).code() is grpc.StatusCode.ALREADY_EXISTS
    assert len(await history(registry)) == 1


async def test_what_is_not_there_is_not_found(registry):
    for call in (
        registry.DeleteWebhook(pb.DeleteWebhookRequest(webhook_id="hook")),
        registry.ListWebhookDeliveries(pb.ListWebhookDeliveriesRequest(webhook_id="hook")),
        registry.RedeliverWebhook(pb.RedeliverWebhookRequest(webhook_id="hook")),
    ):
        assert (await refusal(call)).code() is grpc.StatusCode.NOT_FOUND
    await make(registry)
    call = registry.RedeliverWebhook(pb.RedeliverWebhookRequest(webhook_id="hook", sequence=9))
    assert (await refusal(call)).code() is grpc.StatusCode.NOT_FOUND


async def test_an_id_that_is_none_is_refused_everywhere(registry):
    for call in (
        registry.DeleteWebhook(pb.DeleteWebhookRequest(webhook_id="\0")),
        registry.ListWebhookDeliveries(pb.ListWebhookDeliveriesRequest(webhook_id="\0")),
        registry.RedeliverWebhook(pb.RedeliverWebhookRequest(webhook_id="\0")),
    ):
        assert status.violations(await refusal(call))[0][0] == "webhook_id"


async def test_deliveries_are_paged_newest_first(registry):
    await make(registry, url="http://127.0.0.1:1/hook", actions=["model.*"])
    for number in range(5):
        await register(registry, f"m-{number}")

    first = await registry.ListWebhookDeliveries(
        pb.ListWebhookDeliveriesRequest(webhook_id="hook", page_size=3)
    )
    second = await listed_deliveries(registry, page_size=3, page_token=first.next_page_token)

    assert [each.sequence for each in [*first.deliveries, *second]] == [6, 5, 4, 3, 2]
    pending = await listed_deliveries(registry, state=pb.DELIVERY_STATE_PENDING)
    assert len(pending) == 5
    assert pending[0].action == "model.registered"
    assert pending[0].create_time.seconds
    assert await listed_deliveries(registry, state=pb.DELIVERY_STATE_DEAD) == []


async def test_from_a_change_to_a_redelivered_dead_letter(registry):
    async with receiving() as receiver:
        receiver.answers = lambda number: answer(410 if number == 0 else 200)
        made = await make(registry, url=receiver.url)
        await register(registry, "a")
        await receiver.has(1)
        dead = await some(registry, pb.DELIVERY_STATE_DEAD)
        (status,) = await listed(registry)

        request = pb.RedeliverWebhookRequest(webhook_id="hook", request_id="r1")
        told = await registry.RedeliverWebhook(request)
        await receiver.has(2)
        done = await some(registry, pb.DELIVERY_STATE_DELIVERED)
        again = await registry.RedeliverWebhook(request)

    assert [(each.sequence, each.attempts, each.last_status) for each in dead] == [(2, 1, 410)]
    assert (status.pending, status.dead, status.last_error) == (0, 1, "the receiver answered 410")
    assert told.redelivered == again.redelivered == 1
    assert [(each.sequence, each.attempts, each.last_status, each.last_error) for each in done] == [
        (2, 1, 200, "")
    ]
    assert not done[0].HasField("next_attempt_time")
    assert done[0].last_attempt_time.seconds
    assert all(received.is_signed_by(made.secret) for received in receiver.received)
    assert len(await history(registry)) == 2
