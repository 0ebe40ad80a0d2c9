"""What the Deployer drops by itself, every hour."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.deployer.storage import cleanup, tables
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.handlers import housekeeping
from neuroweaver.mesh.handlers.housekeeping import Chores
from neuroweaver.mesh.wire.clock import AHEAD

_LOG: Final = logging.getLogger("neuroweaver.deployer")

# The longest window that may be asked for is a day.
MEASUREMENTS_KEPT: Final = timedelta(hours=25)
# From how far back a watch can resume, and how far back the audit goes.
EVENTS_KEPT: Final = timedelta(days=90)
# After its removal. One of the same name that is made later counts its events and lines from 1 again.
GONE_KEPT: Final = EVENTS_KEPT


async def keep_house(database: Database) -> None:
    """Until cancelled."""
    await housekeeping.keep_house(
        _LOG,
        database,
        lambda now: chores(database, now),
        times=(tables.events.c.time, tables.log_cursors.c.time),
    )


def chores(database: Database, now: datetime) -> Chores:
    def drop(
        cleaned: Callable[[AsyncConnection, datetime], Awaitable[int]], kept: timedelta
    ) -> Callable[[], Awaitable[int]]:
        return partial(database.transact, lambda connection: cleaned(connection, now - kept))

    return {
        "measurements": partial(
            database.transact,
            lambda connection: cleanup.forget_measured(connection, now - MEASUREMENTS_KEPT, now + AHEAD),
        ),
        "events": drop(cleanup.compact, EVENTS_KEPT),
        "deployments": drop(cleanup.forget_gone, GONE_KEPT),
    }
