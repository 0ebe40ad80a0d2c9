from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import pytest
from sqlalchemy import delete
from sqlalchemy.exc import OperationalError

from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.handlers.signals import Signal
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.registry.dispatch.dispatcher import Dispatcher, Policy
from neuroweaver.registry.dispatch.sender import Sender
from neuroweaver.registry.domain.model import Draft, Model
from neuroweaver.registry.domain.sealing import Seal
from neuroweaver.registry.domain.versions import parse
from neuroweaver.registry.domain.webhook import Backoff, Delivery, State, Webhook, new_secret
from neuroweaver.registry.storage import deliveries, tables
from neuroweaver.registry.storage.store import Store
from neuroweaver.registry.storage.writer import Writer
from registry.receiver import OK, Receiver, answer, reaches, receiving

SEAL = Seal(b"k" * 64)
QUICK = Backoff(attempts=4, first_s=0.01, factor=1.0)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


class Watched(Database):
    """A database that counts how often a dispatcher looks at it."""

    def __init__(self, url: str, **more):
        super().__init__(url, **more)
        self.looks = Signal()

    @asynccontextmanager
    async def read(self):
        async with super().read() as connection:
            yield connection
        self.looks.notify()

    async def rounds(self, number: int) -> None:
        await reaches(self.looks, self.looks.count + number)


@pytest.fixture
async def watched(database: Database, database_url: str) -> AsyncIterator[Watched]:
    watched = Watched(database_url, schema="registry")
    yield watched
    await watched.close()


async def add(database: Database, url: str, webhook_id: str = "hook", **fields) -> str:
    """Gives the secret."""
    secret = new_secret()
    webhook = Webhook(webhook_id=webhook_id, url=url, create_time=datetime.now(UTC), **fields)
    sealed = SEAL.seal(secret, "default", webhook.webhook_id)
    await database.transact(lambda connection: deliveries.add(connection, "default", webhook, sealed))
    return secret


async def register(store: Store, *model_ids: str) -> None:
    """One change each."""

    async def work(registry: Writer) -> None:
        for model_id in model_ids:
            now = registry.now
            await registry.add_model(Model(model_id=model_id, create_time=now, update_time=now))

    await store.transact(ChangeOrigin("default", "ada"), work)


@asynccontextmanager
async def dispatching(
    database: Database, *, sender: Sender | None = None, backoff: Backoff = QUICK, **policy
) -> AsyncIterator[None]:
    dispatcher = Dispatcher(
        database,
        sender or Sender(timeout_s=5, allow_private=True),
        SEAL,
        policy=Policy(**{"poll_s": 0.02, "backoff": backoff} | policy),
    )
    task = asyncio.create_task(dispatcher.run())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def listed(database: Database, webhook_id: str = "hook") -> dict[int, Delivery]:
    async with database.read() as connection:
        rows = (
            await connection.execute(
                tables.webhook_deliveries.select()
                .where(tables.webhook_deliveries.c.webhook_id == webhook_id)
                .order_by(tables.webhook_deliveries.c.sequence)
            )
        ).all()
    return {row.sequence: Delivery(**dict(row._mapping) | {"state": State(row.state)}) for row in rows}


async def settled(database: Database, webhook_id: str = "hook") -> dict[int, Delivery]:
    """The deliveries, once none of them is pending."""
    async with asyncio.timeout(60):
        while True:
            found = await listed(database, webhook_id)
            if found and all(each.state is not State.PENDING for each in found.values()):
                return found
            await asyncio.sleep(0.01)


async def test_a_change_arrives_signed(store, database, receiver):
    secret = await add(database, receiver.url)
    before = int(time.time())

    async def work(registry: Writer) -> None:
        now = registry.now
        await registry.add_model(Model(model_id="advisor", create_time=now, update_time=now))
        draft = Draft(description="größer", config={"lora_r": 16})
        await registry.add_version(draft.as_version("advisor", parse("version", "1.2.3"), None, now))

    await store.transact(ChangeOrigin("default", "ada"), work)
    async with dispatching(database):
        await settled(database)

    model, version = receiver.received
    assert model.content["type"] == "model.registered"
    assert model.content["data"]["model"]["model_id"] == "advisor"
    assert version.content["type"] == version.content["data"]["action"] == "version.created"
    assert version.content["timestamp"] == version.content["data"]["time"]
    told = version.content["data"]["version"]
    assert (told["version"], told["description"], told["config"]) == ("1.2.3", "größer", {"lora_r": 16})
    assert version.content["data"]["sequence"] == "2"
    assert version.headers["webhook-id"] == "default/hook/2"
    assert version.headers["content-type"] == "application/json"
    assert version.headers["user-agent"] == "NeuroWeaver"
    assert before <= int(version.headers["webhook-timestamp"]) <= time.time()
    assert model.is_signed_by(secret)
    assert version.is_signed_by(secret)
    assert not version.is_signed_by(new_secret())


async def test_changes_arrive_once_and_in_order(store, database, receiver):
    await add(database, receiver.url)
    async with dispatching(database):
        for number in range(10):
            await register(store, f"a-{number}", f"b-{number}")
        found = await settled(database)

    assert receiver.sequences == list(range(1, 21))
    assert receiver.most_at_once == 1
    assert {(each.state, each.attempts, each.last_status) for each in found.values()} == {
        (State.DELIVERED, 1, 200)
    }


async def test_a_delivery_that_failed_is_sent_again_before_the_next(store, database, receiver):
    secret = await add(database, receiver.url)
    receiver.answers = lambda number: answer(500) if number < 2 else OK
    await register(store, "a", "b")

    async with dispatching(database):
        found = await settled(database)

    assert receiver.sequences == [1, 1, 1, 2]
    assert [found[1].attempts, found[2].attempts] == [3, 1]
    assert {received.headers["webhook-id"] for received in receiver.received[:3]} == {"default/hook/1"}
    assert len({received.body for received in receiver.received[:3]}) == 1
    assert all(received.is_signed_by(secret) for received in receiver.received)


async def test_a_receiver_that_says_so_is_left_alone_for_a_while(store, database, receiver):
    await add(database, receiver.url)
    receiver.answers = lambda _number: answer(429, "retry-after: 3000")
    await register(store, "a")

    async with dispatching(database):
        await receiver.has(1)
        async with asyncio.timeout(60):
            while (found := (await listed(database))[1]).claim:
                pass

    assert (found.state, found.last_status) == (State.PENDING, 429)
    assert 2990 < (found.next_attempt_time - found.last_attempt_time).total_seconds() <= 3001


async def test_a_delivery_is_given_up_after_the_last_attempt(store, database, receiver, caplog):
    secret = await add(database, receiver.url + "?token=hunter2")
    receiver.answers = lambda number: answer(500) if number < 4 else OK
    await register(store, "a", "b")

    async with dispatching(database):
        found = await settled(database)

    assert receiver.sequences == [1, 1, 1, 1, 2]
    assert (found[1].state, found[1].attempts, found[1].last_status) == (State.DEAD, 4, 500)
    assert (found[1].last_error, found[1].next_attempt_time) == ("the receiver answered 500", None)
    assert found[2].state is State.DELIVERED
    (logged,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert (logged.webhook_id, logged.sequence, logged.status) == ("hook", 1, 500)
    written = "\n".join(str(vars(record)) for record in caplog.records)
    assert "hunter2" not in written
    assert secret not in written


async def test_a_receiver_that_is_gone_is_asked_once(store, database, receiver):
    await add(database, receiver.url)
    receiver.answers = lambda number: answer(410) if number == 0 else OK
    await register(store, "a", "b")

    async with dispatching(database):
        found = await settled(database)

    assert [found[1].state, found[1].attempts, found[2].state] == [State.DEAD, 1, State.DELIVERED]


async def test_a_dead_letter_is_sent_once_more_on_demand(store, database, receiver):
    await add(database, receiver.url)
    receiver.answers = lambda number: answer(410) if number == 0 else OK
    await register(store, "a", "b")

    async with dispatching(database):
        await settled(database)
        now = datetime.now(UTC)
        await database.transact(
            lambda connection: deliveries.redeliver(connection, "default", "hook", 1, now)
        )
        found = await settled(database)

    assert receiver.sequences == [1, 2, 1]
    assert receiver.received[0].headers["webhook-id"] == receiver.received[2].headers["webhook-id"]
    assert (found[1].state, found[1].attempts, found[1].last_error) == (State.DELIVERED, 1, "")


async def test_a_redirect_is_a_failure(store, database, receiver):
    async with receiving() as target:
        await add(database, receiver.url)
        receiver.answers = lambda _number: answer(307, f"location: {target.url}")
        await register(store, "a")

        async with dispatching(database, backoff=Backoff(attempts=1)):
            found = await settled(database)

        assert (found[1].state, found[1].last_status) == (State.DEAD, 307)
        assert not target.received


async def test_a_slow_and_a_dead_receiver_delay_nobody_else(store, database, receiver):
    # Bound and not listening: it refuses, and nobody else can take the port meanwhile.
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        dead_url = f"http://127.0.0.1:{dead.getsockname()[1]}/hook"
        await _slow_and_dead_delay_nobody(store, database, receiver, dead_url)


async def _slow_and_dead_delay_nobody(store, database, receiver, dead_url: str) -> None:
    async with receiving() as slow:
        slow.may_answer.clear()
        await add(database, slow.url, "slow")
        await add(database, dead_url, "dead")
        await add(database, receiver.url)
        backoff = Backoff(attempts=100_000, first_s=0.01, factor=1.0)
        async with dispatching(database, sender=Sender(timeout_s=60, allow_private=True), backoff=backoff):
            await register(store, "a", "b", "c")
            await settled(database)
            assert receiver.sequences == [1, 2, 3]
            assert slow.sequences == [1]
            slow.may_answer.set()
            await settled(database, "slow")
            async with asyncio.timeout(60):
                # Before the end: an attempt that it cuts short is noted as that.
                while True:
                    undelivered = await listed(database, "dead")
                    if undelivered[1].last_error:
                        break
                    await asyncio.sleep(0.01)

        assert slow.sequences == [1, 2, 3]
        assert [each.state for each in undelivered.values()] == [State.PENDING] * 3
        assert undelivered[1].last_error.startswith("cannot connect: ")
        assert undelivered[2].attempts == 0


async def test_only_so_many_are_under_way_at_once(store, database, watched, receiver):
    for number in range(5):
        await add(database, receiver.url, f"hook-{number}")
    receiver.may_answer.clear()
    await register(store, "a")

    async with dispatching(watched, concurrency=3):
        await receiver.has(3)
        await watched.rounds(5)  # a fourth would come now
        assert len(receiver.received) == 3
        receiver.may_answer.set()
        await receiver.has(5)

    assert receiver.most_at_once == 3


async def test_two_dispatchers_share_the_work_and_send_nothing_twice(store, database, database_url, receiver):
    names = [f"hook-{number}" for number in range(3)]
    for name in names:
        await add(database, receiver.url + f"?{name}", name)
    other = Database(database_url, schema="registry")
    try:
        async with dispatching(database), dispatching(other):
            for number in range(10):
                await register(store, f"m-{number}")
            for name in names:
                await settled(database, name)
    finally:
        await other.close()

    for name in names:
        got = [received.sequence for received in receiver.received if received.target == f"/hook?{name}"]
        assert got == list(range(1, 11))


async def test_a_claim_that_nobody_settles_is_respected_and_then_taken_over(
    store, database, watched, receiver
):
    await add(database, receiver.url)
    await register(store, "a", "b")
    now = datetime.now(UTC)
    lost = await database.transact(
        lambda connection: deliveries.claim(connection, ("default", "hook"), "lost", now)
    )
    assert lost

    async with dispatching(watched, lease_s=3600):
        await watched.rounds(5)
    assert receiver.sequences == []

    async with dispatching(database, lease_s=0.05):
        found = await settled(database)
    assert receiver.sequences == [1, 2]
    assert [found[1].attempts, found[2].attempts] == [2, 1]


async def test_a_slow_receiver_is_not_taken_for_a_lost_sender(store, database, watched, receiver):
    await add(database, receiver.url)
    await register(store, "a")
    receiver.may_answer.clear()

    async with dispatching(watched, lease_s=0.05):
        await receiver.has(1)
        await watched.rounds(10)  # of 0.02 s: several leases
        receiver.may_answer.set()
        found = await settled(database)

    assert receiver.sequences == [1]
    assert (found[1].state, found[1].attempts) == (State.DELIVERED, 1)


async def test_a_lease_outlives_any_clock(store, database, receiver):
    """The claim is from a machine whose clock is wrong by decades."""
    await add(database, receiver.url)
    await register(store, "a")
    future = datetime(2100, 1, 1, tzinfo=UTC)
    await database.transact(
        lambda connection: deliveries.claim(connection, ("default", "hook"), "lost", future)
    )

    async with dispatching(database, lease_s=0.2):
        await settled(database)

    assert receiver.sequences == [1]


_PROCESS = """
import asyncio, sys
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.handlers.signals import Signal
from neuroweaver.registry.dispatch.dispatcher import Dispatcher
from neuroweaver.registry.dispatch.sender import Sender
from neuroweaver.registry.domain.sealing import Seal
asyncio.run(Dispatcher(Database(sys.argv[1], schema="registry"), Sender(allow_private=True), Seal(b"k" * 64)).run())
"""


async def test_what_a_killed_process_was_sending_is_sent_again(store, database, database_url, receiver):
    await add(database, receiver.url)
    await register(store, "a", "b")
    receiver.may_answer.clear()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PROCESS, database_url, env=environment
    )
    try:
        await receiver.has(1)
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    assert (await listed(database))[1].claim
    receiver.may_answer.set()

    async with dispatching(database, lease_s=0.2):
        found = await settled(database)

    assert receiver.sequences == [1, 1, 2]
    assert receiver.received[0].headers["webhook-id"] == receiver.received[1].headers["webhook-id"]
    assert [each.state for each in found.values()] == [State.DELIVERED] * 2
    assert found[1].attempts == 2


async def test_a_secret_that_another_key_sealed_signs_nothing_and_says_so(store, database, receiver):
    webhook = Webhook(webhook_id="hook", url=receiver.url, create_time=datetime.now(UTC))
    foreign = Seal(b"f" * 64).seal(new_secret(), "default", "hook")
    await database.transact(lambda connection: deliveries.add(connection, "default", webhook, foreign))
    await register(store, "a")

    async with dispatching(database, backoff=Backoff(attempts=1)):
        found = await settled(database)

    assert (found[1].state, receiver.received) == (State.DEAD, [])
    assert "another key" in found[1].last_error


async def test_what_is_under_way_when_the_server_stops_is_sent_again_soon(store, database, receiver):
    await add(database, receiver.url)
    await register(store, "a")
    receiver.may_answer.clear()
    async with dispatching(database):
        await receiver.has(1)

    stopped = (await listed(database))[1]
    assert (stopped.state, stopped.claim, stopped.attempts) == (State.PENDING, None, 1)
    assert stopped.last_error == "the server stopped while it waited for the answer"

    receiver.may_answer.set()
    async with dispatching(database):
        await settled(database)
    assert receiver.sequences == [1, 1]


async def test_a_webhook_that_is_deleted_meanwhile_is_left_alone(store, database, receiver):
    await add(database, receiver.url)
    await register(store, "a", "b")
    receiver.may_answer.clear()
    async with dispatching(database):
        await receiver.has(1)
        await database.transact(lambda connection: deliveries.remove(connection, "default", "hook"))
        receiver.may_answer.set()
        await add(database, receiver.url)
        await register(store, "c")
        found = await settled(database)

    assert receiver.sequences == [1, 3]
    assert list(found) == [3]


async def test_a_change_that_is_no_longer_kept_is_a_dead_letter(store, database, receiver):
    await add(database, receiver.url)
    await register(store, "a", "b")
    await database.transact(
        lambda connection: connection.execute(
            delete(tables.model_events).where(tables.model_events.c.sequence == 1)
        )
    )

    async with dispatching(database):
        found = await settled(database)

    assert [found[1].state, found[1].attempts] == [State.DEAD, 1]
    assert found[1].last_error == "the change no longer exists"
    assert receiver.sequences == [2]


async def test_an_address_inside_is_refused_unless_the_operator_allows_it(store, database):
    await add(database, "https://127.0.0.1:1/hook")
    await register(store, "a", "b")

    async with dispatching(database, sender=Sender(), backoff=Backoff(attempts=1)):
        found = await settled(database)
    assert found[1].last_error.startswith("the host has an address that is not public")

    now = datetime.now(UTC)
    await database.transact(lambda connection: deliveries.redeliver(connection, "default", "hook", 1, now))
    async with dispatching(database, sender=Sender(allow_private=True), backoff=Backoff(attempts=1)):
        found = await settled(database)
    assert found[1].last_error.startswith("cannot connect: ")


class Unwell(Database):
    """A database that cannot be reached for a while."""

    def __init__(self, url: str, **more):
        super().__init__(url, **more)
        self.is_gone = False
        self.refused = asyncio.Event()

    refusal = OperationalError("SELECT", {}, Exception("gone"))

    @asynccontextmanager
    async def read(self):
        if self.is_gone:
            raise self.refusal
        async with super().read() as connection:
            yield connection

    async def transact(self, work, **more):
        if self.is_gone:
            self.refused.set()
            raise self.refusal
        return await super().transact(work, **more)


async def test_a_database_that_comes_back_finds_the_dispatcher_there(store, database, database_url, receiver):
    unwell = Unwell(database_url, schema="registry")
    await add(database, receiver.url)
    receiver.may_answer.clear()
    try:
        async with dispatching(unwell, lease_s=0.2):
            await register(store, "a")
            await receiver.has(1)
            unwell.is_gone = True  # between the sending and the note of it
            receiver.may_answer.set()
            await unwell.refused.wait()
            assert (await listed(database))[1].claim
            unwell.is_gone = False
            await register(store, "b")
            await settled(database)
    finally:
        await unwell.close()

    assert receiver.sequences == [1, 1, 2]
