"""The changes of a project, or of one of its models, as a watch sends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

from neuroweaver.mesh import watch
from neuroweaver.registry.reader import Event
from neuroweaver.registry.store import Store

HEARTBEAT_S: Final = 15.0


async def changes(
    store: Store, project: str, model_id: str, since: int, *, heartbeat_s: float = HEARTBEAT_S
) -> AsyncGenerator[Event, None]:
    """Events after `since`, history first, then those to come, without end; without a subject: a heartbeat.

    model_id: only this model's; empty: all. Raises OutOfRange if `since` lies beyond the last event or before
    the oldest one kept.
    """

    async def load(after: int, limit: int) -> Sequence[Event]:
        async with store.read(project) as registry:
            return await registry.events(after, limit, model_id)

    clock = asyncio.get_running_loop().time
    sent_at = clock()
    # All events are followed, since only together they are without gaps; others' move the heartbeat along.
    following = watch.follow(
        load,
        since=since,
        sequence_of=lambda event: event.sequence,
        is_terminal=lambda _event: False,
        heartbeat=Event,
        signal=store.signal(project),
        heartbeat_s=heartbeat_s,
    )
    async with aclosing(following) as events:
        async for event in events:
            if event.action and event.subject is None:
                if clock() - sent_at < heartbeat_s:
                    continue
                yield Event(event.sequence)
            else:
                yield event
            sent_at = clock()
