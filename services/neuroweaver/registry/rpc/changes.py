"""The changes of a project, or of one of its models, as a watch sends them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace

from neuroweaver.mesh.handlers.topic import Look
from neuroweaver.mesh.handlers.watch import PAGE_SIZE, follow
from neuroweaver.registry import messages
from neuroweaver.registry.domain.records import Event
from neuroweaver.registry.storage.store import Store
from neuroweaver.v1 import registry_pb2 as pb


def changes(store: Store, project: str, model_id: str, since: int) -> AsyncGenerator[pb.ModelEvent, None]:
    """Events after `since`, history first, then those to come, without end.

    model_id: only this model's; empty: all. Raises OutOfRange if `since` lies beyond the last event or before
    the oldest one kept.
    """

    async def read(after: int, model_id: str = "") -> Look[pb.ModelEvent]:
        async with store.read(project) as registry:
            oldest, newest = await registry.event_bounds()
            events = await registry.events(after, PAGE_SIZE, model_id)
        # Other models' events are not there, but the heartbeat moves along with them.
        last = events[-1].sequence if events else max(after, newest)
        shown = [messages.from_event(event) for event in events if event.subject]
        return Look(shown, last, newest, oldest)

    async def replay(after: int) -> Look[pb.ModelEvent]:
        async with store.replays:
            return await read(after, model_id)

    def view(look: Look[pb.ModelEvent]) -> Look[pb.ModelEvent]:
        if not model_id:
            return look
        return replace(look, events=[event for event in look.events if _model_of(event) == model_id])

    return follow(
        store.topics.topic(project, read),
        since=since,
        heartbeat=lambda last: messages.from_event(Event(last)),
        look=replay,
        view=view,
    )


def _model_of(event: pb.ModelEvent) -> str:
    model_id: str = getattr(event, event.WhichOneof("subject") or "model").model_id
    return model_id
