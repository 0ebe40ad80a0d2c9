"""Watches that can be resumed: each goes on from the sequence it saw last, at its own pace.

Nothing is queued for a watch, so a slow one costs one page of memory and delays nobody. What is new comes
from the topic, which reads it once for all; what lies further back, a watch reads for itself.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import closing
from typing import Final

from neuroweaver.mesh.handlers.topic import E, Follower, Look, Read, Topic
from neuroweaver.mesh.wire.errors import OutOfRange

PAGE_SIZE: Final = 256


async def follow(
    topic: Topic[E],
    *,
    since: int,
    heartbeat: Callable[[int], E],
    look: Read[E],
    view: Callable[[Look[E]], Look[E]] = lambda look: look,
    replays_kept: bool = False,
) -> AsyncGenerator[E, None]:
    """The events after `since`, in order and without a gap, then those to come, until the last one.

    heartbeat(last): sent when there was nothing for a while; tells the last sequence. look: reads what the
    topic does not hold, and may leave out what this watch did not ask for. view: of a look that all share,
    what this watch asked for. replays_kept: with `since` 0 the watch begins with the oldest event kept,
    instead of refusing because older ones were compacted.

    Raises OutOfRange if events after `since` were compacted, or if `since` lies beyond the newest event.
    """
    last, is_new = since, True
    with closing(Follower(topic)) as follower:
        follower.sent()
        while True:
            follower.seen = topic.version
            found = await _look(topic, last, look, view, is_new=is_new)
            is_new = False
            _check_range(found, last, replays_kept=replays_kept)
            for event in found.events:
                yield event
                follower.sent()
            last = found.last
            if last >= found.newest:
                if found.is_over:
                    return
                if await follower.wait(found):
                    yield heartbeat(last)
                    follower.sent()


async def _look(
    topic: Topic[E], last: int, look: Read[E], view: Callable[[Look[E]], Look[E]], *, is_new: bool
) -> Look[E]:
    if topic.is_new and not topic.joining.locked():
        async with topic.joining:
            found = await look(last)
            topic.begin(found)
            return found
    if topic.joining.locked():  # of many who come at once, one reads
        async with topic.joining:
            pass
    shared = topic.look(last)
    # What has ended may have begun again, in another process even: who comes now looks for itself.
    if shared is None or (shared.is_over and is_new):
        return await look(last)
    return view(shared)


async def replay(look: Read[E], *, since: int, replays_kept: bool = False) -> AsyncGenerator[E, None]:
    """As `follow`, of the events that there are."""
    last = since
    while True:
        found = await look(last)
        _check_range(found, last, replays_kept=replays_kept)
        for event in found.events:
            yield event
        last = found.last
        if last >= found.newest:
            return


def _check_range(look: Look[E], last: int, *, replays_kept: bool) -> None:
    if last > look.newest:
        raise OutOfRange(f"there is no sequence {last} yet; resume after the last sequence seen")
    if last < look.oldest - 1 and (last or not replays_kept):
        raise OutOfRange(
            f"the events between {last} and {look.oldest} are no longer kept; "
            f"read the resource, then watch from {look.oldest - 1}",
            metadata={"oldest_sequence": str(look.oldest)},
        )
