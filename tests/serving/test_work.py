from __future__ import annotations

from neuroweaver.serving.engine.generation import Delta
from neuroweaver.serving.work import Deltas


async def test_what_is_not_taken_is_kept_as_one():
    deltas = Deltas()
    for number, text in enumerate(["The", "", " brakes", " squeal"], start=1):
        deltas.put(Delta(text, number, "stop" if number == 4 else None))
    assert await deltas.get() == Delta("The brakes squeal", 4, "stop")
    deltas.put(Delta(".", 5))
    assert await deltas.get() == Delta(".", 5)


async def test_nothing_comes_once_nobody_listens():
    deltas = Deltas()
    deltas.put(Delta("The", 1))
    deltas.end()
    assert await deltas.get() is None
