"""The events and the log lines of a deployment as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from neuroweaver.deployer.domain.backend import Key
from neuroweaver.deployer.rpc.keys import existing_key
from neuroweaver.deployer.storage.reader import Reader
from neuroweaver.deployer.storage.store import Store
from neuroweaver.mesh.handlers.watch import HEARTBEAT_S, PAGE_SIZE, Look, follow
from neuroweaver.mesh.wire.messages import message_of
from neuroweaver.v1 import common_pb2
from neuroweaver.v1 import deployer_pb2 as pb

E = TypeVar("E", pb.DeploymentEvent, pb.DeploymentLogLine)


class Watches:
    """A watch is of one life of a deployment: it ends with its removal, though it be made anew at once."""

    def __init__(self, store: Store, *, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._store = store
        self._heartbeat_s = heartbeat_s

    async def WatchDeployment(
        self, request: pb.WatchDeploymentRequest, context: Any
    ) -> AsyncIterator[pb.DeploymentEvent]:
        key = existing_key(request, context)
        async with self._store.read(key.project) as deployments:
            first = (await deployments.kept(key, show_gone=True)).first_sequence

        async def look(after: int) -> Look[pb.DeploymentEvent]:
            async with self._store.read(key.project) as deployments:
                kept = await deployments.kept(key, show_gone=True)
                oldest = await deployments.oldest_event(key, first)
                events = await deployments.events(key, after, PAGE_SIZE, first=first)
            newest, is_over = kept.last_sequence, kept.deployment.is_gone
            if kept.first_sequence != first:
                newest, is_over = kept.first_sequence - 1, True
            return _look(events, newest, oldest, is_over)

        following = follow(
            look,
            since=request.since_sequence,
            heartbeat=lambda last: pb.DeploymentEvent(
                sequence=last,
                model_id=key.model_id,
                name=key.name,
                heartbeat=common_pb2.Heartbeat(sequence=last),
            ),
            signal=self._store.events.of(key),
            heartbeat_s=self._heartbeat_s,
            replays_kept=True,
        )
        async with aclosing(following) as events:
            async for event in events:
                yield event

    async def WatchDeploymentLogs(
        self, request: pb.WatchDeploymentLogsRequest, context: Any
    ) -> AsyncIterator[pb.DeploymentLogLine]:
        key, since = existing_key(request, context), request.since_sequence
        async with self._store.read(key.project) as deployments:
            first = (await deployments.kept(key, show_gone=True)).deployment.first_line
            _, until = await deployments.line_bounds(key)
            start = max(since, await _before_tail(deployments, key, request, first, until))

        async def look(after: int) -> Look[pb.DeploymentLogLine]:
            async with self._store.read(key.project) as deployments:
                kept = await deployments.kept(key, show_gone=True)
                oldest, newest = await deployments.line_bounds(key)
                page = await deployments.lines(key, max(after, first - 1), PAGE_SIZE)
            is_over = kept.deployment.is_gone
            if not request.follow:
                newest, is_over = until, True
            elif kept.deployment.first_line != first:
                newest, is_over = kept.deployment.first_line - 1, True
            # Who named no sequence reads what is kept of the past, though its oldest lines go meanwhile.
            oldest = 1 if after <= until and not since else max(first, oldest)
            lines = [message_of(pb.DeploymentLogLine, line, sequence=sequence) for sequence, line in page]
            look = _look(lines, newest, oldest, is_over)
            return replace(look, events=[line for line in look.events if _is_asked(line, request)])

        following = follow(
            look,
            since=start,
            heartbeat=lambda last: pb.DeploymentLogLine(sequence=last),
            signal=self._store.logs.of(key),
            heartbeat_s=self._heartbeat_s,
        )
        async with aclosing(following) as lines:
            async for line in lines:
                yield line


def _look(page: list[E], newest: int, oldest: int, is_over: bool) -> Look[E]:
    """page: what came next; less than a whole one reaches the newest."""
    last = min(page[-1].sequence, newest) if len(page) == PAGE_SIZE else newest
    return Look([event for event in page if event.sequence <= newest], last, newest, oldest, is_over)


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
