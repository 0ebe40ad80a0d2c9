"""Hourly cleanup: what a service no longer needs is dropped by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from logging import Logger
from typing import Any, Final

from sqlalchemy import Column, update
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh.database import idempotency
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.handlers.loop import Outages, repeat
from neuroweaver.mesh.wire.clock import AHEAD, Clock, elapsed_s, utc_now

PERIOD_S: Final = 3600.0
# How late a retry still reads the first answer.
ANSWERS_KEPT: Final = timedelta(days=7)
# A clock that moved otherwise than time passed is not believed for so long: what it calls old may be young.
LEAP: Final = timedelta(hours=1)
DISTRUST_S: Final = 24 * 3600.0
_MAX_BACKOFF_S: Final = 300.0

Chores = dict[str, Callable[[], Awaitable[int]]]
"""By the name of what they drop; each returns the number dropped."""


async def keep_house(
    log: Logger,
    database: Database,
    chores: Callable[[datetime], Chores],
    *,
    times: Sequence[Column[Any]] = (),
    clock: Clock = utc_now,
    elapsed: Callable[[], float] = elapsed_s,
    period_s: float = PERIOD_S,
) -> None:
    """Does every chore, and drops answers kept for retries, again and again; sooner after one that failed.

    chores: those of a moment, on which it depends what is old enough. times: by which they tell; one far
    after now would not grow old, and is set to now. After a leap of the clock nothing is dropped for a day.
    """
    outages = Outages("housekeeping", max_backoff_s=_MAX_BACKOFF_S)
    before, distrusted_until = (clock(), elapsed()), 0.0

    async def turn() -> float:
        nonlocal before, distrusted_until
        now, at = clock(), elapsed()
        if abs(now - before[0] - timedelta(seconds=at - before[1])) > LEAP:
            log.warning("the clock leapt; nothing is dropped for a day")
            distrusted_until = at + DISTRUST_S
        before = now, at
        if at < distrusted_until:
            return period_s
        for name, chore in _due(database, chores, times, now).items():
            with outages.survived(what=name):
                if dropped := await chore():
                    log.info("cleaned", extra={"what": name, "count": dropped})
        return outages.backoff_s or period_s

    await repeat("housekeeping", turn, period_s)


def _due(
    database: Database, chores: Callable[[datetime], Chores], times: Sequence[Column[Any]], now: datetime
) -> Chores:
    columns = (idempotency.CREATED_AT, *times)
    return {
        "times ahead of the clock": lambda: database.transact(partial(_bring_back, columns=columns, now=now)),
        "answers": partial(_forget_answers, database, now),
        **chores(now),
    }


async def _bring_back(connection: AsyncConnection, columns: Sequence[Column[Any]], now: datetime) -> int:
    changed = 0
    for column in columns:
        ahead = update(column.table).where(column > now + AHEAD).values({column: now})
        changed += (await connection.execute(ahead)).rowcount
    return changed


async def _forget_answers(database: Database, now: datetime) -> int:
    return await database.transact(lambda connection: idempotency.forget(connection, now - ANSWERS_KEPT))
