"""What happens in a job, and what its worker logs, as it comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.handlers.topic import Look
from neuroweaver.mesh.handlers.watch import PAGE_SIZE, follow, replay
from neuroweaver.trainer.storage.jobs import events_topic, logs_topic
from neuroweaver.trainer.storage.store import Store
from neuroweaver.v1 import common_pb2
from neuroweaver.v1 import trainer_pb2 as pb


def events(store: Store, project: str, job_id: str, since: int) -> AsyncGenerator[pb.TrainingEvent, None]:
    """A job's events after `since`, those kept first, then those to come, until the job has ended.

    since: 0 begins with the oldest event kept. Raises NotFound, and OutOfRange if `since` lies beyond the
    last event or before the oldest one kept.
    """

    async def look(after: int) -> Look[pb.TrainingEvent]:
        async with store.read(project) as jobs:
            job = await jobs.job(job_id)
            kept, oldest = await jobs.events(job, after, PAGE_SIZE)
        last = kept[-1].sequence if kept else job.last_sequence
        return Look(kept, last, job.last_sequence, oldest, is_over=job.is_terminal)

    def heartbeat(last: int) -> pb.TrainingEvent:
        return pb.TrainingEvent(sequence=last, job_id=job_id, heartbeat=common_pb2.Heartbeat(sequence=last))

    topic = store.topics.topic(events_topic(project, job_id), look)
    return follow(topic, since=since, heartbeat=heartbeat, look=look, replays_kept=True)


def logs(
    store: Store, project: str, job_id: str, since: int, *, is_followed: bool
) -> AsyncGenerator[pb.LogLine, None]:
    """As `events`, of the log's lines. is_followed: otherwise it ends with the last line there is."""

    async def look(after: int) -> Look[pb.LogLine]:
        async with store.read(project) as jobs:
            job = await jobs.job(job_id)
            kept, oldest = await jobs.logs(job, after, PAGE_SIZE)
        last = kept[-1].sequence if kept else job.last_log_sequence
        return Look(kept, last, job.last_log_sequence, oldest, is_over=job.is_terminal)

    def heartbeat(last: int) -> pb.LogLine:
        return pb.LogLine(sequence=last)

    if not is_followed:
        return replay(look, since=since, replays_kept=True)
    topic = store.topics.topic(logs_topic(project, job_id), look)
    return follow(topic, since=since, heartbeat=heartbeat, look=look, replays_kept=True)


class Watches:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def WatchTraining(
        self, request: pb.WatchTrainingRequest, context: Any
    ) -> AsyncIterator[pb.TrainingEvent]:
        project = caller_of(context).project
        watch = events(self._store, project, request.job_id, request.since_sequence)
        async with aclosing(watch) as stream:
            async for event in stream:
                yield event

    async def WatchLogs(self, request: pb.WatchLogsRequest, context: Any) -> AsyncIterator[pb.LogLine]:
        project = caller_of(context).project
        watch = logs(self._store, project, request.job_id, request.since_sequence, is_followed=request.follow)
        async with aclosing(watch) as stream:
            async for line in stream:
                yield line
