from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from deployer.worlds import KEY, deploy, served
from neuroweaver.deployer.rpc.watches import Watches
from neuroweaver.mesh.handlers.heartbeats import Heartbeats
from neuroweaver.mesh.handlers.watch import PAGE_SIZE
from neuroweaver.v1 import deployer_pb2 as pb


async def made_anew(lone):
    await lone.deployer.UndeployModel(pb.UndeployModelRequest(model_id="advisor"))
    ended = await lone.settle()
    await deploy(lone)
    await lone.settle()
    return ended


async def logged(lone, *messages, replica_id="r"):
    for message in messages:
        lone.backend.log(KEY, replica_id, message)
    await lone.reconciler.logs.collect(KEY)


async def rest_of(watch):
    async with asyncio.timeout(60):
        return [each async for each in watch]


async def test_a_watch_ends_with_its_deployment_though_that_was_made_anew_before_it_looked(lone):
    seen = await served(lone)
    watch = Watches(lone.store).WatchDeployment(
        pb.WatchDeploymentRequest(model_id="advisor", since_sequence=seen.last_sequence - 1), None
    )
    assert (await anext(watch)).sequence == seen.last_sequence
    ended = await made_anew(lone)
    events = await rest_of(watch)
    assert events[-1].sequence == ended.last_sequence
    assert events[-1].state_changed.to_state == pb.DEPLOYMENT_STATE_DELETED


async def test_a_followed_log_ends_with_its_deployment_though_that_was_made_anew(lone):
    await served(lone)
    await logged(lone, "first")
    watch = Watches(lone.store).WatchDeploymentLogs(
        pb.WatchDeploymentLogsRequest(model_id="advisor", follow=True), None
    )
    assert (await anext(watch)).message == "first"
    await logged(lone, "last")
    await made_anew(lone)
    await logged(lone, "of another")
    assert [line.message for line in await rest_of(watch)] == ["last"]


async def test_all_who_wait_hear_of_the_end_though_the_deployment_was_made_anew(lone):
    seen = await served(lone)
    await logged(lone, "first")
    watches, topics = Watches(lone.store), lone.store.topics._topics
    asked = pb.WatchDeploymentRequest(model_id="advisor", since_sequence=seen.last_sequence)
    events = [asyncio.create_task(rest_of(watches.WatchDeployment(asked, None))) for _ in range(5)]
    logs = [
        asyncio.create_task(rest_of(watches.WatchDeploymentLogs(of_replica, None)))
        for of_replica in (
            pb.WatchDeploymentLogsRequest(model_id="advisor", replica_id=replica_id, follow=True)
            for replica_id in ("", "r", "another")
        )
    ]
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        while [len(topic._waiting) for topic in topics.values()] != [5, 3]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    ended = await made_anew(lone)
    await logged(lone, "of another")

    for watched in await asyncio.gather(*events):
        assert watched[-1].sequence == ended.last_sequence
        assert watched[-1].state_changed.to_state == pb.DEPLOYMENT_STATE_DELETED
    lines = [[line.message for line in watched] for watched in await asyncio.gather(*logs)]
    assert lines == [["first"], ["first"], []]


async def test_a_heartbeat_tells_how_far_a_watch_has_come(lone):
    seen = await served(lone)
    lone.store.topics.heartbeats = Heartbeats(0.01)
    watches = Watches(lone.store)
    events = watches.WatchDeployment(
        pb.WatchDeploymentRequest(model_id="advisor", since_sequence=seen.last_sequence), None
    )
    beat = await anext(events)
    assert (beat.sequence, beat.heartbeat.sequence) == (seen.last_sequence, seen.last_sequence)
    await logged(lone, "a", "b")
    lines = watches.WatchDeploymentLogs(
        pb.WatchDeploymentLogsRequest(model_id="advisor", replica_id="another", follow=True), None
    )
    # Lines of other replicas are not sent, yet they need not be read again.
    assert await anext(lines) == pb.DeploymentLogLine(sequence=2)
    for watch in (events, lines):
        await watch.aclose()


async def test_lines_written_while_a_log_is_read_once_are_not_shown(lone):
    await served(lone)
    await logged(lone, *(f"line {number}" for number in range(300)))
    watch = Watches(lone.store).WatchDeploymentLogs(pb.WatchDeploymentLogsRequest(model_id="advisor"), None)
    first = await anext(watch)
    await logged(lone, "too late")
    lines = [first, *await rest_of(watch)]
    assert [line.message for line in lines] == [f"line {number}" for number in range(300)]


async def test_a_tail_begins_with_what_is_kept_though_lines_go_meanwhile(lone, monkeypatch):
    monkeypatch.setattr("neuroweaver.deployer.storage.writer.LINES_KEPT", 300)
    await served(lone)
    await logged(lone, *(f"line {number}" for number in range(300)))
    read, looks = lone.store.read, 0

    @asynccontextmanager
    async def reading(project):
        nonlocal looks
        looks += 1
        if looks == 2:  # between the search for the tail and the first look
            monkeypatch.setattr(lone.store, "read", read)
            await logged(lone, "another")
        async with read(project) as deployments:
            yield deployments

    monkeypatch.setattr(lone.store, "read", reading)
    request = pb.WatchDeploymentLogsRequest(model_id="advisor", tail_lines=300, follow=True)
    watch = Watches(lone.store).WatchDeploymentLogs(request, None)
    assert (await anext(watch)).message == "line 1"
    await watch.aclose()


async def test_the_past_of_a_log_is_read_though_its_oldest_lines_go_meanwhile(lone, monkeypatch):
    monkeypatch.setattr("neuroweaver.deployer.storage.writer.LINES_KEPT", 300)
    await served(lone)
    await logged(lone, *(f"line {number}" for number in range(300)))
    watch = Watches(lone.store).WatchDeploymentLogs(pb.WatchDeploymentLogsRequest(model_id="advisor"), None)
    first = await anext(watch)
    await logged(lone, *(f"more {number}" for number in range(290)))
    messages = [line.message for line in [first, *await rest_of(watch)]]
    assert messages == [f"line {number}" for number in (*range(PAGE_SIZE), *range(290, 300))]
