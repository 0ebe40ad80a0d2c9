from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from semver import Version
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.migrations import migrate
from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.handlers.heartbeats import Heartbeats
from neuroweaver.mesh.wire.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.registry import messages
from neuroweaver.registry.domain.history import GENESIS, Head
from neuroweaver.registry.domain.model import Draft, Metric, Model, ModelVersion, State
from neuroweaver.registry.domain.versions import Level
from neuroweaver.registry.rpc.changes import changes as feed
from neuroweaver.registry.storage import tables, writer
from neuroweaver.registry.storage.reader import Reader
from neuroweaver.registry.storage.store import Store
from neuroweaver.registry.storage.writer import Writer

ORIGIN = ChangeOrigin("default", "ada", "because", "0" * 32)


async def register(store: Store, model_id: str = "advisor", origin: ChangeOrigin = ORIGIN, **fields) -> Model:
    return await store.transact(
        origin,
        lambda registry: registry.add_model(
            Model(model_id=model_id, create_time=registry.now, update_time=registry.now, **fields)
        ),
    )


async def create(store: Store, *numbers: str, model_id: str = "advisor", **fields) -> list[ModelVersion]:
    async def work(registry: Writer) -> list[ModelVersion]:
        return [
            await registry.add_version(
                Draft(**fields).as_version(model_id, Version.parse(number), None, registry.now)
            )
            for number in numbers
        ]

    return await store.transact(ORIGIN, work)


async def bump(store: Store, level: Level, label: str = "rc", from_version: str = "") -> ModelVersion:
    async def work(registry: Writer) -> ModelVersion:
        base = (
            await registry.version("advisor", Version.parse(from_version))
            if from_version
            else await registry.latest("advisor")
        )
        number = await registry.next_version("advisor", level, base, label=label)
        return await registry.add_version(Draft().as_version("advisor", number, base, registry.now))

    return await store.transact(ORIGIN, work)


async def hide(store: Store, number: str) -> None:
    async def work(registry: Writer) -> None:
        before = await registry.version("advisor", Version.parse(number))
        await registry.save_version("version.deleted", before, replace(before, delete_time=registry.now))

    await store.transact(ORIGIN, work)


async def listed(store: Store, *, size: int = 1000, order_by: str = "version desc", terms=()) -> list[str]:
    """All versions, page by page."""
    found: list[str] = []
    token = ""
    while True:
        async with store.read("default") as registry:
            page = Page.of(size, token, query=("q",))
            versions, token = await registry.versions("advisor", page, order_by=order_by, terms=terms)
        assert len(versions) <= size
        found += [str(version.version) for version in versions]
        if not token:
            return found


async def latest(store: Store) -> str:
    async with store.read("default") as registry:
        found = await registry.latest("advisor")
        model = await registry.model("advisor")
    assert (str(found.version) if found else "") == model.latest_version
    return model.latest_version


async def selected(store: Store, selector: str) -> str:
    async with store.read("default") as registry:
        return str((await registry.selected("advisor", selector)).version)


async def test_the_migrations_make_the_tables_that_the_queries_speak_of(database: Database):
    def difference(connection) -> object:
        options = {"compare_type": True, "include_name": lambda name, kind, _: name != "alembic_version"}
        return compare_metadata(MigrationContext.configure(connection, opts=options), tables.METADATA)

    async with database.read() as connection:
        assert await connection.run_sync(difference) == []


async def test_a_model_is_what_was_registered(store: Store):
    model = await register(store, description="größer\n", tags={"team": "service"})

    async with store.read("default") as registry:
        assert await registry.model("advisor") == model
    assert (model.description, model.tags, model.latest_version) == ("größer\n", {"team": "service"}, "")


async def test_a_model_is_registered_once(store: Store):
    await register(store)

    with pytest.raises(AlreadyExists):
        await register(store)


async def test_projects_do_not_see_each_other(store: Store):
    await register(store)
    other = ChangeOrigin("other", "eve")

    async with store.read("other") as registry:
        with pytest.raises(NotFound):
            await registry.model("advisor")
        assert (await registry.models(Page.of(0, "", ["q"])))[0] == []
        assert (await registry.history(Page.of(0, "", ["q"])))[0] == []
    assert (await register(store, origin=other)).etag == "1"


async def test_models_are_listed_by_id_in_pages(store: Store):
    names = [f"m-{number}" for number in range(7)] + ["a", "zz"]
    for name in names:
        await register(store, name)

    found: list[str] = []
    token = ""
    while True:
        async with store.read("default") as registry:
            models, token = await registry.models(Page.of(2, token, ["q"]))
        found += [model.model_id for model in models]
        if not token:
            break
    assert found == sorted(names)


async def test_models_are_found_by_tags(store: Store):
    await register(store, "a", tags={"team": "x", "site": "1"})
    await register(store, "b", tags={"team": "x", "site": "2"})
    await register(store, "c", tags={"team": "y", "site": "1"})

    async def having(*terms: tuple[str, str]) -> list[str]:
        async with store.read("default") as registry:
            models, _ = await registry.models(Page.of(0, "", ["q"]), terms)
        return [model.model_id for model in models]

    assert await having(("tags.team", "x")) == ["a", "b"]
    assert await having(("tags.team", "x"), ("tags.site", "1")) == ["a"]
    assert await having(("tags.team", "X")) == []


async def test_a_version_is_created_once(store: Store):
    await register(store)
    await create(store, "1.0.0")

    with pytest.raises(AlreadyExists):
        await create(store, "1.0.0")


async def test_versions_that_differ_in_build_metadata_alone_are_one_version(store: Store):
    await register(store)
    await create(store, "1.0.0+a")

    with pytest.raises(AlreadyExists):
        await create(store, "1.0.0+b")
    assert await selected(store, "1.0.0") == "1.0.0+a"
    assert await selected(store, "1.0.0+a") == "1.0.0+a"
    with pytest.raises(NotFound):
        await selected(store, "1.0.0+b")


async def test_a_failed_transaction_leaves_nothing(store: Store):
    await register(store)

    with pytest.raises(AlreadyExists):
        await create(store, "1.0.0", "1.1.0", "1.0.0")

    assert await listed(store) == []
    async with store.read("default") as registry:
        assert len(await registry.events(0, 100)) == 1
        assert (await registry.verified()).events == 1


NUMBERS = ["1.10.0", "1.9.0", "1.0.0-rc.10", "1.0.0-rc.9", "2.0.0-alpha", "1.0.0", "0.9.9"]
DESCENDING = ["2.0.0-alpha", "1.10.0", "1.9.0", "1.0.0", "1.0.0-rc.10", "1.0.0-rc.9", "0.9.9"]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_versions_are_listed_by_precedence_in_pages(store: Store, size: int):
    await register(store)
    await create(store, *NUMBERS)

    assert await listed(store, size=size) == DESCENDING
    assert await listed(store, size=size, order_by="version") == DESCENDING[::-1]


async def test_versions_are_listed_by_time(database: Database):
    tick = count()
    start = datetime(2030, 1, 1, tzinfo=UTC)
    store = Store(database, clock=lambda: start + timedelta(seconds=next(tick) // 2))
    await register(store)
    for number in NUMBERS:
        await create(store, number)

    found = await listed(store, size=2, order_by="create_time desc")

    newest_first = ["1.0.0", "0.9.9", "2.0.0-alpha", "1.0.0-rc.9", "1.9.0", "1.0.0-rc.10", "1.10.0"]
    assert found == newest_first  # of two of the same second, the higher one first


async def test_versions_are_found_by_state_range_and_tags(store: Store):
    await register(store)
    await create(store, "1.0.0", "1.1.0", "2.0.0", tags={"team": "x"})
    await create(store, "1.2.0", "1.3.0-rc.1", tags={"team": "y"})

    assert await listed(store, terms=[("range", "^1.1")]) == ["1.2.0", "1.1.0"]
    assert await listed(store, terms=[("tags.team", "x"), ("range", "^1")]) == ["1.1.0", "1.0.0"]
    assert await listed(store, terms=[("state", "DRAFT"), ("tags.team", "y")]) == ["1.3.0-rc.1", "1.2.0"]
    assert await listed(store, terms=[("state", "TRAINED")]) == []
    with pytest.raises(InvalidArgument):
        await listed(store, terms=[("range", "1.2")])


async def test_the_tags_of_a_model_are_not_those_of_its_versions(store: Store):
    await register(store, tags={"team": "x"})
    await create(store, "1.0.0")

    assert await listed(store, terms=[("tags.team", "x")]) == []


async def test_a_page_ends_before_it_grows_too_large_for_a_message(store: Store):
    await register(store)
    for number in range(6):
        await create(store, f"1.{number}.0", config={"x": "y" * 250_000})

    async with store.read("default") as registry:
        versions, token = await registry.versions("advisor", Page.of(1000, "", ["q"]))
        events = await registry.events(0, 256)
    assert 1 < len(versions) < 6
    assert token
    assert len(events) < 7
    assert len(await listed(store)) == 6


async def test_a_version_too_large_for_a_message_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch):
    await register(store)
    metrics = {"loss": Metric(value=1.0, samples=tuple(map(float, range(1000))))}
    await create(store, "1.0.0", metrics=metrics)

    monkeypatch.setattr(writer, "MAX_RECORD_CHARACTERS", 5000)
    with pytest.raises(InvalidArgument, match="larger than 5000"):
        await create(store, "1.1.0", metrics=metrics)


async def test_latest_is_the_highest_and_not_the_newest(store: Store):
    await register(store)
    assert await latest(store) == ""

    await create(store, "2.0.0", "1.9.0")
    assert await latest(store) == "2.0.0"
    await create(store, "2.1.0-rc.1")
    assert await latest(store) == "2.1.0-rc.1"


async def test_versions_are_selected(store: Store):
    await register(store)
    with pytest.raises(NotFound):
        await selected(store, "latest")

    await create(store, "1.0.0", "1.2.0", "1.3.0-rc.1", "2.0.0")

    assert await selected(store, "latest") == "2.0.0"
    assert await selected(store, "^1") == "1.2.0"
    assert await selected(store, ">=1.3.0-rc.1,<2") == "1.3.0-rc.1"
    assert await selected(store, "1.3.0-rc.1") == "1.3.0-rc.1"
    with pytest.raises(NotFound):
        await selected(store, "^3")
    with pytest.raises(InvalidArgument):
        await selected(store, "1.2")
    with pytest.raises(NotFound):
        await selected(store, "@production")


async def test_raising_begins_with_1_0_0_and_goes_on(store: Store):
    await register(store)

    steps = [
        Level.MINOR,
        Level.MINOR,
        Level.PATCH,
        Level.PRERELEASE,
        Level.PRERELEASE,
        Level.PATCH,
        Level.MAJOR,
    ]
    made = [await bump(store, level) for level in steps]

    assert [str(version.version) for version in made] == [
        "1.0.0", "1.1.0", "1.1.1", "1.1.2-rc.1", "1.1.2-rc.2", "1.1.2", "2.0.0",
    ]  # fmt: skip
    assert [version.parent_version for version in made] == [
        "",
        *(str(version.version) for version in made[:-1]),
    ]


@pytest.mark.parametrize(
    ("base", "level", "expected"),
    [
        ("1.0.0", Level.PATCH, "1.0.6"),
        ("1.0.0", Level.MINOR, "1.3.0"),
        ("1.0.0", Level.MAJOR, "3.0.0"),
        ("1.2.0", Level.PATCH, "1.2.1"),
        ("1.0.0", Level.PRERELEASE, "1.0.1-rc.1"),
        ("2.1.0-rc.1", Level.PRERELEASE, "2.1.0-rc.4"),
        ("2.1.0-rc.1", Level.MINOR, "2.1.0"),
    ],
)
async def test_raising_an_earlier_version_takes_the_first_free_one_of_its_line(store, base, level, expected):
    await register(store)
    await create(
        store, "1.0.0", "1.0.1", "1.0.5", "1.1.0", "1.2.0", "2.0.0", "2.1.0-rc.1", "2.1.0-rc.2", "2.1.0-rc.3"
    )

    assert str((await bump(store, level, from_version=base)).version) == expected


async def test_a_hidden_version_keeps_its_number(store: Store):
    await register(store)
    await create(store, "1.0.0", "1.1.0")
    await hide(store, "1.1.0")

    assert await latest(store) == "1.0.0"
    with pytest.raises(NotFound):
        await selected(store, "1.1.0")
    with pytest.raises(AlreadyExists):
        await create(store, "1.1.0")
    assert str((await bump(store, Level.MINOR)).version) == "1.2.0"


async def test_raising_the_last_possible_version_is_refused(store: Store):
    await register(store)
    await create(store, f"{10**18 - 1}.0.0")

    with pytest.raises(FailedPrecondition):
        await bump(store, Level.MAJOR)


async def test_concurrent_writers_each_get_a_version_of_their_own(database: Database, database_url: str):
    """Eight writers in two processes' stead: two stores that share nothing but the database."""
    second = Database(database_url, schema="registry")
    stores = [Store(database), Store(second)]
    await register(stores[0])

    async def writer(number: int) -> list[ModelVersion]:
        return [await bump(stores[number % 2], list(Level)[(number + step) % 4]) for step in range(25)]

    made = [version for versions in await asyncio.gather(*map(writer, range(8))) for version in versions]

    numbers = Counter(str(version.version) for version in made)
    assert len(numbers) == 200
    ascending = await listed(stores[0], order_by="version")
    assert set(ascending) == set(numbers)
    # One line: each was raised from the one before it.
    parents = {str(version.version): version.parent_version for version in made}
    assert [parents[number] for number in ascending] == ["", *ascending[:-1]]
    assert sorted(int(version.etag) for version in made) == list(range(2, 202))
    async with stores[1].read("default") as registry:
        verdict = await registry.verified()
    assert (verdict.events, verdict.first_bad_sequence) == (201, 0)
    await second.close()


async def test_the_history_says_who_what_when_and_why(store: Store):
    before = datetime.now(UTC)
    await register(store, description="d")
    await create(store, "1.0.0", tags={"team": "x"})

    async with store.read("default") as registry:
        (created, registered), token = await registry.history(Page.of(0, "", ["q"]), model_id="advisor")
        (only,), _ = await registry.history(Page.of(0, "", ["q"]), model_id="advisor", version="1.0.0")

    assert token == ""
    assert only == created
    assert (registered.sequence, registered.action, registered.version) == (1, "model.registered", "")
    assert registered.previous_hash == GENESIS
    assert (created.sequence, created.action, created.version) == (2, "version.created", "1.0.0")
    assert created.previous_hash == registered.hash
    assert (created.actor, created.reason, created.trace_id) == ("ada", "because", "0" * 32)
    assert before <= registered.time <= created.time <= datetime.now(UTC)
    changes = {change.path: (change.a, change.b) for change in created.listed_changes()}
    assert changes["tags.team"] == (None, "x")


async def test_the_chain_is_listed_oldest_first_and_by_terms(store: Store):
    await register(store, "a")
    await register(store, "advisor")
    await create(store, "1.0.0")

    async with store.read("default") as registry:
        events, token = await registry.history(Page.of(2, "", ["q"]))
        rest, _ = await registry.history(Page.of(2, token, ["q"]))
        registered, _ = await registry.history(
            Page.of(9, "", ["q"]), terms=[("action", "model.registered"), ("actor", "ada")]
        )
    assert [event.sequence for event in [*events, *rest]] == [1, 2, 3]
    assert [event.model_id for event in registered] == ["a", "advisor"]


@pytest.mark.parametrize("statement", ["UPDATE audit_events SET actor = 'eve'", "DELETE FROM audit_events"])
async def test_the_history_can_only_grow(store: Store, database: Database, statement: str):
    await register(store)

    with pytest.raises(DBAPIError, match="append-only"):
        async with database.write() as connection:
            await connection.execute(text(statement))

    async with store.read("default") as registry:
        assert (await registry.verified()).first_bad_sequence == 0


async def test_an_event_edited_behind_the_stores_back_is_found(store: Store, database: Database):
    await register(store)
    await create(store, "1.0.0", "1.1.0")
    drop = (
        "DROP TRIGGER audit_events_no_update"
        if database.is_sqlite
        else "DROP TRIGGER audit_events_append_only ON audit_events"
    )
    async with database.write() as connection:
        await connection.execute(text(drop))
        await connection.execute(text("UPDATE audit_events SET actor = 'eve' WHERE sequence = 2"))

    async with store.read("default") as registry:
        verdict = await registry.verified()
    assert (verdict.first_bad_sequence, verdict.explanation) == (2, "event 2 was edited")


async def test_a_saved_version_replaces_what_was_and_its_tags(store: Store):
    await register(store)
    (created,) = await create(store, "1.0.0", tags={"team": "x"})

    async def work(registry: Writer) -> ModelVersion:
        return await registry.save_version("version.updated", created, replace(created, tags={"team": "y"}))

    saved = await store.transact(ORIGIN, work)

    assert saved.etag != created.etag
    assert saved.create_time == created.create_time
    assert await listed(store, terms=[("tags.team", "y")]) == ["1.0.0"]
    assert await listed(store, terms=[("tags.team", "x")]) == []


async def test_a_watch_replays_the_history_and_goes_on(store: Store):
    await register(store)
    await create(store, "1.0.0")

    watching = feed(store, "default", "", 0)
    first, second = await anext(watching), await anext(watching)
    assert (first.sequence, first.action, first.model.model_id) == (1, "model.registered", "advisor")
    assert (second.sequence, second.action, second.version.version) == (2, "version.created", "1.0.0")

    waiting = asyncio.ensure_future(anext(watching))
    await asyncio.sleep(0)
    (created,) = await create(store, "1.1.0")
    assert (await waiting).version == messages.from_version(created)
    await watching.aclose()


async def test_a_watch_shows_a_subject_as_it_was_after_each_change(store: Store):
    await register(store)
    (created,) = await create(store, "1.0.0")

    async def measure(registry: Writer) -> ModelVersion:
        before = await registry.version("advisor", created.version)
        return await registry.save_version(
            "version.measured", before, before.measured({"loss": Metric(value=0.5)})
        )

    measured = await store.transact(ORIGIN, measure)

    async with store.read("default") as registry:
        events = await registry.events(1, 10)
    assert [event.subject for event in events] == [created, measured]


async def test_a_watch_of_one_model_hears_of_no_other(store: Store):
    for name in ("a", "advisor", "b"):
        await register(store, name)
    await create(store, "1.0.0")

    watching = feed(store, "default", "advisor", 0)
    assert [(await anext(watching)).sequence for _ in range(2)] == [2, 4]
    await watching.aclose()


async def test_a_watch_of_one_model_reads_that_models_events_alone(store: Store):
    for number in range(40):
        await register(store, f"other-{number}")
    await register(store, "advisor")
    async with store.read("default") as registry:
        assert [event.sequence for event in await registry.events(0, 3, "advisor")] == [41]


async def test_few_watches_read_the_past_at_once(store: Store, monkeypatch: pytest.MonkeyPatch):
    for number in range(4):
        await register(store, f"m{number}")
    under_way, most, events_of = 0, 0, Reader.events

    async def events(self: Reader, *asked: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        found = await events_of(self, *asked)
        under_way -= 1
        return found

    monkeypatch.setattr(Reader, "events", events)
    watches = [feed(store, "default", "m1", 0) for _ in range(20)]
    first = await asyncio.gather(*(anext(watch) for watch in watches))
    assert [event.sequence for event in first] == [2] * 20
    assert most == 2
    for watch in watches:
        await watch.aclose()


async def test_however_many_watch_a_change_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch):
    reads, read = 0, store.read

    def counted(project: str):
        nonlocal reads
        reads += 1
        return read(project)

    async def sequences(model_id: str) -> list[int]:
        async with aclosing(feed(store, "default", model_id, 3)) as watching:
            return [(await anext(watching)).sequence]

    async def wait(count: int) -> None:
        """Until so many wait for what comes."""
        async with asyncio.timeout(60):
            while len(store.topics._topics["default"]._waiting) != count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    for name in ("a", "advisor", "b"):
        await register(store, name)
    monkeypatch.setattr(store, "read", counted)
    tasks = [asyncio.create_task(sequences(name)) for name in ["", "advisor", "b"] * 20]
    await asyncio.sleep(0)
    await wait(60)
    joined = reads

    await create(store, "1.0.0")
    assert await asyncio.wait_for(asyncio.gather(*tasks[0::3], *tasks[1::3]), 60) == [[4]] * 40
    await wait(20)
    assert reads == joined + 1
    await store.transact(ORIGIN, lambda registry: _described(registry, "b"))
    assert await asyncio.wait_for(asyncio.gather(*tasks[2::3]), 60) == [[5]] * 20
    assert reads == joined + 2


async def _described(registry: Writer, model_id: str) -> Model:
    before = await registry.model(model_id)
    return await registry.save_model("model.updated", before, replace(before, description="another"))


async def test_a_watch_of_a_quiet_model_is_told_how_far_the_others_are(store: Store):
    for number in range(3):
        await register(store, f"other-{number}")

    store.topics.heartbeats = Heartbeats(0.01)
    watching = feed(store, "default", "advisor", 0)
    heard = [await anext(watching) for _ in range(3)]
    assert [(event.sequence, event.heartbeat.sequence) for event in heard] == [(3, 3)] * 3
    await watching.aclose()


async def test_states_are_kept(store: Store):
    await register(store)
    (created,) = await create(store, "1.0.0")

    async def work(registry: Writer) -> ModelVersion:
        before = await registry.version("advisor", created.version)
        return await registry.save_version("version.state_changed", before, before.moved_to(State.ARCHIVED))

    await store.transact(ORIGIN, work)

    assert await listed(store, terms=[("state", "ARCHIVED")]) == ["1.0.0"]


async def test_processes_that_start_together_migrate_once(database_url: str):
    databases = [Database(database_url, schema="registry") for _ in range(3)]

    await asyncio.gather(*(migrate(database, "neuroweaver.registry") for database in databases))

    await register(Store(databases[0]))
    for database in databases:
        await database.close()


async def test_a_project_begun_by_two_at_once_has_one_chain(database: Database, database_url: str):
    second = Database(database_url, schema="registry")

    made = await asyncio.gather(register(Store(database), "a"), register(Store(second), "b"))

    assert sorted(model.etag for model in made) == ["1", "2"]
    await second.close()


async def test_a_noted_head_is_still_part_of_the_chain(store: Store):
    await register(store)
    async with store.read("default") as registry:
        noted = (await registry.verified()).head
    await create(store, "1.0.0", "1.1.0")

    async with store.read("default") as registry:
        assert (await registry.verified(noted)).first_bad_sequence == 0
        assert (await registry.verified(Head(1, "f" * 64))).first_bad_sequence == 1
        assert (await registry.verified(Head(9, "f" * 64))).first_bad_sequence == 4
