"""The RPCs that stream what happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Final

from neuroweaver.deployer.domain.backend import Key
from neuroweaver.deployer.rpc.handler import Handler, known_key
from neuroweaver.deployer.storage.reader import NumberedLine
from neuroweaver.mesh.handlers import legacy as watch
from neuroweaver.mesh.wire.clock import timestamp
from neuroweaver.mesh.wire.errors import OutOfRange
from neuroweaver.v1 import common_pb2
from neuroweaver.v1 import deployer_pb2 as pb

HEARTBEAT_S: Final = 15.0
POLL_S: Final = 1.0
_PAGE: Final = 256


class WatchMethods(Handler):
    async def WatchDeployment(
        self, request: pb.WatchDeploymentRequest, context: Any
    ) -> AsyncIterator[pb.DeploymentEvent]:
        key = known_key(request, context)
        async with self._store.read(key.project) as deployments:
            kept = await deployments.kept(key, show_gone=True)
        first = kept.first_sequence

        async def load(after: int, limit: int) -> Sequence[pb.DeploymentEvent]:
            async with self._store.read(key.project) as deployments:
                return await deployments.events(key, after, limit, first=first)

        def heartbeat(last: int) -> pb.DeploymentEvent:
            return pb.DeploymentEvent(
                sequence=last,
                model_id=key.model_id,
                name=key.name,
                heartbeat=common_pb2.Heartbeat(sequence=last),
            )

        since = request.since_sequence
        if since and since < first - 1:
            raise OutOfRange(
                f"the deployment was made anew since: watch from {first - 1}",
                metadata={"oldest_sequence": str(first)},
            )
        if not since:
            async with self._store.read(key.project) as deployments:
                oldest = await deployments.events(key, 0, 1, first=first)
            # What was compacted is not there to be replayed: "all that are kept".
            since = oldest[0].sequence - 1 if oldest else kept.last_sequence
        following = watch.follow(
            load,
            since=since,
            sequence_of=lambda event: event.sequence,
            is_terminal=_is_end,
            heartbeat=heartbeat,
            signal=self._store.events_signal(key),
            heartbeat_s=HEARTBEAT_S,
            poll_s=POLL_S,
        )
        async with aclosing(following) as events:
            async for event in events:
                yield event

    async def WatchDeploymentLogs(
        self, request: pb.WatchDeploymentLogsRequest, context: Any
    ) -> AsyncIterator[pb.DeploymentLogLine]:
        key = known_key(request, context)
        signal = self._store.logs_signal(key)
        last, until = await self._first_line(key, request)
        clock = asyncio.get_running_loop().time
        sent_at = clock()
        while True:
            seen = signal.count
            lines, is_gone = await self._lines(key, last)
            for each in lines:
                last = each.sequence
                if not request.follow and last > until:
                    return
                if _is_asked(each, request):
                    yield _message(each)
                    sent_at = clock()
            if lines:
                continue
            if is_gone or not request.follow:
                return
            if clock() - sent_at >= HEARTBEAT_S:
                yield pb.DeploymentLogLine(sequence=last)
                sent_at = clock()
            await signal.wait(seen, POLL_S)

    async def _first_line(self, key: Key, request: pb.WatchDeploymentLogsRequest) -> tuple[int, int]:
        """The sequence after which to begin, and that of the last line known. Raises NotFound, OutOfRange."""
        async with self._store.read(key.project) as deployments:
            kept = await deployments.kept(key, show_gone=True)
            oldest, last = await deployments.line_bounds(key)
            since, first = request.since_sequence, kept.deployment.first_line
            if since > last:
                raise OutOfRange(f"no line with sequence {since} was written yet; the last one is {last}")
            if since and since < first - 1:
                raise OutOfRange(
                    f"the deployment was made anew since: watch from {first - 1}",
                    metadata={"oldest_sequence": str(first)},
                )
            if since and since < oldest - 1:
                raise OutOfRange(
                    f"the lines between {since} and {oldest} are no longer kept; watch from {oldest - 1}",
                    metadata={"oldest_sequence": str(oldest)},
                )
            since = max(since, first - 1)
            if request.tail_lines:
                tail = await deployments.tail(
                    key,
                    request.tail_lines,
                    replica_id=request.replica_id,
                    revision=request.revision,
                    until=last,
                )
                since = max(since, tail)
        return since, last

    async def _lines(self, key: Key, after: int) -> tuple[list[NumberedLine], bool]:
        """The next lines, and whether there will be none after them."""
        async with self._store.read(key.project) as deployments:
            kept = await deployments.find(key)
            lines = await deployments.lines(key, after, _PAGE)
        return lines, kept is None or kept.deployment.is_gone


def _is_end(event: pb.DeploymentEvent) -> bool:
    return (
        event.WhichOneof("event") == "state_changed"
        and event.state_changed.to_state == pb.DEPLOYMENT_STATE_DELETED
    )


def _is_asked(each: NumberedLine, request: pb.WatchDeploymentLogsRequest) -> bool:
    return request.replica_id in {"", each.line.replica_id} and request.revision in {0, each.line.revision}


def _message(each: NumberedLine) -> pb.DeploymentLogLine:
    return pb.DeploymentLogLine(
        sequence=each.sequence,
        time=timestamp(each.line.time),
        replica_id=each.line.replica_id,
        revision=each.line.revision,
        level=each.line.level,
        message=each.line.message,
    )
