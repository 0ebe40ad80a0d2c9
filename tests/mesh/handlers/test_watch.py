from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import pytest

from neuroweaver.mesh.handlers.watch import Look, Signal, Signals, follow
from neuroweaver.mesh.wire.errors import OutOfRange


@dataclass(frozen=True)
class Event:
    sequence: int
    text: str = ""


@dataclass
class Log:
    """A store of one resource's events."""

    events: list[Event] = field(default_factory=list)
    signal: Signal = field(default_factory=Signal)
    looks: int = 0
    largest: int = 0

    def append(self, text: str = "") -> None:
        last = self.events[-1].sequence if self.events else 0
        self.events.append(Event(last + 1, text))
        self.signal.notify()

    def compact(self, keep: int) -> None:
        self.events = self.events[-keep:]

    async def look(self, after: int, limit: int = 256) -> Look[Event]:
        self.looks += 1
        await asyncio.sleep(0)
        page = [event for event in self.events if event.sequence > after][:limit]
        self.largest = max(self.largest, len(page))
        newest = self.events[-1] if self.events else Event(0)
        return Look(
            page,
            last=page[-1].sequence if page else after,
            newest=newest.sequence,
            oldest=self.events[0].sequence if self.events else 1,
            is_over=newest.text == "end",
        )

    def follow(self, since: int = 0, page_size: int = 256, **changes):
        options = {"heartbeat_s": 3600.0, "poll_s": 3600.0, **changes}
        return follow(
            lambda after: self.look(after, page_size),
            since=since,
            heartbeat=lambda last: Event(last, "heartbeat"),
            signal=self.signal,
            **options,
        )


def log(count: int, *, ended: bool = False) -> Log:
    made = Log()
    for _ in range(count):
        made.append()
    if ended:
        made.append("end")
    return made


async def sequences(events) -> list[int]:
    return [event.sequence async for event in events]


async def test_history_is_replayed_and_the_terminal_event_ends_it():
    assert await sequences(log(4, ended=True).follow()) == [1, 2, 3, 4, 5]


async def test_a_watch_resumes_after_the_sequence_seen_last():
    assert await sequences(log(4, ended=True).follow(since=3)) == [4, 5]


async def test_a_watch_of_what_has_ended_ends_at_once():
    assert await sequences(log(4, ended=True).follow(since=5)) == []


async def test_new_events_wake_the_reader_without_a_poll():
    written = log(1)
    reading = asyncio.create_task(sequences(written.follow()))
    for _ in range(5):
        await asyncio.sleep(0.01)
        written.append()
    written.append("end")

    assert await asyncio.wait_for(reading, 20) == [1, 2, 3, 4, 5, 6, 7]


async def test_events_of_another_process_are_found_by_polling():
    written = log(1)
    reading = asyncio.create_task(sequences(written.follow(poll_s=0.02)))
    await asyncio.sleep(0.05)
    written.events.append(Event(2, "end"))

    assert await asyncio.wait_for(reading, 20) == [1, 2]


async def test_an_event_written_while_the_reader_looked_is_not_missed():
    written = log(1)
    look = written.look

    async def late(after: int, limit: int):
        found = await look(after, limit)
        if len(written.events) == 1:
            written.append("end")  # after the page was read, before the reader waits
        return found

    written.look = late
    assert await asyncio.wait_for(sequences(written.follow()), 20) == [1, 2]


async def test_a_silent_watch_sends_the_last_sequence_as_a_heartbeat():
    async with aclosing(log(3).follow(heartbeat_s=0.02)) as events:
        seen = [await anext(events) for _ in range(5)]

    assert seen[3:] == [Event(3, "heartbeat"), Event(3, "heartbeat")]


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
    written.append("end")

    assert len(await asyncio.wait_for(fast, 20)) == 502
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
    written = log(3)
    look = written.look

    async def only_the_first(after: int, limit: int):
        return replace(await look(after, limit), events=[event for event in written.events[:1] if after < 1])

    written.look = only_the_first
    async with aclosing(written.follow(heartbeat_s=0.02)) as events:
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


@pytest.mark.parametrize("count", [0, 4])
async def test_a_sequence_that_has_not_happened_is_out_of_range(count):
    with pytest.raises(OutOfRange, match="sequence 7"):
        await sequences(log(count).follow(since=7))


async def test_a_reader_that_leaves_is_forgotten():
    signal = Signal()
    waiting = asyncio.create_task(signal.wait(0, 3600))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    assert not signal._waiting


async def test_each_resource_has_its_own_signal_for_as_long_as_it_is_held():
    signals = Signals()
    one, other = signals.of("job-1"), signals.of("job-2")

    signals.notify("job-1")
    signals.notify("nobody watches this")

    assert (one.count, other.count) == (1, 0)
    assert signals.of("job-1") is one
    del one, other
    assert not signals._signals


async def test_a_cancellation_that_meets_the_signal_is_not_lost():
    signal = Signal()

    async def wait_for_ever():
        while True:
            await signal.wait(signal.count, 60)

    task = asyncio.create_task(wait_for_ever())
    await asyncio.sleep(0)
    signal.notify()
    task.cancel()
    await asyncio.wait({task}, timeout=1)
    is_cancelled = task.cancelled()
    task.cancel()

    assert is_cancelled
