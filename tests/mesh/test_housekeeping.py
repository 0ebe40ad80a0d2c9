from __future__ import annotations

import asyncio
import logging

import pytest

from neuroweaver.mesh.errors import Unavailable
from neuroweaver.mesh.housekeeping import keep_house

LOG = logging.getLogger("neuroweaver.testing")


async def test_every_chore_is_done_again_and_again_also_after_one_that_failed(caplog):
    rounds = 0
    done: list[str] = []
    enough = asyncio.Event()

    def chores():
        nonlocal rounds
        rounds += 1

        async def fail() -> int:
            done.append("fail")
            raise Unavailable("DATABASE_UNREACHABLE", "it is restarted")

        async def clear() -> int:
            done.append("clear")
            if done.count("clear") == 3:
                enough.set()
            return 7

        return {"first": fail, "second": clear}

    caplog.set_level(logging.INFO, LOG.name)
    keeping = asyncio.create_task(keep_house(LOG, chores, period_s=0.0))
    await asyncio.wait({keeping, asyncio.create_task(enough.wait())}, return_when=asyncio.FIRST_COMPLETED)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert done[:6] == ["fail", "clear"] * 3
    assert rounds >= 3
    told = [(each.levelname, each.what) for each in caplog.records if each.name == LOG.name]
    assert told[:2] == [("WARNING", "first"), ("INFO", "second")]


async def test_a_mistake_in_a_chore_is_not_hidden():
    async def mistaken() -> int:
        raise TypeError

    with pytest.raises(TypeError):
        await keep_house(LOG, lambda: {"any": mistaken})
