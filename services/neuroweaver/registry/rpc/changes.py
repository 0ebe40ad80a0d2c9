"""The changes of a project, or of one of its models, as a watch sends them."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from neuroweaver.mesh.handlers.watch import HEARTBEAT_S, PAGE_SIZE, Look, follow
from neuroweaver.registry.domain.records import Event
from neuroweaver.registry.storage.store import Store


def changes(
    store: Store, project: str, model_id: str, since: int, *, heartbeat_s: float = HEARTBEAT_S
) -> AsyncGenerator[Event, None]:
    """Events after `since`, history first, then those to come, without end; without a subject: a heartbeat.

    model_id: only this model's; empty: all. Raises OutOfRange if `since` lies beyond the last event or before
    the oldest one kept.
    """

    async def look(after: int) -> Look[Event]:
        async with store.read(project) as registry:
            oldest, newest = await registry.event_bounds()
            events = await registry.events(after, PAGE_SIZE, model_id)
        last = events[-1].sequence if events else after
        # Of the events of other models only the sequence is there, which moves the heartbeat along.
        return Look([event for event in events if event.subject], last, newest, oldest)

    return follow(look, since=since, heartbeat=Event, signal=store.signal(project), heartbeat_s=heartbeat_s)
