from __future__ import annotations

import asyncio
import gc
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from sqlalchemy.exc import OperationalError

from neuroweaver.mesh.handlers.heartbeats import Heartbeats
from neuroweaver.mesh.handlers.topic import Look
from neuroweaver.mesh.handlers.topics import Topics
from neuroweaver.mesh.handlers.turns import Turns
from neuroweaver.mesh.handlers.watch import follow, replay
from neuroweaver.mesh.wire.errors import NotFound, OutOfRange

PATIENCE_S = 120


@dataclass(frozen=True)
class Event:
    sequence: int
    text: str = ""

    def ByteSize(self) -> int:  # noqa: N802
        return len(self.text) + 8


class Alone:
    """A database that no other process writes to."""

    def changes(self) -> None:
        return None


@dataclass
class Log:
    """A store of one resource's events. looks: what was asked of it; failures: what it raises next."""

    events: list[Event] = field(default_factory=list)
    topics: Topics = field(default_factory=lambda: Topics(Alone()))
    looks: int = 0
    largest: int = 0
    failures: list[Exception] = field(default_factory=list)
    life: int = 0

    def append(self, text: str = "") -> None:
        last = self.events[-1].sequence if self.events else 0
        self.events.append(Event(last + 1, text))
        self.topics.notify(["log"])

    def compact(self, keep: int) -> None:
        self.events = self.events[-keep:]

    async def look(self, after: int, limit: int = 256) -> Look[Event]:
        self.looks += 1
        if self.failures:
            raise self.failures.pop(0)
        page = [event for event in self.events if event.sequence > after][:limit]
        self.largest = max(self.largest, len(page))
        newest = self.events[-1] if self.events else Event(0)
        oldest = self.events[0].sequence if self.events else 1
        await asyncio.sleep(0)  # what comes from here on was not seen
        last = page[-1].sequence if page else after
        return Look(page, last, newest.sequence, oldest, newest.text == "end", self.life)

    def follow(self, since: int = 0, page_size: int = 256, **changes):
        async def look(after: int) -> Look[Event]:
            return await self.look(after, page_size)

        return follow(
            self.topics.topic("log", look),
            since=since,
            heartbeat=lambda last: Event(last, "heartbeat"),
            **{"look": look} | changes,
        )

    async def quiet(self) -> None:
        """Returns when everybody waits."""
        looks = -1
        while looks != self.looks:
            looks = self.looks
            for _ in range(200):
                await asyncio.sleep(0)


def log(count: int, *, ended: bool = False, heartbeat_s: float = 3600.0) -> Log:
    made = Log()
    made.topics.heartbeats = Heartbeats(heartbeat_s)
    for _ in range(count):
        made.append()
    if ended:
        made.append("end")
    return made


async def sequences(events) -> list[int]:
    return [event.sequence async for event in events]


@asynccontextmanager
async def watching(written: Log, count: int, **options):
    """So many watches that have all come to the end; what each has seen."""
    seen: list[list[int]] = [[] for _ in range(count)]

    async def watch(into: list[int]) -> None:
        async for event in written.follow(**options):
            into.append(event.sequence)  # noqa: PERF401  # as they come

    tasks = [asyncio.create_task(watch(into)) for into in seen]
    await written.quiet()
    try:
        yield seen, tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_history_is_replayed_and_the_terminal_event_ends_it():
    assert await sequences(log(4, ended=True).follow()) == [1, 2, 3, 4, 5]


async def test_a_watch_resumes_after_the_sequence_seen_last():
    assert await sequences(log(4, ended=True).follow(since=3)) == [4, 5]


async def test_a_watch_of_what_has_ended_ends_at_once():
    assert await sequences(log(4, ended=True).follow(since=5)) == []


async def test_new_events_wake_the_reader():
    written = log(1)
    reading = asyncio.create_task(sequences(written.follow()))
    for _ in range(5):
        await written.quiet()
        written.append()
    written.append("end")

    assert await asyncio.wait_for(reading, PATIENCE_S) == [1, 2, 3, 4, 5, 6, 7]


async def test_an_event_written_while_the_reader_looked_is_not_missed():
    written = log(1)
    look = written.look

    async def late(after: int, limit: int):
        found = await look(after, limit)
        if len(written.events) == 1:
            written.append("end")  # after the page was read, before the reader waits
        return found

    written.look = late
    assert await asyncio.wait_for(sequences(written.follow()), PATIENCE_S) == [1, 2]


async def test_an_event_written_while_all_are_told_of_another_is_not_missed():
    written = log(1)
    async with watching(written, 50) as (seen, _):
        written.append()
        for _ in range(20):
            await asyncio.sleep(0)  # some have been woken
        written.append()
        await written.quiet()
        assert seen == [[1, 2, 3]] * 50


@pytest.mark.parametrize("count", [1, 100])
async def test_idle_watches_read_nothing_and_a_change_is_read_once_for_all(count):
    written = log(3)
    async with watching(written, count, since=3) as (seen, _):
        looks = written.looks
        await written.quiet()
        assert written.looks == looks

        written.append()
        await written.quiet()
        assert written.looks == looks + 1
        assert seen == [[4]] * count


async def test_of_many_who_come_at_once_one_reads():
    written = log(3)
    async with watching(written, 100, since=3):
        assert written.looks == 1


async def test_who_comes_to_what_is_held_reads_nothing():
    written = log(3)
    async with watching(written, 1, since=3):
        written.append()
        await written.quiet()
        looks = written.looks
        async with watching(written, 100, since=3) as (seen, _):
            assert seen == [[4]] * 100
        assert written.looks == looks


async def test_a_burst_is_read_together_and_comes_in_order():
    written = log(0)
    async with watching(written, 10) as (seen, _):
        looks = written.looks
        for _ in range(40):
            written.append()
        await written.quiet()
        assert seen == [list(range(1, 41))] * 10
        assert written.looks == looks + 1


async def test_a_burst_of_more_than_a_page_comes_whole():
    written = log(0)
    async with watching(written, 2, page_size=16) as (seen, _):
        for _ in range(100):
            written.append()
        await written.quiet()
        assert seen == [list(range(1, 101))] * 2
        assert written.largest == 16


async def test_what_is_new_reaches_most_watches_when_the_call_under_way_has_ended(monkeypatch):
    turns = Turns(work_s=0, pause_s=3600)
    monkeypatch.setattr("neuroweaver.mesh.handlers.topic.TURNS", turns)
    written = log(1)
    async with watching(written, 20) as (seen, tasks):
        with turns.call():
            written.append("end")
            for _ in range(100):
                await asyncio.sleep(0)
            assert sum(2 in each for each in seen) == 1
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)
        assert seen == [[1, 2]] * 20


async def test_a_watch_sees_of_what_all_share_what_it_asked_for():
    written = log(0)

    def even(look: Look[Event]) -> Look[Event]:
        return replace(look, events=[event for event in look.events if event.sequence % 2 == 0])

    async with watching(written, 1) as (everything, _), watching(written, 1, view=even) as (some, _):
        for _ in range(4):
            written.append()
        await written.quiet()
        assert (everything, some) == ([[1, 2, 3, 4]], [[2, 4]])


async def test_watches_outlive_an_outage_of_the_database(caplog):
    written = log(1)
    async with watching(written, 20) as (seen, tasks):
        cut = OperationalError("SELECT", {}, ConnectionError("gone"))
        written.failures = [cut, cut]
        written.append("end")
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)
        assert seen == [[1, 2]] * 20
    assert [(record.message, record.loop) for record in caplog.records] == [
        ("failed; it is tried until it succeeds", "watches")
    ]


async def test_a_fault_ends_the_watches_that_it_concerns_and_no_later_one():
    written = log(1)
    async with watching(written, 3) as (_, tasks):
        written.failures = [NotFound("log", "log")]
        written.append()
        ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE_S)
        assert [type(error) for error in ended] == [NotFound] * 3
    async with watching(written, 1) as (seen, _):
        written.append()
        await written.quiet()
        assert seen == [[1, 2, 3]]


async def test_what_ended_and_began_again_is_followed_by_who_comes_now():
    written = log(1)
    async with watching(written, 1) as (_, tasks):
        slow = written.follow()  # holds the topic
        await anext(slow)
        written.append("end")
        await asyncio.wait_for(tasks[0], PATIENCE_S)
        written.events.append(Event(3, "by another process, which this one has not heard of"))
        async with watching(written, 1, since=2) as (seen, _):
            written.append("end")
            await written.quiet()
            assert seen == [[3, 4]]
        await slow.aclose()


async def test_a_silent_watch_sends_the_last_sequence_as_a_heartbeat():
    async with aclosing(log(3, heartbeat_s=0.02).follow()) as events:
        seen = [await anext(events) for _ in range(5)]

    assert seen[3:] == [Event(3, "heartbeat"), Event(3, "heartbeat")]


async def test_heartbeats_read_nothing():
    written = log(3, heartbeat_s=0.02)
    async with aclosing(written.follow()) as events:
        for _ in range(4):
            await anext(events)
        looks = written.looks
        for _ in range(5):
            await anext(events)
        assert written.looks == looks


async def test_a_long_history_is_read_in_pages():
    written = log(1000, ended=True)

    assert len(await sequences(written.follow(page_size=64))) == 1001
    assert written.largest == 64


async def test_a_slow_reader_delays_nobody_and_still_gets_everything():
    written = log(0)
    slow = written.follow(page_size=16)
    written.append()
    assert (await anext(slow)).sequence == 1

    fast = asyncio.create_task(sequences(written.follow(page_size=16)))
    for _ in range(500):
        written.append()
        await asyncio.sleep(0)
    written.append("end")

    assert len(await asyncio.wait_for(fast, PATIENCE_S)) == 502
    assert len(await sequences(slow)) == 501
    assert written.largest == 16


@pytest.mark.parametrize("since", [0, 3])
async def test_events_that_were_compacted_are_out_of_range(since):
    written = log(10)
    written.compact(keep=2)

    with pytest.raises(OutOfRange, match="watch from 8") as caught:
        await sequences(written.follow(since=since))
    assert caught.value.metadata == {"oldest_sequence": "9"}


async def test_a_watch_from_the_beginning_may_begin_with_the_oldest_event_kept():
    written = log(9, ended=True)
    written.compact(keep=2)

    assert await sequences(written.follow(since=0, replays_kept=True)) == [9, 10]
    with pytest.raises(OutOfRange):
        await sequences(written.follow(since=3, replays_kept=True))


async def test_events_that_nobody_asked_for_move_the_heartbeat_along():
    written = log(3, heartbeat_s=0.02)

    async def only_the_first(after: int):
        return replace(await written.look(after), events=[event for event in written.events[:1] if after < 1])

    async with aclosing(written.follow(look=only_the_first)) as events:
        assert [await anext(events) for _ in range(2)] == [Event(1), Event(3, "heartbeat")]


@pytest.mark.parametrize("since", [8, 9])
async def test_a_watch_that_missed_nothing_goes_on_after_compaction(since):
    written = log(9, ended=True)
    written.compact(keep=2)

    assert await sequences(written.follow(since=since)) == list(range(since + 1, 11))


async def test_compaction_that_overtakes_a_reader_is_out_of_range():
    written = log(10)
    events = written.follow(page_size=2)
    assert [(await anext(events)).sequence for _ in range(2)] == [1, 2]
    written.compact(keep=3)

    with pytest.raises(OutOfRange):
        await anext(events)


async def test_compaction_that_overtakes_the_shared_reader_is_out_of_range():
    written = log(1)
    async with watching(written, 2) as (_, tasks):
        written.events = [Event(8), Event(9)]
        written.topics.notify(["log"])
        ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE_S)
        assert [type(error) for error in ended] == [OutOfRange] * 2


@pytest.mark.parametrize("count", [0, 4])
async def test_a_sequence_that_has_not_happened_is_out_of_range(count):
    with pytest.raises(OutOfRange, match="sequence 7"):
        await sequences(log(count).follow(since=7))


async def test_a_watch_that_leaves_is_forgotten():
    written = log(1)
    events = written.follow()
    await anext(events)
    assert (len(written.topics._topics), len(written.topics.heartbeats._sent)) == (1, 1)
    await events.aclose()
    del events
    gc.collect()
    assert (len(written.topics._topics), len(written.topics.heartbeats._sent)) == (0, 0)


async def test_a_replay_ends_with_what_there_is():
    written = log(20)

    async def look(after: int) -> Look[Event]:
        return await written.look(after, 8)

    assert await sequences(replay(look, since=2)) == list(range(3, 21))
    with pytest.raises(OutOfRange):
        await sequences(replay(look, since=21))
