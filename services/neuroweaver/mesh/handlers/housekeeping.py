"""Hourly cleanup: what a service no longer needs is dropped by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from logging import Logger
from typing import Final

from neuroweaver.mesh.database import idempotency
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.handlers.loop import Outages, repeat
from neuroweaver.mesh.wire.clock import Clock, utc_now

PERIOD_S: Final = 3600.0
# How late a retry still reads the first answer.
ANSWERS_KEPT: Final = timedelta(days=7)
_MAX_BACKOFF_S: Final = 300.0

Chores = dict[str, Callable[[], Awaitable[int]]]
"""By the name of what they drop; each returns the number dropped."""


async def keep_house(
    log: Logger,
    database: Database,
    chores: Callable[[datetime], Chores],
    *,
    clock: Clock = utc_now,
    period_s: float = PERIOD_S,
) -> None:
    """Does every chore, and drops answers kept for retries, again and again; sooner after one that failed.

    chores: those of a moment, on which it depends what is old enough.
    """
    outages = Outages("housekeeping", max_backoff_s=_MAX_BACKOFF_S)

    async def turn() -> float:
        now = clock()
        due: Chores = {"answers": partial(_forget_answers, database, now)} | chores(now)
        for name, chore in due.items():
            with outages.survived(what=name):
                if dropped := await chore():
                    log.info("dropped", extra={"what": name, "count": dropped})
        return outages.backoff_s or period_s

    await repeat("housekeeping", turn, period_s)


async def _forget_answers(database: Database, now: datetime) -> int:
    return await database.transact(lambda connection: idempotency.forget(connection, now - ANSWERS_KEPT))
