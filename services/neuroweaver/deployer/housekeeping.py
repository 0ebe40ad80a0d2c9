"""What the Deployer clears away by itself, every hour."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.deployer.store import Store
from neuroweaver.mesh.errors import Error

_LOG: Final = logging.getLogger("neuroweaver.deployer")

PERIOD_S: Final = 3600.0

# How late a retry still reads the first answer.
ANSWERS_KEPT: Final = timedelta(days=7)
# The longest window that may be asked for is a day.
MEASUREMENTS_KEPT: Final = timedelta(hours=25)
# From how far back a watch can resume, and how far back the audit goes.
EVENTS_KEPT: Final = timedelta(days=90)
# After its removal. One of the same name that is made later counts its events and lines from 1 again.
GONE_KEPT: Final = EVENTS_KEPT


async def keep_house(store: Store) -> None:
    """Does every chore, again and again. What fails is left for the next time: the database may be back."""
    while True:
        now = store.clock()
        chores = {
            "answers": (store.forget_answers, now - ANSWERS_KEPT),
            "measurements": (store.forget_measured, now - MEASUREMENTS_KEPT),
            "events": (store.compact, now - EVENTS_KEPT),
            "deployments": (store.forget_gone, now - GONE_KEPT),
        }
        for name, (chore, before) in chores.items():
            try:
                if done := await chore(before):
                    _LOG.info("cleared away", extra={"what": name, "count": done})
            except (SQLAlchemyError, OSError, Error) as error:
                _LOG.warning("not cleared away", extra={"what": name, "cause": type(error).__name__})
        await asyncio.sleep(PERIOD_S)
