from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.wire.errors import AlreadyExists, NotFound, ResourceExhausted
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.registry.domain.model import Model
from neuroweaver.registry.domain.sealing import Seal
from neuroweaver.registry.domain.webhook import (
    MAX_WEBHOOKS,
    Backoff,
    Delivery,
    Outcome,
    State,
    Webhook,
    WebhookStatus,
    new_secret,
)
from neuroweaver.registry.storage import deliveries, tables
from neuroweaver.registry.storage.store import Store
from neuroweaver.registry.storage.writer import Writer

START = datetime(2026, 1, 1, tzinfo=UTC)
LATER = datetime(2100, 1, 1, tzinfo=UTC)
LANE = ("default", "hook")
TAKEN = Outcome.of_status(200)
REFUSED = Outcome.of_status(500)
ONCE = Backoff(attempts=1)


async def add(database: Database, webhook_id: str = "hook", project: str = "default", **fields) -> Webhook:
    webhook = Webhook(
        **{"webhook_id": webhook_id, "url": "https://a.example/?q", "create_time": START} | fields
    )
    await database.transact(
        lambda connection: deliveries.add(connection, project, webhook, f"whsec_of_{webhook_id}")
    )
    return webhook


async def register(store: Store, *model_ids: str, project: str = "default") -> None:
    """One change each."""

    async def work(registry: Writer) -> None:
        for model_id in model_ids:
            now = registry.now
            await registry.add_model(Model(model_id=model_id, create_time=now, update_time=now))

    await store.transact(ChangeOrigin(project, "ada"), work)


async def claim(database: Database, lane=LANE, token: str = "c", now: datetime = LATER) -> Delivery | None:
    return await database.transact(lambda connection: deliveries.claim(connection, lane, token, now))


async def settle(
    database: Database, delivery: Delivery, outcome: Outcome, backoff: Backoff = ONCE, now: datetime = START
) -> Delivery | None:
    return await database.transact(
        lambda connection: deliveries.settle(connection, delivery, outcome, now, backoff)
    )


async def send(database: Database, *outcomes: Outcome, lane=LANE, backoff: Backoff = ONCE) -> list[int]:
    """The sequences, one attempt after the other."""
    sent = []
    for outcome in outcomes:
        claimed = await claim(database, lane)
        assert claimed
        await settle(database, claimed, outcome, backoff)
        sent.append(claimed.sequence)
    return sent


async def redeliver(database: Database, sequence: int = 0, webhook_id: str = "hook") -> int:
    return await database.transact(
        lambda connection: deliveries.redeliver(connection, "default", webhook_id, sequence, START)
    )


async def everything(database: Database, webhook_id: str = "hook") -> list[Delivery]:
    async with database.read() as connection:
        page = Page.of(1000, "", query=("q",))
        found, token = await deliveries.page(connection, "default", webhook_id, page)
    assert not token
    return found


async def sequences(database: Database, webhook_id: str = "hook") -> list[int]:
    """Oldest first."""
    return [delivery.sequence for delivery in await everything(database, webhook_id)][::-1]


async def statuses(database: Database, project: str = "default") -> list[WebhookStatus]:
    async with database.read() as connection:
        return await deliveries.webhooks(connection, project)


async def waiting(database: Database) -> list[tuple[str, int]]:
    async with database.read() as connection:
        return [(each.webhook_id, each.sequence) for each in await deliveries.waiting(connection)]


async def test_a_change_and_what_is_to_be_sent_of_it_are_committed_together(store, database):
    await add(database)
    await register(store, "a")

    with pytest.raises(AlreadyExists):
        await register(store, "b", "a")

    assert await sequences(database) == [1]
    found = (await everything(database))[0]
    assert (found.action, found.state, found.attempts) == ("model.registered", State.PENDING, 0)
    async with store.read("default") as registry:
        assert [event.time for event in await registry.events(0, 10)] == [found.create_time]


async def test_only_what_a_webhook_wants_is_sent_to_it(store, database):
    await add(database, "all")
    await add(database, "models", actions=("model.*",))
    await add(database, "versions", actions=("version.*", "alias.set"))
    await add(database, "b-alone", model_id="b")
    await add(database, "elsewhere", project="other")
    await register(store, "a", "b")

    assert [await sequences(database, name) for name in ("all", "models", "versions", "b-alone")] == [
        [1, 2],
        [1, 2],
        [],
        [2],
    ]
    assert [(each.webhook.webhook_id, each.pending) for each in await statuses(database, "other")] == [
        ("elsewhere", 0)
    ]


async def test_what_happened_before_a_webhook_was_made_is_not_sent(store, database):
    await register(store, "a")
    await add(database)
    await register(store, "b")

    assert await sequences(database) == [2]


async def test_a_webhook_is_what_was_added(store, database):
    webhook = await add(database, actions=("version.*", "alias.set"), model_id="advisor")

    assert await statuses(database) == [WebhookStatus(webhook)]
    async with database.read() as connection:
        assert await deliveries.status(connection, *LANE) == WebhookStatus(webhook)
        assert await deliveries.secret_of(connection, LANE) == (webhook.url, "whsec_of_hook")
        assert await deliveries.secret_of(connection, ("default", "other")) is None
        with pytest.raises(NotFound):
            await deliveries.status(connection, "other", "hook")


async def test_an_id_is_given_once_a_project(database):
    await add(database)
    await add(database, project="other")

    with pytest.raises(AlreadyExists):
        await add(database, url="https://b.example/")


async def test_a_project_has_a_hundred_webhooks_at_most(database):
    for number in range(MAX_WEBHOOKS):
        await add(database, f"hook-{number}")

    with pytest.raises(ResourceExhausted):
        await add(database, "one-more")
    await add(database, "one-more", project="other")


async def test_deliveries_are_claimed_in_order_and_one_at_a_time(store, database):
    await add(database)
    await register(store, "a", "b", "c")

    first = await claim(database, token="1")
    assert first is not None
    assert (first.sequence, first.attempts, first.last_attempt_time) == (1, 1, LATER)
    assert await claim(database, token="2") is None
    await settle(database, first, TAKEN)

    assert await send(database, TAKEN, TAKEN) == [2, 3]
    assert await claim(database) is None
    assert [delivery.state for delivery in await everything(database)] == [State.DELIVERED] * 3


async def test_of_concurrent_claims_one_succeeds(store, database, database_url):
    await add(database)
    await register(store, "a", "b", "c", "d")
    # Each from a connection pool of its own, as from processes of their own.
    others = [Database(database_url, schema="registry") for _ in range(4)]
    try:
        for expected in (1, 2, 3, 4):
            found = await asyncio.gather(*(claim(each, token=str(n)) for n, each in enumerate(others)))
            claimed = [delivery for delivery in found if delivery]
            assert [delivery.sequence for delivery in claimed] == [expected]
            await settle(database, claimed[0], TAKEN)
    finally:
        for each in others:
            await each.close()


async def test_a_delivery_that_is_to_be_tried_again_holds_up_the_later_ones(store, database):
    await add(database)
    await register(store, "a", "b")
    backoff = Backoff(attempts=2, first_s=60)
    claimed = await claim(database, now=START)
    retried = await settle(database, claimed, REFUSED, backoff)

    assert await waiting(database) == [("hook", 1)]
    assert await claim(database, now=retried.next_attempt_time - timedelta(seconds=1)) is None
    again = await claim(database, now=retried.next_attempt_time)
    assert (again.sequence, again.attempts) == (1, 2)


async def test_a_dead_letter_holds_up_nobody(store, database):
    await add(database)
    await register(store, "a", "b", "c")

    assert await send(database, REFUSED, TAKEN, REFUSED) == [1, 2, 3]

    assert [delivery.state for delivery in await everything(database)] == [
        State.DEAD,
        State.DELIVERED,
        State.DEAD,
    ]
    assert await waiting(database) == []


async def test_webhooks_do_not_wait_for_each_other(store, database):
    await add(database, "one")
    await add(database, "two")
    await add(database, "theirs", project="other")
    await register(store, "a", "b")
    await register(store, "a", project="other")

    assert sorted(await waiting(database)) == [("one", 1), ("theirs", 1), ("two", 1)]
    one = await claim(database, ("default", "one"), "1")
    two = await claim(database, ("default", "two"), "2")
    assert None not in (one, two)
    async with database.read() as connection:
        assert {each.claim for each in await deliveries.claimed(connection)} == {"1", "2"}
    await settle(database, two, TAKEN)
    assert sorted(await waiting(database)) == [("one", 1), ("theirs", 1), ("two", 2)]


async def test_whoever_lost_the_claim_changes_nothing(store, database):
    await add(database)
    await register(store, "a")
    slow = await claim(database, token="slow")
    await settle(database, slow, REFUSED, Backoff(attempts=5))
    fast = await claim(database, token="fast")

    assert await settle(database, slow, TAKEN) is None

    assert await everything(database) == [fast]


async def test_dead_letters_are_sent_again_before_what_came_after_them(store, database):
    await add(database)
    await register(store, "a", "b", "c", "d")
    await send(database, REFUSED, TAKEN, REFUSED)

    assert await redeliver(database) == 2

    revived = {each.sequence: each for each in await everything(database)}
    assert (revived[1].state, revived[1].attempts, revived[1].last_error) == (
        State.PENDING,
        0,
        "the receiver answered 500",
    )
    assert await send(database, TAKEN, TAKEN, TAKEN) == [1, 3, 4]
    assert await redeliver(database) == 0


async def test_one_dead_letter_is_sent_again_alone(store, database):
    await add(database)
    await register(store, "a", "b", "c", "d")
    await send(database, REFUSED, TAKEN, REFUSED)

    assert [await redeliver(database, sequence) for sequence in (3, 2, 4)] == [1, 0, 0]
    assert await send(database, TAKEN, TAKEN) == [3, 4]
    for sequence, webhook_id in ((5, "hook"), (1, "other"), (0, "other")):
        with pytest.raises(NotFound):
            await redeliver(database, sequence, webhook_id)


async def test_a_delivery_under_way_is_not_joined_by_one_that_is_sent_again(store, database):
    await add(database)
    await register(store, "a", "b")
    await send(database, REFUSED)
    under_way = await claim(database, token="1")

    assert await redeliver(database) == 1

    assert under_way.sequence == 2
    assert await claim(database, token="2") is None
    await settle(database, under_way, TAKEN)
    assert await send(database, TAKEN) == [1]


async def test_a_webhook_is_removed_with_its_deliveries(store, database):
    webhook = await add(database)
    await add(database, "other")
    await register(store, "a", "b")
    await send(database, REFUSED)
    under_way = await claim(database)

    removed = await database.transact(lambda connection: deliveries.remove(connection, *LANE))

    assert (removed.webhook, removed.pending, removed.dead) == (webhook, 1, 1)
    assert await settle(database, under_way, TAKEN) is None
    assert [each.webhook.webhook_id for each in await statuses(database)] == ["other"]
    async with database.read() as connection:
        left = await connection.execute(select(tables.webhook_deliveries.c.webhook_id))
        assert set(left.scalars()) == {"other"}
    with pytest.raises(NotFound):
        await database.transact(lambda connection: deliveries.remove(connection, *LANE))
    await register(store, "c")
    assert await sequences(database, "other") == [1, 2, 3]


async def test_a_status_tells_the_last_attempt(store, database):
    await add(database)
    await add(database, "quiet")
    await register(store, "a", "b", "c")

    async def told() -> tuple[int, int, str]:
        found = (await statuses(database))[0]
        return found.pending, found.dead, found.last_error

    seen = [await told()]
    for number, outcome in enumerate((REFUSED, TAKEN, Outcome.failed("no answer"))):
        claimed = await claim(database, now=START + timedelta(minutes=number + 1000000))
        seen.append(await told())
        await settle(database, claimed, outcome)
        seen.append(await told())

    assert seen == [
        (3, 0, ""),
        (3, 0, ""),
        (2, 1, "the receiver answered 500"),
        (2, 1, "the receiver answered 500"),
        (1, 1, ""),
        (1, 1, ""),
        (0, 2, "no answer"),
    ]


async def test_pages_hold_each_delivery_once_newest_first(store, database):
    await add(database)
    await register(store, *(f"m-{number}" for number in range(7)))
    await send(database, REFUSED, TAKEN, REFUSED, TAKEN, REFUSED)

    async def listed(state: State | None) -> list[int]:
        found: list[int] = []
        token = ""
        while True:
            async with database.read() as connection:
                page = Page.of(2, token, query=("q", str(state)))
                shown, token = await deliveries.page(connection, *LANE, page, state)
            assert len(shown) <= 2
            found += [delivery.sequence for delivery in shown]
            if not token:
                return found

    assert await listed(None) == [7, 6, 5, 4, 3, 2, 1]
    assert await listed(State.DEAD) == [5, 3, 1]
    assert await listed(State.DELIVERED) == [4, 2]
    assert await listed(State.PENDING) == [7, 6]


async def test_what_was_delivered_is_forgotten_and_what_was_not_stays(store, database):
    await add(database)
    await register(store, "a", "b", "c", "d")
    await send(database, TAKEN, REFUSED, TAKEN)

    async def forget(before: datetime) -> int:
        return await database.transact(lambda connection: deliveries.forget(connection, before))

    assert await forget(LATER) == 0
    assert await forget(LATER + timedelta(seconds=1)) == 2
    assert await sequences(database) == [2, 4]


async def test_events_are_needed_from_the_first_that_is_not_delivered(store, database):
    await add(database)
    await add(database, "theirs", project="other")
    await register(store, "a", "b", "c")
    await register(store, "a", project="other")

    async def needed() -> dict[str, int]:
        async with database.read() as connection:
            return await deliveries.oldest_needed(connection)

    assert await needed() == {"default": 1, "other": 1}
    await send(database, TAKEN, REFUSED, TAKEN)
    await send(database, TAKEN, lane=("other", "theirs"))
    assert await needed() == {"default": 2}


async def test_changes_and_claims_of_many_writers_lose_nothing(store, database):
    """Serialisable transactions that touch the same tables are run again, and none of them twice."""
    names = [f"hook-{number}" for number in range(4)]
    for name in names:
        await add(database, name)

    async def deliver(name: str) -> list[int]:
        sent: list[int] = []
        while len(sent) < 10:
            claimed = await claim(database, ("default", name), name)
            if claimed is None:
                await asyncio.sleep(0.01)
                continue
            sent.append(claimed.sequence)
            assert await settle(database, claimed, TAKEN)
        return sent

    async def change() -> None:
        for number in range(10):
            await register(store, f"m-{number}")

    *sent, _ = await asyncio.gather(*map(deliver, names), change())

    assert sent == [list(range(1, 11))] * 4


async def test_secrets_of_an_earlier_version_are_sealed_once_and_foreign_ones_named(database):
    seal, secret = Seal(b"k" * 64), new_secret()
    webhook = await add(database)
    await add(database, "foreign")

    async def as_before(connection):
        table = tables.webhooks
        for webhook_id, stored in (
            ("hook", secret),
            ("foreign", Seal(b"f" * 64).seal(secret, "default", "foreign")),
        ):
            of_it = table.c.webhook_id == webhook_id
            await connection.execute(table.update().where(of_it).values(secret=stored))

    await database.transact(as_before)
    for _ in range(2):
        strangers = await database.transact(lambda connection: deliveries.seal_secrets(connection, seal))
        assert strangers == ["foreign"]
    async with database.read() as connection:
        url, sealed = await deliveries.secret_of(connection, LANE)
    assert (url, seal.open(sealed, *LANE)) == (webhook.url, secret)


async def test_a_status_holds_no_secret(database):
    await add(database)

    assert "whsec" not in repr(await statuses(database))
