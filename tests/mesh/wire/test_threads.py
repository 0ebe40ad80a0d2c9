from __future__ import annotations

import asyncio
import threading

import pytest

from neuroweaver.mesh.wire.threads import Abandoned, check_wanted, in_thread


async def test_work_whose_caller_left_ends():
    begun, ended, outcome = threading.Event(), threading.Event(), []

    def work():
        begun.set()
        try:
            while True:
                check_wanted()
        except Abandoned as error:
            outcome.append(error)
        finally:
            ended.set()

    working = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(begun.wait)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    await asyncio.to_thread(ended.wait)

    assert len(outcome) == 1


async def test_work_that_is_wanted_goes_on_whatever_was_abandoned_before():
    waiting = threading.Event()
    left = asyncio.create_task(in_thread(waiting.wait))
    await asyncio.sleep(0)
    left.cancel()
    waiting.set()

    assert await in_thread(lambda given: check_wanted() or given, 1) == 1


def test_work_without_a_caller_is_wanted():
    check_wanted()
