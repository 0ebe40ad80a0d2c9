from __future__ import annotations

import asyncio

from neuroweaver.mesh.handlers.turns import Turns


async def test_what_is_sent_to_watches_stands_back_until_a_call_has_ended():
    turns, order = Turns(work_s=0, pause_s=3600), list[str]()

    async def deliver() -> None:
        await turns.give_way()
        order.append("delivered")

    with turns.call():
        delivering = asyncio.create_task(deliver())
        for _ in range(10):
            await asyncio.sleep(0)
        order.append("answered")
    await delivering

    assert order == ["answered", "delivered"]


async def test_without_a_call_nothing_stands_back():
    turns = Turns(work_s=0, pause_s=3600)
    with turns.call():
        pass

    await asyncio.gather(*(turns.give_way() for _ in range(3)))


async def test_calls_without_end_do_not_keep_watches_from_what_is_new():
    turns = Turns(work_s=0, pause_s=0.001)
    with turns.call():
        for _ in range(3):
            await turns.give_way()


async def test_a_call_that_takes_long_by_itself_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("neuroweaver.mesh.handlers.turns._LONG_S", -1.0)
    turns = Turns(work_s=0, pause_s=3600)
    with turns.call():
        await turns.give_way()
