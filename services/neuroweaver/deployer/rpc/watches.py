"""The events and the log lines of a deployment as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from neuroweaver.deployer.domain.backend import Key
from neuroweaver.deployer.rpc.keys import existing_key
from neuroweaver.deployer.storage.reader import Reader
from neuroweaver.deployer.storage.store import Store
from neuroweaver.deployer.storage.writer import events_topic, logs_topic
from neuroweaver.mesh.handlers.topic import Look
from neuroweaver.mesh.handlers.watch import PAGE_SIZE, follow, replay
from neuroweaver.mesh.wire.messages import message_of
from neuroweaver.v1 import common_pb2
from neuroweaver.v1 import deployer_pb2 as pb

E = TypeVar("E", pb.DeploymentEvent, pb.DeploymentLogLine)


class Watches:
    """A watch is of one life of a deployment: it ends with its removal, though it be made anew at once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def WatchDeployment(
        self, request: pb.WatchDeploymentRequest, context: Any
    ) -> AsyncIterator[pb.DeploymentEvent]:
        key, topics = existing_key(request, context), self._store.topics
        async with self._store.read(key.project) as deployments:
            first = (await deployments.kept(key, show_gone=True)).first_sequence

        async def read(after: int, first: int = 1) -> Look[pb.DeploymentEvent]:
            async with self._store.read(key.project) as deployments:
                kept = await deployments.kept(key, show_gone=True)
                oldest = await deployments.oldest_event(key, first)
                events = await deployments.events(key, after, PAGE_SIZE, first=first)
            newest, is_gone = kept.last_sequence, kept.deployment.is_gone
            return Look(events, _last(events, newest), newest, oldest, is_gone, kept.first_sequence)

        async def look(after: int) -> Look[pb.DeploymentEvent]:
            return _of_life(await read(after, first), first)

        following = follow(
            topics.topic(events_topic(key), read),
            since=request.since_sequence,
            heartbeat=lambda last: pb.DeploymentEvent(
                sequence=last,
                model_id=key.model_id,
                name=key.name,
                heartbeat=common_pb2.Heartbeat(sequence=last),
            ),
            look=look,
            view=lambda look: _of_life(look, first),
            replays_kept=True,
        )
        async with aclosing(following) as events:
            async for event in events:
                yield event

    async def WatchDeploymentLogs(
        self, request: pb.WatchDeploymentLogsRequest, context: Any
    ) -> AsyncIterator[pb.DeploymentLogLine]:
        key, since, topics = existing_key(request, context), request.since_sequence, self._store.topics
        async with self._store.read(key.project) as deployments:
            first = (await deployments.kept(key, show_gone=True)).deployment.first_line
            _, until = await deployments.line_bounds(key)
            start = max(since, await _before_tail(deployments, key, request, first, until))

        async def read(after: int) -> Look[pb.DeploymentLogLine]:
            async with self._store.read(key.project) as deployments:
                deployment = (await deployments.kept(key, show_gone=True)).deployment
                oldest, newest = await deployments.line_bounds(key)
                page = await deployments.lines(key, after, PAGE_SIZE)
            lines = [message_of(pb.DeploymentLogLine, line, sequence=sequence) for sequence, line in page]
            is_gone, life = deployment.is_gone, deployment.first_line
            return Look(lines, _last(lines, newest), newest, oldest, is_gone, life)

        def view(look: Look[pb.DeploymentLogLine]) -> Look[pb.DeploymentLogLine]:
            own = _of_life(look, first)
            return replace(own, events=[line for line in own.events if _is_asked(line, request)])

        async def look(after: int) -> Look[pb.DeploymentLogLine]:
            own = await read(max(after, first - 1))
            # Who named no sequence reads what is kept of the past, though its oldest lines go meanwhile.
            oldest = 1 if after <= until and not since else max(first, own.oldest)
            own = replace(own, oldest=oldest)
            return view(own if request.follow else _until(own, until))

        following = (
            follow(
                topics.topic(logs_topic(key), read),
                since=start,
                heartbeat=lambda last: pb.DeploymentLogLine(sequence=last),
                look=look,
                view=view,
            )
            if request.follow
            else replay(look, since=start)
        )
        async with aclosing(following) as lines:
            async for line in lines:
                yield line


def _last(page: Sequence[E], newest: int) -> int:
    """How far a page reaches: less than a whole one reaches the newest."""
    return page[-1].sequence if len(page) == PAGE_SIZE else newest


def _of_life(look: Look[E], first: int) -> Look[E]:
    """What is of the life that began with `first`; a later one has ended it."""
    return look if look.life == first else replace(_until(look, look.life - 1), is_over=True)


def _until(look: Look[E], newest: int) -> Look[E]:
    newest = min(newest, look.newest)
    events = [event for event in look.events if event.sequence <= newest]
    return replace(look, events=events, last=min(look.last, newest), newest=newest)


async def _before_tail(
    deployments: Reader, key: Key, request: pb.WatchDeploymentLogsRequest, first: int, until: int
) -> int:
    """The sequence before the lines of the tail that is asked for; 0 if all that are kept belong to it."""
    if not request.tail_lines:
        return 0
    before = await deployments.tail(
        key, request.tail_lines, replica_id=request.replica_id, revision=request.revision, until=until
    )
    return before if before >= first else 0


def _is_asked(line: pb.DeploymentLogLine, request: pb.WatchDeploymentLogsRequest) -> bool:
    return request.replica_id in {"", line.replica_id} and request.revision in {0, line.revision}
