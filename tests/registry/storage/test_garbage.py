"""What is cleared away, and what never is."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from semver import Version

from neuroweaver.mesh.auth.caller import Caller
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.wire.errors import OutOfRange
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.registry import housekeeping
from neuroweaver.registry.artifacts.store import ArtifactStore
from neuroweaver.registry.domain.aliases import moved
from neuroweaver.registry.domain.model import Artifact, Draft, Model
from neuroweaver.registry.rpc.changes import changes
from neuroweaver.registry.storage.store import Store
from neuroweaver.registry.storage.writer import Writer
from registry.calls import create, download, refusal, register, safetensors, upload

ORIGIN = ChangeOrigin("default", "ada")
START = datetime(2026, 1, 1, tzinfo=UTC)
CALLER = Caller("default", "ada")
DAY = timedelta(days=1)


class Clock:
    """Stands still until it is told a time."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Database, clock: Clock) -> Store:
    return Store(database, clock=clock)


def digest(letter: str) -> str:
    return letter * 64


async def version_with(store: Store, number: str, *digests: str) -> None:
    artifacts = [
        Artifact(path=f"{index}.txt", digest=each, size_bytes=1) for index, each in enumerate(digests)
    ]

    async def work(registry: Writer) -> None:
        if await registry.latest("advisor") is None:
            await registry.add_model(
                Model(model_id="advisor", create_time=registry.now, update_time=registry.now)
            )
        await registry.hold(digests)
        made = Draft(artifacts=artifacts).as_version("advisor", Version.parse(number), None, registry.now)
        await registry.add_version(made)

    await store.transact(ORIGIN, work)


async def collected(store: Store, now: datetime) -> list[str]:
    """What a collection deletes that spares what was used within a day, or hidden within thirty."""
    deleted: list[str] = []

    async def delete(digest: str) -> None:
        deleted.append(digest)

    count = await store.collect(delete, unused_since=now - DAY, hidden_since=now - 30 * DAY)
    assert count == len(deleted)
    return sorted(deleted)


async def test_a_file_of_a_version_is_never_collected(store: Store, clock: Clock):
    await version_with(store, "1.0.0", digest("a"), digest("b"))
    await store.hold_file(digest("c"))

    assert await collected(store, START + timedelta(hours=23)) == []
    assert await collected(store, START + 365 * DAY) == [digest("c")]
    assert await collected(store, START + 365 * DAY) == []


async def test_a_file_asked_for_again_waits_again(store: Store, clock: Clock):
    await store.hold_file(digest("c"))
    clock.now = START + 10 * DAY
    await store.hold_file(digest("c"))
    assert await collected(store, clock.now + timedelta(hours=1)) == []
    assert await collected(store, clock.now + 2 * DAY) == [digest("c")]


async def test_a_deleted_version_holds_its_files_for_a_while(store: Store, clock: Clock):
    await version_with(store, "1.0.0", digest("a"), digest("b"))
    await version_with(store, "1.1.0", digest("b"))
    clock.now = START + 100 * DAY

    async def hide(registry: Writer) -> None:
        before = await registry.version("advisor", Version(1, 0, 0))
        await registry.save_version("version.deleted", before, before.hidden(registry.now))

    await store.transact(ORIGIN, hide)
    assert await collected(store, clock.now + 29 * DAY) == []
    # The other version still holds the second file.
    assert await collected(store, clock.now + 31 * DAY) == [digest("a")]


async def test_a_deleted_model_holds_its_files_for_a_while(store: Store, clock: Clock):
    await version_with(store, "1.0.0", digest("a"))

    async def hide(registry: Writer) -> None:
        before = await registry.model("advisor")
        await registry.save_model("model.deleted", before, before.hidden(registry.now, aliases=()))

    await store.transact(ORIGIN, hide)
    assert await collected(store, clock.now + 29 * DAY) == []
    assert await collected(store, clock.now + 31 * DAY) == [digest("a")]


async def test_more_files_than_one_sweep_takes_are_all_collected(store: Store):
    wanted = sorted(f"{number:064x}" for number in range(230))
    for each in wanted:
        await store.hold_file(each)
    assert await collected(store, START + 2 * DAY) == wanted


async def test_a_file_that_cannot_be_deleted_stays_known(store: Store):
    await store.hold_file(digest("a"))

    async def fail(_digest: str) -> None:
        raise OSError("read-only")

    with pytest.raises(OSError, match="read-only"):
        await store.collect(fail, unused_since=START + DAY, hidden_since=START)
    assert await collected(store, START + 2 * DAY) == [digest("a")]


async def test_whoever_wants_a_file_that_is_being_collected_finds_it_gone(
    database: Database, database_url: str, clock: Clock
):
    """And not going: the reader is held up until the file is really deleted."""
    store, other_process = Store(database, clock=clock), Database(database_url, schema="registry")
    await store.hold_file(digest("a"))
    clock.now = START + 2 * DAY
    files, seen = {digest("a")}, []
    deleting, release = asyncio.Event(), asyncio.Event()

    async def delete(digest: str) -> None:
        deleting.set()
        await release.wait()
        files.remove(digest)

    async def use() -> None:
        await deleting.wait()
        await Store(other_process, clock=clock).hold_file(digest("a"))
        seen.append(digest("a") in files)

    collecting = asyncio.create_task(
        store.collect(delete, unused_since=clock.now - DAY, hidden_since=clock.now)
    )
    using = asyncio.create_task(use())
    await deleting.wait()
    await asyncio.sleep(0.1)
    assert not using.done()
    release.set()
    await asyncio.gather(collecting, using)
    await other_process.close()

    assert seen == [False]


async def test_old_events_are_dropped_and_the_history_stays(store: Store, clock: Clock):
    await version_with(store, "1.0.0")
    clock.now = START + 100 * DAY
    await version_with(store, "1.1.0")

    assert await store.compact(START + DAY) == 2
    assert await store.compact(START + 1000 * DAY) == 0

    with pytest.raises(OutOfRange) as error:
        await anext(changes(store, "default", "", 0))
    assert error.value.metadata["oldest_sequence"] == "3"
    watch = changes(store, "default", "", 2)
    assert (await anext(watch)).sequence == 3
    await watch.aclose()
    async with store.read("default") as registry:
        assert (await registry.verified()).events == 3


@pytest.mark.parametrize(
    ("back", "expected"),
    [(timedelta(seconds=50), START), (DAY, START - DAY), (3653 * DAY, START - 3653 * DAY)],
)
async def test_time_stands_still_for_a_clock_that_is_a_little_behind_and_follows_one_set_back(
    store: Store, clock: Clock, back, expected
):
    await version_with(store, "1.0.0")
    clock.now = START - back
    await version_with(store, "1.1.0")
    async with store.read("default") as registry:
        found = await registry.version("advisor", Version(1, 1, 0))
    assert found.create_time == expected


async def test_the_past_of_an_alias_keeps_its_order_when_a_clock_that_ran_ahead_is_set_back(
    store: Store, clock: Clock
):
    numbers = ("1.0.0", "1.1.0", "1.2.0", "1.3.0")
    for number in numbers:
        await version_with(store, number)

    async def point(number: str) -> None:
        async def work(registry: Writer) -> None:
            current = await registry.alias("advisor", "staging")
            version = await registry.version("advisor", Version.parse(number))
            after = moved(current, "staging", version, caller=CALLER, now=registry.now)
            await registry.point(current, after)

        await store.transact(ORIGIN, work)

    async def at(moment) -> str:
        async with store.read("default") as registry:
            return str((await registry.pointed_at("advisor", "staging", moment)).version)

    await point("1.0.0")
    clock.now = START + 3653 * DAY
    await point("1.1.0")
    clock.now += DAY
    await point("1.2.0")
    clock.now = START + DAY
    await point("1.3.0")

    assert await at(None) == await at(START + 2 * DAY) == await at(START + 4000 * DAY) == "1.3.0"
    assert await at(START + DAY / 2) == "1.0.0"
    just_before = [await at(START + DAY - timedelta(microseconds=count)) for count in (3, 2, 1)]
    assert sorted(just_before) == just_before
    assert just_before[-1] == "1.2.0"


async def test_house_is_kept_in_a_running_server(registry, database: Database, tmp_path: Path):
    """Every chore once, with what lies in a real folder."""
    await register(registry)
    kept = await upload(registry, safetensors(b"kept"), "kept.safetensors")
    await create(registry, "1.0.0", artifacts=[kept])
    loose = await upload(registry, safetensors(b"loose"), "loose.safetensors")
    artifacts = ArtifactStore(tmp_path / "artifacts")
    later = datetime.now(UTC) + 400 * DAY

    done = {
        name: await chore() for name, chore in housekeeping.chores(Store(database), artifacts, later).items()
    }

    assert done == {"events": 1, "deliveries": 0, "parts": 0, "files": 1}
    assert (await download(registry, "kept.safetensors"))[1] == safetensors(b"kept")
    error = await refusal(create(registry, "1.1.0", artifacts=[loose]))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    # The same content is taken once more, as if it had never been there.
    assert (await upload(registry, safetensors(b"loose"), "loose.safetensors")).digest == loose.digest
    assert (await create(registry, "1.1.0", artifacts=[loose])).artifacts[0].digest == loose.digest
