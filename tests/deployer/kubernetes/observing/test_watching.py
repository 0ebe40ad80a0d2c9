from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from deployer.kubernetes.desired import KEY, NAME, spec, wanted
from deployer.kubernetes.fake import Fake, Fault
from neuroweaver.cluster import kinds
from neuroweaver.cluster.api import Api
from neuroweaver.deployer.domain.backend import Key
from neuroweaver.deployer.kubernetes.backend import KubernetesBackend
from neuroweaver.deployer.kubernetes.observing.watching import Backoff, Watcher
from neuroweaver.v1 import deployer_pb2 as pb


class Ear:
    def __init__(self) -> None:
        self.heard: asyncio.Queue[Key] = asyncio.Queue()

    async def hears(self, key: Key = KEY) -> None:
        async with asyncio.timeout(120):
            while await self.heard.get() != key:
                pass

    async def is_quiet(self) -> None:
        """All that was on its way has come."""
        while True:
            try:
                async with asyncio.timeout(0.5):
                    await self.heard.get()
            except TimeoutError:
                return


@pytest.fixture
async def ear(backend: KubernetesBackend, fake: Fake) -> AsyncIterator[Ear]:
    made = Ear()
    task = asyncio.create_task(backend.run(made.heard.put_nowait))
    async with asyncio.timeout(120):
        while len(fake.watches) < 10:  # noqa: ASYNC110  # the fake notifies nobody
            await asyncio.sleep(0.01)
    yield made
    assert not task.done(), task
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def touch(fake: Fake, value: str) -> None:
    fake.edit(kinds.SERVICE, NAME, ("metadata", "annotations", "touched"), value)


async def test_a_change_is_heard_of(backend: KubernetesBackend, fake: Fake, ear: Ear):
    await backend.apply(wanted())
    await ear.hears()
    await ear.is_quiet()
    touch(fake, "1")
    await ear.hears()


async def test_a_deployment_elsewhere_is_heard_of_once_it_is_known(
    backend: KubernetesBackend, fake: Fake, ear: Ear
):
    elsewhere = spec(kubernetes=pb.KubernetesOptions(namespace="other"))
    await backend.apply(replace(wanted(), spec=elsewhere))
    await ear.hears()


async def watched(fake: Fake, *namespaces: str) -> None:
    """Returns once just these are watched."""
    async with asyncio.timeout(120):
        while set(fake.watches.values()) != set(namespaces):  # noqa: ASYNC110  # the fake notifies nobody
            await asyncio.sleep(0.01)


async def test_a_namespace_is_watched_as_long_as_it_has_a_deployment(
    backend: KubernetesBackend, fake: Fake, ear: Ear
):
    elsewhere = spec(kubernetes=pb.KubernetesOptions(namespace="other"))
    await backend.plan(replace(wanted(), spec=elsewhere))
    await backend.apply(wanted())
    await watched(fake, "default")
    two = replace(KEY, name="two")
    await backend.apply(replace(wanted(), spec=elsewhere))
    await backend.observe(two, "nw-two", elsewhere)
    await watched(fake, "default", "other")
    while not await backend.remove(KEY, NAME, elsewhere):
        pass
    await ear.is_quiet()
    await watched(fake, "default", "other")
    assert await backend.remove(two, "nw-two", elsewhere)
    await watched(fake, "default")


async def test_any_number_of_namespaces_leaves_room_for_calls(
    backend: KubernetesBackend, fake: Fake, ear: Ear
):
    many = [f"team-{number}" for number in range(12)]
    for name in many:
        fake.put(kinds.NAMESPACE, {"metadata": {"name": name}})
        elsewhere = spec(kubernetes=pb.KubernetesOptions(namespace=name))
        await backend.observe(replace(KEY, name=name), NAME, elsewhere)
    await watched(fake, "default", *many)
    async with asyncio.timeout(120):
        while len(fake.watches) < 10 * (1 + len(many)):  # noqa: ASYNC110  # likewise
            await asyncio.sleep(0.01)
    await backend.apply(wanted())
    await ear.hears()


async def test_a_dropped_watch_goes_on_where_it_was(backend: KubernetesBackend, fake: Fake, ear: Ear):
    await backend.apply(wanted())
    await ear.is_quiet()
    lists = sum(1 for method, path in fake.calls if path.endswith("/services"))
    for number in range(3):
        fake.drop_watches()
        touch(fake, str(number))
        await ear.hears()
        await ear.is_quiet()
    assert sum(1 for method, path in fake.calls if path.endswith("/services")) >= lists + 3


async def test_what_vanished_while_nothing_was_watched_is_told_after_410(
    backend: KubernetesBackend, fake: Fake, ear: Ear
):
    await backend.apply(wanted())
    await ear.is_quiet()
    fake._drop(kinds.SERVICE, fake.get(kinds.SERVICE, NAME))
    fake.version += 10
    fake.forget_history()
    await ear.hears()
    await ear.is_quiet()
    await backend.apply(wanted())
    await ear.hears()


@pytest.mark.parametrize("status", [0, 410, 429, 500, 503])
async def test_a_watch_gets_over_faults(backend: KubernetesBackend, fake: Fake, ear: Ear, status: int):
    await backend.apply(wanted())
    await ear.is_quiet()
    fake.faults = [
        Fault(1, status, matches=lambda method, path: method == "GET" and path.endswith("/services"), times=4)
    ]
    fake.drop_watches()
    touch(fake, "after")
    await ear.hears()
    assert fake.faults[0].seen > 4


async def test_anothers_objects_are_not_heard_of(backend: KubernetesBackend, fake: Fake, ear: Ear):
    fake.put(kinds.SERVICE, {"metadata": {"name": "foreign", "labels": {"app": "x"}}})
    fake.put(
        kinds.POD,
        {
            "metadata": {
                "name": "ours-without-a-key",
                "labels": {"app.kubernetes.io/managed-by": "neuroweaver-deployer"},
            }
        },
    )
    await asyncio.sleep(0.3)
    assert ear.heard.empty()


async def test_a_moment_forgotten_again_and_again_is_not_asked_for_without_a_pause(api: Api, fake: Fake):
    waits: list[int] = []

    class Noting(Backoff):
        def wait_s(self, failures: int) -> float:
            waits.append(failures)
            return 0.01

    fake.faults = [Fault(1, 410, times=1000)]
    watcher = asyncio.create_task(Watcher(api, kinds.SERVICE, "default", lambda key: None, Noting()).run())
    async with asyncio.timeout(120):
        while fake.faults[0].seen < 5:  # noqa: ASYNC110  # the fake notifies nobody
            await asyncio.sleep(0.01)
    watcher.cancel()
    assert waits[:3] == [2, 3, 4]


@pytest.mark.parametrize(
    ("status", "words"), [(0, "a watch was lost"), (403, "a watch was refused")], ids=["lost", "refused"]
)
async def test_a_cluster_that_is_away_for_long_is_told_once_for_each_kind(
    backend: KubernetesBackend,
    fake: Fake,
    ear: Ear,
    caplog: pytest.LogCaptureFixture,
    status: int,
    words: str,
):
    caplog.set_level("INFO", "neuroweaver.deployer")
    services = Fault(1, status, matches=lambda _, path: path.endswith("/services"), times=1000)
    for spell in (1, 2):
        services.seen, fake.faults = 0, [services]
        fake.drop_watches()
        async with asyncio.timeout(120):
            while services.seen < 5:  # noqa: ASYNC110  # the fake notifies nobody
                await asyncio.sleep(0.01)
        told = [each.message for each in caplog.records if each.kind == "Service"]
        assert told.count(words) == spell
        fake.faults = []
        await backend.apply(wanted(generation=spell))
        await ear.hears()
        await ear.is_quiet()
