from __future__ import annotations

import asyncio

from neuroweaver.mesh.handlers.signals import Signal, Signals


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
