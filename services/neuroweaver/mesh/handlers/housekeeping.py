"""Hourly cleanup: what a service no longer needs is dropped by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from logging import Logger
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.mesh.database import idempotency
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.wire.clock import Clock, utc_now
from neuroweaver.mesh.wire.errors import Error

PERIOD_S: Final = 3600.0
# How late a retry still reads the first answer.
ANSWERS_KEPT: Final = timedelta(days=7)

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
    """Does every chore, and drops answers kept for retries, again and again.

    A chore that fails is left for the next time: the database may be back by then. chores: those of a moment,
    on which it depends what is old enough.
    """
    while True:
        now = clock()
        due: dict[str, Callable[[], Awaitable[int]]] = {"answers": partial(_forget_answers, database, now)}
        for name, chore in (due | chores(now)).items():
            try:
                if dropped := await chore():
                    log.info("dropped", extra={"what": name, "count": dropped})
            except (SQLAlchemyError, OSError, Error) as error:
                log.warning("not dropped", extra={"what": name, "cause": type(error).__name__})
        await asyncio.sleep(period_s)


async def _forget_answers(database: Database, now: datetime) -> int:
    return await database.transact(lambda connection: idempotency.forget(connection, now - ANSWERS_KEPT))
