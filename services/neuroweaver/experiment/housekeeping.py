"""What the Experiment service clears away by itself, every hour."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.experiment import recompute
from neuroweaver.experiment.store import Store
from neuroweaver.mesh.errors import Error

_LOG: Final = logging.getLogger("neuroweaver.experiment")

PERIOD_S: Final = 3600.0

# How late a retry still reads the first answer.
ANSWERS_KEPT: Final = timedelta(days=7)


async def keep_house(store: Store) -> None:
    """Again and again. What fails is left for the next time: the database may be back."""
    while True:
        try:
            await clear(store)
        except (SQLAlchemyError, Error) as error:
            _LOG.warning("not cleared away", extra={"cause": type(error).__name__})
        await asyncio.sleep(PERIOD_S)


async def clear(store: Store) -> int:
    """Old answers, and raw events beyond their experiment's retention. Gives how many events."""
    now = store.clock()
    await store.forget_answers(now - ANSWERS_KEPT)
    dropped = 0
    for project, test_id in await store.everything():
        dropped += await _expire(store, project, test_id, now)
    return dropped


async def _expire(store: Store, project: str, test_id: str, now: datetime) -> int:
    dropped = 0
    while number := await store.database.transact(
        lambda connection: recompute.expire(connection, project, test_id, now)
    ):
        dropped += number
    return dropped
