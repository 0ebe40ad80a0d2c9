from __future__ import annotations

import asyncio

import pytest

from deployer.kubernetes import schemas
from deployer.kubernetes.fake import Fake, Fault
from neuroweaver.cluster import kinds
from neuroweaver.cluster.api import Api
from neuroweaver.cluster.election import Election, Terms

# Short, so that tests are; no test goes by how long something took.
TERMS = Terms(lease_s=1.2, renew_s=0.8, retry_s=0.05)


class Work:
    """Notes who works, and that never two do."""

    def __init__(self) -> None:
        self.now: set[str] = set()
        self.began: asyncio.Queue[str] = asyncio.Queue()
        self.overlapped = False

    def of(self, name: str):
        async def work() -> None:
            self.overlapped = self.overlapped or bool(self.now)
            self.now.add(name)
            self.began.put_nowait(name)
            try:
                await asyncio.Event().wait()
            finally:
                self.now.discard(name)

        return work

    async def begins(self) -> str:
        async with asyncio.timeout(20):
            return await self.began.get()


async def ended(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_works_and_its_end_hands_over(fake: Fake, api: Api):
    work = Work()
    elections = {name: Election(api, "default", "deployer", name, TERMS) for name in ("a", "b", "c")}
    tasks = {name: asyncio.create_task(each.run(work.of(name))) for name, each in elections.items()}
    seen = []
    for _ in range(3):
        leader = await work.begins()
        assert elections[leader].is_leader
        assert sum(each.is_leader for each in elections.values()) == 1
        seen.append(leader)
        await ended(tasks[leader])
    assert set(seen) == {"a", "b", "c"}
    assert not work.overlapped
    (lease,) = fake.all(kinds.LEASE)
    assert lease["spec"]["holderIdentity"] == ""
    assert lease["spec"]["leaseTransitions"] >= 2
    for body in fake.bodies:
        schemas.check(body)


async def test_a_holder_that_vanished_is_followed_once_its_time_is_over(fake: Fake, api: Api):
    spec = {"holderIdentity": "dead", "leaseDurationSeconds": 1, "renewTime": "2999-01-01T00:00:00.000000Z"}
    fake.put(kinds.LEASE, {"metadata": {"name": "deployer"}, "spec": spec})
    work = Work()
    task = asyncio.create_task(Election(api, "default", "deployer", "a", TERMS).run(work.of("a")))
    assert await work.begins() == "a"
    await ended(task)


async def test_a_holder_that_renews_is_never_followed(fake: Fake, api: Api):
    spec = {"holderIdentity": "other", "leaseDurationSeconds": 1}
    fake.put(kinds.LEASE, {"metadata": {"name": "deployer"}, "spec": spec})
    work = Work()
    task = asyncio.create_task(Election(api, "default", "deployer", "a", TERMS).run(work.of("a")))
    for number in range(20):
        fake.put(
            kinds.LEASE,
            {
                "metadata": {"name": "deployer"},
                "spec": spec | {"renewTime": f"2026-01-01T00:00:{number:02}.000000Z"},
            },
        )
        await asyncio.sleep(0.1)
    assert work.began.empty()
    await ended(task)


async def test_a_leader_that_cannot_renew_stops_before_another_begins(fake: Fake, api: Api):
    work = Work()
    election = Election(api, "default", "deployer", "a", TERMS)
    task = asyncio.create_task(election.run(work.of("a")))
    await work.begins()
    fake.faults = [Fault(1, 500, matches=lambda method, path: "leases" in path, times=10_000)]
    async with asyncio.timeout(20):
        while work.now:  # noqa: ASYNC110  # the work notifies nobody
            await asyncio.sleep(0.01)
    assert not election.is_leader
    fake.faults = []
    assert await work.begins() == "a"
    await ended(task)


async def test_a_lost_lease_ends_the_work(fake: Fake, api: Api):
    work = Work()
    task = asyncio.create_task(Election(api, "default", "deployer", "a", TERMS).run(work.of("a")))
    await work.begins()
    fake.put(
        kinds.LEASE,
        {"metadata": {"name": "deployer"}, "spec": {"holderIdentity": "thief", "leaseDurationSeconds": 60}},
    )
    async with asyncio.timeout(20):
        while work.now:  # noqa: ASYNC110  # the work notifies nobody
            await asyncio.sleep(0.01)
    await ended(task)
    assert fake.get(kinds.LEASE, "deployer")["spec"]["holderIdentity"] == "thief"


async def test_the_works_own_error_ends_the_election(fake: Fake, api: Api):
    async def broken() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await Election(api, "default", "deployer", "a", TERMS).run(broken)
    assert fake.get(kinds.LEASE, "deployer")["spec"]["holderIdentity"] == ""


def test_terms_that_would_let_two_work_are_refused():
    for terms in ({"lease_s": 1, "renew_s": 2}, {"renew_s": 1, "retry_s": 2}):
        with pytest.raises(ValueError, match="must rise"):
            Terms(**terms)
