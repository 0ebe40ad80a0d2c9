from __future__ import annotations

import asyncio

from neuroweaver.mesh.handlers.heartbeats import Heartbeats


class Quiet:
    def __init__(self, heartbeats: Heartbeats) -> None:
        self._heartbeats = heartbeats
        self.beats = asyncio.Queue()

    def beat(self) -> None:
        self.beats.put_nowait(asyncio.get_running_loop().time())
        self._heartbeats.sent(self)


async def test_each_beats_again_and_again_and_not_too_early():
    heartbeats = Heartbeats(0.05)
    watches = [Quiet(heartbeats) for _ in range(3)]
    began = asyncio.get_running_loop().time()
    for watch in watches:
        heartbeats.sent(watch)
    for watch in watches:
        for number in range(1, 4):
            assert await asyncio.wait_for(watch.beats.get(), 60) - began >= number * 0.05
        heartbeats.forget(watch)


async def test_very_many_beat_in_turn():
    heartbeats = Heartbeats(0.02, most_a_second=100)  # one a tick of 10 ms
    watches = [Quiet(heartbeats) for _ in range(10)]
    for watch in watches:
        heartbeats.sent(watch)
    times = [await asyncio.wait_for(watch.beats.get(), 60) for watch in watches]
    assert times == sorted(times)
    assert len(set(times)) == 10
    for watch in watches:
        heartbeats.forget(watch)


async def test_nothing_ticks_when_nobody_waits():
    heartbeats = Heartbeats(0.02)
    watch = Quiet(heartbeats)
    heartbeats.sent(watch)
    await asyncio.wait_for(watch.beats.get(), 60)
    heartbeats.forget(watch)
    async with asyncio.timeout(60):
        while heartbeats._is_ticking:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
