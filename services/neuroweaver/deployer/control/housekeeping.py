"""What the Deployer clears away by itself, every hour."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Final

from neuroweaver.deployer.storage.store import Store
from neuroweaver.mesh.handlers import legacy as housekeeping
from neuroweaver.mesh.handlers.housekeeping import Chores

_LOG: Final = logging.getLogger("neuroweaver.deployer")

# How late a retry still reads the first answer.
ANSWERS_KEPT: Final = timedelta(days=7)
# The longest window that may be asked for is a day.
MEASUREMENTS_KEPT: Final = timedelta(hours=25)
# From how far back a watch can resume, and how far back the audit goes.
EVENTS_KEPT: Final = timedelta(days=90)
# After its removal. One of the same name that is made later counts its events and lines from 1 again.
GONE_KEPT: Final = EVENTS_KEPT


async def keep_house(store: Store) -> None:
    """Until cancelled."""
    await housekeeping.keep_house(_LOG, lambda: chores(store))


def chores(store: Store) -> Chores:
    now = store.clock()
    return {
        "answers": lambda: store.forget_answers(now - ANSWERS_KEPT),
        "measurements": lambda: store.forget_measured(now - MEASUREMENTS_KEPT),
        "events": lambda: store.compact(now - EVENTS_KEPT),
        "deployments": lambda: store.forget_gone(now - GONE_KEPT),
    }
