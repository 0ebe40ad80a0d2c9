from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import MetaData

from neuroweaver.mesh.database import idempotency
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.handlers import loop
from neuroweaver.mesh.handlers.housekeeping import ANSWERS_KEPT, keep_house
from neuroweaver.mesh.wire.errors import Unavailable

LOG = logging.getLogger("neuroweaver.testing")
METADATA = MetaData()
ANSWERS = idempotency.table(METADATA)
NOW = datetime(2026, 12, 1, tzinfo=UTC)


@pytest.fixture
async def database(tmp_path):
    opened = Database(f"sqlite:///{tmp_path / 'testing.db'}", schema="testing")
    async with opened.alone() as connection:
        await connection.run_sync(METADATA.create_all)
    yield opened
    await opened.close()


async def test_answers_kept_for_retries_are_dropped_after_a_week(database):
    rows = [
        {
            "project": "p",
            "method": "m",
            "request_id": name,
            "request_digest": b"",
            "response": b"",
            "created_at": at,
        }
        for name, at in (("old", NOW - ANSWERS_KEPT - timedelta(seconds=1)), ("young", NOW - ANSWERS_KEPT))
    ]
    async with database.write() as connection:
        await connection.execute(ANSWERS.insert(), rows)
    asked = asyncio.Event()

    def chores(now):
        assert now == NOW
        asked.set()
        return {}

    keeping = asyncio.create_task(keep_house(LOG, database, chores, clock=lambda: NOW, period_s=0.01))
    while True:
        async with database.read() as connection:
            left = [row.request_id for row in await connection.execute(ANSWERS.select())]
        if left == ["young"]:
            break
        assert not keeping.done()
        await asyncio.sleep(0.01)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert asked.is_set()


async def test_every_chore_is_done_again_and_again_also_after_one_that_failed(caplog, database, monkeypatch):
    monkeypatch.setattr(loop, "FIRST_BACKOFF_S", 0.001)
    rounds = 0
    done: list[str] = []
    enough = asyncio.Event()

    def chores(_now):
        nonlocal rounds
        rounds += 1

        async def fail() -> int:
            done.append("fail")
            raise (Unavailable("it is restarted") if rounds == 1 else TypeError("a mistake"))

        async def clear() -> int:
            done.append("clear")
            if done.count("clear") == 3:
                enough.set()
            return 7

        return {"first": fail, "second": clear}

    caplog.set_level(logging.INFO)
    # Hours until the next time, but for what failed.
    keeping = asyncio.create_task(keep_house(LOG, database, chores, period_s=3600.0))
    await asyncio.wait({keeping, asyncio.create_task(enough.wait())}, return_when=asyncio.FIRST_COMPLETED)
    assert not keeping.done()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert done[:6] == ["fail", "clear"] * 3
    told = [
        (each.levelname, each.what) for each in caplog.records if each.name in {LOG.name, "neuroweaver.loop"}
    ]
    assert told[:4] == [("WARNING", "first"), ("INFO", "second"), ("ERROR", "first"), ("INFO", "second")]


async def rounds(database, moments, seen) -> None:
    """House is kept at each moment, of a clock and of one that nobody sets; then it ends."""
    moments = iter(moments)
    at = None

    def clock():
        nonlocal at
        at = next(moments, None)
        if at is None:
            raise EndOfTest
        return at[0]

    def chores(now):
        async def clean() -> int:
            seen.append(now)
            return 0

        return {"any": clean}

    with pytest.raises(EndOfTest):
        await keep_house(LOG, database, chores, clock=clock, elapsed=lambda: at[1], period_s=0.0)


class EndOfTest(BaseException):
    pass


async def test_after_a_leap_of_the_clock_nothing_is_dropped_for_a_day(database):
    hour, years, seen = timedelta(hours=1), timedelta(days=3653), []
    there = [(NOW + years + number * hour, 3600.0 * number) for number in range(1, 3)]
    back = [(NOW + number * hour, 3600.0 * number) for number in range(3, 29)]
    await rounds(database, [(NOW, 0.0), (NOW, 0.0), *there, *back], seen)
    assert seen == [NOW, NOW + 27 * hour, NOW + 28 * hour]


async def test_what_a_clock_that_ran_ahead_left_grows_old_again(database):
    row = {"project": "p", "method": "m", "request_digest": b"", "response": b""}
    ahead = row | {"request_id": "ahead", "created_at": NOW + timedelta(days=3653)}
    recent = row | {"request_id": "recent", "created_at": NOW - timedelta(days=1)}
    async with database.write() as connection:
        await connection.execute(ANSWERS.insert(), [ahead, recent])
    await rounds(database, [(NOW, 0.0), (NOW, 0.0)], [])
    async with database.read() as connection:
        left = {row.request_id: row.created_at for row in await connection.execute(ANSWERS.select())}
    assert left == {"ahead": NOW, "recent": NOW - timedelta(days=1)}
